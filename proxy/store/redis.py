"""Counters that several workers and replicas share, in Redis: one script lets a request in, one settles it.

The clock is Redis's own. Calendar counters are born from the ledger whenever Redis does not have them, and all of them
anew when it may have lost some: after FLUSHALL, a restart or a failover, which is another `root` (lua/common.lua).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, Final, Literal

from redis.asyncio.connection import AbstractConnection

from proxy.core.calendar import Calendar
from proxy.core.quota import Claim, Counter, History, Standing, StoreGone, Verdict
from proxy.core.secret import Secret
from proxy.store.redis_births import Birth, Births
from proxy.store.redis_clock import Periods, StoreClock
from proxy.store.redis_link import LEASE, LEAVE, RESERVE, SETTLE, Ask, Link, Log
from proxy.store.redis_probes import RedisProbes
from proxy.store.redis_settlements import Settlements

PREFIX: Final = "mistral-proxy:{quota}:"

_SLIDING, _CALENDAR, _SLOTS = 1, 2, 3
_OK, _REFUSED, _NO_LEASE, _OTHER_PERIOD, _ABSENT, _KNOWN = 0, 1, 2, 3, 4, 5
"""As in lua/common.lua."""

GRACE: Final = 0.02
"""Seconds, twice, that a request without a slot waits for one that may be on its way back, from here or from another
worker."""

_ROUNDS: Final = 8
"""Questions for one reservation at most; more than one only after an outage or at the turn of a period."""


_Asks = Callable[[Sequence[Claim]], Awaitable[Verdict]]


class StoreUnfit(Exception):
    """This Redis would throw counters away. The text says what to change there."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. `deadline` of one question to Redis, `patience` of one reservation with all its questions, each of which
    has at `least` so many. `birth`: how long a new counter is waited for, which is for the ledger and not for Redis;
    `settle_in`: how long rows of other workers may be on their way to the ledger; `before_recount`: how long a recount
    waits for our own settlements. A `lease` is renewed at each `beat`;
    what was not heard is said again after `retry`."""

    deadline: float = 0.35
    patience: float = 0.45
    least: float = 0.05
    birth: float = 1.5
    settle_in: float = 0.3
    before_recount: float = 2.0
    lease: float = 15.0
    beat: float = 5.0
    retry: float = 1.0


@dataclass(slots=True)
class Held:
    """A call that was granted under `root`, at `now` of the store's clock."""

    root: str
    now: int
    claims: Sequence[Claim]


