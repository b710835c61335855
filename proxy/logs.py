"""Log lines: one JSON object, or one console line, per event."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import msgspec

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
FLUSH_AFTER = 0.05
"""Seconds that a line may wait for others, so that a busy worker writes once for many requests."""

MOST_AT_ONCE = 4096
"""Bytes that a pipe takes in one piece (PIPE_BUF of Linux), so that lines of several workers do not mix in it."""

_encode = msgspec.json.Encoder().encode


class Writer:
    """Called as `log(level, event, **fields)`; lines below the level are not made. `now` gives Unix seconds, `always`
    are fields of every line."""

    def __init__(
        self,
        stream: BinaryIO,
        *,
        level: str = "info",
        format: str = "json",
        now: Callable[[], float] = time.time,
        **always: Any,
    ) -> None:
        self._stream = stream
        self._now = now
        self._always = always
        self.become(level, format)
        self._second, self._written = -1, ""
        self._waiting: list[bytes] = []

    def become(self, level: str, format: str) -> None:
        """Write the lines to come from this level on, in this format."""
        self._least = LEVELS[level]
        self._line = _json_line if format == "json" else _console_line

    def __call__(self, level: str, event: str, **fields: Any) -> None:
        if LEVELS[level] < self._least:
            return
        fields |= self._always
        self._waiting.append(self._line(self._timestamp(), level, event, fields))
        if len(self._waiting) > 1:
            return
        try:
            asyncio.get_running_loop().call_later(FLUSH_AFTER, self.flush)
        except RuntimeError:  # no loop: before it starts and after it ends
            self.flush()

    def _timestamp(self) -> str:
        """UTC, with milliseconds. The calendar is asked once a second, not once a line."""
        second, fraction = divmod(self._now(), 1)
        if second != self._second:
            self._second, self._written = int(second), time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._written}.{int(fraction * 1000):03d}Z"

    def flush(self) -> None:
        lines, self._waiting = self._waiting, []
        try:
            for piece in _pieces(lines):
                # An unbuffered stream (PYTHONUNBUFFERED) writes less than all when a signal comes in between.
                rest = memoryview(piece)
                while rest:
                    rest = rest[self._stream.write(rest) or len(rest) :]
                self._stream.flush()
        except (OSError, ValueError):  # the reader of our output is gone; the requests are not its fault
            return


def _pieces(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines, as many as go at once; a longer line alone."""
    piece = b""
    for line in lines:
        if piece and len(piece) + len(line) > MOST_AT_ONCE:
            yield piece
            piece = b""
        piece += line
    yield piece


def _json_line(time: str, level: str, event: str, fields: dict[str, Any]) -> bytes:
    return _encode({"time": time, "level": level, "event": event, **fields}) + b"\n"


def _console_line(time: str, level: str, event: str, fields: dict[str, Any]) -> bytes:
    shown = " ".join(f"{name}={_shown(value)}" for name, value in fields.items() if value is not None)
    return f"{time[11:19]} {level:<7} {event} {shown}\n".encode(errors="backslashreplace")


def _shown(value: Any) -> str:
    if isinstance(value, str) and value.isprintable() and not set(value) & set(' "\\='):
        return value
    # Anything but a plain word is quoted and escaped, so that no value can look like another field or another line.
    return "".join(one if one.isprintable() else f"\\u{ord(one):04x}" for one in _encode(value).decode())


class FromLibraries(logging.Handler):
    """Brings warnings of the libraries (uvicorn, asyncio, aiohttp) into our log: redacted, and without tracebacks."""

    def __init__(self, log: Writer, redact: Callable[[str], str]) -> None:
        super().__init__(logging.WARNING)
        self._log = log
        self._redact = redact

    def emit(self, record: logging.LogRecord) -> None:
        level = "error" if record.levelno >= logging.ERROR else "warning"
        kind = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else None
        message = self._redact(record.getMessage()[:1000])
        self._log(level, "library", logger=record.name, message=message, kind=kind)
