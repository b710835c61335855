"""The rules that a request falls under, made ready: what is claimed of each, what is settled, what the client is told.

Most teams have one sheet for all of their requests; one that limits a model apart has another one for that model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf
from typing import Final

from proxy.core.charge import FREE, NOTHING, Charge, Estimate
from proxy.core.decision import quoted
from proxy.core.errors import Headers
from proxy.core.exchange import Stand
from proxy.core.money import decimal
from proxy.core.quota import Claim, Counter, Rule, Standing, Unit
from proxy.core.rate_headers import Shown

_RESERVED: Final[Mapping[Unit, Callable[[Estimate], int]]] = {
    Unit.TOKENS: lambda estimate: estimate.tokens,
    Unit.SPEND: lambda estimate: estimate.cost or 0,
}
"""The most that a request can use. A request is one request, and holds one slot."""

_UNITS: Final = (Unit.REQUESTS, Unit.TOKENS, Unit.SPEND, Unit.CONCURRENCY)


def _used(charge: Charge) -> tuple[int, int, int, int]:
    """What a request that has ended has used, by _UNITS. It was a request, whatever became of it."""
    return 1, charge.prompt + charge.completion, charge.cost or 0, 0


class Line:
    """One rule of one team, and the counters that it has: one, or one for each key. `amount` is what a request claims
    of them, where that is not the same for every one."""

    def __init__(self, team: str, rule: Rule) -> None:
        self.rule = rule
        self._team = team
        self._name = quoted(rule.name)
        self._shown: Callable[[int], str] = _in_usd if rule.unit is Unit.SPEND else str
        self._limit = self._shown(rule.limit)
        self.amount = _RESERVED.get(rule.unit)
        self._counters: dict[str | None, Counter] = {}

    def stand(self, standing: Standing) -> Stand:
        shown = self._shown
        return Stand(self._name, shown(standing.used), shown(standing.reserved), self._limit)

    def claim(self, key: str) -> Claim:
        """Of a request of which nothing can be estimated."""
        return Claim(self._counter_of(key), self.rule.limit, 1 if self.amount is None else 0)

    def claim_for_nothing(self, key: str) -> Claim:
        """Of a request that makes no call: it is a request, and that is all."""
        return Claim(self._counter_of(key), self.rule.limit, 1 if self.rule.unit is Unit.REQUESTS else 0)

    def _counter_of(self, key: str) -> Counter:
        rule = self.rule
        whose = key if rule.per_key else None
        if whose not in self._counters:
            self._counters[whose] = Counter(self._team, rule.unit, rule.window, whose, rule.model, rule.shadow)
        return self._counters[whose]


def _in_usd(nano: int) -> str:
    return quoted(decimal(nano))


_Amount = Callable[[Estimate], int]
_Ready = tuple[list[Claim], list[Claim], list[tuple[int, Counter, int, _Amount]]]
"""The claims of a request of a key that makes no call; those of any other one; and of those that differ from one to the
next their place, what they claim of, its limit and how much."""


class Sheet:
    """`lines` of one team, all of which a request falls under. `spends`: one of them refuses by money. `shadows` are
    the places of those that refuse nothing."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self.lines = tuple(lines)
        self.spends = any(line.rule.unit is Unit.SPEND and not line.rule.shadow for line in self.lines)
        self._ready: dict[str, _Ready] = {}
        self._enforced = [(at, line.rule.limit) for at, line in enumerate(self.lines) if not line.rule.shadow]
        self.shadows = [at for at, line in enumerate(self.lines) if line.rule.shadow]
        self._shown = Shown([line.rule for line in self.lines])
        self._units = [_UNITS.index(line.rule.unit) for line in self.lines]
        self._used_by_none = tuple([_used(NOTHING)[unit] for unit in self._units])
        counted = [line for line in self.lines if line.rule.unit is not Unit.SPEND]
        self.unpriced: Sheet = self if len(counted) == len(self.lines) else Sheet(counted)
        """The same without what is counted in money."""

    def claims(self, key: str, estimate: Estimate | None) -> Sequence[Claim]:
        for_nothing, claims, differing = self._ready.get(key) or self._prepare(key)
        if estimate is FREE:
            return for_nothing
        claims = claims.copy()
        if estimate is not None:
            for at, counter, limit, amount in differing:
                claims[at] = Claim(counter, limit, amount(estimate))
        return claims

    def _prepare(self, key: str) -> _Ready:
        claims = [line.claim(key) for line in self.lines]
        ready = self._ready[key] = (
            [line.claim_for_nothing(key) for line in self.lines],
            claims,
            [
                (at, claims[at].counter, line.rule.limit, line.amount)
                for at, line in enumerate(self.lines)
                if line.amount is not None
            ],
        )
        return ready

    def used(self, charge: Charge | None) -> Sequence[int]:
        """In the order of the claims. Without a charge nothing got to the provider."""
        if charge is None or charge is NOTHING:
            return self._used_by_none
        used = _used(charge)
        return [used[unit] for unit in self._units]

    def shadow_refusals(self, standings: Sequence[Standing]) -> tuple[str, ...]:
        """The shadow rules that would have refused it, by name."""
        return tuple([self.lines[at].rule.name for at in self.shadows if standings[at].wait != 0])

    def stand(self, standings: Sequence[Standing]) -> Stand | None:
        """With the rule that has refused a request or, of those that have not, has the smallest part left."""
        nearest, least = None, inf
        for at, limit in self._enforced:
            standing = standings[at]
            left = (limit - standing.used - standing.reserved) / (limit or 1) if standing.wait == 0 else -1.0
            if left < least:
                nearest, least = at, left
        return None if nearest is None else self.lines[nearest].stand(standings[nearest])

    def headers(self, standings: Sequence[Standing]) -> Headers:
        return self._shown.headers(standings)


class Sheets:
    """The sheets of one team, by the catalogue's id of the model that is asked."""

    def __init__(self, team: str, rules: Iterable[Rule]) -> None:
        lines = [Line(team, rule) for rule in rules]
        models = {line.rule.model for line in lines}
        self._of = {
            model: Sheet(line for line in lines if line.rule.model in (None, model)) for model in models | {None}
        }
        self._any = self._of[None]

    def sheet(self, model: str | None) -> Sheet:
        return self._of.get(model, self._any)
