"""Server-sent events as bytes: where one event ends, what its data are, the same event with other data.

Nothing is decoded and nothing is normalised: the pieces, joined, are the bytes that came in. Lines end with LF, CRLF
or CR, an event ends with an empty line (https://html.spec.whatwg.org/multipage/server-sent-events.html).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

BOM = b"\xef\xbb\xbf"
"""May open a stream and means nothing there."""

KEEP_ALIVE = b": keep-alive\n\n"
"""A comment, which readers skip, for a client that has been sent nothing for long (guard.SILENCE)."""

# A CR after LF may be half of a CRLF: the event waits for the next byte. A CR after CR is an empty line at once, and
# an LF that still follows opens the next event, as an empty line that means nothing. So where events end depends on
# the bytes alone, and not on how they were cut into chunks.
_END = re.compile(rb"\n\n|\r\r|\n\r\n|\n\r(?=[^\n])")
_END_WITHOUT_CR = re.compile(rb"\n\n")  # the same, several times faster
FIELDS = frozenset((b"data", b"event", b"id", b"retry"))
"""All that the standard knows."""

_DATA = b"data: "


class TooLong(ValueError):
    """One event is larger than the limit."""


class Splitter:
    """Cuts a stream of chunks into whole events; of an unfinished one it holds at most `limit` bytes and a chunk.

    Whoever stops in the middle of a chunk finds in `rest` what has come after the last event taken.
    """

    def __init__(self, limit: int = 1 << 20) -> None:
        self._limit = limit
        self._held = bytearray()
        self._end = _END_WITHOUT_CR

    def feed(self, chunk: bytes) -> Iterable[bytes]:
        """The events that `chunk` completes, in order; take them all. Raises TooLong, after those that came before."""
        # Nearly always a chunk is exactly one event, and then it is not copied.
        if not self._held and _is_line(chunk) and len(chunk) <= self._limit:
            return (chunk,)
        return self._split(chunk)

    def plain(self, chunk: bytes) -> tuple[bytes, int] | None:
        """The data of a chunk's events, each on a line, and how many there are, if it is whole events of one line each,
        `data: …`, ended by LF: what nearly every chunk is. None: it has to be fed."""
        if self._held or not chunk.startswith(_DATA) or len(chunk) > self._limit:
            return None
        if _is_line(chunk):  # mostly it is one
            return chunk[len(_DATA) :], 1
        count = chunk.count(b"\n\n" + _DATA) + 1
        if b"\r" in chunk or not chunk.endswith(b"\n\n") or chunk.count(b"\n") != 2 * count:
            return None
        return chunk[len(_DATA) :].replace(b"\n\n" + _DATA, b"\n"), count

    def _split(self, chunk: bytes) -> Iterator[bytes]:
        if b"\r" in chunk:
            self._end = _END
        held = self._held
        start = max(len(held) - 2, 0)
        held += chunk
        while match := self._end.search(held, start):
            end = match.end()
            if end > self._limit:
                raise TooLong
            event = bytes(held[:end])
            del held[:end]
            yield event
            start = 0
        if len(held) > self._limit:
            raise TooLong

    @property
    def rest(self) -> bytes:
        """What is held and no event yet, but for line ends, which mean nothing there."""
        return bytes(self._held.lstrip(b"\r\n"))

    def flush(self) -> Iterable[bytes]:
        """At the end of the stream: the last event if it is whole. One without its empty line is not, and is lost."""
        return (bytes(self._held),) if self._held.endswith(b"\n\r") else ()


def only_data(event: bytes) -> bytes | None:
    """The value of the event's one line, if that is all it has and LF ends it: what nearly every event is."""
    return event[len(_DATA) : -2] if _is_line(event) and event.startswith(_DATA) else None


def data(event: bytes) -> bytes | None:
    """The values of the event's `data` lines, joined by LF; None if it has no such line."""
    values = [_value(line) for line in event.splitlines() if _field(line) == b"data"]
    return b"\n".join(values) if values else None


def with_data(event: bytes, value: bytes) -> bytes:
    """The event with `value`, which has no line end in it, as its data. Every other line stays as it is."""
    return _with_data_line(event, b"data: " + value)


def without_data(event: bytes) -> bytes:
    """The event with an empty comment, which readers skip, in place of its data."""
    return _with_data_line(event, b":")


def _with_data_line(event: bytes, new: bytes) -> bytes:
    out: list[bytes] = []
    replaced = False
    for line in event.splitlines(keepends=True):
        text = line.rstrip(b"\r\n")
        if _field(text) != b"data":
            out.append(line)
        elif not replaced:
            out += new, line[len(text) :]
            replaced = True
    return _joined(out)


def without_fields(event: bytes, names: frozenset[bytes]) -> bytes:
    """The event without its lines of these fields; comments and the empty line stay."""
    return _joined([line for line in event.splitlines(keepends=True) if _field(line.rstrip(b"\r\n")) not in names])


def _joined(lines: list[bytes]) -> bytes:
    """The event made of these. A CR that now stands before the LF of the empty line must not become one end with it."""
    if lines[-1] == b"\n" and len(lines) > 1 and lines[-2].endswith(b"\r"):
        lines[-1] = b"\r"
    return b"".join(lines)


def recognised(event: bytes) -> bool:
    """Whether it has only comments and fields of the standard: a page of HTML, for one, has not."""
    return all(not line or line.startswith(b":") or _field(line) in FIELDS for line in event.splitlines())


def line_end(event: bytes) -> bytes:
    """How the event's lines end: LF, CRLF or CR. The first line decides."""
    first = event.splitlines(keepends=True)[0]
    return first[len(first.rstrip(b"\r\n")) :]


def _is_line(event: bytes) -> bool:
    """Whether it is one line and its empty line, ended by LF."""
    return event.find(b"\n") + 2 == len(event) > 2 and event[-1] == 10 and event.find(b"\r") < 0


def _field(line: bytes) -> bytes:
    return line.partition(b":")[0]


def _value(line: bytes) -> bytes:
    return line.partition(b":")[2].removeprefix(b" ")
