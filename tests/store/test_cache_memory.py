"""Against a model, in any order of events; and what the model does not see: the memory that is really taken, and who
has a turn meanwhile."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from proxy.core.cache import Bounds, Found, Role, Stats, Verified
from proxy.core.cache_key import EVERYBODY
from proxy.core.entry import Entry, packed
from proxy.core.flight import Flight
from proxy.store.cache.memory import BATCHES, PART, REST, MemoryCache, size_of
from tests.steps import now

T = TypeVar("T")

BEGIN = 1_800_000_000_000
HOUR = 3_600_000
FLIGHT = Flight(0, lambda: 0.0)


def nothing(key: str, flight: Flight) -> None:
    pass


@dataclass
class Alarm:
    at: float
    do: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class Time:
    """The wall's and the loop's, which is not set back; in milliseconds."""

    wall: int = BEGIN
    loop: float = 0
    alarms: list[Alarm] = field(default_factory=list)

    def later(self, seconds: float, do: Callable[[], None]) -> Alarm:
        alarm = Alarm(self.loop + seconds * 1000, do)
        self.alarms.append(alarm)
        return alarm

    @property
    def pending(self) -> list[Alarm]:
        self.alarms = [alarm for alarm in self.alarms if not alarm.cancelled]
        return self.alarms

    def passes(self, milliseconds: int) -> int:
        """How many alarms there were meanwhile."""
        end, rang = self.loop + milliseconds, 0
        while due := [alarm for alarm in self.pending if alarm.at <= end]:
            alarm = min(due, key=lambda one: one.at)
            self.alarms.remove(alarm)
            self.wall += int(alarm.at - self.loop)
            self.loop = alarm.at
            alarm.do()
            rang += 1
        self.wall += int(end - self.loop)
        self.loop = end
        return rang


class Scene:
    def __init__(self, life: int = HOUR, most_bytes: int = 1 << 30, most_entry: int = 1 << 20, entries: int = 10**6):
        self.time = Time()
        self.cache = MemoryCache(Bounds(life, most_bytes, most_entry, entries), lambda: self.time.wall, self.time.later)

    def keep(self, key: str, body: bytes = b"", created: int | None = None, **more: Any) -> Entry:
        kept = entry(self.time.wall if created is None else created, body, **more)
        self.cache.keep(key, kept, FLIGHT, nothing)
        return kept

    def look(self, key: str, since: int = 0) -> Found:
        return now(self.cache.look(key, since, FLIGHT))

    @property
    def stats(self) -> Stats:
        return now(self.cache.stats(None))

    @property
    def keys(self) -> list[str]:
        """The one that was of no use for the longest time first; found by going there and back."""
        kept, there, back = self.cache._kept, [], []
        at = self.cache._oldest
        while at is not None:
            there.append(at)
            at = kept[at].newer
        at = self.cache._newest
        while at is not None:
            back.append(at)
            at = kept[at].older
        assert there == back[::-1]
        assert set(there) == set(kept)
        return there


def entry(created: int, body: bytes = b"", **more: Any) -> Entry:
    return Entry(created, False, body, 1, 2, 3, **more)


# Against a model.

KEYS = st.sampled_from([f"{team}/{n}" for team in ("red", "blue:key", EVERYBODY) for n in range(3)])
SIZES = st.sampled_from([0, 1, 100, 800, 1_500])
BOUNDS = st.builds(
    Bounds, st.integers(1, 6_000), st.integers(500, 8_000), st.sampled_from([0, 100, 1_000, 2_000]), st.integers(1, 6)
)


@dataclass
class Known:
    entry: Entry
    size: int
    leaves: int
    """Its life counts from here on for the room that it takes."""


class Machine(RuleBasedStateMachine):
    """The model is a dict in the order of use. Whose time is over may be there still, or have gone."""

    def __init__(self) -> None:
        super().__init__()
        self.scene = Scene(2_000, 6_000, 1_000, 5)
        self.bounds = self.scene.cache._bounds
        self.known: dict[str, Known] = {}
        self.evicted = 0

    @property
    def wall(self) -> int:
        return self.scene.time.wall

    def is_over(self, known: Known) -> bool:
        return known.leaves + self.bounds.life <= self.wall

    def make_room(self) -> None:
        living = [(key, known.size) for key, known in self.known.items() if not self.is_over(known)]
        while len(living) > self.bounds.most_entries or sum(size for _, size in living) > self.bounds.most_bytes:
            del self.known[living.pop(0)[0]]
            self.evicted += 1

    @rule(key=KEYS, size=SIZES, age=st.one_of(st.just(0), st.integers(-300, 3_000)), cadence=st.integers(0, 3))
    def keep(self, key: str, size: int, age: int, cadence: int) -> None:
        kept = self.scene.keep(key, bytes(size), self.wall - age, cadence=packed([1] * cadence))
        counts = size_of(key, kept)
        if age >= self.bounds.life or kept.size > self.bounds.most_entry or counts > self.bounds.most_bytes:
            return
        span = self.bounds.life // BATCHES + 1
        self.known.pop(key, None)
        self.known[key] = Known(kept, counts, next(at for at in range(kept.created, 1 << 60) if at % span == 0))
        self.make_room()

    def find(self, key: str) -> Entry | None:
        known = self.known.get(key)
        if known is None or known.entry.created + self.bounds.life <= self.wall:
            return None
        self.known[key] = self.known.pop(key)
        return known.entry

    @rule(key=KEYS)
    def at_hand(self, key: str) -> None:
        assert self.scene.cache.at_hand(key) is self.find(key)

    @rule(key=KEYS, age=st.integers(0, 3_000))
    def look(self, key: str, age: int) -> None:
        since = self.wall - age
        found = self.find(key)
        assert self.scene.look(key, since) == Found(Role.DONE if found and found.created >= since else Role.LEAD, found)

    @rule(key=KEYS, age=st.integers(0, 3_000))
    def would_find(self, key: str, age: int) -> None:
        known, since = self.known.get(key), self.wall - age
        there = known.entry if known and known.entry.created + self.bounds.life > self.wall else None
        assert self.scene.cache.peek(key) is there
        fresh = there is not None and there.created >= since
        assert now(self.scene.cache.would_find(key, since)) == Found(Role.DONE if fresh else Role.LEAD, there)

    @rule(key=KEYS)
    def look_for_one_as_young(self, key: str) -> None:
        if found := self.find(key):
            assert self.scene.look(key, found.created) == (Role.DONE, found)
            assert self.scene.look(key, found.created + 1) == (Role.LEAD, found)

    @rule(bounds=BOUNDS)
    def become(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.scene.cache.become(bounds)
        self.make_room()

    @rule(team=st.sampled_from([None, "red", "blue", EVERYBODY, "nobody"]))
    def delete(self, team: str | None) -> None:
        before = set(self.scene.cache._kept)
        gone = {key for key in before if team in (None, key.split("/")[0].split(":")[0])}
        assert now(self.scene.cache.delete(team)) == len(gone)
        for key in gone:
            del self.known[key]

    @rule(team=st.sampled_from(["red", "blue", EVERYBODY, "nobody"]))
    def count(self, team: str) -> None:
        sizes = [
            self.known[key].size for key in self.scene.cache._kept if team == key.split("/")[0].removesuffix(":key")
        ]
        assert now(self.scene.cache.stats(team)) == Stats(len(sizes), sum(sizes))

    @rule(key=KEYS)
    def corrupt(self, key: str) -> None:
        if found := self.find(key):
            right = self.scene.stats.entries - 1
            self.scene.cache.at_hand(key)
            msgspec.structs.force_setattr(found, "completion", 7)
            assert now(self.scene.cache.verify()) == Verified(right, 1)
            del self.known[key]
        assert now(self.scene.cache.verify()).wrong == 0

    @rule(milliseconds=st.integers(1, 2_500))
    def time_passes(self, milliseconds: int) -> None:
        self.scene.time.passes(milliseconds)

    @rule(milliseconds=st.integers(1, 2_500))
    def the_clock_is_set(self, milliseconds: int) -> None:
        self.scene.time.wall += 1_000 - milliseconds

    @rule()
    def all_time_passes(self) -> None:
        self.scene.time.passes(HOUR)  # a timer knows nothing of a clock that is set, and may be late by that
        assert self.scene.keys == []
        assert self.scene.time.pending == []

    @invariant()
    def it_is_as_the_model_says(self) -> None:
        keys = self.scene.keys
        assert all(key in keys or self.is_over(known) for key, known in self.known.items())
        self.known = {key: known for key, known in self.known.items() if key in keys}
        assert keys == list(self.known)
        stats = self.scene.stats
        assert stats == Stats(len(keys), sum(known.size for known in self.known.values()), self.evicted)
        assert stats.bytes <= self.bounds.most_bytes
        assert stats.entries <= self.bounds.most_entries

    @invariant()
    def there_is_one_timer_while_there_is_anything(self) -> None:
        assert len(self.scene.time.pending) <= 1
        assert self.scene.time.pending or not self.known
        assert set(self.scene.cache._batches) == {known.batch for known in self.scene.cache._kept.values()}
        assert self.scene.cache._first == min(self.scene.cache._batches, default=1 << 62)


TestAgainstTheModel = Machine.TestCase
TestAgainstTheModel.settings = settings(max_examples=150, stateful_step_count=40)


# How long.


def test_an_entry_lives_as_long_as_it_may_and_not_a_millisecond_longer() -> None:
    scene = Scene(life=HOUR)
    kept = scene.keep("red/1", created=BEGIN - 10)
    scene.time.wall = BEGIN - 10 + HOUR - 1
    assert scene.cache.at_hand("red/1") is kept
    scene.time.wall += 1
    assert scene.cache.at_hand("red/1") is None
    assert scene.look("red/1") == (Role.LEAD, None)
    assert scene.keys == ["red/1"]  # until somebody has the time


def test_what_is_old_already_is_not_kept() -> None:
    scene = Scene(life=HOUR)
    scene.keep("red/1", created=BEGIN - HOUR)
    assert scene.keys == []
    scene.keep("red/1", created=BEGIN - HOUR + 1)
    assert scene.keys == ["red/1"]


def test_h7_entries_leave_without_anybody_asking_and_one_timer_is_enough() -> None:
    scene = Scene(life=HOUR)
    for n in range(3 * PART):
        scene.keep(f"red/{n}")
        scene.time.passes(1)
    assert len(scene.time.pending) == 1
    assert scene.time.passes(HOUR - 3 * PART - 1) == 0
    assert scene.stats.entries == 3 * PART
    rang = scene.time.passes(HOUR // BATCHES + 2 * REST)
    assert scene.stats == Stats(0, 0, 0)
    assert rang <= 8
    assert scene.time.pending == []


def test_entries_that_leave_one_after_the_other_do_not_have_a_timer_each() -> None:
    scene = Scene(life=20_000)
    for n in range(100):
        scene.keep(f"red/{n}")
        scene.time.passes(100)
    assert scene.time.passes(20_000 + REST) <= (20_000 + REST) // REST
    assert scene.keys == []


def test_many_that_leave_at_once_hold_nobody_up() -> None:
    scene = Scene(life=HOUR)
    for n in range(3 * PART):
        scene.keep(f"red/{n}")
    scene.time.wall += HOUR + HOUR // BATCHES + 1
    for left in (2 * PART, PART, 0):
        (alarm,) = scene.time.pending
        scene.time.alarms.clear()
        alarm.do()
        assert scene.stats.entries == left
    assert alarm.at == scene.time.loop


def test_the_busy_need_no_timer() -> None:
    scene = Scene(life=1_000)
    for n in range(100):
        scene.keep(f"red/{n}")
    scene.time.wall += 2_000
    for n in range(100):
        scene.keep(f"blue/{n}")
    assert scene.keys == [f"blue/{n}" for n in range(100)]
    assert scene.stats.evicted == 0


def test_a_clock_that_goes_back_lets_none_stay() -> None:
    scene = Scene(life=HOUR)
    scene.keep("red/1", created=BEGIN)
    for n in range(2, 9):
        scene.time.wall -= 60_000
        scene.keep(f"red/{n}")
    scene.time.passes(HOUR + 2 * HOUR // BATCHES + REST)
    # By now it is an hour since the last but one was created, by the clock of then.
    assert scene.keys == [f"red/{n}" for n in range(1, 8)]
    scene.time.passes(8 * 60_000)
    assert scene.keys == []


def test_with_a_shorter_life_the_timer_comes_sooner() -> None:
    scene = Scene(life=HOUR)
    scene.keep("red/1")
    scene.cache.become(Bounds(60_000, 1 << 30, 1 << 20))
    scene.time.passes(60_000 + HOUR // BATCHES)
    assert scene.keys == []
    scene.keep("red/1")
    scene.cache.become(Bounds(HOUR, 1 << 30, 1 << 20))
    scene.time.passes(HOUR - 1)
    assert scene.cache.at_hand("red/1")
    scene.time.passes(60_000 // BATCHES + REST)
    assert scene.keys == []


def test_what_was_asked_for_later_stays() -> None:
    scene = Scene()
    scene.keep("red/1", b"newer", began=BEGIN)
    scene.keep("red/1", b"older", began=BEGIN - 1)
    assert scene.cache.at_hand("red/1").body == b"newer"  # type: ignore[union-attr]
    for body, began in (
        (b"at the same time", 0),
        (b"newest", 1),
        (b"of a clock that is ahead", 60_000),
        (b"of ours", 2),
    ):
        scene.keep("red/1", body, began=BEGIN + began)
        assert scene.cache.at_hand("red/1").body == body  # type: ignore[union-attr]
    assert len(scene.keys) == 1


@pytest.mark.parametrize("team", ["red", None])
def test_what_was_under_way_when_a_team_was_forgotten_is_not_kept(team: str | None) -> None:
    scene = Scene()
    now(scene.cache.delete(team))
    for key in ("red/1", "red:key/1", "blue/1"):
        scene.keep(key, began=BEGIN)
    assert scene.keys == ([] if team is None else ["blue/1"])
    scene.keep("red/1", began=BEGIN + 1)
    assert "red/1" in scene.keys


async def test_the_timer_is_the_loops() -> None:
    wall = BEGIN
    cache = MemoryCache(Bounds(HOUR, 1 << 20, 1 << 10), lambda: wall)
    cache.keep("red/1", entry(wall), FLIGHT, nothing)
    timer = cache._timer
    assert isinstance(timer, asyncio.TimerHandle)
    wait = timer.when() - asyncio.get_running_loop().time()
    assert HOUR / 1000 - 60 < wait <= HOUR / 1000 * (1 + 1 / BATCHES)
    wall += 2 * HOUR
    timer._run()
    assert await cache.stats(None) == Stats(0, 0, 0)
    assert cache._timer is None


# How much.


@pytest.mark.parametrize("most", [0, 99])
def test_one_that_is_too_large_is_not_kept_and_pushes_nobody_out(most: int) -> None:
    scene = Scene(most_entry=most)
    scene.keep("red/1", bytes(most))
    scene.keep("red/1", bytes(most + 1))
    scene.keep("red/2", bytes(most + 1))
    assert scene.keys == ["red/1"]
    assert len((scene.cache.at_hand("red/1") or entry(0)).body) == most
    scene = Scene(most_bytes=5_000)
    scene.keep("red/1")
    scene.keep("red/2", bytes(5_000))
    assert scene.keys == ["red/1"]


def test_a_hit_makes_an_entry_young() -> None:
    scene = Scene(entries=3)
    for n in range(3):
        scene.keep(f"red/{n}")
    assert scene.cache.at_hand("red/0")
    scene.keep("red/3")
    assert scene.keys == ["red/2", "red/0", "red/3"]
    assert scene.look("red/2").entry
    scene.keep("red/4")
    assert scene.keys == ["red/3", "red/2", "red/4"]
    scene.keep("red/3")
    assert scene.keys == ["red/2", "red/4", "red/3"]
    assert scene.stats.evicted == 2


def test_a_look_does_not() -> None:
    scene = Scene(entries=2)
    for n in range(2):
        scene.keep(f"red/{n}")
    assert scene.cache.peek("red/0") is not None
    assert now(scene.cache.would_find("red/0", 0)).role is Role.DONE
    scene.keep("red/2")
    assert scene.keys == ["red/1", "red/2"]


async def measured(n: int, bodies: tuple[int, ...], cadence: int, rewrites: int, churn: int) -> tuple[int, int]:
    """Bytes that so many entries are counted for, and that they take. All that is in them is their own."""
    time = Time()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        cache = MemoryCache(Bounds(HOUR, 1 << 40, 1 << 30, n), lambda: time.wall, time.later)
        for i in range(n + churn):
            time.wall += 1
            kept = Entry(
                created=int(str(time.wall)),
                stream=cadence > 0,
                body=bytes(bodies[i % len(bodies)]),
                prompt=1_000 + i,
                completion=2_000 + i,
                cost=3_000 + i,
                rewrites=tuple([f"drop:{i + j}" for j in range(rewrites)]),
                cadence=packed([1_000 + i + j for j in range(cadence)]),
            )
            cache.keep(f"team:key/{i:064x}", kept, FLIGHT, nothing)
            cache.at_hand(f"team:key/{max(0, i - i % n):064x}")
        del kept
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    stats = await cache.stats(None)
    assert (stats.entries, stats.evicted) == (n, churn)
    return stats.bytes, taken


SPREAD = (0, 30, 300, 3_000)


@pytest.mark.parametrize(
    ("n", "bodies", "cadence", "rewrites", "churn"),
    [
        # A little more than a third of a power of two: tables are at their largest for what is in them.
        (21_846, (100,), 0, 0, 0),
        (21_846, (100,), 0, 0, 25_000),
        (10_923, (100,), 6, 0, 12_000),
        (10_923, SPREAD, 6, 2, 12_000),
        (20_000, SPREAD, 0, 0, 0),
        (1_000, (20_000,), 500, 32, 0),
        (100, (0,), 0, 0, 300),
    ],
)
async def test_what_counts_as_bytes_is_no_less_than_what_is_taken(
    n: int, bodies: tuple[int, ...], cadence: int, rewrites: int, churn: int
) -> None:
    counted, taken = await measured(n, bodies, cadence, rewrites, churn)
    assert taken <= counted
    assert counted <= taken * 1.9  # and it is no excuse


FILL = """
import asyncio, json, psutil
from proxy.core.cache import Bounds
from proxy.core.entry import Entry
from proxy.core.flight import Flight
from proxy.store.cache.memory import MemoryCache

