"""Against the oracle, in any order of events; and what no oracle sees: who waits, who is cancelled, what is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.calendar import Calendar
from proxy.core.quota import SLOT_WAIT, WINDOWS, Claim, Counter, Standing, StoreGone, Unit, Verdict
from proxy.store.memory import SWEEP_EVERY, MemoryStore
from tests.store import oracle
from tests.store.oracle import BEGIN, COUNTERS, ZONE, Past, machine

T = TypeVar("T")

SECOND, MINUTE, DAY, MONTH = (WINDOWS[name] for name in ("second", "minute", "day", "month"))
REQUESTS = Counter("red", Unit.REQUESTS, MINUTE)
TOKENS = Counter("red", Unit.TOKENS, MINUTE)
DAILY = Counter("red", Unit.TOKENS, DAY)
SLOTS = Counter("red", Unit.CONCURRENCY, None)


def now(step: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that has nothing to wait for."""
    try:
        step.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


@dataclass
class Ledger:
    """A History; a `gate` keeps it from answering until it is opened."""

    past: Past = oracle.nothing
    gate: asyncio.Event | None = None
    asked: list[tuple[Counter, int, int]] = field(default_factory=list)

    async def used(self, counter: Counter, start: int, end: int) -> int:
        self.asked.append((counter, start, end))
        if self.gate:
            await self.gate.wait()
        return self.past(counter, start, end)


class Bench:
    """A store, the hand of its clock, and no event loop."""

    def __init__(self, calendar: Calendar | None = None, past: Past | None = None, at: int = BEGIN) -> None:
        self.clock = at
        self.ledger = Ledger(past) if past else None
        self.store = MemoryStore(calendar or Calendar(ZONE), lambda: self.clock, self.ledger)

    def at(self, moment: int) -> None:
        self.clock = moment

    def reserve(self, call: str, claims: Sequence[Claim]) -> Verdict:
        return now(self.store.reserve(call, claims))

    def settle(self, call: str, claims: Sequence[Claim], used: Sequence[int]) -> None:
        self.store.settle(call, claims, used)

    def standing(self, claims: Sequence[Claim]) -> tuple[Standing, ...]:
        return now(self.store.standing(claims))

    def look(self, claims: Sequence[Claim]) -> Verdict:
        return now(self.store.look(claims))

    def close(self) -> None:
        """All memory is bounded by what is alive: nothing is, after the longest window without a call."""
        for call in list(self.store._open):
            self.settle(call, (), [0] * 10)
        self.clock = max(self.clock, self.store._now) + 40 * 86_400_000
        self.standing([])
        assert not self.store._tallies
        assert not self.store._open
        assert not self.store._births


TestAgainstTheOracle = machine(Bench).TestCase
TestAgainstTheOracle.settings = settings(max_examples=150, stateful_step_count=40)


# A window that slides.


@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(1, 5)), min_size=1, max_size=120),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
)
def test_never_more_than_the_limit_in_any_span(events: list[tuple[int, int]], limit: int, random: Any) -> None:
    bench = Bench()
    counter = Counter("red", Unit.TOKENS, SECOND)
    granted: list[tuple[int, int]] = []
    for number, (gap, amount) in enumerate(events):
        bench.at(bench.clock + gap)
        claims = [Claim(counter, limit, amount)]
        if bench.reserve(str(number), claims).granted:
            used = random.randint(0, amount)
            bench.settle(str(number), claims, [used])
            granted.append((bench.clock, used))
    for begin, _ in granted:
        assert sum(amount for at, amount in granted if begin <= at < begin + 1_000) <= limit


