"""One row per request that was let in: who, what for, how much, how it ended. No content, no key, no address.

A row begins as an `Intent`, before the upstream is called, and ends with exactly one `Outcome`. Times are Unix
milliseconds, money is nano-USD: a token of the cheapest model costs a fraction of a micro-USD.
"""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

Status = Literal["settled", "failed", "cancelled"]
"""How a row ends: with an answer; with an error; without the client, or without the process that had it."""


class Intent(msgspec.Struct, frozen=True, array_like=True, tag="i", gc=False):
    """`call` is our id of it and the row's key; `request_id` may be the client's. `model` is the name that was sent,
    `priced_as` the catalogue's id of it. `prompt` is the estimate of the prompt's tokens; `tokens` and `cost` are the
    most that it can use, which is what it is charged if nothing is ever heard of it again."""

    call: str
    request_id: str
    opened: int
    team: str
    key_id: str
    operation: str
    provider: str
    model_asked: str | None
    model: str | None
    priced_as: str | None
    price_version: str
    stream: bool
    prompt: int
    tokens: int
    cost: int


class Outcome(msgspec.Struct, frozen=True, array_like=True, tag="o", gc=False):
    """`completion` includes the tokens of `reasoning`, `prompt` those that were `cached` by the provider. `cost` is
    None when there is no price, `saved` is what an answer without a call cost when it was made. `latency` and
    `first_byte` are microseconds since the request began. `estimated`: the provider's own count was not had. `cache` is
    what our own did (core/cache.py)."""

    call: str
    closed: int
    status: Status
    http_status: int | None
    error: str | None
    attempts: int
    latency: int
    first_byte: int | None
    prompt: int
    cached: int
    completion: int
    reasoning: int
    audio_seconds: int
    pages: int
    cost: int | None
    estimated: bool
    cache: str | None = None
    saved: int = 0


class LedgerFull(Exception):
    """No row can be kept at the moment: nothing may be let in that could not be accounted for."""


class Ledger(Protocol):
    """Rows are on their way to the database when these return, and outlive the death of the process. `rows_waiting`
    have not got there yet."""

    @property
    def rows_waiting(self) -> int: ...

    def open(self, intent: Intent) -> None:
        """Raises LedgerFull. Never waits."""
        ...

    def close(self, outcome: Outcome) -> None:
        """Never waits and never fails."""
        ...
