"""Answers that several workers and replicas share, in Redis, and one call for all of them.

A request waits for one question at most, and not for long. Everything else is done behind the answers: what is kept,
what others are told (redis_leads.py), what others tell (redis_follows.py). The bound of all entries together is kept by
the scripts (lua/common.lua says how), since a Redis that holds quotas evicts nothing by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final

from proxy.core.cache import Bounds, CacheGone, Found, Role, Stats, Verified
from proxy.core.entry import Entry, Sealer
from proxy.core.flight import Flight
from proxy.core.secret import Secret
from proxy.store.cache.redis_care import Care
from proxy.store.cache.redis_follows import Asking, Follows
from proxy.store.cache.redis_leads import Lead, Leads
from proxy.store.cache.redis_talk import Join, Leave, Message, Talk
from proxy.store.cache.redis_wire import KEEP, LOOK, RELEASE, RENEW, Script, Wire, number

PREFIX: Final = "mistral-proxy:{cache}:"

AROUND: Final = 450
"""Bytes that an entry takes besides its sealed form and its key, which is there three times
(tests/store/test_cache_redis.py measures it)."""

ROUNDS: Final = 1_000
"""Scripts that make room for one entry, at most. Each makes that of 500."""

REPORT: Final = 60.0
"""Seconds between two lines of the log about entries that did not open."""

_MORE: Final = 2
"""As in lua/keep.lua: there is no room yet."""

Log = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. `deadline` of what a request waits for, `behind` of what none does; a connection may take `connecting`,
    and is tried again after `retry`. A `lease` is renewed at each `beat`. Who follows asks again after `quiet`, and for
    so many `patience` in vain."""

    deadline: float = 0.05
    behind: float = 1.0
    connecting: float = 1.0
    retry: float = 1.0
    lease: float = 3.0
    beat: float = 1.0
    quiet: float = 1.0
    patience: float = 3.0