@given(
    st.lists(st.tuples(st.integers(0, 30_000), st.integers(1, 9)), max_size=40),
    st.sampled_from(["second", "minute", "hour", "day", "week", "month"]),
    st.integers(1, 20),
    st.integers(0, 20),
)
def test_who_waits_as_long_as_told_gets_in_and_not_a_millisecond_sooner(
    events: list[tuple[int, int]], window: str, limit: int, amount: int
) -> None:
    bench = Bench()
    counter = Counter("red", Unit.TOKENS, WINDOWS[window])
    for number, (gap, much) in enumerate(events):
        bench.at(bench.clock + gap)
        bench.reserve(str(number), [Claim(counter, limit, much)])
    claims = [Claim(counter, limit, amount)]
    (standing,) = bench.standing(claims)
    if standing.wait is None:
        assert amount > limit
        return
    told = bench.clock + standing.wait
    if standing.wait:
        bench.at(told - 1)
        assert not bench.reserve("early", claims).granted
    bench.at(told)
    assert bench.reserve("late", claims).granted


@given(st.lists(st.integers(11, 500), min_size=1, max_size=150), st.integers(1, 12))
def test_it_admits_what_a_list_of_moments_admits(gaps: list[int], limit: int) -> None:
    """Where requests are further apart than a hundredth of the span, no two of them share an entry."""
    bench = Bench()
    moments: list[int] = []
    counter = Counter("red", Unit.REQUESTS, SECOND)
    for number, gap in enumerate(gaps):
        bench.at(bench.clock + gap)
        moments = [at for at in moments if at > bench.clock - 1_000]
        admits = len(moments) < limit
        moments += [bench.clock] if admits else []
        assert bench.reserve(str(number), [Claim(counter, limit, 1)]).granted == admits


def test_a_million_settlements_of_one_token_add_up() -> None:
    bench = Bench()
    claims, used = [Claim(Counter("red", Unit.TOKENS, MONTH), 10**9, 7)], [1]
    for _ in range(1_000_000):
        bench.reserve("call", claims)
        bench.settle("call", claims, used)
    assert bench.standing(claims)[0].used == 1_000_000
    assert bench.standing(claims)[0].reserved == 0


# All or nothing.


@given(st.integers(0, len(COUNTERS) - 1), st.data())
def test_a_refused_request_consumes_nothing(place: int, data: st.DataObject) -> None:
    bench = Bench()
    claims = [Claim(counter, 10, 1) for counter in COUNTERS if not counter.shadow]
    assert bench.reserve("first", claims).granted
    before = bench.standing(claims)
    index = data.draw(st.integers(0, len(claims) - 1))
    refused = [*claims]
    refused[index] = Claim(claims[index].counter, 1, 1)
    verdict = bench.reserve("second", refused)
    assert not verdict.granted
    assert [standing.wait == 0 for standing in verdict.standings] == [one is not refused[index] for one in refused]
    assert bench.standing(claims) == before
    bench.settle("second", refused, [1] * len(refused))
    assert bench.standing(claims) == before


def test_a_shadow_rule_tells_that_it_would_have_refused_and_counts() -> None:
    bench = Bench()
    shadow = Counter("red", Unit.TOKENS, MINUTE, shadow=True)
    claims = [Claim(shadow, 10, 8), Claim(TOKENS, 100, 8)]
    assert bench.reserve("a", claims) == Verdict(True, (Standing(0, 8, 60_000, 0), Standing(0, 8, 60_000, 0)))
    assert bench.reserve("b", claims) == Verdict(True, (Standing(0, 16, 60_000, 60_000), Standing(0, 16, 60_000, 0)))


def test_what_was_reserved_is_told_apart_from_what_was_used() -> None:
    bench = Bench()
    claims = [Claim(TOKENS, 100, 60), Claim(DAILY, 100, 60), Claim(SLOTS, 1, 1)]
    bench.reserve("a", claims)
    assert [(one.used, one.reserved) for one in bench.standing(claims)] == [(0, 60), (0, 60), (0, 1)]
    assert [one.wait for one in bench.standing(claims)] == [60_000, 5_000, SLOT_WAIT]
    bench.settle("a", claims, [70, 20, 1])
    assert [(one.used, one.reserved) for one in bench.standing(claims)] == [(70, 0), (20, 0), (0, 0)]


