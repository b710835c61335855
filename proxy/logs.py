"""Log lines: one JSON object, or one console line, per event. Nobody waits until they are read."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import select
import socket
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import islice
from math import floor
from typing import Any, BinaryIO

import msgspec

from proxy.core.errors import place_of

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
FLUSH_AFTER = 0.05
"""Seconds that a line may wait for others, so that a busy worker writes once for many requests."""

RETRY_AFTER = 0.01
"""Seconds between two attempts to write what there is no room for: a pipe has 64 KiB, so 6 MB a second get through."""

TROUBLE = 1.0
"""Seconds until the next attempt when nobody can read any more, or the disk is full."""

MOST_AT_ONCE = 4096
"""Bytes that a pipe takes whole or not at all (PIPE_BUF of Linux)."""

MOST_OF_A_FILE = 1 << 18
"""Bytes that are written to a file at once: as many as a disk that is slow may keep everybody waiting for."""

MOST_LINES, MOST_BYTES = 10_000, 8 << 20
"""What waits for a reader that does not read. Lines beyond are lost, and counted."""

LAST_ATTEMPT = 1.0
"""Seconds that the end of the process waits for that reader."""

_FRACTIONS = tuple(b".%03dZ" % number for number in range(1000))
"""The ends of a time."""

_encode = msgspec.json.Encoder().encode


class Writer:
    """Called as `log(level, event, **fields)`; lines below the level are not made. `now` gives Unix seconds, `always`
    are fields of every line.

    Once a line is lost, all are until the ones before them are written: a gap is in one place, and `log_lost` there
    tells how many lines it has.
    """

    def __init__(
        self,
        stream: BinaryIO,
        *,
        level: str = "info",
        format: str = "json",
        now: Callable[[], float] = time.time,
        **always: Any,
    ) -> None:
        self._write, self._at_once = without_waiting(stream)
        self._now = now
        self._always = always
        self._rest = b"," + _encode(always)[1:] + b"\n" if always else b"}\n"
        self._heads: dict[tuple[str, str], bytes] = {}
        """What stands between a line's time and its fields, by level and event."""
        self.become(level, format)
        self._second, self._written = -1, b""
        self._waiting: deque[bytes] = deque()
        self._bytes = self._lost = 0
        self.lost = 0
        """Lines, since the beginning."""
        self._flushed_by: asyncio.AbstractEventLoop | None = None

    def become(self, level: str, format: str) -> None:
        """Write the lines to come from this level on, in this format."""
        self._least = LEVELS[level]
        self._is_json = format == "json"

    def __call__(self, level: str, event: str, **fields: Any) -> None:
        if LEVELS[level] >= self._least:
            self.ready(level, event, _encode(fields))

    def ready(self, level: str, event: str, fields: bytes) -> None:
        """The same with fields that are JSON already, an object."""
        if LEVELS[level] < self._least:
            return
        if self._lost or self._bytes >= MOST_BYTES or len(self._waiting) >= MOST_LINES:
            self._lost += 1
            self.lost += 1
        else:
            self._add(level, event, fields)
        # The loop is asked, and not the system, for which it is a question which one runs.
        if (self._flushed_by is None or not self._flushed_by.is_running()) and not self._flush_later():
            self.flush()

    def flush(self) -> None:
        """Write what there is room for at once, and see to the rest later: no request waits for whoever reads this."""
        self._flushed_by = None
        try:
            self._write_waiting()
        except BlockingIOError:
            self._flush_later(RETRY_AFTER)
        except (OSError, ValueError):
            self._flush_later(TROUBLE)

    def close(self) -> None:
        """At the end of the process: write what waits, if there is room for it within LAST_ATTEMPT."""
        end = time.monotonic() + LAST_ATTEMPT
        while time.monotonic() < end:
            try:
                self._write_waiting()
                return
            except BlockingIOError:
                time.sleep(RETRY_AFTER)
            except (OSError, ValueError):  # nobody reads any more
                return

    def _write_waiting(self) -> None:
        while self._waiting and (size := self._write(self._piece())):
            self._forget(size)
            if not self._waiting:
                self._tell_what_is_lost()

    def _flush_later(self, seconds: float = FLUSH_AFTER) -> bool:
        """Whether there is a loop to do so: there is none before it starts, after it ends, and in the supervisor."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        self._flushed_by = loop
        loop.call_later(seconds, self.flush)
        return True

    def _tell_what_is_lost(self) -> None:
        lost, self._lost = self._lost, 0
        if lost:
            self._add("error", "log_lost", _encode({"lines": lost}))

    def _add(self, level: str, event: str, fields: bytes) -> None:
        now = self._now()
        second = floor(now)
        if second != self._second:
            self._tell_time(second)
        time = self._written + _FRACTIONS[floor((now - second) * 1000)]
        if self._is_json:
            head = self._heads.get((level, event)) or self._head(level, event)
            comma = b"," if len(fields) > 2 else b""
            line = b'{"time":"%b%b%b%b%b' % (time, head, comma, fields[1:-1], self._rest)
        else:
            line = _console_line(time.decode(), level, event, msgspec.json.decode(fields) | self._always)
        self._waiting.append(line)
        self._bytes += len(line)

    def _head(self, level: str, event: str) -> bytes:
        head = self._heads[level, event] = f'","level":"{level}","event":"{event}"'.encode()
        return head

    def _piece(self) -> bytes:
        """Whole lines, as many as go at once; a longer line alone."""
        if self._bytes <= self._at_once:
            return b"".join(self._waiting)
        size = count = 0
        for line in self._waiting:
            size += len(line)
            if size > self._at_once and count:
                break
            count += 1
        return b"".join(islice(self._waiting, count))

    def _forget(self, size: int) -> None:
        """So many bytes are written. Of a long line it may be the beginning."""
        self._bytes -= size
        if not self._bytes:
            self._waiting.clear()
            return
        while size:
            line = self._waiting.popleft()
            if size < len(line):
                self._waiting.appendleft(line[size:])
                return
            size -= len(line)

    def _tell_time(self, second: int) -> None:
        """UTC. The calendar is asked once a second, not once a line."""
        self._second, self._written = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()


# Where they go.


def without_waiting(stream: BinaryIO) -> tuple[Callable[[bytes], int], int]:
    """A function that writes bytes, or their beginning, and returns how many; and how many it is to be given at once.
    It raises BlockingIOError instead of waiting for the reader, and another OSError or a ValueError when there is none.

    `stream` itself stays as it is: whoever started us may share it, and may not expect that it is non-blocking.
    """
    try:
        descriptor = stream.fileno()
        kind = os.fstat(descriptor).st_mode
    except (OSError, ValueError):  # closed, or no file
        return stream.write, MOST_AT_ONCE
    if stat.S_ISREG(kind):
        # Nobody reads it, and every worker has the same place in it.
        return lambda data: os.write(descriptor, data), MOST_OF_A_FILE
    if stat.S_ISSOCK(kind):
        sock = socket.socket(fileno=os.dup(descriptor))
        return lambda data: sock.send(data, socket.MSG_DONTWAIT), MOST_AT_ONCE
    try:
        ours = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:  # no /proc, or it belongs to another user
        return _IfReady(descriptor), MOST_AT_ONCE
    return _Whole(ours) if stat.S_ISFIFO(kind) else lambda data: os.write(ours, data), MOST_AT_ONCE


class _IfReady:
    """Writes to a descriptor that is shared, and may be blocking."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __call__(self, data: bytes) -> int:
        ready = select.poll()
        ready.register(self._descriptor, select.POLLOUT)
        if not ready.poll(0):
            raise BlockingIOError
        return os.write(self._descriptor, data[:MOST_AT_ONCE])  # there is room for as much


