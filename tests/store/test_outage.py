"""A shared store that goes and comes back: who is let in meanwhile, who settles what, and that nobody waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.calendar import Calendar
from proxy.core.quota import WINDOWS, Claim, Counter, HistoryGone, Standing, StoreGone, Unit, Verdict, Window
from proxy.core.rate import MOST
from proxy.store.memory import MemoryStore
from proxy.store.outage import PROBE_EVERY, STEPS_AT_ONCE, Mode, WithOutage
from proxy.store.share import MOST_SEEN, Share

UTC = ZoneInfo("UTC")
NOON = 1_774_785_600_000
"""12:00 UTC on 29 March 2026, a Sunday."""

HOURS = 3_600_000

NUMBERS = count()

REQUESTS = Counter("red", Unit.REQUESTS, WINDOWS["minute"])
DAILY = Counter("red", Unit.TOKENS, WINDOWS["day"])
SPEND = Counter("red", Unit.SPEND, WINDOWS["month"])
SLOTS = Counter("red", Unit.CONCURRENCY, None)


def shadow(unit: Unit, window: Window | None) -> Counter:
    return Counter("red", unit, window, shadow=True)


class Scene:
    """The time, and a store that several workers share. The sleep of a probe ends when a test says so."""

    def __init__(self) -> None:
        self.clock = NOON
        self.gone: Exception | None = None
        self.shared = MemoryStore(Calendar(UTC), lambda: self.clock)
        self.asked = 0
        self.recounted: list[Counter] = []
        self.settled: list[str] = []
        self.held: list[str] = []
        self.lines: list[tuple[str, str, dict[str, Any]]] = []
        self.slept: list[float] = []
        self.morning = asyncio.Event()

    async def reserve(self, call: str, claims: Sequence[Claim]) -> Verdict:
        self.asked += 1
        await self._far()
        return await self.shared.reserve(call, claims)

    async def look(self, claims: Sequence[Claim]) -> Verdict:
        self.asked += 1
        await self._far()
        return await self.shared.look(claims)

    async def recount(self, counter: Counter, *, missed: bool) -> bool:
        await self._far()
        self.recounted.append(counter)
        return await self.shared.recount(counter, missed=missed)

    async def caught_up(self) -> None: ...

    def settle(self, call: str, claims: Sequence[Claim], used: Sequence[int]) -> None:
        self.settled.append(call)
        self.shared.settle(call, claims, used)

    async def hold(self, calls: Mapping[str, Sequence[Claim]]) -> None:
        await self._far()
        for call, slots in calls.items():
            if call not in self.held:
                self.held.append(call)
                await self.shared.reserve(call, [Claim(slot.counter, MOST, slot.amount) for slot in slots])

    async def ping(self) -> None:
        await self._far()

    async def _far(self) -> None:
        await asyncio.sleep(0)
        if self.gone:
            raise self.gone

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await self.morning.wait()
        self.morning.clear()

    async def night(self) -> None:
        """The probe wakes up, asks, and goes to sleep again or is done."""
        self.morning.set()
        for _ in range(60):
            await asyncio.sleep(0)

    @property
    def calendar(self) -> Calendar:
        return self.shared.calendar

    @calendar.setter
    def calendar(self, calendar: Calendar) -> None:
        self.shared.calendar = calendar

    def log(self, level: str, event: str, **fields: Any) -> None:
        self.lines.append((level, event, fields))

    def worker(self, mode: Mode = "local", peers: int = 4) -> WithOutage:
        return WithOutage(
            self,
            mode,
            lambda: peers,
            self.log,
            lambda: self.clock / 1000,
            calendar=Calendar(UTC),
            wall=lambda: self.clock,
            sleep=self.sleep,
        )

    @asynccontextmanager
    async def without_store(self, mode: Mode = "local", peers: int = 4) -> AsyncIterator[WithOutage]:
        """A worker that has just lost it, and knew nothing of any counter."""
        worker = self.worker(mode, peers)
        self.gone = StoreGone()
        await refused(worker, Claim(SPEND, 1, 1))
        yield worker
        await worker.close()


async def granted(worker: WithOutage, *claims: Claim, call: str = "call") -> tuple[Standing, ...]:
    verdict = await worker.reserve(call, claims)
    assert verdict.granted
    return verdict.standings


async def refused(worker: WithOutage, *claims: Claim, call: str = "refused") -> None:
    with pytest.raises(StoreGone):
        await worker.reserve(call, claims)


async def fill(worker: WithOutage, claim: Claim) -> int:
    """How many more of it are granted."""
    for number in range(10_000):
        try:
            verdict = await worker.reserve(f"fill-{next(NUMBERS)}", [claim])
        except StoreGone:
            return number
        if not verdict.granted:
            return number
    raise AssertionError("there is no end of it")


async def test_while_the_store_is_there_it_decides() -> None:
    scene = Scene()
    worker = scene.worker()
    claims = [Claim(SPEND, 10, 6)]
    assert (await granted(worker, *claims))[0].reserved == 6
    verdict = await worker.reserve("more", claims)
    assert not verdict.granted
    worker.settle("call", claims, [2])
    assert (await worker.look(claims)).standings[0].used == 2
    assert scene.lines == []
    await worker.close()


@pytest.mark.parametrize("gone", [False, True])
async def test_who_takes_no_slot_gives_none_back(gone: bool) -> None:
    """However many there are at once, and also where they end after the store has gone."""
    scene = Scene()
    worker = scene.worker("local", peers=1)
    claims = [Claim(REQUESTS, 100, 1), Claim(SLOTS, 2, 0)]
    await granted(worker, Claim(REQUESTS, 100, 1), Claim(SLOTS, 2, 1), call="real")
    for number in range(3):
        await granted(worker, *claims, call=f"free-{number}")
    if gone:
        scene.gone = StoreGone()
        await granted(worker, *claims, call="free-3")
        worker._share.begin()  # as when it goes a second time
        await granted(worker, *claims, call="free-4")
    assert worker._share._slots == {SLOTS.name: 1}
    worker.settle("real", claims, [1, 0])
    for number in range(5 if gone else 3):
        worker.settle(f"free-{number}", claims, [1, 0])
    assert (worker._share._slots, worker._share._holding, worker._share._open) == ({}, {}, {})
    assert set(scene.settled) >= {"real", "free-0", "free-1", "free-2"}
    await worker.close()


async def test_a_request_without_a_rule_needs_no_store() -> None:
    scene = Scene()
    async with scene.without_store("closed") as worker:
        assert await worker.reserve("free", []) == Verdict(True, ())
        worker.settle("free", [], [])
    assert scene.settled == []


@pytest.mark.parametrize("mode", ["local", "open", "closed"])
async def test_it_is_said_once_and_nobody_asks_it_again_until_it_is_back(mode: Mode) -> None:
    scene = Scene()
    worker = scene.worker(mode)
    scene.gone = StoreGone()
    await asyncio.gather(*(refused(worker, Claim(SPEND, 1, 1)) for _ in range(20)))
    asked = scene.asked
    await refused(worker, Claim(SPEND, 1, 1))
    with pytest.raises(StoreGone):
        await worker.look([Claim(SPEND, 1, 1)])
    assert scene.asked == asked
    scene.clock += 2_500
    await scene.night()  # still gone
    assert worker.gone
    scene.gone = OSError()
    await scene.night()  # and not even as it should be
    assert worker.gone
    scene.gone = None
    await scene.night()
    await granted(worker, Claim(SPEND, 1, 1))
    assert scene.lines == [("error", "store_gone", {"on_outage": mode}), ("info", "store_back", {"after": 2.5})]
    assert scene.slept == [PROBE_EVERY] * 3
    await worker.close()


async def test_what_was_granted_without_it_is_told_to_it() -> None:
    """Else the window in which it comes back could be had twice."""
    scene = Scene()
    one, claims = scene.worker(peers=2), [Claim(REQUESTS, 10, 1), Claim(DAILY, 1000, 30)]
    await one.reserve("known", claims)
    scene.gone = StoreGone()
    for call in ("a", "b", "c"):
        assert (await one.reserve(call, claims)).granted
    one.settle("a", claims, [1, 7])
    scene.gone = None
    await scene.night()
    assert not one.gone
    requests, tokens = await scene.shared.standing(claims)
    assert (requests.used, requests.reserved) == (3, 1)
    assert (tokens.used, tokens.reserved) == (7 + 30 + 30, 30)
    one.settle("b", claims, [1, 0])  # too late to change what was told
    assert await scene.shared.standing(claims) == (requests, tokens)
    await one.close()


class Known:
    """A ledger that knows of more than the store: of everything that was let in without it."""

    def __init__(self, used: int) -> None:
        self.total = used
        self.gone = False

    async def used(self, counter: Counter, start: int, end: int) -> int:
        if self.gone:
            raise HistoryGone
        return self.total


async def test_with_a_ledger_what_it_knows_of_a_period_is_not_told_besides() -> None:
    scene, ledger = Scene(), Known(0)
    scene.shared = MemoryStore(Calendar(UTC), lambda: scene.clock, ledger)
    one, claims = scene.worker(peers=1), [Claim(REQUESTS, 10, 1), Claim(DAILY, 1000, 30)]
    await one.reserve("known", claims)
    scene.gone = StoreGone()
    await one.reserve("a", claims)
    one.settle("a", claims, [1, 7])
    scene.gone, ledger.total = None, 30 + 7 + 500  # others have let in more
    await scene.night()
    requests, tokens = await scene.shared.standing(claims)
    assert (requests.used, requests.reserved) == (1, 1)
    assert (tokens.used, tokens.reserved) == (507, 30)
    await one.close()


async def test_what_was_let_in_uncounted_is_looked_up() -> None:
    scene, ledger = Scene(), Known(0)
    scene.shared = MemoryStore(Calendar(UTC), lambda: scene.clock, ledger)
    one, claims = scene.worker("open"), [Claim(REQUESTS, 10, 1), Claim(DAILY, 1000, 30)]
    await one.reserve("known", claims)
    scene.gone = StoreGone()
    for call in "abc":
        await one.reserve(call, claims)
    scene.gone, ledger.total = None, 120
    await scene.night()
    assert scene.recounted == [DAILY]
    assert (await scene.shared.standing(claims))[1].used == 90
    await one.close()


async def test_without_an_answer_of_the_ledger_it_is_told() -> None:
    scene, ledger = Scene(), Known(0)
    scene.shared = MemoryStore(Calendar(UTC), lambda: scene.clock, ledger)
    one, claims = scene.worker(peers=1), [Claim(DAILY, 1000, 30)]
    await one.reserve("known", claims)
    scene.gone = StoreGone()
    await one.reserve("a", claims)
    scene.gone, ledger.gone = None, True
    await scene.night()
    assert not one.gone
    assert (await scene.shared.standing(claims))[0].used == 30
    await one.close()


async def test_what_counts_no_more_is_not_told() -> None:
    scene = Scene()
    one, claims = scene.worker(peers=1), [Claim(REQUESTS, 10, 1)]
    await one.reserve("known", claims)
    scene.gone = StoreGone()
    await one.reserve("a", claims)
    scene.gone, scene.clock = None, scene.clock + 60_000
    await scene.night()
    assert (await scene.shared.standing(claims))[0].used == 0
    await one.close()


async def test_it_is_not_back_before_it_was_told() -> None:
    scene = Scene()
    one, claims = scene.worker(peers=1), [Claim(REQUESTS, 10, 1)]
    await one.reserve("known", claims)
    scene.gone = StoreGone()
    await one.reserve("a", claims)
    scene.gone = None

    async def refuses(call: str, claims: Sequence[Claim]) -> Verdict:
        raise StoreGone

    scene.reserve, kept = refuses, scene.reserve  # type: ignore[method-assign]
    await scene.night()
    assert one.gone
    scene.reserve = kept  # type: ignore[method-assign]
    await scene.night()
    assert not one.gone
    assert (await scene.shared.standing(claims))[0].used == 1
    await one.close()


@pytest.mark.parametrize("mode", ["local", "open"])
async def test_requests_that_go_on_do_not_keep_it_gone(mode: Mode) -> None:
    """And none is lost that is let in while the store is told of those before, which takes a while."""
    scene, ledger = Scene(), Known(0)
    scene.shared = MemoryStore(Calendar(UTC), lambda: scene.clock, ledger)
    worker, claims = scene.worker(mode, peers=1), [Claim(DAILY, 1000, 1), Claim(REQUESTS, 1000, 1)]
    await worker.reserve("known", claims)
    scene.gone = StoreGone()
    recount, calls = scene.recount, 0

    async def let_in() -> None:
        nonlocal calls
        if worker.gone:
            calls += 1
            await granted(worker, *claims, call=f"local-{calls}")

    async def slow(counter: Counter, *, missed: bool) -> bool:
        known = await recount(counter, missed=missed)
        await let_in()  # the ledger has answered already
        await asyncio.sleep(0)
        ledger.total = 1 + calls
        return known

    scene.recount = slow  # type: ignore[method-assign]
    await granted(worker, *claims, call="local-0")
    calls += 1
    ledger.total = 1 + calls
    scene.gone = None
    await scene.night()
    assert not worker.gone
    assert calls == 2
    daily, requests = await scene.shared.standing(claims)
    assert daily.used + daily.reserved == 3
    assert requests.used + requests.reserved == (3 if mode == "local" else 1)
    await worker.close()


async def test_many_counters_are_looked_up_together() -> None:
    scene, most, now = Scene(), 0, 0

    async def recount(counter: Counter, *, missed: bool) -> bool:
        nonlocal most, now
        now += 1
        most = max(most, now)
        for _ in range(5):
            await asyncio.sleep(0)
        now -= 1
        return True

    scene.recount = recount  # type: ignore[method-assign]
    async with scene.without_store("open") as worker:
        for n in range(2 * STEPS_AT_ONCE):
            await granted(worker, Claim(Counter(f"team-{n}", Unit.TOKENS, WINDOWS["day"]), 9, 1), call=f"{n}")
        scene.gone = None
        await scene.night()
        assert not worker.gone
    assert most == STEPS_AT_ONCE


async def test_what_could_not_be_looked_up_is_looked_up_later() -> None:
    scene, ledger = Scene(), Known(0)
    scene.shared = MemoryStore(Calendar(UTC), lambda: scene.clock, ledger)
    worker, claims = scene.worker("open"), [Claim(DAILY, 1000, 30)]
    await worker.reserve("known", claims)
    scene.gone = StoreGone()
    await granted(worker, *claims)
    scene.gone, ledger.gone = None, True
    await scene.night()
    assert not worker.gone
    ledger.gone, ledger.total = False, 60
    await scene.night()
    assert (await scene.shared.standing(claims))[0].used == 30
    asked = len(scene.recounted)
    await scene.night()
    assert len(scene.recounted) == asked
    await worker.close()


async def test_it_goes_again_before_it_has_been_told_all() -> None:
    """Nothing that was granted is forgotten, and nothing is told twice."""
    scene = Scene()
    worker, claims = scene.worker(peers=1), [Claim(REQUESTS, 100, 1)]
    await worker.reserve("known", claims)
    scene.gone = StoreGone()
    await granted(worker, *claims, call="first")
    reserve = scene.reserve

    async def goes(call: str, claims: Sequence[Claim]) -> Verdict:
        verdict = await reserve(call, claims)
        await granted(worker, Claim(REQUESTS, 100, 1), call="second")
        scene.gone, scene.reserve = StoreGone(), reserve  # type: ignore[method-assign]
        return verdict

    scene.gone, scene.reserve = None, goes  # type: ignore[method-assign]
    await scene.night()
    assert not worker.gone
    await refused(worker, Claim(SPEND, 1, 1))
    await granted(worker, *claims, call="third")
    scene.gone = None
    for _ in range(3):
        await scene.night()
    assert not worker.gone
    (standing,) = await scene.shared.standing(claims)
    assert standing.used + standing.reserved == 4
    await worker.close()


@pytest.mark.parametrize("mode", ["local", "open"])
async def test_the_store_is_told_which_slots_are_taken(mode: Mode) -> None:
    scene = Scene()
    worker, slot = scene.worker(mode, peers=1), Claim(SLOTS, 3, 1)
    scene.gone = StoreGone()
    for call in ("a", "b", "over"):
        await granted(worker, slot, Claim(REQUESTS, 10, 0), call=call)
    worker.settle("over", [slot, Claim(REQUESTS, 10, 0)], [1, 0])
    scene.gone = None
    await scene.night()
    assert (await scene.shared.standing([slot]))[0].reserved == 2
    assert await fill(worker, slot) == 1
    for call in ("a", "b", "a"):
        worker.settle(call, [slot, Claim(REQUESTS, 10, 0)], [1, 0])
    assert (await scene.shared.standing([slot]))[0].reserved == 1
    assert not worker._ours
    assert not worker._held
    await worker.close()


async def test_slots_of_one_outage_are_taken_in_the_next_one() -> None:
    scene = Scene()
    worker, slot = scene.worker(peers=1), Claim(SLOTS, 3, 1)
    scene.gone = StoreGone()
    await granted(worker, slot, call="a")
    await granted(worker, slot, call="b")
    scene.gone = None
    await scene.night()
    scene.gone = StoreGone()
    worker.settle("a", [slot], [1])
    assert await fill(worker, slot) == 2
    worker.settle("b", [slot], [1])
    assert await fill(worker, slot) == 1
    await worker.close()


async def test_a_new_time_zone_is_the_stores_too() -> None:
    scene = Scene()
    one, paris = scene.worker(), Calendar(ZoneInfo("Europe/Paris"))
    one.calendar = paris
    assert one.calendar is scene.shared.calendar is paris


async def test_a_ledger_that_is_gone_is_not_the_store() -> None:
    scene = Scene()
    one = scene.worker()
    scene.gone = HistoryGone()
    with pytest.raises(HistoryGone):
        await one.reserve("a", [Claim(DAILY, 10, 1)])
    assert not one.gone
    assert not scene.lines


async def test_it_may_go_again() -> None:
    scene = Scene()
    async with scene.without_store() as worker:
        scene.gone = None
        await scene.night()
        assert not worker.gone
        scene.gone = StoreGone()
        await refused(worker, Claim(SPEND, 1, 1))
    assert [event for _, event, _ in scene.lines] == ["store_gone", "store_back", "store_gone"]


async def test_no_task_is_left_when_it_is_closed() -> None:
    before = asyncio.all_tasks()
    scene = Scene()
    async with scene.without_store():
        assert len(asyncio.all_tasks() - before) == 1
    assert asyncio.all_tasks() == before
    late = scene.worker()
    await late.close()
    await refused(late, Claim(SPEND, 1, 1))
    assert asyncio.all_tasks() == before


async def test_a_request_that_is_cancelled_is_nobodys() -> None:
    scene = Scene()
    worker = scene.worker()
    task = asyncio.create_task(worker.reserve("call", [Claim(SLOTS, 4, 1)]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    scene.gone = StoreGone()
    await refused(worker, Claim(SPEND, 1, 1))
    assert await fill(worker, Claim(SLOTS, 4, 1)) == 1
    await worker.close()


# What each mode grants.


async def test_closed() -> None:
    async with Scene().without_store("closed") as worker:
        for counter in (REQUESTS, DAILY, SPEND, SLOTS):
            await refused(worker, Claim(counter, 10, 1))
        assert await granted(worker, Claim(shadow(Unit.TOKENS, WINDOWS["day"]), 10, 1)) == (Standing(0, 0, 0),)


async def test_open() -> None:
    scene = Scene()
    async with scene.without_store("open") as worker:
        claims = [Claim(REQUESTS, 0, 1), Claim(DAILY, 0, 1), Claim(SLOTS, 0, 1)]
        assert await granted(worker, *claims) == (Standing(0, 0, 0),) * 3
        await refused(worker, *claims, Claim(SPEND, 1_000, 1))
        worker.settle("call", claims, [1, 1, 1])
    assert scene.settled == []


@pytest.mark.parametrize("mode", ["local", "open"])
async def test_a_limit_on_spend_is_never_open_but_a_shadow_of_one_is(mode: Mode) -> None:
    async with Scene().without_store(mode) as worker:
        await refused(worker, Claim(SPEND, 10**9, 0))
        await granted(worker, Claim(shadow(Unit.SPEND, WINDOWS["month"]), 10, 1))


# The share of one worker.


@pytest.mark.parametrize(("peers", "share"), [(1, 90), (4, 22), (7, 12), (91, 0), (0, 90)])
async def test_what_was_left_is_shared(peers: int, share: int) -> None:
    scene = Scene()
    worker = scene.worker(peers=peers)
    await granted(worker, Claim(REQUESTS, 100, 10))
    scene.gone = StoreGone()
    assert await fill(worker, Claim(REQUESTS, 100, 1)) == share
    scene.clock += 59_999
    assert await fill(worker, Claim(REQUESTS, 100, 1)) == 0
    scene.clock += 60_001  # nothing counts any more of what was used before, here or there
    assert await fill(worker, Claim(REQUESTS, 100, 1)) == 100 // max(1, peers)
    await worker.close()


@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize(
    ("counter", "ago", "rest"),
    [(REQUESTS, 60_000, 60_000), (DAILY, 13 * HOURS, 12 * HOURS)],
)
async def test_a_counter_of_which_nothing_is_known_is_full_until_its_window_is_over(
    counter: Counter, ago: int, rest: int, seen: bool
) -> None:
    scene = Scene()
    worker = scene.worker()
    if seen:  # in the window before: this tells nothing
        scene.clock -= ago
        await granted(worker, Claim(counter, 100, 1))
        scene.clock += ago
    scene.gone = StoreGone()
    assert await fill(worker, Claim(counter, 100, 1)) == 0
    scene.clock += rest - 1
    assert await fill(worker, Claim(counter, 100, 1)) == 0
    scene.clock += 1
    assert await fill(worker, Claim(counter, 100, 1)) == 25
    await worker.close()


async def test_what_was_known_in_this_day_goes_for_the_rest_of_it() -> None:
    scene = Scene()
    worker = scene.worker()
    scene.clock -= 11 * HOURS
    await granted(worker, Claim(DAILY, 100, 40))
    scene.clock += 11 * HOURS
    scene.gone = StoreGone()
    (standing,) = await granted(worker, Claim(DAILY, 100, 10))
    assert standing == Standing(used=85, reserved=10, reset=12 * HOURS)  # 15 of 100 are this worker's
    assert await fill(worker, Claim(DAILY, 100, 1)) == 5
    worker.settle("call", [Claim(DAILY, 100, 10)], [4])
    assert await fill(worker, Claim(DAILY, 100, 1)) == 6
    worker.calendar = Calendar(ZoneInfo("Asia/Kathmandu"))  # where another day began at 18:15
    scene.clock += 7 * HOURS
    assert worker.calendar.zone == ZoneInfo("Asia/Kathmandu")
    assert await fill(worker, Claim(DAILY, 100, 1)) == 25
    await worker.close()


async def test_the_first_moment_of_a_day_is_part_of_it() -> None:
    scene = Scene()
    worker = scene.worker()
    scene.clock += 12 * HOURS
    await granted(worker, Claim(DAILY, 100, 40))
    scene.gone = StoreGone()
    assert await fill(worker, Claim(DAILY, 100, 1)) == 15
    await worker.close()


async def test_slots_that_the_store_has_granted_are_part_of_the_share() -> None:
    scene = Scene()
    worker = scene.worker(peers=2)
    slot = Claim(SLOTS, 10, 1)
    for number in range(3):
        await granted(worker, slot, call=f"before-{number}")
    assert not (await worker.reserve("too many", [Claim(SLOTS, 10, 8)])).granted
    scene.gone = StoreGone()
    assert await fill(worker, slot) == 2
    for _ in range(2):
        worker.settle("before-0", [slot], [1])
    assert await fill(worker, slot) == 1
    await refused(worker, slot)
    worker.settle("before-1", [slot], [1])
    await granted(worker, slot)
    worker.settle("call", [slot], [1])
    await granted(worker, slot)
    assert set(scene.settled) == {"before-0", "before-1"}
    await worker.close()


async def test_a_shadow_rule_is_no_reason_to_refuse() -> None:
    async with Scene().without_store() as worker:
        (standing,) = await granted(worker, Claim(shadow(Unit.REQUESTS, WINDOWS["minute"]), 10, 1))
        assert standing.wait is None


async def test_a_call_is_settled_with_whoever_granted_it() -> None:
    scene = Scene()
    worker = scene.worker()
    claims = [Claim(DAILY, 100, 10)]
    await granted(worker, *claims, call="before")
    scene.gone = StoreGone()
    await granted(worker, *claims, call="meanwhile")
    scene.gone = None
    await scene.night()
    await granted(worker, *claims, call="after")
    for call in ("after", "meanwhile", "before"):
        worker.settle(call, claims, [1])
    assert [call for call in scene.settled if not call.startswith("outage-")] == ["after", "before"]
    assert not worker._ours
    # What was under way when the store came back was told for the most that it could use.
    assert (await worker.look([Claim(DAILY, 100, 0)])).standings[0] == Standing(12, 0, 12 * HOURS)
    await worker.close()


async def test_what_is_remembered_is_bounded() -> None:
    share = Share(Calendar(UTC), lambda: NOON, lambda: 1)
    told = Verdict(True, (Standing(0, 1, 1),))
    for number in range(MOST_SEEN + 10):
        share.learn("call", [Claim(Counter(f"team-{number}", Unit.REQUESTS, WINDOWS["minute"]), 9, 1)], told)
    assert len(share._seen) == MOST_SEEN


@settings(max_examples=80)
@given(
    st.integers(1, 5),
    st.integers(0, 30),
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4), st.integers(0, 25_000)), max_size=120),
    st.integers(0, 25),
)
def test_the_sum_of_all_workers_holds_in_every_span(
    peers: int, limit: int, events: list[tuple[int, int, int]], before: int
) -> None:
    """Where all of them know what was used when the store went."""

    async def story() -> None:
        scene = Scene()
        workers = [scene.worker(peers=peers) for _ in range(peers)]
        log: list[tuple[int, int]] = []

        async def ask(number: int, who: int, amount: int) -> None:
            try:
                verdict = await workers[who % peers].reserve(f"{number}", [Claim(REQUESTS, limit, amount)])
            except StoreGone:
                return
            if verdict.granted:
                log.append((scene.clock, amount))

        for number, (who, amount, step) in enumerate(events):
            scene.clock += step
            if number == before:
                for other in range(peers):
                    await ask(-1 - other, other, limit + 1)  # refused, and told how things are
                scene.gone = StoreGone()
                for worker in workers:
                    await refused(worker, Claim(SPEND, 1, 1))
            await ask(number, who, amount)
        for begin, _ in log:
            assert sum(amount for at, amount in log if begin <= at < begin + 60_000) <= limit
        for worker in workers:
            await worker.close()

    asyncio.run(story())


LIMITS = st.sampled_from([3, 20, 100])
ASKED = st.lists(
    st.one_of(
        st.builds(Claim, st.sampled_from([REQUESTS, DAILY]), LIMITS, st.integers(0, 5)),
        st.builds(Claim, st.just(SLOTS), LIMITS, st.integers(0, 5)),
    ),
    min_size=1, max_size=3, unique_by=lambda claim: claim.counter.name,
)  # fmt: skip
EVENTS = st.lists(st.tuples(st.sampled_from(["ask", "ask", "settle", "go", "come"]), ASKED, st.integers(0, 50_000)))


@settings(max_examples=150)
@given(st.sampled_from(["local", "open", "closed"]), EVENTS, ASKED)
def test_a_look_says_what_a_request_would_be_told_and_changes_nothing(
    mode: Mode, events: list[tuple[str, list[Claim], int]], asked: list[Claim]
) -> None:
    """One of two workers with the same history is looked at before each request; both say the same to all of them."""

    async def told(answer: Awaitable[Verdict]) -> Verdict | None:
        try:
            return await answer
        except StoreGone:
            return None

    async def story() -> None:
        scenes = [Scene(), Scene()]
        watched, other = (scene.worker(mode, peers=2) for scene in scenes)
        calls: list[tuple[str, list[Claim]]] = []
        for number, (what, claims, step) in enumerate([*events, ("ask", asked, 0)]):
            for scene in scenes:
                scene.clock += step
                if what in ("go", "come"):
                    scene.gone = StoreGone() if what == "go" else None
                    await scene.night()
            if what == "ask":
                seen = [await told(watched.look(claims)) for _ in range(2)]
                answers = [await told(worker.reserve(f"{number}", claims)) for worker in (watched, other)]
                assert [*seen, answers[0]] == [answers[1]] * 3
                if answers[0] and answers[0].granted:
                    calls.append((f"{number}", claims))
            elif what == "settle" and calls:
                call, claimed = calls.pop(step % len(calls))
                for worker in (watched, other):
                    worker.settle(call, claimed, [step % 7] * len(claimed))
        for worker in (watched, other):
            await worker.close()

    asyncio.run(story())
