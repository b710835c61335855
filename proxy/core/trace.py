"""Traces, as W3C Trace Context (levels 1 and 2) has them: where a request belongs, and what is told of it.

Ids are lower-case hexadecimal: 32 digits of a trace, 16 of a span.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

SAMPLED, RANDOM = 1, 2
"""The flags there are: somebody keeps this trace; its id was drawn at random."""

_FIRST = b"00"
"""The only version so far. A later one may say more, behind what this one says."""

_FORM: Final = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL
)


class Parent(NamedTuple):
    """The span of whoever sent a request."""

    trace_id: str
    span_id: str
    flags: int


def parent_of(traceparent: bytes) -> Parent | None:
    """What the header says; None if that is not valid, and the request begins a trace of its own."""
    match = _FORM.fullmatch(traceparent.strip(b" \t"))
    if match is None or (match[1] == _FIRST and match[5] is not None):
        return None
    return Parent(match[2].decode(), match[3].decode(), int(match[4], 16) & (SAMPLED | RANDOM))


def traceparent(trace_id: str, span_id: str, flags: int) -> str:
    return f"00-{trace_id}-{span_id}-{flags:02x}"


Attributes = Mapping[str, str | int | bool | Sequence[str]]


@dataclass(frozen=True, slots=True)
class Span:
    """What a trace tells of one thing that was done. `start` and `end` are monotonic seconds; `is_remote`: the parent
    is whoever sent the request."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str | None
    is_remote: bool
    flags: int
    start: float
    end: float
    attributes: Attributes
    failed: bool


class Tracer(Protocol):
    """Whoever keeps spans. `lost` counts those that were not delivered."""

    @property
    def lost(self) -> int: ...

    def record(self, span: Span) -> None:
        """Never waits, and never fails."""
