"""What an admin is told of a request that was explained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from proxy.core import json
from proxy.core.catalogue import Catalogue
from proxy.core.circuit import State
from proxy.core.errors import ProxyError, render
from proxy.core.exchange import Exchange
from proxy.core.json import Json
from proxy.core.money import decimal, usd
from proxy.core.quota import Claim, Rule, Standing, Unit
from proxy.explain.notes import Notes

_WORST: Final = (State.OPEN, State.HALF_OPEN, State.CLOSED)


@dataclass(frozen=True, slots=True)
class Reports:
    """`rules` are those of each team, `chains` the models to turn to by the catalogue's id of the one that is asked.
    `wall` gives Unix milliseconds."""

    rules: Mapping[str, Sequence[Rule]]
    chains: Mapping[str, Sequence[str]]
    catalogue: Catalogue
    wall: Callable[[], int]

    def report(self, exchange: Exchange, record: Sequence[Notes], error: ProxyError | None) -> Json:
        """`record` is of the models that would be asked, in this order; `error` is what the client would be told."""
        assert exchange.team
        notes = _of_the_answer(record, error)
        return {
            "would": _would(notes, error),
            "status": error.status if error else None if notes and notes.calls else 200,
            "error": json.decode(render(error))["error"] if error else None,
            "team": exchange.team.name,
            "key": exchange.key_id,
            "endpoint": exchange.path,
            "model": _model(exchange, notes),
            "tried": [_tried(one) for one in record if one.error] if len(record) > 1 else [],
            "fallbacks": self._left(exchange, record) if notes and notes.others else [],
            "estimate": _estimate(notes) if notes else None,
            "quota": self._quota(exchange.team.name, notes) if notes else [],
            "cache": self._cache(notes) if notes else None,
            "breaker": _breaker(notes) if notes else None,
            "rewrites": list(notes.rewrites) if notes else [],
            "calls": notes.calls if notes else 0,
            "sends": notes.sending if notes and notes.calls else None,
        }

    def _left(self, exchange: Exchange, record: Sequence[Notes]) -> list[str]:
        """The models that it would still turn to, should the last one fail."""
        assert exchange.team
        chain = self.chains.get(self.catalogue.model(record[0].model or "").id, ())
        return [*filter(exchange.team.allows, chain)][len(record) - 1 :]

    def _quota(self, team: str, notes: Notes) -> list[Json]:
        verdict = notes.verdict
        if verdict is None:
            return []
        pairs = zip(notes.claims, verdict.standings, strict=True)
        return [self._line(team, claim, standing, verdict.granted) for claim, standing in pairs]

    def _line(self, team: str, claim: Claim, standing: Standing, granted: bool) -> Json:
        """As it stands without the request, which a verdict that grants has in it already."""
        counter, shown = claim.counter, usd if claim.counter.unit is Unit.SPEND else int
        reserved = max(0, standing.reserved - claim.amount) if granted else standing.reserved
        amounts = {"used": standing.used, "reserved": reserved, "limit": claim.limit, "claims": claim.amount}
        return {
            "rule": self._name(team, claim),
            "mode": "shadow" if counter.shadow else "enforce",
            **{name: shown(amount) for name, amount in amounts.items()},
            "fits": standing.wait == 0,
            "wait_ms": standing.wait,
        }

    def _name(self, team: str, claim: Claim) -> str:
        one = claim.counter
        counted = (one.unit, one.window, one.key is not None, one.model, one.shadow, claim.limit)
        for rule in self.rules.get(team, ()):
            if counted == (rule.unit, rule.window, rule.per_key, rule.model, rule.shadow, rule.limit):
                return rule.name
        return one.name

    def _cache(self, notes: Notes) -> Json | None:
        if notes.cache is None:
            return None
        found: Json = {"outcome": notes.cache, "key": notes.cache_key, "age": notes.age}
        if notes.cache == "miss" and notes.kept:
            found["stale_age"] = max(0, self.wall() - notes.kept.created) // 1000
        return found | ({"saves_usd": decimal(notes.saved)} if notes.saved else {})


def _of_the_answer(record: Sequence[Notes], error: ProxyError | None) -> Notes | None:
    """Of the model whose answer, or whose error, the client would be told: of several that fail it is the first."""
    if not record:
        return None
    return next((one for one in record if one.error is error), record[0])


def _would(notes: Notes | None, error: ProxyError | None) -> str:
    if error or notes is None:
        return "refuse"
    if notes.calls:
        return "call"
    return "join a call" if notes.cache == "joined" else "answer from cache"


def _model(exchange: Exchange, notes: Notes | None) -> Json | None:
    if exchange.model_asked is None:
        return None
    is_, provider, sent_as = (notes.model, notes.provider, notes.sent_as) if notes else (exchange.model, None, None)
    return {"asked": exchange.model_asked, "is": is_, "sent_as": sent_as, "provider": provider}


def _tried(notes: Notes) -> Json:
    assert notes.error
    return {"model": notes.model, "status": notes.error.status, "code": notes.error.code}


def _estimate(notes: Notes) -> Json | None:
    found = notes.estimate
    if found is None:
        return None
    cost = None if found.cost is None else decimal(found.cost)
    return {"prompt_tokens": found.prompt, "tokens": found.tokens, "cost_usd": cost}


def _breaker(notes: Notes) -> Json | None:
    """None: it does not come to that."""
    if not notes.circuits:
        return None
    seen: list[Any] = [
        {"circuit": name, "state": sight.state.value, "wait_ms": round(sight.wait * 1000)}
        for name, sight in notes.circuits.items()
    ]
    worst = min((sight.state for sight in notes.circuits.values()), key=_WORST.index)
    return {"state": worst.value, "circuits": seen}