class _Whole:
    """Writes to a pipe through a descriptor of our own. A long line goes in pieces, between which no other worker
    writes: whoever writes holds the pipe's lock until the line is at its end, and nobody waits for the lock."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._inside = False

    def __call__(self, data: bytes) -> int:
        if not self._inside:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            size = os.write(self._descriptor, data)
            self._inside = data[size - 1 : size] != b"\n"
            return size
        except BrokenPipeError:
            self._inside = False
            raise
        finally:
            if not self._inside:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)


# What they look like.


def _console_line(time: str, level: str, event: str, fields: dict[str, Any]) -> bytes:
    shown = " ".join(f"{name}={_shown(value)}" for name, value in fields.items() if value is not None)
    return f"{time[11:19]} {level:<7} {event} {shown}\n".encode(errors="backslashreplace")


def _shown(value: Any) -> str:
    if isinstance(value, str) and value.isprintable() and not set(value) & set(' "\\='):
        return value
    # Anything but a plain word is quoted and escaped, so that no value can look like another field or another line.
    return "".join(one if one.isprintable() else f"\\u{ord(one):04x}" for one in _encode(value).decode())


class FromLibraries(logging.Handler):
    """Brings warnings of the libraries (uvicorn, asyncio, aiohttp) into our log: redacted, and without tracebacks. Of
    each the first line: asyncio goes on with a representation of the task, which has the text of its exception."""

    def __init__(self, log: Writer, redact: Callable[[str], str]) -> None:
        super().__init__(logging.WARNING)
        self._log = log
        self._redact = redact

    def emit(self, record: logging.LogRecord) -> None:
        level = "error" if record.levelno >= logging.ERROR else "warning"
        error = record.exc_info[1] if record.exc_info else None
        message = self._redact(record.getMessage()[:1000].partition("\n")[0])
        kind, place = (type(error).__name__, place_of(error)) if error else (None, None)
        self._log(level, "library", logger=record.name, message=message, kind=kind, place=place)


def report_uncaught(log: Writer, loop: asyncio.AbstractEventLoop) -> None:
    """What nobody catches in a thread or a finalizer becomes a line, in place of Python's traceback on stderr: that has
    the exception's text, which may quote a request or a key."""

    def report(uncaught: threading.ExceptHookArgs | sys.UnraisableHookArgs) -> None:
        error = uncaught.exc_value
        place = place_of(error) if error else None
        write = partial(log, "error", "unexpected", kind=uncaught.exc_type.__name__, place=place)
        with suppress(RuntimeError):  # the loop is closed, and with it the log
            loop.call_soon_threadsafe(write)

    threading.excepthook = sys.unraisablehook = report
