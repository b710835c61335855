"""What a quota is: rules as a team lead writes them, what they count, and the one step in which a request is let in.

A request makes a `Claim` on each counter that its rules name. A store checks and reserves all of them at once, or none;
when the request has ended, each is settled to what was really used. Amounts are integers: requests, tokens, nano-USD
or slots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Final, Protocol

import msgspec


class Unit(Enum):
    """What is counted. CONCURRENCY is slots: they come back when the request ends."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    SPEND = "spend"
    CONCURRENCY = "concurrency"


@dataclass(frozen=True, slots=True)
class Window:
    """`span` is the length of a sliding window in milliseconds; None: a period of the calendar (core/calendar.py)."""

    name: str
    span: int | None


WINDOWS: Final[Mapping[str, Window]] = MappingProxyType(
    {
        window.name: window
        for window in (
            Window("second", 1_000),
            Window("minute", 60_000),
            Window("hour", 3_600_000),
            Window("day", None),
            Window("week", None),
            Window("month", None),
        )
    }
)


SLOT_WAIT: Final = 1_000
"""Milliseconds after which to ask again for a slot: nobody knows when one comes back. The scripts for Redis say the
same (store/lua/common.lua)."""


@dataclass(frozen=True)
class Counter:
    """What is counted together. A limit is no part of it, so that editing one never resets what was used.

    `window` is None for CONCURRENCY. `key` is a key's id where each key is counted apart, `model` a catalogue id where
    one model is. What a `shadow` rule counts is counted apart from what a real one does.
    """

    team: str
    unit: Unit
    window: Window | None
    key: str | None = None
    model: str | None = None
    shadow: bool = False

    name: str = field(init=False, compare=False)
    """The same for the same counter, in every process."""

    def __post_init__(self) -> None:
        parts = [self.team, self.unit.value, self.window.name if self.window else "now"]
        parts += ["shadow"] if self.shadow else []
        parts += [f"key={self.key}"] if self.key else []
        parts += [f"model={self.model}"] if self.model else []  # last: a name may have any mark in it
        object.__setattr__(self, "name", "|".join(parts))


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of `teams.*.quotas`. `text` is how it was written: `100000/minute`, `50 USD/month`, `8`."""

    unit: Unit
    limit: int
    window: Window | None
    text: str
    per_key: bool = False
    model: str | None = None
    shadow: bool = False

    @property
    def name(self) -> str:
        """For people: `tokens 100000/minute per key, model mistral-large-latest`."""
        per, model = " per key" if self.per_key else "", f", model {self.model}" if self.model else ""
        return f"{self.unit.value} {self.text}{per}{model}"


# Made for every request: a Struct costs a tenth of a dataclass, and no garbage collector has to look at it.


class Claim(msgspec.Struct, frozen=True, gc=False):
    """`amount` is the most that the request can use of a counter, `limit` what may be used of it in its window. One of
    a shadow counter is never a reason to refuse."""

    counter: Counter
    limit: int
    amount: int


class Standing(msgspec.Struct, frozen=True, gc=False):
    """A counter as it is for one claim: with it when it was granted, without it when not.

    `reserved` is what requests under way may still use, `used` all else. `reset` is how many milliseconds it takes
    until nothing of this is counted any more. `wait`: after so many the claim would fit, were nothing else to come; 0:
    it fits; None: it never will.
    """

    used: int
    reserved: int
    reset: int
    wait: int | None = 0


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """`standings` are in the order of the claims. When it was not `granted`, nothing has been reserved anywhere, and at
    least one `wait` is not 0."""

    granted: bool
    standings: tuple[Standing, ...]


class StoreGone(Exception):
    """The store does not answer, or not as one; nothing is known of the counters."""


class HistoryGone(StoreGone):
    """The counters may be had, but not what the ledger knows of one that has to be made anew."""


class QuotaStore(Protocol):
    """Where counters live. `call` is the id of one request, ours and never a client's."""

    async def reserve(self, call: str, claims: Sequence[Claim]) -> Verdict:
        """Grant all of `claims`, or none. Raises StoreGone. When it is cancelled or raises, nothing stays reserved."""
        ...

    async def look(self, claims: Sequence[Claim]) -> Verdict:
        """What `reserve` would say of these now; nothing is reserved. Raises StoreGone where that does."""
        ...

    def settle(self, call: str, claims: Sequence[Claim], used: Sequence[int]) -> None:
        """What a granted call has `used`, in the order of its claims; slots come back. What was reserved beyond that
        returns to the windows it was taken from. Never waits and never fails; a second time it does nothing."""
        ...

    async def caught_up(self) -> None:
        """Return when what was settled before is free again, or after a moment at most. Never fails."""
        ...


class History(Protocol):
    """What the ledger knows of a counter's past."""

    async def used(self, counter: Counter, start: int, end: int) -> int:
        """What the requests that were let in from `start` until before `end` (Unix milliseconds) have used; those that
        have not ended count for what they reserved. Raises HistoryGone."""
        ...
