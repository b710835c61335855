"""One call to a provider, and everybody who waits for what it answers.

Whoever makes the call tells the flight what comes; whoever asks for the same meanwhile follows it, and gets what has
come so far and then each piece as it comes. It outlives the client for which it was begun for as long as somebody
follows it, and nobody who follows it can hold it up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Final

from proxy.core.entry import Entry
from proxy.core.errors import ProxyError
from proxy.core.json import Json


class Lost(Exception):
    """The flight has ended without its answer. `error` is what the provider did; None: that says nothing of what it
    would do for anybody else. `unasked`: it was not even asked. `told`: the pieces hold the error already."""

    def __init__(self, error: ProxyError | None, *, told: bool = False, unasked: bool = False) -> None:
        super().__init__()
        self.error = error
        self.told = told
        self.unasked = unasked


AT_ONCE: Final = 1 << 16
"""Bytes of an answer that is there already that one client is sent before others get their turn, unless a single piece
has more."""


class Behind(Exception):
    """Whoever follows is too far behind, though the flight may go on: so much is kept for nobody."""


class Reader:
    """Whoever takes the pieces: `at` is the number of the next one."""

    __slots__ = ("at", "behind")

    def __init__(self, behind: Callable[[], object]) -> None:
        self.at = 0
        self.behind = behind


class Flight:
    """`most` bytes of it are kept for those who come later; what is longer nobody joins any more, and whoever is so far
    behind has lost it. `clock` gives seconds.

    `called`: there is a call, and its answer was not just found; `asked` is the body of whoever makes it, `key_id`
    whose key it is and `payer` who pays for it (None: not known, at another worker). `stale` is what was found before
    it, too old to be given to anybody.

    `streamed`: it comes in pieces. `parts` are those that are still here, `cadence` when how much of them came,
    `rewrites` what was reported before the first. So many `followers` wait for it. `blocked`: whoever came now might
    have to wait for the client of whoever makes the call, or for another worker of which nothing is heard.

    When it is `done`, `entry` is the whole answer, None if it was too long to be kept, and `saved` what it cost. When
    it has failed, it is `lost`. `spoiled`: it is for those alone who follow already.
    """

    __slots__ = (
        "_began",
        "_clock",
        "_gone",
        "_held",
        "_leave",
        "_readers",
        "_then",
        "_waiting",
        "asked",
        "blocked",
        "cadence",
        "called",
        "done",
        "entry",
        "followers",
        "key_id",
        "lost",
        "most",
        "parts",
        "payer",
        "rewrites",
        "saved",
        "size",
        "spoiled",
        "stale",
        "streamed",
    )

    def __init__(self, most: int, clock: Callable[[], float]) -> None:
        self.most = most
        self._clock = clock
        self._began = clock()
        # Most calls nobody follows.
        self._waiting: dict[asyncio.Future[None], float] | None = None
        self._readers: set[Reader] | None = None
        self._leave: Callable[[], object] | None = None
        self._then: Callable[[], object] | None = None
        self._gone = self._held = 0
        self.parts: list[bytes] = []
        self.cadence: list[int] = []
        self.size = self.followers = self.saved = 0
        self.called = self.streamed = self.blocked = self.done = self.spoiled = False
        self.asked: Json | None = None
        self.key_id: str | None = None
        self.payer: str | None = None
        self.stale: Entry | None = None
        self.rewrites: tuple[str, ...] = ()
        self.entry: Entry | None = None
        self.lost: Lost | None = None

    def is_newer_than(self, other: Flight) -> bool:
        return self._began > other._began

    @property
    def over(self) -> bool:
        return self.done or self.lost is not None

    @property
    def whole(self) -> bool:
        """Whether all that has come is still here."""
        return not self._gone and self.size <= self.most

    @property
    def open(self) -> bool:
        """Whether one more can follow it: from the first byte on, and without waiting for somebody else's client."""
        return self.whole and not self.blocked and not self.spoiled and self.lost is None

    # Whoever makes the call.

    def begins(self) -> None:
        """Nothing was found: the call is made."""
        self.called = True
        if self._waiting:
            self._tell(self._waiting)

    def add(self, data: bytes) -> None:
        """A piece of a stream has come."""
        self.size += len(data)
        if self.size > self.most:
            self._forget()
        if self.size <= self.most:
            self.cadence += (int((self._clock() - self._began) * 1000), len(data))
        if self.size <= self.most or self.followers:
            self.parts.append(data)
            self._held += len(data)
        if self._waiting:
            self._tell(self._waiting)

    def finish(self, entry: Entry | None, saved: int) -> None:
        """The answer is there, all of it."""
        if not self.over:
            self.done, self.entry, self.saved = True, entry, saved
            self._end()

    def fail(self, error: ProxyError | None, *, told: bool = False, unasked: bool = False) -> None:
        """It will not come."""
        if not self.over:
            self.lost = Lost(error, told=told, unasked=unasked)
            self._end()

    def at_end(self, then: Callable[[], object]) -> None:
        """Call it when the flight is over. There is one who is told."""
        if self.over:
            then()
        else:
            self._then = then

    def stays(self, leave: Callable[[], object]) -> bool:
        """Its client has left. Whether somebody else waits for the answer; if all of them go too, `leave` is called."""
        self.when_left(leave)
        if not self.followers and not self.over:
            self.spoiled = True  # whoever came now would join what is about to be ended
        return self.followers > 0

    def when_left(self, leave: Callable[[], object]) -> None:
        """Call it when nobody follows any more. There is one who is told, the last who wanted to be."""
        self._leave = leave

    def remains(self) -> Flight:
        """What has come of it, for those who ask once more: without what was asked."""
        other = Flight(self.most, self._clock)
        other._gone, other._held = self._gone, self._held
        other.parts, other.size, other.rewrites = self.parts, self.size, self.rewrites
        other.called, other.streamed, other.spoiled = self.called, self.streamed, self.spoiled
        other.done, other.entry, other.saved, other.lost = self.done, self.entry, self.saved, self.lost
        other.payer = self.payer
        return other

    # Whoever follows.

    @contextmanager
    def follow(self) -> Iterator[None]:
        """Meanwhile it goes on."""
        self.followers += 1
        try:
            yield
        finally:
            self.followers -= 1
            if not self.followers and self._leave and not self.over:
                leave, self._leave = self._leave, None
                self.spoiled = True
                leave()

    async def looked_for(self) -> None:
        """Until it is called, or over."""
        while not self.called and not self.over:
            await self._wait()

    async def begun(self, until: float = inf) -> None:
        """Until there is something to send: the first piece of a stream, or the whole answer. Raises Lost: first to
        those who can wait longest, `until` then. Whoever hears it first asks again, for all."""
        while not self.done and not (self.streamed and self.size):
            self._look()
            await self._wait(until)

    @contextmanager
    def reading(self, behind: Callable[[], object]) -> Iterator[Reader]:
        """For `pieces`. `behind` is called when what comes next for this one is not kept any more: it may be in the
        middle of sending, and not ask for it."""
        reader = Reader(behind)
        readers = self._readers = self._readers or set()
        readers.add(reader)
        try:
            yield reader
        finally:
            readers.discard(reader)

    async def pieces(self, start: int = 0, reader: Reader | None = None) -> AsyncIterator[bytes]:
        """All that came from this byte on, and what is still to come; several pieces at once for who is behind, AT_ONCE
        bytes of them or one. Raises Lost and Behind."""
        reader = reader or Reader(lambda: None)
        reader.at, before = self._place(start)
        while True:
            if reader.at < self._gone:
                raise Behind
            data = self._next(reader)[before:]
            before = 0
            if data:
                yield data
            elif self.done:
                return
            else:
                self._look()
                await self._wait()

    def _next(self, reader: Reader) -> bytes:
        size, begin = 0, reader.at - self._gone
        end = begin
        while end < len(self.parts) and (not size or size + len(self.parts[end]) <= AT_ONCE):
            size += len(self.parts[end])
            end += 1
        reader.at = self._gone + end
        return b"".join(self.parts[begin:end])

    def _place(self, byte: int) -> tuple[int, int]:
        """The number of the part that it is in, and how much of that comes before it. Raises Behind."""
        begins = self.size - self._held
        if byte < begins:
            raise Behind
        for number, part in enumerate(self.parts, self._gone):
            if byte < begins + len(part):
                return number, byte - begins
            begins += len(part)
        return self._gone + len(self.parts), 0

    def _look(self) -> None:
        if self.lost:
            # Each its own: a traceback holds on to frames.
            raise Lost(self.lost.error, told=self.lost.told, unasked=self.lost.unasked)

    def _forget(self) -> None:
        """What is over the limit, the oldest first."""
        self.cadence.clear()  # it is of no use without all the pieces
        if not self.followers:
            self._gone += len(self.parts)
            self.parts.clear()
            self._held = 0
        while self._held > self.most:
            self._held -= len(self.parts.pop(0))
            self._gone += 1
        if self._readers:
            for reader in [one for one in self._readers if one.at < self._gone]:
                self._readers.discard(reader)
                reader.behind()

    def _end(self) -> None:
        if self._waiting:
            self._tell(self._waiting)
        then, self._then, self._leave = self._then, None, None  # they know the flight: it is a circle
        if then:
            then()

    def _tell(self, waiting: dict[asyncio.Future[None], float]) -> None:
        self._waiting = None
        for news in sorted(waiting, key=waiting.__getitem__, reverse=True) if self.lost else waiting:
            if not news.done():
                news.set_result(None)

    async def _wait(self, until: float = inf) -> None:
        news = asyncio.get_running_loop().create_future()
        waiting = self._waiting = self._waiting or {}
        waiting[news] = until
        try:
            await news
        finally:
            waiting.pop(news, None)  # who has left is not remembered
