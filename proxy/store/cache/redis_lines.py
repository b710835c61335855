"""The connections that the cache of one worker has to Redis: one for what requests wait for, one for entries that take
long to come, one for what is done behind all of that, and one that hears what other workers say. None stands in the way
of another, or of the counters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from proxy.core.secret import Secret
from proxy.store.cache.redis_talk import Message, Talk
from proxy.store.cache.redis_wire import RELEASE, Script, Wire, number

Log = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. `deadline` of what a request waits for, `behind` of what none does; a connection may take `connecting`,
    and is tried again after `retry`. A `lease` is renewed at each `beat`. Who follows is joined by others until nothing
    was heard for a `moment`, and asks again after `quiet`, for so many `patience` in vain."""

    deadline: float = 0.05
    behind: float = 1.0
    connecting: float = 1.0
    retry: float = 1.0
    lease: float = 3.0
    beat: float = 1.0
    moment: float = 0.5
    quiet: float = 1.0
    patience: float = 3.0


SHIPPED: Final = Timing()


class Lines:
    """`heard` is called with what others say to `owner`, `again` when they can be heard again. All that asks raises
    CacheGone."""

    def __init__(
        self,
        url: Secret,
        owner: str,
        prefix: str,
        secret: bytes,
        timing: Timing,
        sleep: Callable[[float], Awaitable[None]],
        log: Log,
        heard: Callable[[Message], None],
        again: Callable[[], None],
    ) -> None:
        self._prefix = prefix.encode()
        self._talk = Talk(prefix, secret)
        self._channel = self._talk.channel(owner)
        self._log = log
        self._heard = heard
        self._again = again
        self._gone: set[str] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self.quiet = False
        """Nothing is heard, nor said to the log, any more."""

        def wire(name: str, deadline: float, **listening: Any) -> Wire:
            return Wire(
                url,
                deadline,
                lambda kind: self._changed(name, kind),
                connecting=timing.connecting,
                retry=timing.retry,
                sleep=sleep,
                **listening,
            )

        self.questions = wire("questions", timing.deadline)
        self.bulk = wire("bulk", timing.behind)
        self.orders = wire("orders", timing.behind)
        self.ear = wire("ear", timing.behind, channel=self._channel, heard=self._open)

    async def start(self) -> None:
        """Returns when it is known of each whether it is there."""
        wires = (self.questions, self.bulk, self.orders, self.ear)
        self._tasks = [asyncio.create_task(wire.run()) for wire in wires]
        for wire in wires:
            await wire.tried.wait()

    async def stop(self) -> None:
        self.quiet = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def question(self, script: Script, *arguments: bytes) -> Any:
        """What a request waits for."""
        return await self.questions.run_script(script, self._prefix, *arguments)

    async def order(self, script: Script, *arguments: bytes) -> Any:
        return await self.orders.run_script(script, self._prefix, *arguments)

    async def get(self, key: str) -> bytes | None:
        """What there is under a key."""
        return await self._get(self.orders, key)

    async def large(self, key: str) -> bytes | None:
        """The same of an entry that takes long to come, for which a request waits."""
        return await self._get(self.bulk, key)

    async def _get(self, wire: Wire, key: str) -> bytes | None:
        data = await wire.ask(b"GET", self._prefix + key.encode())
        return data if isinstance(data, bytes) else None

    async def say(self, owner: str, message: Message) -> int:
        """How many have heard it: none or one."""
        channel = self._talk.channel(owner)
        return number(await self.orders.ask(b"PUBLISH", channel, self._talk.seal(channel, message)))

    async def release(self, key: str, lease: str) -> None:
        """Give it back, if it is still the same."""
        await self.order(RELEASE, key.encode(), lease.encode())

    async def holds(self, key: str, lease: str) -> bool:
        """Whether it is still the same."""
        return await self.get(f"=lease/{key}") == lease.encode()

    async def listen(self) -> None:
        """Nothing else would show that nothing is heard any more."""
        await self.ear.ask(b"PING")

    async def stay(self) -> None:
        """Say something where it may be long since anything was said."""
        wires = (self.questions, self.bulk, self.orders)
        await asyncio.gather(*(wire.ask(b"PING") for wire in wires), return_exceptions=True)

    def _open(self, channel: bytes, data: bytes) -> None:
        message = None if self.quiet else self._talk.open(self._channel, data)
        if message:
            self._heard(message)

    def _changed(self, name: str, kind: str | None) -> None:
        """One of them is gone, or (None) back."""
        before = bool(self._gone)
        if kind is None:
            self._gone.discard(name)
        else:
            self._gone.add(name)
        if self.quiet:
            return
        if kind and not before:
            self._log("error", "cache_gone", kind=kind)
        elif before and not self._gone:
            self._log("info", "cache_back")
        if name == "ear" and kind is None:
            self._again()
