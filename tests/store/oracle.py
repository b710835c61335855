"""A slow, plainly right model of what every QuotaStore does, and a machine that holds a store to it.

All that a store must agree on:

- `now` is the largest time, in Unix milliseconds, that the store's clock has shown when it was asked to reserve or to
  look: the clock may go back, `now` does not.
- No call makes two claims on one counter, and no call reserves twice.
- SLIDING (second, minute, hour). Amounts lie in entries with a `first` and a `last` moment. A new amount joins the
  counter's newest entry while `(now - first) * 100 < span`, and `last` becomes `now`; else it opens a new entry. All
  that an entry holds counts while `last + span > now`. An amount of 0 is no exception.
- CALENDAR (day, week, month). An amount counts in the period that held the moment at which it was reserved, for as long
  as that period holds `now`. A period begins with what `past(counter, start, end)` says.
- CONCURRENCY. An amount counts until its call is settled, whatever that call says that it used.
- A claim fits if `total + amount <= limit`, where the total is used + reserved, and if its amount is 0. A call is
  granted if each of its claims fits or is of a shadow counter; then all amounts are reserved, those of shadow counters
  too. Otherwise nothing is.
- Settling turns the `amount` that was reserved into what was `used`, less or more, in the entry or period where it
  lies; where that counts no more, so does this. A second time, or for a call that was never granted, nothing happens.
- Standing: `used` and `reserved` as counted now, with the claim if the call was granted. `reset`: milliseconds until
  the last entry that is not empty counts no more, or until the period ends; 0 if the total is 0, and for CONCURRENCY.
  `wait` is as before the claim was reserved: 0 if it fits; None if `amount > limit`; SLOT_WAIT for CONCURRENCY; the
  rest of the period; or milliseconds until so much has aged that it fits. A shadow claim that would be refused has it
  too.
- Looking says what reserving would say, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from proxy.core.calendar import Calendar, Period
from proxy.core.quota import WINDOWS, Claim, Counter, Standing, Unit, Verdict

SLOT_WAIT = 1_000
"""Milliseconds: nobody knows when a slot comes back."""

Past = Callable[[Counter, int, int], int]


def nothing(counter: Counter, start: int, end: int) -> int:
    return 0


@dataclass
class Entry:
    """Amounts of a sliding window that age together, Unix milliseconds."""

    first: int
    last: int


@dataclass
class Amount:
    """One line of the log. `place` is where it counts; None: for as long as the call is open."""

    call: str
    counter: Counter
    place: Entry | Period | None
    used: int
    reserved: int

    @property
    def total(self) -> int:
        return self.used + self.reserved


class Oracle:
    """Keeps every amount for ever and adds them up anew for each answer."""

    def __init__(self, calendar: Calendar, past: Past = nothing) -> None:
        self.calendar = calendar
        self.past = past
        self.log: list[Amount] = []
        self.open: set[str] = set()
        self.now = self.shown = 0

    def at(self, now: int) -> None:
        self.shown = now

    def reserve(self, call: str, claims: Sequence[Claim]) -> Verdict:
        self._look()
        waits = [self.wait(claim) for claim in claims]
        granted = all(wait == 0 or claim.counter.shadow for wait, claim in zip(waits, claims, strict=True))
        if granted:
            self.open.add(call)
            self.log += [Amount(call, one.counter, self._place(one.counter), 0, one.amount) for one in claims]
        standings = (self._standing(claim.counter, wait) for claim, wait in zip(claims, waits, strict=True))
        return Verdict(granted, tuple(standings))

    def settle(self, call: str, claims: Sequence[Claim], used: Sequence[int]) -> None:
        if call not in self.open:
            return
        self.open.remove(call)
        for claim, much in zip(claims, used, strict=True):
            (amount,) = (one for one in self.log if one.call == call and one.counter == claim.counter)
            amount.reserved = 0
            amount.used = 0 if claim.counter.unit is Unit.CONCURRENCY else much

    def look(self, claims: Sequence[Claim]) -> Verdict:
        """Reserve, and take it back."""
        log = list(self.log)
        lasts = [(one.place, one.place.last) for one in log if isinstance(one.place, Entry)]
        verdict = self.reserve("look", claims)
        self.log = log
        self.open.discard("look")
        for place, last in lasts:
            place.last = last
        return verdict

    def _look(self) -> None:
        self.now = max(self.now, self.shown)

    def wait(self, claim: Claim) -> int | None:
        counted = self.counted(claim.counter)
        born = self._born(claim.counter)
        if born + sum(one.total for one in counted) + claim.amount <= claim.limit or not claim.amount:
            return 0
        if claim.amount > claim.limit:
            return None
        if claim.counter.unit is Unit.CONCURRENCY:
            return SLOT_WAIT
        if born:
            return self._period(claim.counter).end - self.now
        ends = sorted({self._end(one) for one in counted})
        return next(end for end in ends if self._later(counted, end) + claim.amount <= claim.limit) - self.now

    def counted(self, counter: Counter) -> list[Amount]:
        mine = [one for one in self.log if one.counter == counter]
        return [one for one in mine if (one.total if one.place is None else self._end(one) > self.now)]

    def _later(self, counted: list[Amount], moment: int) -> int:
        return sum(one.total for one in counted if self._end(one) > moment)

    def _standing(self, counter: Counter, wait: int | None) -> Standing:
        counted = [one for one in self.counted(counter) if one.total]
        used = self._born(counter) + sum(one.used for one in counted)
        reserved = sum(one.reserved for one in counted)
        if counter.unit is Unit.CONCURRENCY or not used + reserved:
            reset = 0
        elif counter.window and counter.window.span is None:
            reset = self._period(counter).end - self.now
        else:
            reset = max(self._end(one) for one in counted) - self.now
        return Standing(used, reserved, reset, wait)

    def _born(self, counter: Counter) -> int:
        if counter.window is None or counter.window.span is not None:
            return 0
        period = self._period(counter)
        return self.past(counter, period.start, period.end)

    def _period(self, counter: Counter) -> Period:
        assert counter.window is not None
        return self.calendar.period(counter.window, self.now)

    def _place(self, counter: Counter) -> Entry | Period | None:
        if counter.window is None:
            return None
        if counter.window.span is None:
            return self._period(counter)
        entries = [one.place for one in self.log if one.counter == counter and isinstance(one.place, Entry)]
        if entries and (self.now - entries[-1].first) * 100 < counter.window.span:
            entries[-1].last = self.now
            return entries[-1]
        return Entry(self.now, self.now)

    def _end(self, amount: Amount) -> int:
        if isinstance(amount.place, Period):
            return amount.place.end
        assert amount.place is not None
        assert amount.counter.window is not None
        assert amount.counter.window.span is not None
        return amount.place.last + amount.counter.window.span


class Subject(Protocol):
    """The store under test, without its event loop: each call has taken effect when it returns."""

    def at(self, now: int) -> None:
        """The store's clock shows `now`, in Unix milliseconds."""

    def reserve(self, call: str, claims: Sequence[Claim]) -> Verdict: ...
    def settle(self, call: str, claims: Sequence[Claim], used: Sequence[int]) -> None: ...
    def look(self, claims: Sequence[Claim]) -> Verdict: ...
    def close(self) -> None: ...


