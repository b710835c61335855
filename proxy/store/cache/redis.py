"""Answers that several workers and replicas share, in Redis, and one call for all of them.

A request waits for one question as a rule, for a few at most, and not for long. Everything else is done behind the
answers: what is kept, what others are told (redis_leads.py), what others tell (redis_follows.py). The bound of all
entries together is kept by the scripts (lua/common.lua says how), since a Redis that holds quotas evicts nothing by
itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from itertools import chain, count, repeat
from typing import Any, Final

from msgspec.structs import replace

from proxy.core.cache import Bounds, CacheGone, Found, Role, Stats, Then, Verified, is_fresh
from proxy.core.entry import Entry, Sealer
from proxy.core.flight import Flight
from proxy.core.secret import Secret
from proxy.store.cache.redis_care import Care
from proxy.store.cache.redis_follows import Asking, Follows
from proxy.store.cache.redis_leads import Lead, Leads
from proxy.store.cache.redis_lines import SHIPPED, Lines, Log, Timing
from proxy.store.cache.redis_talk import Join, Leave, Message
from proxy.store.cache.redis_wire import KEEP, LOOK, RELEASE, RENEW, Refused

PREFIX: Final = "mistral-proxy:{cache}:"

AROUND: Final = 450
"""Bytes that an entry takes besides its sealed form and its key, which is there three times
(tests/store/test_cache_redis.py measures it)."""

ROUNDS: Final = 1_000
"""Scripts that make room for one entry, at most. Each makes that of 500."""

LARGE: Final = 1 << 18
"""Bytes of an entry that is asked for by itself, where nobody waits behind it."""

STAY: Final = 10
"""Beats between two words on connections that may be idle: servers close those."""

REPORT: Final = 60.0
"""Seconds between two lines of the log about the same kind of trouble with entries."""

_LARGE: Final = b"%d" % LARGE

_NEVER: Final = 1 << 65
"""No entry can say that it is as young as this."""

_MISFIT: Final = "ResponseError"
"""What Redis says where there is something else in the place of what a script works with."""

_FULL, _MORE, _OLD = 1, 2, 3
"""As in lua/keep.lua."""


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
        timing: Timing = SHIPPED,
    ) -> None:
        self._bounds = bounds
        self._sealer = Sealer(secret)
        self._log = log
        self._wall = wall
        self._monotonic = monotonic
        self._sleep = sleep
        self._timing = timing
        self._lease = b"%d" % (timing.lease * 1000)
        self._lines = lines = Lines(
            url, owner, prefix, secret, timing, sleep, log, self._heard, lambda: self._follows.reconnected()
        )
        self._care = Care(lines.orders, prefix.encode(), self._sealer)
        self._leads = Leads(owner, self._sealer, lines.say, lines.release, timing.patience)
        asking = Asking(lambda: lines.ear.up, lines.say, lines.holds, lines.release, self._fetch)
        self._follows = Follows(owner, self._sealer, asking, timing.moment, timing.quiet, timing.patience)
        self._ahead = 0
        """Milliseconds by which Redis's clock is ahead of ours: what has an order is told by that one."""
        self._has_compared = False
        self._reports: dict[str, tuple[int, float]] = {}
        self._beating: asyncio.Task[None] | None = None
        self._behind: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """A Redis that is not there yet is waited for by nobody: it will be gone until it comes."""
        await self._lines.start()
        self._beating = asyncio.create_task(self._beat())

    async def close(self, within: float = 1.0) -> None:
        """What is on its way to Redis has so many seconds."""
        self._lines.quiet = True
        await self._follows.close()
        for lead in self._leads.held():
            self._later(self._free(lead))
        if self._behind:
            await asyncio.wait(list(self._behind), timeout=within)
        await self._leads.close(within)
        await self._stop()

    async def _stop(self) -> None:
        tasks = [*self._behind, *filter(None, [self._beating])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._lines.stop()

    # What requests ask.

    def at_hand(self, key: str) -> Entry | None:
        return None

    def peek(self, key: str) -> Entry | None:
        return None

    async def look(self, key: str, since: int, flight: Flight) -> Found:
        lead = self._leads.begin(key, flight)
        entry: Entry | None = None
        try:
            entry, holder = await self._look(key, since, lead)
            if holder and self._leads.is_over(holder):
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._timing.deadline):
                        await self._leads.given_back(holder)
                entry, holder = await self._look(key, since, lead)
            if holder is None and not self._is_fresh(entry, since):  # it has said what is not so
                entry, holder = await self._look(key, _NEVER, lead)
            if holder is None:
                self._leads.forget(lead)
                return Found(Role.DONE, entry)
            if self._lines.ear.up and self._follows.may(holder):
                self._leads.forget(lead)
                self._follows.begin(key, holder, flight)
                return Found(Role.FOLLOW, entry)
        except CacheGone:
            entry = None
        lead.held = True
        return Found(Role.LEAD, entry)

    async def would_find(self, key: str, since: int) -> Found:
        try:
            entry, holder = await self._ask(key, since, b"", self._sealer.open)
            if holder is None and not self._is_fresh(entry, since):  # as above
                entry, holder = await self._ask(key, _NEVER, b"", self._sealer.open)
        except CacheGone:
            return Found(Role.LEAD, None)
        if holder is None:
            return Found(Role.DONE, entry)
        follows = self._lines.ear.up and self._follows.may(holder)
        return Found(Role.FOLLOW if follows else Role.LEAD, entry)

    def _is_fresh(self, entry: Entry | None, since: int) -> bool:
        return entry is not None and is_fresh(entry, since, self._wall())

    async def _look(self, key: str, since: int, lead: Lead) -> tuple[Entry | None, str | None]:
        lease = self._leads.lease(lead).encode() if self._lines.ear.up else b""  # else nobody could follow
        return await self._ask(key, since, lease, self._open)

    async def _ask(
        self, key: str, since: int, lease: bytes, opened: Callable[[str, bytes], Entry | None]
    ) -> tuple[Entry | None, str | None]:
        """What is kept, and who else makes the call: '' if nobody does; None if the entry is said to be fresh. With no
        lease nothing is taken."""
        before = self._wall()
        answer = await self._lines.question(LOOK, key.encode(), b"%d" % since, lease, self._lease, _LARGE)
        match answer:
            case [bytes() | int() | None as data, bytes() | None, int(now)]:
                self._compare(before, now)
                if isinstance(data, int):  # which is for bad times only, and not worth a long wait
                    with suppress(CacheGone, TimeoutError):
                        async with asyncio.timeout(self._timing.deadline):
                            data = await self._lines.large(key)
            case [bytes() | int() as data]:
                if isinstance(data, int):
                    data = await self._lines.large(key)
            case _:
                raise CacheGone("NoAnswer")
        entry = opened(key, data) if isinstance(data, bytes) else None
        if entry and entry.created + self._bounds.life <= self._wall():
            entry = None  # kept when life was longer
        return entry, (answer[1] or b"").decode(errors="replace") if len(answer) > 1 else None

    def _compare(self, before: int, now: int) -> None:
        """It was `now` there since it was `before` here. What may be the way or a busy loop is no difference."""
        self._ahead = min(now - before, 0) or max(now - self._wall(), 0)
        self._has_compared = True

    def _open(self, key: str, data: bytes) -> Entry | None:
        entry = self._sealer.open(key, data)
        if entry is None:
            self._report("cache_entry_rejected")
            self._later(self._reject(key, data))
        return entry

    def keep(self, key: str, entry: Entry, flight: Flight, then: Then) -> None:
        self._later(self._keep(key, entry, self._leads.of(flight), partial(then, key, flight)))

    async def _keep(self, key: str, entry: Entry, lead: Lead | None, then: Callable[[], object]) -> None:
        try:
            await self._store(key, entry, lead)
        except Refused as refused:
            self._report("cache_entry_not_kept", kind=str(refused))
            if str(refused) == _MISFIT:
                with suppress(CacheGone):
                    await self._care.mend(key, self._leads.lease(lead) if lead else "")
        except CacheGone:
            pass  # which is said already
        finally:
            if lead:
                self._leads.settle(lead)
            then()

    async def _store(self, key: str, entry: Entry, lead: Lead | None) -> None:
        bounds = self._bounds
        if entry.began:
            entry = replace(entry, began=entry.began + self._ahead)
        sealed = self._sealer.seal(key, entry) if entry.size <= bounds.most_entry else b""
        size = len(sealed) + 3 * len(key) + AROUND
        if lead:
            lead.held = False
        if not sealed or len(sealed) > bounds.most_entry or size > bounds.most_bytes or not self._lines.questions.up:
            if lead:
                await self._lines.release(key, self._leads.lease(lead))
            return
        lease = self._leads.lease(lead).encode() if lead else b""
        numbers = b"%d" % bounds.life, b"%d" % bounds.most_bytes, b"%d" % size, b"%d" % entry.began
        arguments = (key.encode(), lease, *numbers)
        for data in chain([sealed], repeat(b"", ROUNDS)):
            answer = await self._lines.order(KEEP, *arguments, data)
            if answer != _MORE:
                break
        if data is not sealed and answer != _OLD:
            answer = await self._lines.order(KEEP, *arguments, sealed)
        if answer == _MORE and lead:  # there was room, and somebody else has taken it
            await self._lines.release(key, self._leads.lease(lead))
        if answer in (_FULL, _MORE):
            raise Refused("Full")

    def drop(self, key: str, flight: Flight) -> None:
        lead = self._leads.of(flight)
        if lead:
            lead.dropped = True
            self._later(self._free(lead))
        else:
            self._follows.leave(flight)

    async def _free(self, lead: Lead) -> None:
        # A question that nobody waits for any more may be under way: not to be overtaken.
        order = self._lines.order if lead.held else self._lines.question
        lead.held = False
        try:
            with suppress(CacheGone):  # it ends by itself
                await order(RELEASE, lead.key.encode(), self._leads.lease(lead).encode())
        finally:
            self._leads.settle(lead)

    def become(self, bounds: Bounds) -> None:
        self._bounds = bounds

    # What is asked by those who look after it.

    async def delete(self, team: str | None) -> int:
        return await self._care.delete(team)

    async def stats(self, team: str | None) -> Stats:
        return await self._care.stats(team, self._bounds.life)

    async def verify(self) -> Verified:
        return await self._care.verify()

    # Behind the answers.

    def _heard(self, message: Message) -> None:
        if isinstance(message, Join):
            self._leads.joined(message)
        elif isinstance(message, Leave):
            self._leads.left(message)
        else:
            self._follows.heard(message)

    async def _fetch(self, key: str) -> Entry | None:
        data = await self._lines.get(key)
        return None if data is None else self._open(key, data)

    async def _beat(self) -> None:
        for number in count():
            with suppress(CacheGone):
                held = [word for lead in self._leads.held() for word in (lead.key, self._leads.lease(lead))]
                if held and self._lines.ear.up:  # else nobody could follow
                    await self._lines.order(RENEW, self._lease, *map(str.encode, held))
            with suppress(CacheGone):
                await self._lines.listen()
                if number % STAY == STAY - 1:
                    await self._lines.stay()
                if not self._has_compared:  # whoever makes all anew never looks
                    await self._ask("", _NEVER, b"", self._sealer.open)
            await self._sleep(self._timing.beat)

    async def _reject(self, key: str, data: bytes) -> None:
        with suppress(CacheGone):
            await self._care.reject(key, data)

    def _report(self, event: str, **fields: str) -> None:
        """Once in a while, with how often it was meanwhile."""
        count, said = self._reports.get(event, (0, float("-inf")))
        now = self._monotonic()
        if now >= said + REPORT:
            self._log("warning", event, count=count + 1, **fields)
            self._reports[event] = 0, now
        else:
            self._reports[event] = count + 1, said

    def _later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._behind.add(task)
        task.add_done_callback(self._behind.discard)
        return task
