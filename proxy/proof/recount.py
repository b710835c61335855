"""The verdict on one trial: what the limit allowed, the clients saw, the provider served and the ledger has, compared.

What of a row is not the provider's own count is held to the bounds of docs/quotas.md:

    process died, or no stream    all that was reserved, which is no less than the provider's bill
    a stream that was cut         the prompt's estimate, which is no less than the provider's count, and no fewer tokens
                                  than the client has seen, nor more than the provider has written
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from proxy.core.money import usd
from proxy.core.quota import Unit
from proxy.proof.audit import Counters, nano
from proxy.proof.clients import Seen
from proxy.proof.plan import Trial
from proxy.proof.prices import Prices
from proxy.proof.provider import Billed
from proxy.proof.rows import Row

_DIED = "process_died"

_NO_EXCUSE = ("store_unavailable", "internal_error")
"""Errors that neither the provider nor the end of a process explains: the store is there."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Of one trial. `seen` has the clients of each wave by themselves. `killed`: in its course, or in that of another
    trial, a process was."""

    trial: Trial
    seen: Sequence[Sequence[Seen]]
    billed: Sequence[Billed]
    rows: Sequence[Row]
    counters: Counters | None
    killed: bool = False
    seconds: float = 0.0


@dataclass(slots=True)
class Verdict:
    """`overshoot` and `shortfall` in requests, slots or, over a limit on spend, nano-USD. `ledger` and `recount` are of
    the rows that the provider counted itself; `charged` and `bill` of those that are estimated. All is well when there
    are no `problems`."""

    admitted: int = 0
    refused: int = 0
    overshoot: int = 0
    shortfall: int = 0
    ledger: int = 0
    recount: int = 0
    charged: int = 0
    bill: int = 0
    estimated: int = 0
    without_end: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def difference(self) -> int:
        return self.ledger - self.recount


def verdict(evidence: Evidence, prices: Prices) -> Verdict:
    """The numbers of one trial, and everything that is wrong with them."""
    return _Recount(evidence, prices).verdict()


class _Recount:
    def __init__(self, evidence: Evidence, prices: Prices) -> None:
        self._evidence = evidence
        self._trial = evidence.trial
        self._prices = prices
        self._found = Verdict()
        self._seen = {one.mark: one for wave in evidence.seen for one in wave}
        self._rows = _by_mark(evidence.rows)
        self._billed = _by_mark(evidence.billed)

    def verdict(self) -> Verdict:
        found = self._found
        found.admitted = len(self._billed)
        found.refused = sum(one.end == "refused" for one in self._seen.values())
        for row in self._evidence.rows:
            self._count(row)
            found.problems += [f"{self._name(row)}: {what}" for what in self._wrong_with(row)]
        for mark in self._seen.keys() | self._billed.keys():
            found.problems += [f"call {mark}: {what}" for what in self._wrong_with_call(mark)]
        {Unit.REQUESTS: self._requests, Unit.CONCURRENCY: self._slots, Unit.SPEND: self._money}[self._trial.kind]()
        found.problems += self._wrong_with_counters()
        if found.overshoot:
            found.problems.append(f"team {self._trial.team}: {self._shown(found.overshoot)} over the limit")
        if found.shortfall:
            found.problems.append(f"team {self._trial.team}: {found.shortfall} refused for whom there was room")
        return found

    def _shown(self, amount: int) -> str:
        return usd(amount) if self._trial.kind is Unit.SPEND else str(amount)

    @staticmethod
    def _name(row: Row) -> str:
        return f"row {row.call} of call {row.mark} ({row.operation}{', stream' if row.stream else ''}, {row.status})"

    # Rows.

    def _count(self, row: Row) -> None:
        found, bill = self._found, self._bill(row.mark)
        found.without_end += row.is_open
        if row.estimated:
            found.estimated += 1
            found.charged += row.cost or 0
            found.bill += bill
        else:
            found.ledger += row.cost or 0
            found.recount += bill

    def _bill(self, mark: str) -> int:
        """What the provider would ask for it."""
        return sum(
            self._prices.cost(one.model, one.prompt, one.completion) for one in self._billed.get(mark, ()) if one.model
        )

    def _wrong_with(self, row: Row) -> Iterator[str]:
        if row.mark not in self._seen:
            yield "nobody has asked for it"
        if row.is_open:
            yield "has not ended"
            return
        cost, bill = row.cost, self._bill(row.mark)
        if cost is None:
            yield "has no cost"
        elif cost > row.most_cost:
            yield f"costs {usd(cost)}, more than what was reserved for it, {usd(row.most_cost)}"
        elif row.estimated:
            yield from self._wrong_with_estimate(row, cost, bill)
        elif cost != bill:
            yield f"costs {usd(cost)}, and the provider's bill is {usd(bill)}"
        if row.status == "settled" and not any(one.model for one in self._billed.get(row.mark, ())):
            yield "has an answer that the provider knows nothing of"

    def _wrong_with_estimate(self, row: Row, cost: int, bill: int) -> Iterator[str]:
        if row.error == _DIED or not row.stream:
            if cost != row.most_cost:
                yield f"costs {usd(cost)}, and not all that was reserved for it, {usd(row.most_cost)}"
            if cost < bill:
                yield f"costs {usd(cost)}, less than the provider's bill, {usd(bill)}"
            return
        billed = self._billed.get(row.mark, ())
        prompt, completion = row.prompt or 0, row.completion or 0
        if prompt != row.expected_prompt or prompt < sum(one.prompt for one in billed):
            yield f"has a prompt of {prompt} tokens, expected {row.expected_prompt}"
        seen = self._seen[row.mark].tokens if row.mark in self._seen else 0
        if not seen <= completion <= sum(one.completion for one in billed):
            written = sum(one.completion for one in billed)
            yield f"has {completion} tokens of which the client saw {seen} and the provider wrote {written}"
        model = next((one.model for one in billed if one.model), None)
        if model and cost != self._prices.cost(model, prompt, completion):
            yield f"costs {usd(cost)}, which is not the price of its tokens"

    # Calls.

    def _wrong_with_call(self, mark: str) -> Iterator[str]:
        seen, rows = self._seen.get(mark), len(self._rows.get(mark, ()))
        if mark in self._billed and rows != 1:
            yield f"reached the provider and has {rows} rows"
        elif rows > 1:
            yield f"has {rows} rows"
        if seen is None:
            yield "reached the provider, and nobody has asked for it"
        elif seen.end == "refused":
            if rows or mark in self._billed:
                yield "was refused, and yet let in"
            if seen.wait is None and self._trial.kind is not Unit.SPEND:
                yield "was refused without a Retry-After"
        elif seen.end == "answered" and mark not in self._billed:
            yield "was answered by nobody"
        elif seen.end != "answered" and (self._trial.kind is not Unit.SPEND or seen.code in _NO_EXCUSE):
            yield f"was neither answered nor refused by the quota: {seen.what}"

    # Limits.

    def _requests(self) -> None:
        trial, admitted = self._trial, self._found.admitted
        self._found.overshoot = max(0, admitted - trial.limit)
        self._found.shortfall = max(0, min(trial.limit, trial.clients) - admitted)

    def _slots(self) -> None:
        """Of the first wave at least as many come in as there are slots; to the second all are free again."""
        limit = self._trial.limit
        self._found.overshoot = max(0, most_at_once(self._evidence.billed) - limit)
        for wave in self._evidence.seen:
            answered = sum(one.end == "answered" for one in wave)
            self._found.shortfall += max(0, min(limit, len(wave)) - answered)

    def _money(self) -> None:
        found = self._found
        found.overshoot = max(0, found.ledger + found.charged - self._trial.limit)
        found.shortfall = sum(one.end == "refused" and had_room(one) for one in self._seen.values())

    def _wrong_with_counters(self) -> Iterator[str]:
        trial, counters = self._trial, self._evidence.counters
        if counters is None:
            yield f"team {trial.team}: its counters could not be asked"
            return
        if counters.reserved:
            yield f"team {trial.team}: {self._shown(counters.reserved)} still reserved"
        if counters.slots:
            yield f"team {trial.team}: {counters.slots} slots still held"
        if trial.kind is Unit.REQUESTS and counters.used != self._found.admitted:
            yield f"team {trial.team}: {counters.used} counted as used, {self._found.admitted} let in"
        if trial.kind is Unit.SPEND:
            yield from self._wrong_with_total(counters.used, self._found.ledger + self._found.charged)

    def _wrong_with_total(self, used: int, ledger: int) -> Iterator[str]:
        """What a killed process had reserved and not yet written down stays counted: the error is on the safe side."""
        if used < ledger or (used > ledger and not self._evidence.killed):
            yield f"team {self._trial.team}: {usd(used)} counted as used, {usd(ledger)} in the ledger"
        if used > self._trial.limit:
            yield f"team {self._trial.team}: {usd(used)} counted as used, over its limit of {usd(self._trial.limit)}"


def most_at_once(billed: Sequence[Billed]) -> int:
    """How many calls the provider had under way at the same moment."""
    steps = sorted([(one.ended, -1) for one in billed] + [(one.started, 1) for one in billed])
    now = most = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most


def had_room(refused: Seen) -> bool:
    """Whether, by its own numbers, a refusal for want of money was wrong."""
    told = refused.error or {}
    try:
        used, reserved, limit, asked = (nano(told[name]) for name in ("used", "reserved", "limit", "asked"))
    except KeyError:
        return True
    return used + reserved + asked <= limit


Marked = TypeVar("Marked", Billed, Row)


def _by_mark(items: Iterable[Marked]) -> Mapping[str, list[Marked]]:
    found: dict[str, list[Marked]] = defaultdict(list)
    for one in items:
        found[one.mark].append(one)
    return dict(found)
