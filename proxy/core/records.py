"""What became of the latest requests, for whoever asks for one by its id: a ring of lines for each worker, in memory
that all of them share, so that each can answer for all.

A line is the JSON object of one request. New lines overwrite the oldest; of the one that is cut then the rest is no
JSON any more, and is passed over.
"""

from __future__ import annotations

from asyncio import sleep
from collections.abc import AsyncIterator, Callable, Iterator
from mmap import mmap
from typing import Any, Final

from proxy.core import json
from proxy.core.json import Json

SIZE: Final = 16 << 20
"""Bytes of one worker's ring: some twenty thousand requests. What is not used takes up none of the machine's."""

KEPT: Final = 3_600_000
"""Milliseconds for which a request is told of, if it is not overwritten sooner."""

_LONGEST: Final = 1 << 16
"""Bytes of one line."""

_WINDOW: Final = 1 << 18
"""Bytes that are searched before others get their turn: about a fifth of a millisecond."""


class Ring:
    """Of one worker, which alone writes to it. `start` is where it begins in the memory."""

    def __init__(self, memory: mmap, start: int, size: int) -> None:
        self._memory = memory
        self._start, self._end = start + 16, start + size
        self._head = memoryview(memory)[start : start + 16].cast("q")
        if not self._head[0]:
            self._head[0] = self._head[1] = self._start

    def keep(self, line: bytes) -> None:
        """`line` is a JSON object and ends with a line feed."""
        size, at = len(line), self._head[0]
        if size > _LONGEST:
            return
        if at + size > self._end:
            self._memory[at : self._end] = b"\n" * (self._end - at)
            self._head[1], at = self._end, self._start
        self._memory[at : at + size] = line
        self._head[0] = at + size
        if self._head[1] < at + size:
            self._head[1] = at + size

    async def find(self, needle: bytes) -> AsyncIterator[Json]:
        """All lines in which it stands."""
        at, end = self._start, self._head[1]
        while at < end:
            window = min(at + _WINDOW, end)
            for line in self._in(at, min(window + len(needle) - 1, end), needle):
                yield line
            at = window
            await sleep(0)

    def _in(self, at: int, end: int, needle: bytes) -> Iterator[Json]:
        while (at := self._memory.find(needle, at, end)) >= 0:
            first = self._memory.rfind(b"\n", max(self._start, at - _LONGEST), at) + 1 or self._start
            last = self._memory.find(b"\n", at, min(at + _LONGEST, self._end))
            at += len(needle)
            if last < 0:
                continue  # it is being overwritten
            try:
                line: Any = json.decode(self._memory[first:last])
            except json.Malformed:
                continue
            if isinstance(line, dict):
                yield line


class Records:
    """The rings of so many workers. `wall` gives Unix milliseconds."""

    def __init__(self, workers: int = 1, size: int = SIZE) -> None:
        memory = mmap(-1, workers * size)
        self.rings = tuple(Ring(memory, at * size, size) for at in range(workers))

    async def find(self, request_id: str, wall: Callable[[], int]) -> Json | None:
        """The latest request of this id, with how many others there are of it; or None."""
        needle = b'"request_id":%b' % json.encode(request_id)
        latest: Json | None = None
        since, others = wall() - KEPT, -1
        for ring in self.rings:
            async for line in ring.find(needle):  # one at a time: a client may send the same id with all its requests
                if line.get("request_id") == request_id and line.get("ended", 0) >= since:
                    others += 1
                    latest = line if latest is None or line["ended"] >= latest["ended"] else latest
        return latest and latest | {"others": others}