class RedisStore:
    """A QuotaStore. `owner` is this worker among all that share the Redis. `wall` gives Unix milliseconds, `monotonic`
    seconds; `sleep` is how its tasks wait. `workers`: so many of this replica share it, heard of or not. Make it
    anywhere, `start` it in the loop that uses it, after fork.
    """

    def __init__(
        self,
        url: Secret,
        calendar: Calendar,
        history: History | None,
        *,
        owner: str,
        log: Log,
        wall: Callable[[], int],
        prefix: str = PREFIX,
        workers: int = 1,
        timing: Timing = Timing(),
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._url = url
        self._history = history
        self._owner = owner
        self._log = log
        self._prefix = prefix
        self._timing = timing
        self._sleep = sleep
        self._clock = StoreClock(wall, monotonic)
        self._periods = Periods(calendar, self._clock)
        self._root: str | None = None
        self._workers = self._peers = max(1, workers)
        self._recounts = count(1)
        self._held: dict[str, Held] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._link: Link
        self._births: Births
        self._settlements: Settlements
        self.probes: RedisProbes

    async def start(self) -> None:
        """Raises StoreUnfit. A Redis that is not there yet is waited for by nobody: it will be gone until it comes."""
        timing = self._timing
        self._link = Link(self._url, self._prefix, timing.deadline, self._met, self._log)
        self._births = Births(self._link, self._history, self._clock, timing.settle_in, self._sleep)
        self._settlements = Settlements(self._link, self._log, self._sleep, timing.retry)
        self.probes = RedisProbes(self._link)
        with suppress(StoreGone):
            await self._link.use(self._say_that_we_live, apart=True)
        if self._link.evicts:
            await self._link.close()
            raise StoreUnfit(
                f"its maxmemory-policy is {self._link.policy}, which throws counters away; set it to noeviction, "
                "or give the quotas a Redis of their own"
            )
        self._link.complains = True
        self._tasks = [asyncio.create_task(self._settlements.run()), asyncio.create_task(self._heartbeat())]

    async def close(self, within: float = 2.0) -> None:
        """Settle what waits, for so many seconds at most, and give back the slots."""
        if not await self.drain(within):
            self._log("error", "settlement_lost", kind="StoreGone", count=len(self._settlements))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._births.close()
        await self.probes.close()
        with suppress(StoreGone):
            await self._link.run_script(LEAVE, (self._owner,), apart=True)
        await self._link.close()

    @property
    def calendar(self) -> Calendar:
        """Of another time zone when the configuration says so: its counters are others, and born from the ledger."""
        return self._periods.calendar

    @calendar.setter
    def calendar(self, calendar: Calendar) -> None:
        self._periods = Periods(calendar, self._clock)

    async def drain(self, within: float) -> bool:
        """Whether everything is settled, after so many seconds at most."""
        return await self._settlements.drained(within)

    async def ping(self) -> None:
        """Raises StoreGone."""
        await self._link.ping()

    def peers(self) -> int:
        """How many workers share this store, this one included, as it was last heard."""
        return self._peers

    async def reserve(self, call: str, claims: Sequence[Claim]) -> Verdict:
        return await self._patiently(partial(self._reserve, call), claims)

    async def look(self, claims: Sequence[Claim]) -> Verdict:
        """Calendar counters that Redis does not have are made, as `reserve` makes them."""
        return await self._patiently(self._look, claims)

    async def _patiently(self, ask: _Asks, claims: Sequence[Claim]) -> Verdict:
        verdict = await ask(claims)
        if not verdict.granted and _lacks_slots_alone(claims, verdict):
            # Slots come back behind the answer: who has had that, and asks again at once, must not find them taken.
            await self._settlements.passed(GRACE)
            await self._sleep(GRACE)
            verdict = await ask(claims)
        return verdict

    async def _look(self, claims: Sequence[Claim]) -> Verdict:
        _, answer = await self._answer(False, claims, Ask())
        return Verdict(answer[0] == _OK, _standings(answer))

    async def _reserve(self, call: str, claims: Sequence[Claim]) -> Verdict:
        ask = Ask()
        try:
            root, answer = await self._answer(call, claims, ask)
        except BaseException:
            if ask.sent:
                self._undo(call, claims)
            raise
        granted = answer[0] == _OK
        if granted:
            self._held[call] = Held(root, answer[1], claims)
        return Verdict(granted, _standings(answer))

    async def caught_up(self) -> None:
        await self._settlements.all_passed(GRACE)

    async def recount(self, counter: Counter, *, missed: bool) -> bool:
        """Have a calendar counter count no less than the ledger knows, if there is one. Where it is known that it has
        `missed` something, or found to have, nobody is let in while the ledger is asked. Raises StoreGone and
        HistoryGone."""
        assert counter.window
        if not self._history:
            return False
        await self._settlements.passed(self._timing.before_recount)
        root = self._root
        if root is None:
            root = await self._link.use(self._say_that_we_live)
        start = self._periods.edges(counter.window)[1]
        birth = Birth(root, counter, start, self._periods.end(counter.window, start))
        if missed or await self._births.recount(birth, None):
            await self._births.recount(birth, f"{self._owner}-{next(self._recounts)}")
        return True

    async def hold(self, calls: Mapping[str, Sequence[Claim]]) -> None:
        """Take the slots of calls that were let in without it, as those are taken that it holds itself when its lease
        has ended. Raises StoreGone."""
        now = self._clock.now()
        self._held.update((call, Held(self._root or "", now, slots)) for call, slots in calls.items())
        await self._link.use(self._say_that_we_live, apart=True)

    def settle(self, call: str, claims: Sequence[Claim], used: Sequence[int]) -> None:
        held = self._held.pop(call, None)
        if held is not None:
            rows = [self._used(claim, much, held.now) for claim, much in zip(claims, used, strict=True)]
            self._send(held.root, call, rows)

    def _undo(self, call: str, claims: Sequence[Claim]) -> None:
        """Nobody knows whether it was granted; it is settled with nothing if it was, or will be."""
        self._send(False, call, [self._used(claim, 0, None) for claim in claims])

    def _send(self, root: str | Literal[False], call: str, rows: list[tuple[Any, ...]]) -> None:
        packet = self._link.packet(SETTLE, (self._owner, root, call, self._clock.now(), rows))
        self._settlements.add(packet, lasting=any(row[0] != _SLIDING for row in rows))

    async def _answer(self, call: str | Literal[False], claims: Sequence[Claim], ask: Ask) -> tuple[str, list[Any]]:
        """What Redis says of the claims at last, and under which root. Raises StoreGone."""
        loop, timing, patience = asyncio.get_running_loop(), self._timing, self._timing.patience
        question = partial(self._question, call, claims, ask)
        for _ in range(_ROUNDS):
            began = loop.time()
            root, answer = await self._link.use(question, max(patience, timing.least))
            patience -= loop.time() - began
            status = answer[0]
            if status in (_OK, _REFUSED):
                return root, answer
            if status == _NO_LEASE and self._root == root:
                self._root = None
            elif status == _ABSENT:
                await self._births.make(self._absent(root, claims, answer), loop.time() + timing.birth)
            elif status == _KNOWN:
                break
        raise StoreGone("NoVerdict")

    async def _question(
        self, call: str | Literal[False], claims: Sequence[Claim], ask: Ask, connection: AbstractConnection
    ) -> tuple[str, list[Any]]:
        root = self._root or await self._say_that_we_live(connection)
        rows = [self._row(claim) for claim in claims]
        packet = self._link.packet(RESERVE, (self._owner, root, call, rows))
        answer = await self._link.ask(connection, packet, ask)
        if answer[0] != _OK:
            ask.sent = False  # nothing is reserved
        self._clock.learn(answer[1])
        if answer[0] in (_OK, _REFUSED) and len(answer) != 2 + 4 * len(claims):
            raise ValueError("no answer of ours")
        return root, answer

    def _row(self, claim: Claim) -> tuple[Any, ...]:
        """A claim as lua/reserve.lua takes it."""
        counter = claim.counter
        window = counter.window
        if window is None:
            return _SLOTS, counter.name, claim.limit, claim.amount, counter.shadow
        if window.span is not None:
            return _SLIDING, counter.name, claim.limit, claim.amount, counter.shadow, window.span
        return _CALENDAR, counter.name, claim.limit, claim.amount, counter.shadow, *self._periods.edges(window)

    def _used(self, claim: Claim, used: int, granted: int | None) -> tuple[Any, ...]:
        """A claim as lua/settle.lua takes it; `granted`: when it was, None if nobody knows."""
        window, name = claim.counter.window, claim.counter.name
        if window is None:
            return _SLOTS, name, claim.amount
        if window.span is not None:
            return _SLIDING, name, claim.amount, used, window.span
        return _CALENDAR, name, claim.amount, used, self._periods.start(window, granted) if granted else 0

    def _absent(self, root: str, claims: Sequence[Claim], answer: list[Any]) -> list[Birth]:
        births = []
        for place, start, held in zip(answer[2::3], answer[3::3], answer[4::3], strict=True):
            counter = claims[place].counter
            assert counter.window
            births.append(Birth(root, counter, start, self._periods.end(counter.window, start), bool(held)))
        return births

    # Being alive.

    def _met(self) -> None:
        """Another run of the server: what it has may be older than what we know."""
        self._root = None

    async def _heartbeat(self) -> None:
        while True:
            pause = self._timing.beat
            try:
                await self._link.use(self._beat, apart=True)
            except StoreGone:
                pause = self._timing.retry
            await self._sleep(pause)

    async def _beat(self, connection: AbstractConnection) -> None:
        root = self._root
        if root is not None:
            answer = await self._link.ask(connection, self._link.packet(LEASE, (self._owner, root, self._lease)))
            if answer[0] == _OK:
                self._peers = max(self._workers, answer[2])
                return
        await self._say_that_we_live(connection)

    async def _say_that_we_live(self, connection: AbstractConnection) -> str:
        """The root under which we do. Our lease may have ended, and others may have taken our slots for free: they are
        taken again."""
        run = self._link.run
        slots = [
            (claim.counter.name, call, claim.amount)
            for call, held in self._held.items()
            for claim in held.claims
            if claim.counter.window is None and claim.amount
        ]
        argument = (self._owner, False, self._lease, run, secrets.token_hex(8), *slots)
        answer = await self._link.ask(connection, self._link.packet(LEASE, argument))
        _, now, peers, root = answer
        self._clock.learn(now)
        self._peers = max(self._workers, peers)
        if run == self._link.run:
            self._root = root
        return str(root)

    @property
    def _lease(self) -> int:
        return int(self._timing.lease * 1000)


def _lacks_slots_alone(claims: Sequence[Claim], verdict: Verdict) -> bool:
    return all(
        standing.wait == 0 or claim.counter.shadow or (claim.counter.window is None and 0 < claim.amount <= claim.limit)
        for claim, standing in zip(claims, verdict.standings, strict=True)
    )


def _standings(answer: list[Any]) -> tuple[Standing, ...]:
    numbers = iter(answer[2:])
    return tuple(
        Standing(used, reserved, reset, None if wait < 0 else wait)
        for used, reserved, reset, wait in zip(numbers, numbers, numbers, numbers, strict=True)
    )
