"""Who may hold a connection, which ones wait for their next call, and when one is closed. All transports share it.

A call takes a place first, then an idle connection or a new one. A new one is made when none is idle, or replaces one
that is, so there are never more connections than places. A connection goes back only after a whole exchange; after
anything else, above all a cancelled call, it is closed before anything else is awaited.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from proxy.upstream.transport import Answer, Connections, TransportError

KEEP_IDLE = 30.0
"""Seconds. Most servers keep an idle connection for a minute or more; who closes first has no race to lose."""


class Clock(Protocol):
    """The time, in seconds, and who calls back: the event loop, or a test."""

    def time(self) -> float: ...
    def call_at(self, when: float, callback: Callable[[], object], /) -> asyncio.TimerHandle: ...


R_contra = TypeVar("R_contra", contravariant=True)
R = TypeVar("R")


class Connection(Protocol[R_contra]):
    """One connection, held by one call or by nobody. `sent`: some of the latest request may be at the upstream."""

    sent: bool

    def ask(self, request: R_contra) -> Awaitable[Answer]:
        """Send a request and wait for the headers of its answer. Raises TransportError."""

    def is_done(self) -> bool:
        """Whether the exchange is over to its last byte, and another may follow."""

    def is_usable(self) -> bool:
        """Whether it is still open and nothing has arrived on it since the exchange was over."""

    def close(self) -> asyncio.Future[None]:
        """Close it at once; the future is done when the socket is gone. May be called twice."""


class Places:
    """So many can be taken; who finds none waits in line. While any is `free`, nobody does."""

    def __init__(self, count: int) -> None:
        self.free = count
        self._line: deque[asyncio.Future[None]] = deque()

    def take(self) -> bool:
        """Whether there was one."""
        if not self.free:
            return False
        self.free -= 1
        return True

    async def wait(self) -> None:
        """Take the next one that is given back, when those before have theirs."""
        if self.take():
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was ours already
                self.give()
            elif turn in self._line:
                self._line.remove(turn)
            raise

    def give(self) -> None:
        """Back, to who waits or to who comes."""
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.free += 1


class Pool(Generic[R]):
    """`places` calls at a time; the next one waits in line for `patience` seconds."""

    def __init__(
        self, places: int, patience: float, connect: Callable[[], Awaitable[Connection[R]]], clock: Clock
    ) -> None:
        self._places = Places(places)
        self._patience = patience
        self._connect = connect
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None
        self._idle: deque[tuple[Connection[R], float]] = deque()
        self._open: set[Connection[R]] = set()
        self._closed = False

    def call(self, request: R, *, fresh: bool = False) -> PooledCall[R]:
        """A call that sends `request` when it is entered, if `fresh` on a new connection."""
        return PooledCall(self, request, fresh)

    @property
    def connections(self) -> Connections:
        """Those that are idle and that their server has closed are none any more."""
        idle = sum(connection.is_usable() for connection, _ in self._idle)
        return Connections(len(self._open) - len(self._idle), idle)

    def enters_at_once(self) -> bool:
        """Take a place if there is one."""
        return self._places.take()

    async def enter(self) -> None:
        """Wait for a place, and take it. Raises TransportError("pool")."""
        try:
            async with asyncio.timeout(self._patience):
                await self._places.wait()
        except TimeoutError:
            raise TransportError("pool", "every connection to the upstream was in use for too long") from None

    def idle(self) -> Connection[R] | None:
        """The idle connection that was used last, if one can be used again."""
        while self._idle:
            connection, since = self._idle.pop()
            if self._clock.time() - since < KEEP_IDLE and connection.is_usable():
                return connection
            self._close(connection)
        return None

    async def new(self) -> Connection[R]:
        """A new connection, in place of the one that was idle for longest. Raises TransportError."""
        if self._idle:
            self._close(self._idle.popleft()[0])
        connection = await self._connect()
        self._open.add(connection)
        return connection

    def leave(self, connection: Connection[R] | None, *, failed: bool = False) -> None:
        """Give the place back, and the connection if it can serve another call: not after one that `failed`."""
        if connection is not None:
            if connection.is_done() and not (failed or self._closed):
                self._idle.append((connection, self._clock.time()))
                if self._timer is None:
                    self._expire()
            else:
                self._close(connection)
        self._places.give()

    def _expire(self) -> None:
        """Close what has been idle for too long, now and for as long as any is idle: one timer looks after them all."""
        now = self._clock.time()
        while self._idle and now - self._idle[0][1] >= KEEP_IDLE:
            self._close(self._idle.popleft()[0])
        self._timer = self._clock.call_at(self._idle[0][1] + KEEP_IDLE, self._expire) if self._idle else None

    async def close(self) -> None:
        """Close every connection; calls under way fail."""
        self._closed = True
        self._idle.clear()
        if self._timer:
            self._timer.cancel()
        closing = [connection.close() for connection in self._open]
        self._open.clear()
        if closing:
            await asyncio.wait(closing)

    def _close(self, connection: Connection[R]) -> None:
        connection.close()
        self._open.discard(connection)


class PooledCall(Generic[R]):
    """One exchange: holds a place, and a connection, from enter to exit."""

    __slots__ = ("_connection", "_fresh", "_pool", "_request", "sent")

    def __init__(self, pool: Pool[R], request: R, fresh: bool) -> None:
        self.sent = False
        self._pool, self._request, self._fresh = pool, request, fresh
        self._connection: Connection[R] | None = None

    async def __aenter__(self) -> Answer:
        if not self._pool.enters_at_once():
            await self._pool.enter()
        reused = False
        try:
            self._connection = None if self._fresh else self._pool.idle()
            reused = self._connection is not None
            if self._connection is None:
                self._connection = await self._pool.new()
            answer = await self._connection.ask(self._request)
        except BaseException as error:
            self.sent = self._connection is not None and self._connection.sent
            self._pool.leave(self._connection)
            if isinstance(error, TransportError):
                error.reused = reused
            raise
        self.sent = True
        return answer

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.leave(self._connection, failed=error is not None)