def test_a_refund_never_goes_to_the_next_period() -> None:
    bench = Bench()
    claims = [Claim(DAILY, 100, 60)]
    bench.reserve("a", claims)
    bench.at(BEGIN + 5_000)
    bench.reserve("b", claims)
    bench.settle("a", claims, [90])
    assert bench.standing(claims)[0] == Standing(0, 60, 23 * 3_600_000, 23 * 3_600_000)


def test_a_look_leaves_nothing_behind() -> None:
    bench = Bench()
    claims = [Claim(TOKENS, 100, 60), Claim(REQUESTS, 1, 1), Claim(SLOTS, 1, 1)]
    assert [bench.look(claims) for _ in range(200)] == [Bench().reserve("a", claims)] * 200
    assert not bench.store._tallies
    assert not bench.store._open


@pytest.mark.parametrize("later", [0, 599, 600, 30_000, 59_999, 60_000])
@pytest.mark.parametrize("amount", [0, 1])
def test_a_look_after_a_while_tells_when_nothing_will_count_any_more(later: int, amount: int) -> None:
    benches = [Bench(), Bench()]
    for bench in benches:
        bench.reserve("first", [Claim(TOKENS, 100, 60)])
        bench.at(BEGIN + later)
    claims = [Claim(TOKENS, 100, amount)]
    assert benches[0].look(claims) == benches[1].reserve("second", claims)


# Born from the ledger.


def much(counter: Counter, start: int, end: int) -> int:
    return 90


async def test_two_births_of_one_counter_end_with_one() -> None:
    ledger = Ledger(much, asyncio.Event())
    store = MemoryStore(Calendar(ZONE), lambda: BEGIN, ledger)
    calls = [asyncio.create_task(store.reserve(str(number), [Claim(DAILY, 100, 1)])) for number in range(30)]
    await asyncio.sleep(0)
    assert ledger.gate
    ledger.gate.set()
    verdicts = await asyncio.gather(*calls)
    assert sum(verdict.granted for verdict in verdicts) == 10
    assert len(ledger.asked) == 1
    assert not store._births