class RedisCache:
    """A Backend. `owner` is this worker among all that share the Redis, `secret` seals what is kept and what is said.
    `wall` gives Unix milliseconds, `monotonic` seconds; `sleep` is how its tasks wait. Make it anywhere, `start` it in
    the loop that uses it, after fork.
    """

    near = False

    def __init__(
        self,
        url: Secret,
        bounds: Bounds,
        secret: bytes,
        *,
        owner: str,
        log: Log,
        wall: Callable[[], int],
        monotonic: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        prefix: str = PREFIX,
        timing: Timing = Timing(),
    ) -> None:
        self._bounds = bounds
        self._sealer = Sealer(secret)
        self._log = log
        self._monotonic = monotonic
        self._sleep = sleep
        self._prefix = prefix.encode()
        self._timing = timing
        self._lease = b"%d" % (timing.lease * 1000)
        self._talk = Talk(prefix, secret)
        self._channel = self._talk.channel(owner)
        self._questions = self._wire(url, "questions", timing.deadline)
        self._orders = self._wire(url, "orders", timing.behind)
        self._ear = self._wire(url, "ear", timing.behind, channel=self._channel, heard=self._heard)
        self._care = Care(self._orders, self._prefix, self._sealer)
        self._leads = Leads(owner, self._sealer, self._say, self._release)
        asking = Asking(lambda: self._ear.up, self._say, self._holds, self._release, self._fetch)
        self._follows = Follows(owner, self._sealer, asking, timing.quiet, timing.patience)
        self._gone: dict[str, str] = {}
        self._wrong = 0
        self._reported = float("-inf")
        self._closing = False
        self._running: list[asyncio.Task[None]] = []
        self._behind: set[asyncio.Task[None]] = set()

    def _wire(self, url: Secret, name: str, deadline: float, **listening: Any) -> Wire:
        timing = self._timing
        return Wire(
            url,
            deadline,
            lambda kind: self._changed(name, kind),
            connecting=timing.connecting,
            retry=timing.retry,
            sleep=self._sleep,
            **listening,
        )

    async def start(self) -> None:
        """A Redis that is not there yet is waited for by nobody: it will be gone until it comes."""
        wires = (self._questions, self._orders, self._ear)
        self._running = [asyncio.create_task(wire.run()) for wire in wires]
        self._running.append(asyncio.create_task(self._beat()))
        for wire in wires:
            await wire.tried.wait()

    async def close(self, within: float = 1.0) -> None:
        """What is on its way to Redis has so many seconds."""
        self._closing = True
        await self._follows.close()
        for lead in self._leads.held():
            self._later(self._free(lead))
        if self._behind:
            await asyncio.wait(list(self._behind), timeout=within)
        await self._leads.close(within)
        await self._stop()

    async def _stop(self) -> None:
        tasks = [*self._running, *self._behind]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # What requests ask.

    def at_hand(self, key: str) -> Entry | None:
        return None

    async def look(self, key: str, since: int, flight: Flight) -> Found:
        lead = self._leads.begin(key, flight)
        entry: Entry | None = None
        try:
            entry, holder = await self._look(key, since, lead)
            if holder is None and (entry is None or entry.created < since):  # it has said what is not so
                entry, holder = await self._look(key, 1 << 62, lead)
            if holder is None:
                self._leads.forget(lead)
                return Found(Role.DONE, entry)
            if self._ear.up and self._follows.may(holder):
                self._leads.forget(lead)
                flight.called = True
                self._follows.begin(key, holder, flight)
                return Found(Role.FOLLOW, entry)
        except CacheGone:
            entry = None
        except BaseException:
            self.drop(key, flight)
            raise
        lead.held = True
        return Found(Role.LEAD, entry)

    async def _look(self, key: str, since: int, lead: Lead) -> tuple[Entry | None, str | None]:
        """What is kept, and who else makes the call: '' if nobody does; None if the entry is said to be fresh."""
        lease = self._leads.lease(lead).encode() if self._ear.up else b""  # else nobody could follow
        answer = await self._run(self._questions, LOOK, key.encode(), b"%d" % since, lease, self._lease)
        if not isinstance(answer, list) or not answer or not all(type(one) in (bytes, type(None)) for one in answer):
            raise CacheGone("NoAnswer")
        entry = self._open(key, answer[0])
        return entry, answer[1].decode(errors="replace") if len(answer) > 1 else None

    def _open(self, key: str, data: bytes | None) -> Entry | None:
        if data is None:
            return None
        entry = self._sealer.open(key, data)
        if entry is None:
            self._report()
            self._later(self._reject(key, data))
        return entry

    async def keep(self, key: str, entry: Entry, flight: Flight, *, lead: bool) -> None:
        leads = self._leads.of(flight) if lead else None
        task = self._later(self._keep(key, entry, leads))
        if self._questions.up:  # it is done whether somebody waits for it or not
            await asyncio.wait([task], timeout=self._timing.deadline)

    async def _keep(self, key: str, entry: Entry, lead: Lead | None) -> None:
        try:
            with suppress(CacheGone):
                await self._store(key, entry, lead)
        finally:
            if lead:
                self._leads.settle(lead)

    async def _store(self, key: str, entry: Entry, lead: Lead | None) -> None:
        bounds = self._bounds
        sealed = self._sealer.seal(key, entry) if entry.size <= bounds.most_entry else b""
        size = len(sealed) + 3 * len(key) + AROUND
        if lead:
            lead.held = False
        if not sealed or len(sealed) > bounds.most_entry or size > bounds.most_bytes or not self._questions.up:
            if lead:
                await self._release(key, self._leads.lease(lead))
            return
        lease = self._leads.lease(lead).encode() if lead else b""
        arguments = (key.encode(), lease, b"%d" % bounds.life, b"%d" % bounds.most_bytes, b"%d" % size)
        for data in (sealed, *repeat(b"", ROUNDS)):
            if await self._run(self._orders, KEEP, *arguments, data) != _MORE:
                break
        if data is not sealed:
            await self._run(self._orders, KEEP, *arguments, sealed)

    def drop(self, key: str, flight: Flight) -> None:
        lead = self._leads.of(flight)
        if lead:
            self._later(self._free(lead))
        else:
            self._follows.leave(flight)

    async def _free(self, lead: Lead) -> None:
        lead.held = False
        try:
            with suppress(CacheGone):  # it ends by itself
                await self._release(lead.key, self._leads.lease(lead))
        finally:
            self._leads.settle(lead)

    def become(self, bounds: Bounds) -> None:
        self._bounds = bounds

    # What is asked by those who look after it.

    async def delete(self, team: str | None) -> int:
        return await self._care.delete(team)

    async def stats(self, team: str | None) -> Stats:
        return await self._care.stats(team)

    async def verify(self) -> Verified:
        return await self._care.verify()

    # What redis_leads.py and redis_follows.py need of it.

    async def _say(self, owner: str, message: Message) -> int:
        channel = self._talk.channel(owner)
        return number(await self._orders.ask(b"PUBLISH", channel, self._talk.seal(channel, message)))

    async def _release(self, key: str, lease: str) -> None:
        await self._run(self._orders, RELEASE, key.encode(), lease.encode())

    async def _holds(self, key: str, lease: str) -> bool:
        return bool(await self._orders.ask(b"GET", b"%b=lease/%b" % (self._prefix, key.encode())) == lease.encode())

    async def _fetch(self, key: str) -> Entry | None:
        data = await self._orders.ask(b"GET", self._prefix + key.encode())
        return self._open(key, data) if isinstance(data, bytes) else None

    def _heard(self, channel: bytes, data: bytes) -> None:
        message = self._talk.open(self._channel, data)
        if isinstance(message, Join):
            self._leads.joined(message)
        elif isinstance(message, Leave):
            self._leads.left(message)
        elif message:
            self._follows.heard(message)

    # Behind the answers.

    async def _beat(self) -> None:
        while True:
            with suppress(CacheGone):
                held = [word for lead in self._leads.held() for word in (lead.key, self._leads.lease(lead))]
                if held and self._ear.up:  # else nobody could follow
                    await self._run(self._orders, RENEW, self._lease, *map(str.encode, held))
            with suppress(CacheGone):
                await self._ear.ask(b"PING")  # nothing else would show that nothing is heard any more
            await self._sleep(self._timing.beat)

    async def _run(self, wire: Wire, script: Script, *arguments: bytes) -> Any:
        return await wire.run_script(script, self._prefix, *arguments)

    async def _reject(self, key: str, data: bytes) -> None:
        with suppress(CacheGone):
            await self._care.reject(key, data)

    def _report(self) -> None:
        self._wrong += 1
        if self._monotonic() >= self._reported + REPORT:
            self._log("warning", "cache_entry_rejected", count=self._wrong)
            self._wrong, self._reported = 0, self._monotonic()

    def _changed(self, name: str, kind: str | None) -> None:
        """One connection of ours is gone, or (None) back."""
        before = bool(self._gone)
        if kind is None:
            self._gone.pop(name, None)
        else:
            self._gone[name] = kind
        if self._closing:
            return
        if kind and not before:
            self._log("error", "cache_gone", kind=kind)
        elif before and not self._gone:
            self._log("info", "cache_back")
        if name == "ear" and kind is None:
            self._follows.reconnected()

    def _later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._behind.add(task)
        task.add_done_callback(self._behind.discard)
        return task