MINUTE, DAY = WINDOWS["minute"], WINDOWS["day"]

COUNTERS = (
    Counter("red", Unit.REQUESTS, WINDOWS["second"]),
    Counter("red", Unit.REQUESTS, MINUTE, key="k1"),
    Counter("red", Unit.REQUESTS, MINUTE, key="k2"),
    Counter("red", Unit.TOKENS, MINUTE),
    Counter("red", Unit.TOKENS, MINUTE, model="m"),
    Counter("red", Unit.TOKENS, MINUTE, shadow=True),
    Counter("red", Unit.TOKENS, WINDOWS["hour"]),
    Counter("red", Unit.TOKENS, DAY),
    Counter("red", Unit.SPEND, DAY, shadow=True),
    Counter("red", Unit.SPEND, WINDOWS["week"]),
    Counter("red", Unit.SPEND, WINDOWS["month"]),
    Counter("red", Unit.CONCURRENCY, None),
    Counter("red", Unit.CONCURRENCY, None, key="k1", shadow=True),
    Counter("blue", Unit.REQUESTS, WINDOWS["second"]),
)

ZONE = ZoneInfo("Europe/Berlin")
BEGIN = 1_774_738_800_000 - 5_000
"""Five seconds before the day in March 2026 that has 23 hours in ZONE."""

