"""The calls that this worker makes, as other workers may follow them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from proxy.core.cache import CacheGone
from proxy.core.entry import Sealer
from proxy.core.errors import ADVICE, CircuitOpen, KeyFault, ProviderBusy, ProxyError
from proxy.core.flight import Behind, Flight, Lost
from proxy.store.cache.redis_talk import End, Join, Leave, Message, Piece

PIECE: Final = 1 << 18
"""Bytes of one message at most: Redis cuts off whoever has too much before it."""

Say = Callable[[str, Message], Awaitable[int]]
"""To whom, and what. How many have heard it: none or one. Raises CacheGone."""


@dataclass(slots=True, eq=False)
class Lead:
    """A call that may have the lease of its key. `held`: it goes on having it; `dropped`: what it has brought is for
    those alone who follow it already; `settled` once the lease has been given back, and what there is to be kept is
    kept. `followed`: by whom."""

    name: str
    key: str
    flight: Flight
    held: bool = False
    dropped: bool = False
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    followed: set[str] = field(default_factory=set)


class Leads:
    """`say` reaches another worker, `release` gives back the lease of a key. Who follows says so again and again: of
    whom nothing was heard for `patience` seconds, while there was nothing to be told, nothing more is expected."""

    def __init__(
        self, owner: str, sealer: Sealer, say: Say, release: Callable[[str, str], Awaitable[None]], patience: float
    ) -> None:
        self._owner = owner
        self._sealer = sealer
        self._say = say
        self._release = release
        self._patience = patience
        self._first = secrets.token_hex(8)
        self._numbers = count(1)
        self._leads: dict[str, Lead] = {}
        self._of: dict[Flight, Lead] = {}
        self._telling: dict[str, asyncio.Task[None]] = {}

    def begin(self, key: str, flight: Flight) -> Lead:
        """Known to who asks for it from now on."""
        lead = Lead(f"{self._first}-{next(self._numbers)}", key, flight)
        self._leads[lead.name] = self._of[flight] = lead
        return lead

    def lease(self, lead: Lead) -> str:
        """What is written under the key while it is made."""
        return f"{lead.name}:{self._owner}"

    def is_over(self, lease: str) -> bool:
        """Whether it is one of ours, and is about to be given back or has just been: two connections tell of that, and
        not in this order."""
        name = lease.partition(":")[0]
        lead = self._leads.get(name)
        return name.startswith(f"{self._first}-") and (lead is None or lead.dropped or lead.settled.is_set())

    async def given_back(self, lease: str) -> None:
        """Until it is."""
        lead = self._leads.get(lease.partition(":")[0])
        if lead:
            await lead.settled.wait()

    def of(self, flight: Flight) -> Lead | None:
        return self._of.get(flight)

    def forget(self, lead: Lead) -> None:
        """It never was one, or it is over, and nobody need be told."""
        lead.held = False
        self._leads.pop(lead.name, None)
        self._of.pop(lead.flight, None)

    def settle(self, lead: Lead) -> None:
        """Who follows it learns now how it has ended; and for a while who asks again, because the word was lost."""
        self.forget(lead)
        lead.settled.set()
        if lead.followed:
            lead.flight = lead.flight.remains()
            self._leads[lead.name] = lead
            asyncio.get_running_loop().call_later(self._patience, self._leads.pop, lead.name, None)

    def held(self) -> list[Lead]:
        return [lead for lead in self._leads.values() if lead.held]

    # Whoever follows.

    def joined(self, join: Join) -> None:
        lead, following = self._leads.get(join.flight), ExitStack()
        before = self._telling.get(join.follow)
        known = lead is not None and join.follow in lead.followed
        if lead and (lead.dropped or lead.settled.is_set()) and not known:
            lead = None
        if before and lead is None:
            return  # which is about to tell how it has ended
        closed = not (lead and (lead.flight.open or known))
        if lead and not closed:
            lead.followed.add(join.follow)
            following.enter_context(lead.flight.follow())  # at once: who came before lets go of it now
        if before:
            before.cancel()
        task = self._telling[join.follow] = asyncio.create_task(self._tell(join, lead, closed))

        def told(_: asyncio.Task[None]) -> None:
            following.close()
            if self._telling.get(join.follow) is task:
                del self._telling[join.follow]

        task.add_done_callback(told)

    def left(self, leave: Leave) -> None:
        task = self._telling.get(leave.follow)
        if task:
            task.cancel()

    async def close(self, within: float) -> None:
        """Who follows what has ended is told so, in so many seconds; the others will find out."""
        for lead in list(self._leads.values()):
            self.settle(lead)
        if self._telling:
            _, late = await asyncio.wait(list(self._telling.values()), timeout=within)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    async def _tell(self, join: Join, lead: Lead | None, closed: bool) -> None:
        with suppress(CacheGone, TimeoutError):  # who follows will ask again
            if lead is None:
                await self._release(join.key, f"{join.flight}:{self._owner}")
                await self._say(join.back, End(join.follow, "unknown"))
            elif closed or not await self._tell_all(join, lead):
                await self._say(join.back, End(join.follow, "closed"))

    async def _tell_all(self, join: Join, lead: Lead) -> bool:
        """False: it cannot be followed."""
        flight, at, loop = lead.flight, join.at, asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._patience) as limit:
                async for data in flight.pieces(join.at):
                    if not await self._pieces(join, flight, at, data):
                        return True
                    at += len(data)
                    limit.reschedule(loop.time() + self._patience)
        except Behind:
            return False
        except Lost:
            pass
        await lead.settled.wait()
        if flight.lost:
            await self._say(join.back, _lost(join.follow, at, flight, flight.lost))
            return True
        entry = flight.entry
        if entry and not entry.stream:
            sealed = self._sealer.seal(lead.key, entry)
            if await self._pieces(join, flight, 0, sealed, sealed=True):
                await self._say(join.back, End(join.follow, "done", len(sealed), flight.saved, sealed=True))
            return True
        await self._say(join.back, End(join.follow, "done" if flight.streamed else "lost", at, flight.saved))
        return True

    async def _pieces(self, join: Join, flight: Flight, at: int, data: bytes, *, sealed: bool = False) -> bool:
        """Whether anybody hears it."""
        for start in range(0, len(data), PIECE):
            rewrites = () if at + start else flight.rewrites
            piece = Piece(join.follow, at + start, data[start : start + PIECE], sealed, rewrites, self._owner)
            if not await self._say(join.back, piece):
                return False
        return True


def _lost(follow: str, at: int, flight: Flight, lost: Lost) -> End:
    """Of an error only what an SDK decides by: its text may be about this client's request. What is not the provider's
    doing says nothing to others, unless the pieces have told it; and neither does a circuit, of which each worker has
    its own."""
    error = lost.error
    if error is None or isinstance(error, CircuitOpen) or not (error.is_the_providers or lost.told):
        return End(follow, "lost", at, told=lost.told, unasked=lost.unasked)
    headers = [header for header in error.headers if header[0] in ADVICE]
    payer, key = (flight.payer, _key(error)) if error.is_the_accounts else (None, KeyFault.NONE)
    said = error.status, error.code, error.type, headers
    return End(follow, "lost", at, 0, lost.told, *said, payer=payer, key=key.name, late=error.is_the_times)


def _key(error: ProxyError) -> KeyFault:
    """What it says of the key that was paid with, if that can be told from nothing else."""
    return KeyFault.SPENT if isinstance(error, ProviderBusy) else error.key
