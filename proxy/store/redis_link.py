"""Connections to Redis, and the scripts that run there. Whatever goes wrong is StoreGone, and soon.

redis-py's own client is not used: its commands cost twice what these do. A semaphore stands before its pool instead of
a pool that blocks, so that a call that is cancelled never waits for a lock while it gives its connection back.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

import msgspec
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import InvalidResponse, NoScriptError, RedisError, ResponseError

from proxy.core.quota import StoreGone
from proxy.core.secret import Secret

CONNECTIONS: Final = 32
"""Of one worker for its requests, at most."""

APART: Final = 4
"""Those besides, for what must not stand in line with the requests."""

STEP: Final = 0.02
"""Seconds of patience that one look of the loop uses up at most."""

Log = Callable[..., None]
T = TypeVar("T")

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[int | str]).decode

_WRONG: Final = (
    RedisError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    msgspec.MsgspecError,
    RecursionError,
)
"""What comes of a server that is not there, refuses, is too slow (TimeoutError is an OSError), or is no Redis."""

_FOLDER: Final = Path(__file__).parent / "lua"
_COMMON: Final = (_FOLDER / "common.lua").read_bytes()
_PING: Final = b"*1\r\n$4\r\nPING\r\n"


class Script:
    """One of ours in lua/; `sha` is what Redis calls it."""

    def __init__(self, name: str) -> None:
        self.text = _COMMON + (_FOLDER / f"{name}.lua").read_bytes()
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()


RESERVE, SETTLE, CREATE, HOLD, LEASE, LEAVE, PROBE = SCRIPTS = tuple(
    Script(name) for name in ("reserve", "settle", "create", "hold", "lease", "leave", "probe")
)


class Patience:
    """How long Redis is waited for: `seconds`, counted in steps after each of which the loop has looked whether there
    is an answer. A loop that a crowd of requests keeps busy looks late, and Redis is not to blame for that."""

    __slots__ = ("_handle", "_timeout", "left")

    def __init__(self, seconds: float) -> None:
        self.left = seconds

    async def __aenter__(self) -> None:
        self._timeout = await asyncio.timeout(None).__aenter__()
        self._wait()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    def _wait(self) -> None:
        self._handle = asyncio.get_running_loop().call_later(min(STEP, max(self.left, 0.0)), self._step)

    def _step(self) -> None:
        self.left -= STEP
        if self.left > 0:
            self._wait()
        else:
            self._timeout.reschedule(0.0)  # which is over


class Crowd(Exception):
    """So many wait for a Redis so slow that the last ones have lost their patience."""


class Ask:
    """One question. `sent`: it may have been heard, and no answer to it has been."""

    __slots__ = ("sent",)

    def __init__(self) -> None:
        self.sent = False


class Link:
    """`prefix` is that of all keys, `deadline` in seconds: no question takes longer, connecting included. Nor
    does one without a patience of its own wait longer until it is asked.

    `run` is the run of the server that the newest connection leads to, '' if it does not say; `met` is called when
    that is another one than before. `policy` is what it evicts; one that `complains` logs it when that becomes unfit.
    Made and used in a running loop.
    """

    def __init__(self, url: Secret, prefix: str, deadline: float, met: Callable[[], None], log: Log) -> None:
        self.run = self.policy = ""
        self.complains = False
        self._met = met
        self._log = log
        self._deadline = deadline
        self._root = f"{prefix}root".encode()
        self._heads = {script: self._head(script) for script in SCRIPTS}
        self._gone: str | None = None
        self._losses = 0
        self._places = asyncio.Semaphore(CONNECTIONS)
        self._apart = asyncio.Semaphore(APART)
        self._pool: Any = ConnectionPool.from_url(  # its methods have no types
            url.reveal(),
            max_connections=CONNECTIONS + APART,
            protocol=2,  # one round trip less to connect, and nothing is pushed
            driver_info=None,
            socket_timeout=None,  # the deadline holds for all of it, and is one timer instead of a task per command
            socket_connect_timeout=deadline,
            retry=Retry(NoBackoff(), 0),
            redis_connect_func=self._greet,
        )

    async def close(self) -> None:
        await self._pool.aclose()

    def packet(self, script: Script, argument: Sequence[Any]) -> bytes:
        """The command that runs it."""
        packed = _encode(argument)
        return b"%s$%d\r\n%s\r\n" % (self._heads[script], len(packed), packed)

    @property
    def evicts(self) -> bool:
        """Whether it throws keys away when it is full. All of ours end by themselves, so that it may be any of them."""
        return self.policy not in ("", "noeviction")

    async def use(
        self, work: Callable[[AbstractConnection], Awaitable[T]], patience: float = inf, *, apart: bool = False
    ) -> T:
        """What comes of `work` on a connection of its own, within `patience` seconds, the wait for one included. Raises
        StoreGone for all that Redis does wrong. What is `apart` stands in a line of its own."""
        places, losses = self._apart if apart else self._places, self._losses
        try:
            if places.locked():
                patience = await self._wait(places, patience if patience < inf else self._deadline)
            else:
                await places.acquire()
        except TimeoutError:
            raise self._lost(Crowd()) from None
        try:
            if self._losses != losses:  # who was before us in the line has found out
                raise StoreGone(self._gone or "JustNow")
            try:
                async with Patience(min(self._deadline, patience)):
                    connection = await self._pool.get_connection()
                    try:
                        result = await work(connection)
                    finally:
                        await self._pool.release(connection)  # suspends for a lock only, which nobody holds for long
            except _WRONG as error:
                raise self._lost(error) from None
        finally:
            places.release()
        if self._gone:
            self._gone = None
            self._log("info", "redis_back")
        return result

    async def _wait(self, places: asyncio.Semaphore, seconds: float) -> float:
        """Until there is a place. Returns what is left of the patience. Raises TimeoutError."""
        patience = Patience(seconds)
        async with patience:
            await places.acquire()
        return patience.left

    async def run_script(self, script: Script, argument: Sequence[Any], *, apart: bool = False) -> list[Any]:
        """What it answers. Raises StoreGone."""
        packet = self.packet(script, argument)
        return await self.use(lambda connection: self.ask(connection, packet), apart=apart)

    async def ask(self, connection: AbstractConnection, packet: bytes, ask: Ask | None = None) -> list[Any]:
        """The answer to a packet. A server that does not know our scripts is taught them, once."""
        try:
            return await self._exchange(connection, packet, ask)
        except NoScriptError:
            await self.teach(connection)
            return await self._exchange(connection, packet, ask)

    async def ask_all(self, connection: AbstractConnection, packets: Sequence[bytes]) -> list[ResponseError | None]:
        """For each packet, sent all at once, the error that it was answered with."""
        await connection.send_packed_command(b"".join(packets), check_health=False)
        errors: list[ResponseError | None] = []
        for _ in packets:
            try:
                await connection.read_response()
                errors.append(None)
            except ResponseError as error:
                errors.append(error)
        return errors

    async def teach(self, connection: AbstractConnection) -> None:
        for script in SCRIPTS:
            await connection.send_command("SCRIPT", "LOAD", script.text)
            await connection.read_response()

    async def ping(self) -> None:
        """Raises StoreGone."""
        await self.use(self._ping, apart=True)

    async def _ping(self, connection: AbstractConnection) -> None:
        await connection.send_packed_command(_PING, check_health=False)
        if await connection.read_response() != b"PONG":
            raise ValueError

    async def _exchange(self, connection: AbstractConnection, packet: bytes, ask: Ask | None) -> list[Any]:
        if ask:
            ask.sent = True
        await connection.send_packed_command(packet, check_health=False)
        try:
            answer = await connection.read_response()
        except ResponseError:
            if ask:
                ask.sent = False  # an error is an answer, too: nothing was done
            raise
        if not isinstance(answer, bytes):
            raise ValueError
        return _decode(answer)

    def _head(self, script: Script) -> bytes:
        sha, root = script.sha.encode(), self._root
        return b"*5\r\n$7\r\nEVALSHA\r\n$40\r\n%s\r\n$1\r\n1\r\n$%d\r\n%s\r\n" % (sha, len(root), root)

    def _lost(self, error: Exception) -> StoreGone:
        kind = type(error).__name__
        self._losses += 1
        if self._gone != kind:
            self._gone = kind
            self._log("error", "redis_gone", kind=kind)
        return StoreGone(kind)

    async def _greet(self, connection: AbstractConnection) -> None:
        """Of every new connection: which run of which server is this? Another one may have lost a part of the data."""
        await connection.on_connect()
        run = await _info(connection, "server", b"run_id:")
        self._learn(await _info(connection, "memory", b"maxmemory_policy:"))
        if run != self.run:
            self.run = run
            self._met()

    def _learn(self, policy: str) -> None:
        before, self.policy = self.policy, policy
        if self.complains and self.evicts and policy != before:
            self._log("error", "redis_evicts", policy=policy)


async def _info(connection: AbstractConnection, section: str, field: bytes) -> str:
    """One field of what the server tells of itself; '' where it may not."""
    await connection.send_command("INFO", section)
    try:
        lines = await connection.read_response()
    except ResponseError:
        return ""
    if not isinstance(lines, bytes):
        raise InvalidResponse  # nothing but a RedisError makes the pool close what was not greeted
    return next((line[len(field) :].decode() for line in lines.splitlines() if line.startswith(field)), "")