STEPS = st.one_of(
    st.integers(0, 30),
    st.sampled_from([1, 9, 10, 11, 599, 600, 601, 35_999, 36_000]),
    st.sampled_from([1_000, 60_000, 3_600_000]).flatmap(lambda span: st.integers(span - 12, span + 12)),
    st.integers(0, 5_000),
    st.integers(0, 40 * 86_400_000),
)


@st.composite
def claims(draw: st.DrawFn) -> list[Claim]:
    """What one call may ask for: real and shadow rules, some too large, some of nothing."""
    counters = draw(st.lists(st.sampled_from(COUNTERS), min_size=1, max_size=6, unique_by=lambda one: one.name))
    limit = st.sampled_from([0, 1, 3, 7, 100])
    return [Claim(one, draw(limit), draw(st.sampled_from([1, 1, 1, 2, 5, 0, 8]))) for one in counters]


def past(counter: Counter, start: int, end: int) -> int:
    """What the ledger of the machine's world knows: little, different in each period."""
    return (start // 3_600_000 + len(counter.name)) % 3


USED = st.lists(st.one_of(st.integers(0, 3), st.integers(0, 12)), min_size=6, max_size=6)


def machine(opened: Callable[[Calendar, Past], Subject], *, backwards: bool = True) -> type[RuleBasedStateMachine]:
    """A state machine for stores made by `opened`. `backwards`: whether their clock may go back."""

    class Machine(RuleBasedStateMachine):
        calls: Bundle[Any] = Bundle("calls")
        settled: Bundle[Any] = Bundle("settled")

        @initialize()
        def begin(self) -> None:
            calendar = Calendar(ZONE)
            self.oracle = Oracle(calendar, past)
            self.store = opened(Calendar(ZONE), past)
            self.clock, self.number = BEGIN, 0
            self._show()

        def _show(self) -> None:
            self.oracle.at(self.clock)
            self.store.at(self.clock)

        @rule(step=STEPS)
        def time_passes(self, step: int) -> None:
            self.clock += step
            self._show()

        @rule(window=st.sampled_from(["day", "week", "month"]), before=st.integers(-2, 2))
        def a_period_ends(self, window: str, before: int) -> None:
            self.clock = max(self.clock, self.oracle.calendar.period(WINDOWS[window], self.clock).end - before)
            self._show()

        if backwards:

            @rule(step=STEPS)
            def time_goes_back(self, step: int) -> None:
                self.clock -= step
                self._show()

        @rule(target=calls, claims=claims())
        def reserve(self, claims: list[Claim]) -> tuple[str, list[Claim]]:
            call = f"call-{self.number}"
            self.number += 1
            assert self.store.reserve(call, claims) == self.oracle.reserve(call, claims)
            return call, claims

        @rule(target=settled, call=consumes(calls), used=USED)
        def settle(self, call: tuple[str, list[Claim]], used: list[int]) -> tuple[str, list[Claim]]:
            return self._settle(call, used[: len(call[1])])

        @rule(target=settled, call=consumes(calls))
        def settle_as_reserved(self, call: tuple[str, list[Claim]]) -> tuple[str, list[Claim]]:
            return self._settle(call, [claim.amount for claim in call[1]])

        def _settle(self, call: tuple[str, list[Claim]], used: list[int]) -> tuple[str, list[Claim]]:
            self.oracle.settle(*call, used)
            self.store.settle(*call, used)
            return call

        @rule(call=settled, used=USED)
        def settle_again(self, call: tuple[str, list[Claim]], used: list[int]) -> None:
            self.store.settle(call[0], call[1], used[: len(call[1])])

        @rule(claims=claims())
        def look(self, claims: list[Claim]) -> None:
            assert self.store.look(claims) == self.oracle.look(claims)

        @invariant()
        def they_agree(self) -> None:
            if hasattr(self, "store"):
                asked = [Claim(counter, 5, 2) for counter in COUNTERS]
                assert self.store.look(asked) == self.oracle.look(asked)

        def teardown(self) -> None:
            if hasattr(self, "store"):
                self.store.close()

    return Machine