async def main():
    flight, wall, nothing = Flight(0, lambda: 0.0), 1_800_000_000_000, lambda *_: None
    cache = MemoryCache(Bounds(3_600_000, MOST, 1 << 20, 1 << 30), lambda: wall)
    rss, before, peak = psutil.Process().memory_info, psutil.Process().memory_info().rss, 0
    for n in range(1_000_000):
        wall += n % 3 == 0
        cache.keep("red/%d" % n, Entry(wall + 0, False, b"%d" % n, n, n + 1, n + 2), flight, nothing)
        if n % 4_096 == 0:
            peak = max(peak, rss().rss)
    stats = await cache.stats(None)
    last = [cache.at_hand("red/%d" % (1_000_000 - back)).body for back in (1, stats.entries)]
    print(json.dumps([stats.entries, stats.bytes, stats.evicted, peak - before, [one.decode() for one in last]]))

asyncio.run(main())
"""


def test_h7_a_million_entries_take_no_more_memory_than_they_may() -> None:
    most = 64 << 20
    command = [sys.executable, "-c", FILL.replace("MOST", str(most))]
    entries, counted, evicted, taken, last = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert entries + evicted == 1_000_000
    assert most - 2_000 < counted <= most
    assert taken <= most
    assert last == ["999999", str(1_000_000 - entries)]


def test_when_few_are_left_they_keep_no_table_for_many() -> None:
    scene = Scene()
    for n in range(20_000):
        scene.keep(f"red/{n}")
    large = sys.getsizeof(scene.cache._kept)
    scene.cache.become(Bounds(HOUR, 100_000, 1 << 20))
    (batch,) = scene.cache._batches.values()
    assert scene.stats.evicted == 20_000 - scene.stats.entries
    for table in (scene.cache._kept, batch):
        assert len(table) == scene.stats.entries > 50
        assert sys.getsizeof(table) < large / 50


def test_the_garbage_collector_has_nothing_to_go_through() -> None:
    """Else a million entries would hold up everybody for a fifth of a second, each time."""
    scene = Scene()
    kept = scene.keep("red/1", b"x", cadence=packed([1, 2]), rewrites=("drop:user",))
    assert not gc.is_tracked(kept)
    assert not gc.is_tracked(scene.cache._kept["red/1"])
    assert not gc.is_tracked(scene.cache._kept)
    (batch,) = scene.cache._batches.values()
    assert not gc.is_tracked(batch)


# All at once.


def filled(n: int) -> Scene:
    scene = Scene()
    for i in range(n):
        scene.keep(f"{'red' if i % 2 else 'blue:key'}/{i}", b"%d" % i)
    return scene


def test_a_team_is_forgotten_and_the_others_are_not() -> None:
    scene = filled(10)
    scene.keep("*/1")
    scene.keep("redder/1")
    assert now(scene.cache.stats("red")).entries == 5
    assert now(scene.cache.delete("red")) == 5
    assert now(scene.cache.delete("red")) == 0
    assert now(scene.cache.stats("red")) == Stats(0, 0)
    assert now(scene.cache.delete("blue")) == 5
    assert scene.keys == ["*/1", "redder/1"]
    assert now(scene.cache.delete(None)) == 2
    assert scene.stats == Stats(0, 0, 0)


@pytest.mark.parametrize("field", ["body", "created", "cost", "rewrites", "cadence", "stream", "prompt"])
def test_what_is_not_what_it_was_is_found_and_removed(field: str) -> None:
    scene = filled(4)
    kept = scene.cache.at_hand("red/1")
    other = entry(BEGIN - 1, b"2", rewrites=("drop:user",), cadence=packed([1, 2]))
    other = msgspec.structs.replace(other, stream=True, cost=None, prompt=7)
    assert kept
    msgspec.structs.force_setattr(kept, field, getattr(other, field))
    assert now(scene.cache.verify()) == Verified(3, 1)
    assert now(scene.cache.verify()) == Verified(3, 0)
    assert "red/1" not in scene.keys
    scene.time.passes(2 * HOUR)
    assert scene.stats == Stats(0, 0, 0)


def test_an_entry_in_the_place_of_another_is_found() -> None:
    scene = filled(2)
    kept = scene.cache._kept
    kept["red/1"].entry = kept["blue:key/0"].entry
    kept["red/1"].digest = kept["blue:key/0"].digest
    assert now(scene.cache.verify()) == Verified(1, 1)


async def test_others_have_their_turn_and_may_change_everything() -> None:
    """Each of these, while entries come and go."""
    for ask in (
        lambda cache: cache.delete("red"),
        lambda cache: cache.delete(None),
        lambda cache: cache.stats("red"),
        lambda cache: cache.verify(),
    ):
        scene = filled(4 * PART)
        task = asyncio.ensure_future(ask(scene.cache))
        turns = 0
        while not task.done():
            await asyncio.sleep(0)
            scene.cache.keep(f"red/new{turns}", entry(BEGIN), FLIGHT, nothing)
            scene.cache._remove(scene.keys[-2 if len(scene.keys) > 1 else 0])
            turns += 1
        assert turns >= 4
        await task
        assert scene.stats.entries == len(scene.keys)


async def test_large_entries_give_others_their_turn_sooner() -> None:
    scene = Scene()
    for n in range(8):
        scene.keep(f"red/{n}", bytes(700_000))
    task = asyncio.ensure_future(scene.cache.verify())
    turns = 0
    while not task.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 4
    assert await task == Verified(8, 0)


async def test_whoever_is_cancelled_meanwhile_leaves_it_as_it_should_be() -> None:
    scene = filled(4 * PART)
    task = asyncio.create_task(scene.cache.delete(None))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert 0 < scene.stats.entries < 4 * PART
    assert scene.stats.bytes == sum(kept.size for kept in scene.cache._kept.values())
    assert len(scene.keys) == scene.stats.entries


def test_nothing_is_to_be_done_for_a_call_that_brought_nothing() -> None:
    scene = filled(1)
    scene.cache.drop("blue:key/0", FLIGHT)
    scene.cache.drop("red/none", FLIGHT)
    assert scene.keys == ["blue:key/0"]
