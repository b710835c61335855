"""A connection to Redis on which many ask at once, each answered in its turn, and none waits for long.

Unlike the counters (store/redis_link.py), whose calls are few to one request and must be sure, what is asked of a cache
comes in crowds: hundreds of questions are one write and one read here. Whoever connects is a task of its own. So while
Redis is gone nobody waits for it: whoever asks is told at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from hashlib import sha1
from pathlib import Path
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, ResponseError

from proxy.core.cache import CacheGone
from proxy.core.secret import Secret

STEPS: Final = 5
"""Looks at the clock before a question is given up. A loop that a crowd keeps busy looks late, and Redis is not to
blame for that."""

_FOLDER: Final = Path(__file__).parent / "lua"
_COMMON: Final = (_FOLDER / "common.lua").read_bytes()

Heard = Callable[[bytes, bytes], None]
"""(channel, message)."""


class Refused(CacheGone):
    """Redis has understood what was asked, and does not want to."""


class Script:
    """One of ours in lua/; `sha` is what Redis calls it."""

    def __init__(self, name: str) -> None:
        self.text = _COMMON + (_FOLDER / f"{name}.lua").read_bytes()
        self.sha = sha1(self.text, usedforsecurity=False).hexdigest().encode()


LOOK, KEEP, RELEASE, RENEW, REMOVE, REJECT, TOTALS, MEND = (
    Script(name) for name in ("look", "keep", "release", "renew", "remove", "reject", "totals", "mend")
)


def number(answer: Any) -> int:
    """It has to be one. Raises CacheGone."""
    if type(answer) is not int:
        raise CacheGone("NoAnswer")
    return answer


def texts(answer: Any) -> list[bytes]:
    """The same of a list of texts."""
    if type(answer) is not list or not all(type(one) is bytes for one in answer):
        raise CacheGone("NoAnswer")
    return answer


def packed(*words: bytes) -> bytes:
    """A command."""
    parts = [b"*%d\r\n" % len(words)]
    parts += [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
    return b"".join(parts)


class Wire:
    """`deadline` in seconds: a Redis that is silent for so long while something is asked is gone, and whoever has
    waited for so long waits no more. `changed` is called with the kind of trouble when it is gone, and with None when
    it is back. With a `channel` it listens there. `run` is the task that connects; it waits `retry` seconds between
    attempts, each of which may take `connecting`.
    """

    def __init__(
        self,
        url: Secret,
        deadline: float,
        changed: Callable[[str | None], None],
        *,
        connecting: float,
        retry: float,
        sleep: Callable[[float], Awaitable[None]],
        channel: bytes | None = None,
        heard: Heard | None = None,
    ) -> None:
        self._changed = changed
        self._connecting = connecting
        self._retry = retry
        self._sleep = sleep
        self._channel = channel
        self._heard = heard
        self._step = deadline / STEPS
        self._pool: Any = ConnectionPool.from_url(  # it knows how to read the address; its methods have no types
            url.reveal(),
            protocol=2,
            driver_info=None,
            socket_timeout=None,
            socket_connect_timeout=connecting,
            retry=Retry(NoBackoff(), 0),
        )
        self._asked: deque[tuple[asyncio.Future[Any], int]] = deque()
        self._out: list[bytes] = []
        self._some = asyncio.Event()
        self._steps = self._last = 0
        self._timer: asyncio.TimerHandle | None = None
        self._limit: asyncio.Timeout | None = None
        self.kind = "NotYet"
        self.up = False
        self.tried = asyncio.Event()
        """Set when the first attempt has come to something."""

    async def ask(self, *words: bytes) -> Any:
        """The answer. Raises CacheGone."""
        try:
            return await self._ask(*words)
        except ResponseError as error:
            raise Refused(type(error).__name__) from None

    async def run_script(self, script: Script, prefix: bytes, *arguments: bytes) -> Any:
        """What it answers. Raises CacheGone. A server that does not know our scripts is taught them, one by one."""
        try:
            return await self._ask(b"EVALSHA", script.sha, b"1", prefix, *arguments)
        except NoScriptError:
            return await self.ask(b"EVAL", script.text, b"1", prefix, *arguments)
        except ResponseError as error:
            raise Refused(type(error).__name__) from None

    async def _ask(self, *words: bytes) -> Any:
        if not self.up:
            raise CacheGone(self.kind)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked.append((answer, self._steps))
        self._out.append(packed(*words))
        self._some.set()
        if self._timer is None:
            self._watch()
        return await answer

    async def run(self) -> None:
        """Never returns."""
        clock = asyncio.get_running_loop().time
        while True:
            connection, since = self._pool.make_connection(), clock()
            try:
                async with asyncio.timeout(self._connecting):
                    await connection.connect()
                    await self._greet(connection)
                await self._serve(connection)
            except Exception as error:  # whatever it is, it must not be the last attempt
                self._lose(type(error).__name__)
            finally:
                self._lose("Closed")  # unless that is known already
                with suppress(Exception):
                    await connection.disconnect(nowait=True)
            if clock() - since < self._retry:
                await self._sleep(self._retry)

    async def _greet(self, connection: AbstractConnection) -> None:
        """One that is frozen lets everybody connect, and answers nobody."""
        if self._channel is not None:
            await connection.send_command("SUBSCRIBE", self._channel)
            await connection.read_response()
        await connection.send_command("PING")
        while self._takes(answer := await connection.read_response()):
            pass  # it is said already to who has just begun to listen
        if answer not in (b"PONG", [b"pong", b""]):
            raise ValueError("it answers like no Redis")

    async def _serve(self, connection: AbstractConnection) -> None:
        self._out.clear()
        self.up, self.kind = True, ""
        self.tried.set()
        self._changed(None)
        writing = asyncio.create_task(self._write(connection))
        try:
            async with asyncio.timeout(None) as self._limit:
                await self._read(connection)
        finally:
            self._limit = None
            writing.cancel()
            await asyncio.wait([writing])

    async def _write(self, connection: AbstractConnection) -> None:
        try:
            while True:
                await self._some.wait()
                self._some.clear()
                packets, self._out = self._out, []
                if packets:
                    await connection.send_packed_command(packets, check_health=False)
        except Exception:
            self._give_up()  # nobody would be heard any more

    async def _read(self, connection: AbstractConnection) -> None:
        while True:
            try:
                answer, error = await connection.read_response(), None
            except ResponseError as refused:
                answer, error = None, refused
            self._last = self._steps
            if self._takes(answer):
                continue
            future, _ = self._asked.popleft()
            if future.done():
                continue
            if error:
                future.set_exception(error)
            else:
                future.set_result(answer)

    def _takes(self, answer: Any) -> bool:
        """Whether it answers nothing, but was said to whoever listens."""
        if self._heard is None or type(answer) is not list or len(answer) != 3 or answer[0] != b"message":
            return False
        self._heard(answer[1], answer[2])
        return True

    def _watch(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._step, self._look)

    def _look(self) -> None:
        """At the clock."""
        self._steps += 1
        self._timer = None
        late = False
        for future, since in self._asked:
            if self._steps - since <= STEPS:
                break
            late = True
            if not future.done():
                future.set_exception(CacheGone("TimeoutError"))
        if late and self._steps - self._last > STEPS:
            self._give_up()
        elif self._asked:  # slow perhaps, but not silent
            self._watch()

    def _give_up(self) -> None:
        if self._limit:
            self._limit.reschedule(0.0)  # which is over

    def _lose(self, kind: str) -> None:
        """It is gone; whoever waits learns it now."""
        if self.up or not self.tried.is_set():
            self.up, self.kind = False, kind
            self._changed(kind)
        self.tried.set()
        if self._timer:
            self._timer.cancel()
            self._timer = None
        while self._asked:
            future, _ = self._asked.popleft()
            if not future.done():
                future.set_exception(CacheGone(kind))
