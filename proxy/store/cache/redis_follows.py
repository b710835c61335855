"""The calls that other workers make and somebody here waits for: each flight is told what its leader says.

Nothing that is said need arrive. What is numbered shows what is missing, and who hears nothing asks again. A leader
that is not heard of any more ends its flights here: whoever waits looks once more, and one of them makes the call.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

from proxy.core import wording
from proxy.core.cache import CacheGone
from proxy.core.entry import Entry, Sealer
from proxy.core.errors import Draining, Elsewhere, KeyFault, Overloaded, ProxyError, UpstreamRefusal
from proxy.core.flight import Flight
from proxy.store.cache.redis_leads import Say
from proxy.store.cache.redis_talk import End, Join, Leave, Piece

REFUSED: Final = 1_000
"""Leases of the past that are remembered."""

FAILED: Final = "The provider has failed to answer the request that this one had joined. Try again later."

CHANCES: Final = 2
"""How often a lease may be found gone while a part of the answer is here, and once less while there is none: its end
may be on its way."""


@dataclass(slots=True, eq=False)
class Follow:
    """`lease` is <flight>:<owner> of who makes the call. `news`: something has come; `gap`: something has not."""

    name: str
    key: str
    lease: str
    flight: Flight
    news: asyncio.Event = field(default_factory=asyncio.Event)
    gap: bool = False
    sealed: bytearray = field(default_factory=bytearray)
    ending: asyncio.Task[None] | None = None

    @property
    def leader(self) -> tuple[str, str]:
        """Flight and owner."""
        name, _, owner = self.lease.partition(":")
        return name, owner


@dataclass(frozen=True, slots=True)
class Asking:
    """How to ask others, and Redis. `listening`: what they say is heard. `say`: as for leads. `holds` tells whether a
    lease is that of its key, `release` gives it back, `fetch` finds the entry of a key. These raise CacheGone."""

    listening: Callable[[], bool]
    say: Say
    holds: Callable[[str, str], Awaitable[bool]]
    release: Callable[[str, str], Awaitable[None]]
    fetch: Callable[[str], Awaitable[Entry | None]]


class Follows:
    """After `moment` seconds without a word nobody else of this worker joins what is followed, and after so many
    `quiet` a follower asks again; for so many `patience` it does so in vain."""

    def __init__(
        self, owner: str, sealer: Sealer, asking: Asking, moment: float, quiet: float, patience: float
    ) -> None:
        self._owner = owner
        self._sealer = sealer
        self._asking = asking
        self._moment = moment
        self._quiet = quiet
        self._patience = patience
        self._first = secrets.token_hex(8)
        self._numbers = count(1)
        self._follows: dict[str, Follow] = {}
        self._of: dict[Flight, Follow] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._refused: dict[str, None] = {}

    def may(self, lease: str) -> bool:
        """Whether it is worth while to follow who has this."""
        name, _, owner = lease.partition(":")
        return bool(name) and owner not in ("", self._owner) and lease not in self._refused

    def begin(self, key: str, lease: str, flight: Flight) -> None:
        follow = Follow(f"{self._first}-{next(self._numbers)}", key, lease, flight)
        self._follows[follow.name] = self._of[flight] = follow
        flight.when_left(lambda: self.leave(flight))
        self._task(self._run(follow))

    def leave(self, flight: Flight) -> None:
        """Nobody here waits for it any more."""
        follow = self._of.get(flight)
        if follow:
            self._end(follow)
            self._task(self._say_leave(follow.name, follow.leader[1]))

    def reconnected(self) -> None:
        """What was said meanwhile was not heard."""
        for follow in self._follows.values():
            follow.gap = True
            follow.news.set()

    async def close(self) -> None:
        for follow in list(self._follows.values()):
            self._end(follow)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))

    # What the leader says.

    def heard(self, message: Piece | End) -> None:
        follow = self._follows.get(message.follow)
        if follow is None and isinstance(message, Piece) and message.back:
            self._task(self._say_leave(message.follow, message.back))  # it does not know yet that nobody follows
        if follow is None or follow.ending:
            return
        follow.flight.blocked = False
        if isinstance(message, Piece):
            self._piece(follow, message)
        else:
            self._ended(follow, message)
        follow.news.set()

    def _piece(self, follow: Follow, piece: Piece) -> None:
        have = len(follow.sealed) if piece.sealed else follow.flight.size
        if piece.at > have:
            follow.gap = True
            return
        data = piece.data[have - piece.at :]
        if not data:
            return
        if piece.sealed:
            follow.sealed += data
        else:
            if not piece.at:
                follow.flight.rewrites = piece.rewrites
            follow.flight.streamed = True
            follow.flight.add(data)

    def _ended(self, follow: Follow, end: End) -> None:
        flight = follow.flight
        if end.how == "closed":
            self._refuse(follow)
        elif end.how == "lost" and end.told and end.size != flight.size:
            follow.gap = True  # it tells the error
        elif end.how == "lost":
            flight.payer = end.payer
            flight.fail(_error(end), told=end.told, unasked=end.unasked)
            self._end(follow)
        elif end.how == "unknown":
            follow.ending = self._task(self._recover(follow))
        elif end.size != (len(follow.sealed) if end.sealed else flight.size):
            follow.gap = True
        elif end.sealed:
            entry = self._sealer.open(follow.key, bytes(follow.sealed))
            if entry:
                flight.finish(entry, end.saved)
            self._end(follow)
        else:
            flight.streamed = True
            flight.finish(None, end.saved)
            self._end(follow)

    async def _recover(self, follow: Follow) -> None:
        """The leader has forgotten it. What somebody has begun to send may go on from what was kept."""
        flight, entry = follow.flight, None
        try:
            if flight.size and flight.whole:
                with suppress(CacheGone):
                    entry = await self._asking.fetch(follow.key)
            if entry and entry.stream and entry.body.startswith(sent := b"".join(flight.parts)):
                flight.add(entry.body[len(sent) :])
                flight.finish(None, entry.cost or 0)
        finally:
            self._end(follow)

    # Asking.

    async def _run(self, follow: Follow) -> None:
        clock = asyncio.get_running_loop().time
        flight, gone = follow.flight, 0
        heard = reached = clock()  # by whoever makes the call, which may have nothing to say
        try:
            while not flight.over and not follow.ending:
                follow.news.clear()
                follow.gap = False
                try:
                    told = await self._join(follow)
                    flight.blocked = flight.blocked and not told
                    if not told or (heard + self._quiet <= clock()):
                        gone = 0 if await self._asking.holds(follow.key, follow.lease) else gone + 1
                except CacheGone:
                    told = None
                if flight.over or follow.ending:
                    return
                if told:
                    reached = clock()
                late = max(heard, reached) + self._patience <= clock()
                if told is None and (late or not flight.size):
                    self._refuse(follow)
                elif told is False and (gone or late or not flight.size):
                    await self._bury(follow)
                elif gone > (CHANCES if flight.size else CHANCES - 1) or (gone and late):
                    return
                while await self._news(follow):
                    heard, gone = clock(), 0
        finally:
            if not follow.ending:
                self._end(follow)

    async def _join(self, follow: Follow) -> bool:
        """Whether the leader has heard it. Raises CacheGone."""
        if not self._asking.listening():
            raise CacheGone("NotListening")  # and would not hear the answer
        name, owner = follow.leader
        join = Join(follow.name, name, follow.key, follow.flight.size, self._owner)
        return bool(await self._asking.say(owner, join))

    async def _news(self, follow: Follow) -> bool:
        """Whether something has come, and nothing is missing. Who makes the call may be dead: after a moment whoever
        comes asks for itself."""
        try:
            async with asyncio.timeout(self._moment):
                await follow.news.wait()
        except TimeoutError:
            follow.flight.blocked = True
            try:
                async with asyncio.timeout(self._quiet - self._moment):
                    await follow.news.wait()
            except TimeoutError:
                return False
        follow.news.clear()
        return not (follow.gap or follow.flight.over or follow.ending)

    async def _bury(self, follow: Follow) -> None:
        """Nobody listens there, so nobody will give back the lease."""
        with suppress(CacheGone):
            await self._asking.release(follow.key, follow.lease)
        self._end(follow)

    async def _say_leave(self, name: str, owner: str) -> None:
        with suppress(CacheGone):
            await self._asking.say(owner, Leave(name))

    def _refuse(self, follow: Follow) -> None:
        """Whoever looks again shall not follow the same."""
        if len(self._refused) >= REFUSED:
            del self._refused[next(iter(self._refused))]
        self._refused[follow.lease] = None
        self._end(follow)

    def _end(self, follow: Follow) -> None:
        """Of this one, whatever becomes of the call."""
        self._follows.pop(follow.name, None)
        self._of.pop(follow.flight, None)
        follow.flight.fail(None)  # unless it is over
        follow.news.set()

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _error(end: End) -> ProxyError | None:
    """What the provider has done to the one who asked, so that not everybody has to find out; or that there was no way
    to it, or the end of the proxy where that was."""
    if not 400 <= end.status <= 599:
        return None
    if end.code == Draining.code:
        return Draining(wording.SHUTTING_DOWN)
    error: ProxyError
    if end.code == Overloaded.code:
        error = Overloaded(wording.ALL_IN_USE)
    else:
        detail = {"timeout": "total"} if end.late else None
        error = UpstreamRefusal(
            FAILED, status=end.status, type=end.kind, code=end.code, headers=end.headers, detail=detail
        )
    error.elsewhere = Elsewhere.YES
    with suppress(KeyError):
        error.key = KeyFault[end.key]
    return error
