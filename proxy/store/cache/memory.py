"""Answers in the memory of one process.

Two orders are kept. Whoever was of use least recently makes room for others: the entries are a chain in that order.
Whoever has been here too long leaves: entries that were created at about the same time share a batch, so that a whole
batch leaves when its time has come, whatever the clock did meanwhile. Nobody is looked at in vain.

A million entries must not be a burden to the garbage collector, which would go through all of them while everybody
waits. So there is nothing in them that it follows: chains and batches are made of keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from sys import getsizeof
from typing import Any, Final, Protocol

import msgspec

from proxy.core.cache import SKEW, Bounds, Found, Role, Stats, Then, Verified, is_fresh
from proxy.core.cache_key import team_of
from proxy.core.entry import Entry
from proxy.core.flight import Flight

AROUND: Final = 800
"""Bytes that an entry takes besides its key, body, cadence and rewrites, at the worst (tests/store/test_cache_memory.py
measures it). Of the two tables that it is in, each takes up to LOOSE, after which it is made again."""

REWRITE: Final = 40
"""Bytes around the text of a rewrite."""

LOOSE: Final = 150
"""Bytes for one entry in a table. Python makes tables of 20 to 90, and none of them gets smaller by itself."""

BATCHES: Final = 256
"""In the life of an entry. By so much of it an entry may leave late; it is given out no more."""

PART: Final = 1_024
"""Entries that are looked at before others have their turn: a millisecond, or two."""

PART_BYTES: Final = 1 << 20
"""As many bytes of entries, for the same reason."""

REST: Final = 1_000
"""Milliseconds, at least, between two looks for those whose life is over."""

_NEVER: Final = 1 << 62


class Timer(Protocol):
    def cancel(self) -> object: ...


Later = Callable[[float, Callable[[], None]], Timer]
"""(seconds, what to do then)."""


def _by_the_loop(seconds: float, do: Callable[[], None]) -> Timer:
    return asyncio.get_running_loop().call_later(seconds, do)


class Kept(msgspec.Struct, gc=False):
    """`size` is what it counts for, `batch` up to when those are created that are in the same. `older` and `newer` are
    the keys of those that were of use just before it and just after."""

    key: str
    entry: Entry
    digest: int
    size: int
    batch: int
    older: str | None = None
    newer: str | None = None


class MemoryCache:
    """A Backend. `wall` gives Unix milliseconds."""

    near = True

    def __init__(self, bounds: Bounds, wall: Callable[[], int], later: Later = _by_the_loop) -> None:
        self._bounds = bounds
        self._life = bounds.life
        self._wall = wall
        self._later = later
        self._timer: Timer | None = None
        self._kept: dict[str, Kept] = {}
        self._find = self._kept.get
        self._oldest: str | None = None
        self._newest: str | None = None
        self._batches: dict[int, dict[str, None]] = {}
        self._first = _NEVER
        """The batch that leaves first."""
        self._bytes = self._evicted = 0
        self._deleted: dict[str | None, int] = {}
        """When the entries of a team were, or of all."""
        self._encode = msgspec.msgpack.Encoder().encode

    def at_hand(self, key: str) -> Entry | None:
        kept = self._find(key)
        if kept is None or kept.entry.created + self._life <= self._wall():
            return None
        if kept.newer is not None:
            self._unchain(kept)
            self._chain(kept)
        return kept.entry

    def peek(self, key: str) -> Entry | None:
        kept = self._find(key)
        return kept.entry if kept and kept.entry.created + self._life > self._wall() else None

    async def look(self, key: str, since: int, flight: Flight) -> Found:
        return self._found(self.at_hand(key), since)

    async def would_find(self, key: str, since: int) -> Found:
        return self._found(self.peek(key), since)

    def _found(self, entry: Entry | None, since: int) -> Found:
        fresh = entry is not None and is_fresh(entry, since, self._wall())
        return Found(Role.DONE if fresh else Role.LEAD, entry)

    def keep(self, key: str, entry: Entry, flight: Flight, then: Then) -> None:
        then(key, flight)  # which is all one, in one step
        bounds, size = self._bounds, size_of(key, entry)
        if entry.size > bounds.most_entry or size > bounds.most_bytes or entry.created + self._life <= self._wall():
            return
        if self._deleted and self._was_deleted(key, entry):
            return
        before = self._find(key)
        if before is not None:
            # What was asked for later stays, but if that is in the future, where it is nobody's.
            if entry.began < before.entry.began <= self._wall() + SKEW:
                return
            self._remove(key)
        kept = self._kept[key] = Kept(key, entry, self._digest(key, entry), size, self._join(key, entry.created))
        self._chain(kept)
        self._bytes += size
        self._expire(2)  # more than come
        self._make_room()

    def _was_deleted(self, key: str, entry: Entry) -> bool:
        """Whether it was asked for before its team's entries were deleted."""
        return 0 < entry.began <= max(self._deleted.get(None, 0), self._deleted.get(team_of(key), 0))

    def drop(self, key: str, flight: Flight) -> None:
        """Nobody was told of it."""

    async def delete(self, team: str | None) -> int:
        self._deleted[team] = self._wall()
        deleted = 0
        async for kept in self._all(team):
            self._remove(kept.key)
            deleted += 1
        return deleted

    async def stats(self, team: str | None) -> Stats:
        if team is None:
            return Stats(len(self._kept), self._bytes, self._evicted)
        sizes = [kept.size async for kept in self._all(team)]
        return Stats(len(sizes), sum(sizes))

    async def verify(self) -> Verified:
        right = wrong = 0
        async for kept in self._all(None):
            if self._digest(kept.key, kept.entry) == kept.digest:
                right += 1
            else:
                wrong += 1
                self._remove(kept.key)
        return Verified(right, wrong)

    def become(self, bounds: Bounds) -> None:
        """What is here already may be larger than `most_entry`."""
        self._bounds = bounds
        self._life = bounds.life
        self._make_room()
        self._set_timer()

    async def _all(self, team: str | None) -> AsyncIterator[Kept]:
        """Those of a team, or all. Others have their turn in between, and may change what there is."""
        looked = size = 0
        for key in list(self._kept):
            looked += 1
            if looked > PART or size > PART_BYTES:
                looked = size = 0
                await asyncio.sleep(0)
            if team is None or team_of(key) == team:
                kept = self._find(key)
                if kept:
                    size += kept.size
                    yield kept

    # Who leaves to make room.

    def _make_room(self) -> None:
        bounds, kept = self._bounds, self._kept
        while self._bytes > bounds.most_bytes or len(kept) > bounds.most_entries:
            if not self._expire(1):
                assert self._oldest
                self._remove(self._oldest)
                self._evicted += 1

    def _chain(self, kept: Kept) -> None:
        """As the newest."""
        kept.older, kept.newer = self._newest, None
        if self._newest is None:
            self._oldest = kept.key
        else:
            self._kept[self._newest].newer = kept.key
        self._newest = kept.key

    def _unchain(self, kept: Kept) -> None:
        if kept.older is None:
            self._oldest = kept.newer
        else:
            self._kept[kept.older].newer = kept.newer
        if kept.newer is None:
            self._newest = kept.older
        else:
            self._kept[kept.newer].older = kept.older

    def _remove(self, key: str) -> None:
        kept = self._kept.pop(key)
        _tighten(self._kept)
        self._bytes -= kept.size
        self._unchain(kept)
        batch = self._batches[kept.batch]
        batch.pop(key, None)
        if batch:
            _tighten(batch)
        else:
            del self._batches[kept.batch]
            if kept.batch == self._first:
                self._first = min(self._batches, default=_NEVER)

    # Who leaves because it is time.

    def _join(self, key: str, created: int) -> int:
        """The batch that it is in from now on."""
        span = self._life // BATCHES + 1
        at = -(-created // span) * span
        batch = self._batches.get(at)
        if batch is None:
            batch = self._batches[at] = {}
            if at < self._first:
                self._first = at
                self._set_timer()
        batch[key] = None
        return at

    def _expire(self, most: int) -> int:
        """Remove so many of those whose life is over. How many there were."""
        over, found = self._wall() - self._life, 0
        while found < most and self._first <= over:
            key, _ = self._batches[self._first].popitem()  # any: it is the one that leaves no gap to be skipped
            self._remove(key)
            found += 1
        return found

    def _set_timer(self) -> None:
        """There is one while there is anything."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._batches:
            wait = max(self._first + self._life - self._wall(), REST)
            self._timer = self._later(wait / 1000, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        if self._expire(PART) == PART:
            self._timer = self._later(0, self._on_time)
        else:
            self._set_timer()

    def _digest(self, key: str, entry: Entry) -> int:
        """64 bits of a hash that is keyed for this process: nobody else needs to know it. Those that others would know
        take four times as long."""
        return hash(self._encode((key, entry)))


def _tighten(table: dict[str, Any]) -> None:
    """Once it has become far too large for what is left in it."""
    if getsizeof(table) > LOOSE * (len(table) + 3):
        rest = zip(list(table), list(table.values()), strict=True)
        table.clear()
        table.update(rest)


def size_of(key: str, entry: Entry) -> int:
    """Bytes of memory that it takes, and no less."""
    size = AROUND + getsizeof(key) + getsizeof(entry.body) + getsizeof(entry.cadence)
    if entry.rewrites:
        size += sum(map(getsizeof, entry.rewrites)) + REWRITE * len(entry.rewrites)
    return size