@settings(max_examples=60)
@given(st.lists(st.sampled_from(["ask", "cancel", "answer"]), max_size=25), st.integers(0, 5))
def test_whoever_comes_while_a_counter_is_born_is_counted_once(steps: list[str], base: int) -> None:
    async def story() -> None:
        ledger = Ledger(lambda *_: base, asyncio.Event())
        assert ledger.gate
        store = MemoryStore(Calendar(ZONE), lambda: BEGIN, ledger)
        claims = [Claim(DAILY, 10, 1), Claim(SLOTS, 100, 1)]
        calls: list[asyncio.Task[Verdict]] = []
        for step in [*steps, "answer"]:
            if step == "ask":
                calls.append(asyncio.create_task(store.reserve(f"{len(calls)}", claims)))
            elif step == "answer":
                ledger.gate.set()
            elif calls:
                calls[len(calls) // 2].cancel()
            await asyncio.sleep(0)
        ends = await asyncio.gather(*calls, return_exceptions=True)
        granted = sum(isinstance(end, Verdict) and end.granted for end in ends)
        day, slots = await store.standing(claims)
        assert (day.used, day.reserved, slots.reserved) == (base, granted, granted)
        assert granted == min(10 - base, sum(isinstance(end, Verdict) for end in ends))
        assert not store._births

    asyncio.run(story())


async def test_when_the_ledger_does_not_answer_nothing_is_left() -> None:
    gone = True

    def past(*_: object) -> int:
        if gone:
            raise StoreGone
        return 0

    store = MemoryStore(Calendar(ZONE), lambda: BEGIN, Ledger(past))
    claims = [Claim(TOKENS, 100, 5), Claim(DAILY, 100, 5)]
    for _ in range(3):
        with pytest.raises(StoreGone):
            await store.reserve("a", claims)
    assert not store._births
    gone = False
    assert [one.reserved for one in await store.standing(claims)] == [0, 0]
    assert (await store.reserve("a", claims)).granted


async def test_a_period_that_ends_while_it_is_born() -> None:
    clock = BEGIN
    ledger = Ledger(lambda counter, start, end: 1 if start < BEGIN else 2, asyncio.Event())
    assert ledger.gate
    store = MemoryStore(Calendar(ZONE), lambda: clock, ledger)
    call = asyncio.create_task(store.reserve("a", [Claim(DAILY, 100, 10)]))
    await asyncio.sleep(0)
    clock += 5_000
    ledger.gate.set()
    assert await call == Verdict(True, (Standing(2, 10, 23 * 3_600_000, 0),))


async def test_another_time_zone_while_a_counter_is_born_and_after() -> None:
    berlin, utc = Calendar(ZONE), Calendar(ZoneInfo("UTC"))
    ledger = Ledger(lambda counter, start, end: 1 if end == BEGIN + 5_000 else 2, asyncio.Event())
    assert ledger.gate
    store = MemoryStore(berlin, lambda: BEGIN, ledger)
    claims = [Claim(DAILY, 100, 10), Claim(TOKENS, 100, 10)]
    call = asyncio.create_task(store.reserve("a", claims))
    await asyncio.sleep(0)
    store.calendar = utc
    ledger.gate.set()
    assert [one.used for one in (await call).standings] == [2, 0]
    store.calendar = berlin
    store.settle("a", claims, [7, 7])
    assert [one.used for one in await store.standing(claims)] == [1, 7]
    store.calendar = Calendar(ZoneInfo("Europe/Paris"))  # its days are those of Berlin
    assert store.calendar.zone == ZoneInfo("Europe/Paris")
    asked = len(ledger.asked)
    assert [one.used for one in await store.standing(claims)] == [1, 7]
    assert len(ledger.asked) == asked


def test_without_a_ledger_a_counter_starts_empty() -> None:
    assert Bench().reserve("a", [Claim(DAILY, 1, 1)]).granted


def test_the_last_hour_as_the_ledger_tells_it() -> None:
    bench = Bench()
    bench.store.seed(TOKENS, BEGIN - 60_000, 1_000)  # too old
    bench.store.seed(TOKENS, BEGIN - 59_000, 30)
    bench.store.seed(TOKENS, BEGIN - 30_000, 40)
    bench.store.seed(TOKENS, BEGIN - 31_000, 10)  # out of turn
    bench.store.seed(TOKENS, BEGIN + 9_000, 5)  # by a clock that is ahead
    (standing,) = bench.standing([Claim(TOKENS, 100, 50)])
    assert standing == Standing(85, 0, 60_000, 30_000)


# What is kept.


def test_memory_is_bounded_by_what_is_alive() -> None:
    bench = Bench()
    most = 0
    for number in range(5_000):
        bench.at(bench.clock + 1_000)
        key = f"key-{number}"
        claims = [
            Claim(Counter("red", Unit.REQUESTS, SECOND, key=key), 10, 1),
            Claim(Counter("red", Unit.CONCURRENCY, None, key=key), 10, 1),
        ]
        bench.reserve(key, claims)
        bench.settle(key, claims, [1, 1])
        most = max(most, len(bench.store._tallies))
    assert most <= 2 * (SWEEP_EVERY // 1_000 + 2)


def test_an_entry_of_a_busy_counter_is_shared() -> None:
    bench = Bench()
    for number in range(20_000):
        bench.at(bench.clock + 3)
        bench.reserve("a", [Claim(Counter("red", Unit.TOKENS, SECOND), 10**9, number)])
    (log,) = bench.store._tallies.values()
    assert len(log._entries) <= 102  # type: ignore[attr-defined]


async def test_no_claims() -> None:
    bench = Bench()
    assert bench.reserve("a", []) == Verdict(True, ())
    bench.settle("a", [], [])
    assert not bench.store._open


async def test_a_counter_that_has_missed_something_counts_what_the_ledger_knows() -> None:
    counter = Counter("red", Unit.TOKENS, WINDOWS["day"])
    known = [0]
    store = MemoryStore(Calendar(ZONE), lambda: BEGIN, Ledger(lambda counter, start, end: known[0]))
    claim = Claim(counter, 1000, 30)
    await store.reserve("a", [claim])
    for total, used in ((10, 0), (30, 0), (130, 100), (50, 100)):  # never less than it has counted itself
        known[0] = total
        assert await store.recount(counter, missed=True)
        [standing] = await store.standing([claim])
        assert (standing.used, standing.reserved) == (used, 30)
    store.settle("a", [claim], [5])
    assert (await store.standing([claim]))[0].used == 105
    assert not await MemoryStore(Calendar(ZONE), lambda: BEGIN).recount(counter, missed=True)


async def test_what_is_looked_up_again_need_not_be_there() -> None:
    counter = Counter("red", Unit.TOKENS, WINDOWS["day"])
    store = MemoryStore(Calendar(ZONE), lambda: BEGIN, Ledger(lambda counter, start, end: 7))
    assert await store.recount(counter, missed=True)
    assert (await store.standing([Claim(counter, 1000, 1)]))[0].used == 7


class Scripted:
    """A History: each question waits until it is answered by hand."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[asyncio.Future[int]] = asyncio.Queue()

    async def used(self, counter: Counter, start: int, end: int) -> int:
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.asked.put_nowait(answer)
        return await answer

    async def says(self, used: int) -> None:
        async with asyncio.timeout(20):
            (await self.asked.get()).set_result(used)


@dataclass
class Recounted:
    """A counter that has counted 7, at a moment that tests move."""

    clock: int = BEGIN
    ledger: Scripted = field(default_factory=Scripted)

    async def begin(self) -> asyncio.Task[bool]:
        """A recount that has been told 5 before anybody was kept out."""
        self.store = MemoryStore(Calendar(ZONE), lambda: self.clock, self.ledger)
        self.claim = Claim(DAILY, 10_000, 1_000)
        first = asyncio.create_task(self.store.reserve("first", [self.claim]))
        await self.ledger.says(7)
        assert (await first).granted
        task = asyncio.create_task(self.store.recount(DAILY, missed=True))
        await self.ledger.says(5)
        return task

    async def total(self) -> int:
        [standing] = await self.store.standing([self.claim])
        return standing.used + standing.reserved


async def test_nobody_is_let_in_while_the_ledger_is_asked_again() -> None:
    """Who came in between would be in neither number."""
    one = Recounted()
    task = await one.begin()
    late = asyncio.create_task(one.store.reserve("late", [one.claim]))
    other = Claim(REQUESTS, 10, 1)
    assert (await one.store.reserve("other", [other])).granted
    assert not (await asyncio.wait([late], timeout=0.01))[0]
    await one.ledger.says(5_000)
    assert await task
    assert (await late).granted
    assert await one.total() == 5_000 + 1_000
    assert not one.store._births


async def test_a_call_that_ends_while_the_ledger_is_asked_is_asked_about_again() -> None:
    one = Recounted()
    task = await one.begin()
    answer = await one.ledger.asked.get()
    one.store.settle("first", [one.claim], [1])
    answer.set_result(1_007)  # with all that it could use
    await one.ledger.says(8)
    assert await task
    assert await one.total() == 8


@pytest.mark.parametrize("end", ["fails", "cancelled"])
async def test_a_recount_that_fails_keeps_nobody_out(end: str) -> None:
    one = Recounted()
    task = await one.begin()
    answer = await one.ledger.asked.get()
    late = asyncio.create_task(one.store.reserve("late", [one.claim]))
    if end == "fails":
        answer.set_exception(StoreGone())
    else:
        task.cancel()
    assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], StoreGone | asyncio.CancelledError)
    assert (await late).granted
    assert await one.total() == 7 + 2_000


async def test_a_period_that_ends_meanwhile_is_over() -> None:
    one = Recounted()
    task = await one.begin()
    one.clock += 2 * 86_400_000
    await one.ledger.says(5_000)
    assert await task
    late = asyncio.create_task(one.store.reserve("late", [one.claim]))
    await one.ledger.says(3)
    assert (await late).granted
    assert await one.total() == 3 + 1_000
