"""Where answers are kept for those who ask the same again.

The cache never fails: what goes wrong with it is a miss, and a line in the log.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Literal, NamedTuple, Protocol

from proxy.core.entry import Entry
from proxy.core.flight import Flight

Outcome = Literal["hit", "miss", "bypass", "joined", "stale"]
"""What the cache did for a request: `x-proxy-cache`, and the ledger's word."""


SKEW: Final = 5_000
"""Milliseconds by which another replica's clock may be ahead. What is of a later time than that, nobody knows the age
of, and it is not fresh."""


def is_fresh(entry: Entry, since: int, now: int) -> bool:
    """Whether it is as young as is asked for, and not of the future (Unix milliseconds)."""
    return since <= entry.created <= now + SKEW


class Known(NamedTuple):
    """What a request has come to by the time that it is looked for: the `key` of its answer, which model it is about,
    and what had to be changed in it."""

    key: str
    model_asked: str | None
    model: str | None
    provider: str
    sent_as: str
    rewrites: tuple[str, ...]


class Role(Enum):
    """What whoever has looked is to do."""

    DONE = "nothing: the entry is fresh"
    LEAD = "to make the call, and to say what came of it"
    FOLLOW = "to wait: another process makes the call, and the flight is told what comes"


class Found(NamedTuple):
    """`entry` is fresh if the role is DONE, else one that may still be served when the provider fails."""

    role: Role
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class Bounds:
    """`life` is how many milliseconds an entry may be kept for at all. `most_bytes` are those of all entries,
    `most_entry` those of one; a process keeps `most_entries` at most."""

    life: int
    most_bytes: int
    most_entry: int
    most_entries: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Stats:
    """`bytes` is what the entries take up, with all that is kept beside them. `evicted` have made room for others."""

    entries: int
    bytes: int
    evicted: int | None = None


@dataclass(frozen=True, slots=True)
class Verified:
    """How many entries are what they were when they were kept. The others are gone now."""

    right: int
    wrong: int


Then = Callable[[str, Flight], object]
"""What is to be done for a key, and its flight."""


class Backend(Protocol):
    """Keeps entries by their keys (core/cache_key.py). `near`: they are in this process."""

    near: bool

    def at_hand(self, key: str) -> Entry | None:
        """What can be had without asking anybody, fresh or not."""
        ...

    async def look(self, key: str, since: int, flight: Flight) -> Found:
        """What there is, and who makes the call if nothing is younger than `since` (Unix milliseconds). Whoever leads
        has to `keep` or `drop`; meanwhile other processes may follow the flight. For whoever follows, the flight is
        told from elsewhere, its end included. Where it raises, `drop` has to follow."""
        ...

    def peek(self, key: str) -> Entry | None:
        """What `at_hand` would give; it counts as no use of it."""
        ...

    async def would_find(self, key: str, since: int) -> Found:
        """What `look` would find now. Nobody leads for that, and nobody follows."""
        ...

    def keep(self, key: str, entry: Entry, flight: Flight, then: Then) -> None:
        """The flight has ended with this entry, which is to be kept, unless it is too large or there is one that was
        asked for later, or the entries of its team were deleted since it was asked for. Never waits; calls `then` when
        it is done."""
        ...

    def drop(self, key: str, flight: Flight) -> None:
        """The flight has ended, and nothing is to be kept. Never waits."""
        ...

    async def delete(self, team: str | None) -> int:
        """Forget what is kept for a team, or for everybody, and what is under way to be kept. How many entries there
        were. Raises CacheGone."""
        ...

    async def stats(self, team: str | None) -> Stats:
        """Raises CacheGone."""
        ...

    async def verify(self) -> Verified:
        """Look at every entry. Raises CacheGone."""
        ...

    def become(self, bounds: Bounds) -> None:
        """From now on with these."""
        ...


class CacheGone(Exception):
    """Whoever keeps the entries does not answer. The text is the kind of failure, and safe to log."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The cache of one process: what is kept, and which calls are under way. `secret` keys every digest."""

    backend: Backend
    secret: bytes
    flights: MutableMapping[str, Flight] = field(default_factory=dict)

    def forget(self, key: str, flight: Flight) -> None:
        """Nobody joins it any more."""
        if self.flights.get(key) is flight:
            del self.flights[key]
