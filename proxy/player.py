"""An answer that needs no call of its own: one that is kept, or the one that another request is getting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Literal

from starlette.types import Receive, Send

from proxy.core.charge import NOTHING
from proxy.core.entry import Entry, unpacked
from proxy.core.errors import ClientGone, Overloaded, ProxyError, UpstreamFailed, forget_frames
from proxy.core.exchange import Exchange, Replay
from proxy.core.flight import AT_ONCE, Behind, Flight, Lost
from proxy.core.json import Json
from proxy.core.services import Drainable
from proxy.core.success import send_json, stream_start
from proxy.guard import Deadlines, Guard
from proxy.relay import Relay

Cadence = Literal["immediate", "original"]
"""How a stream that is kept is sent: at once, or each piece as late as it once came."""

LOST = "The request that this one had joined has lost its answer."

BEHIND = (
    "More has come of the answer that this request had joined than is kept (cache.max_entry), before it could be let "
    "in. Send it again."
)


@dataclass(frozen=True, slots=True)
class Player:
    """Plays answers to clients. Whoever lasts is among the `drainables`; `wall` gives Unix milliseconds and `clock`
    seconds."""

    cadence: Cadence
    drainables: set[Drainable]
    wall: Callable[[], int]
    clock: Callable[[], float]

    def found(self, entry: Entry, exchange: Exchange, key: str) -> None:
        """This is the answer."""
        exchange.cache, exchange.streamed = "hit", entry.stream
        exchange.replay = self.kept(entry, key)

    def kept(self, entry: Entry, key: str) -> Replay:
        return partial(self._play, entry, key)

    def joined(self, flight: Flight, key: str, patience: Deadlines) -> Replay:
        """What a flight has brought, and brings. Somebody has to follow it meanwhile."""
        return partial(self._join, flight, key, patience)

    def failed(self, error: ProxyError) -> Replay:
        """The provider's error, which another request was told. This one is counted and written down like that one."""
        return partial(_tell, error)

    def _play(self, entry: Entry, key: str, exchange: Exchange, receive: Receive, send: Send) -> Awaitable[None]:
        exchange.cache_key = key.rpartition("/")[2]
        _name(exchange)
        if exchange.cache != "joined":  # that was not there when it was asked for
            exchange.age = max(0, self.wall() - entry.created) // 1000
        exchange.saved = entry.cost or 0
        if entry.rewrites:
            exchange.rewrites.update(dict.fromkeys(entry.rewrites))
        return self._send(entry, exchange, receive, send)

    def _send(self, entry: Entry, exchange: Exchange, receive: Receive, send: Send) -> Awaitable[None]:
        exchange.streamed = entry.stream
        if exchange.charge is None:
            exchange.charge = NOTHING
        if entry.stream:
            return self._stream(entry, exchange, receive, send)
        return send_json(send, entry.body)

    async def _stream(self, entry: Entry, exchange: Exchange, receive: Receive, send: Send) -> None:
        # Who has joined has waited already.
        if self.cadence == "original" and entry.cadence and exchange.cache != "joined":
            saved, exchange.saved = exchange.saved, 0
            exchange.called, exchange.returned = exchange.called or self.clock(), None  # it takes a provider's time

            def whole() -> None:
                exchange.saved = saved

            guard = Guard(receive, Deadlines.together(inf), self.drainables, departure=exchange.departure)
            await self._relay(_as_it_came(entry), exchange, guard, send, whole)
            return
        await send(stream_start())
        for at in range(0, len(entry.body) or 1, AT_ONCE):
            more = at + AT_ONCE < len(entry.body)
            await send({"type": "http.response.body", "body": entry.body[at : at + AT_ONCE], "more_body": more})
            if more:
                await asyncio.sleep(0)

    async def _join(
        self, flight: Flight, key: str, patience: Deadlines, exchange: Exchange, receive: Receive, send: Send
    ) -> None:
        if flight.done and flight.entry:
            await self._play(flight.entry, key, exchange, receive, send)
            return
        _name(exchange)
        if flight.rewrites:
            exchange.rewrites.update(dict.fromkeys(flight.rewrites))
        guard = Guard(receive, patience, self.drainables, exchange.end, departure=exchange.departure)
        guard.enough = lambda: flight.over  # what has come may be taken as slowly as one's own answer

        def whole() -> None:
            """Before the client has the last of it: whoever counts does so then."""
            exchange.saved = flight.saved

        with flight.reading(lambda: guard.interrupt(Overloaded(BEHIND))) as reader:
            await self._relay(flight.pieces(reader=reader), exchange, guard, send, whole)

    async def _relay(
        self,
        pieces: AsyncIterator[bytes],
        exchange: Exchange,
        guard: Guard,
        send: Send,
        whole: Callable[[], object] | None = None,
    ) -> None:
        exchange.streamed, exchange.charge = True, exchange.charge or NOTHING
        relay = Relay(_AsTheyCome(), guard, send, bytes, whole)
        error: ProxyError
        try:
            with guard:
                await relay.run(_Pieces(pieces))
            return
        except ClientGone:
            exchange.client_gone = True
            return
        except (Behind, Overloaded):
            if relay.started:  # as one that does not read its own answer
                exchange.client_gone = True
                if exchange.departure:
                    exchange.departure.cut()
                return
            raise Overloaded(BEHIND) from None
        except Lost as lost:
            error = lost.error.again() if lost.error else UpstreamFailed(LOST, billed=False)
            told = lost.told
        except ProxyError as raised:
            error, told = raised, False
        if not relay.started:
            raise error
        forget_frames(error)
        exchange.error = error
        await (relay.finish(b"") if told else relay.fail(error))


def _name(exchange: Exchange) -> None:
    """Where another model was asked in vain, it is told whose answer this is."""
    if exchange.turned:
        exchange.upstream = f"{exchange.provider}/{exchange.sent_as}"


async def _tell(error: ProxyError, exchange: Exchange, receive: Receive, send: Send) -> None:
    raise error


async def _as_it_came(entry: Entry) -> AsyncIterator[bytes]:
    """Each piece as long after the first look as it once came after the call."""
    loop, times, at = asyncio.get_running_loop(), unpacked(entry.cadence), 0
    begun = loop.time()
    for milliseconds, size in zip(times[::2], times[1::2], strict=True):
        wait = begun + milliseconds / 1000 - loop.time()
        if wait > 0:
            await asyncio.sleep(wait)
        yield entry.body[at : at + size]
        at += size


class _Pieces:
    """What comes, as an answer of an upstream."""

    status = 200

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces

    def header(self, name: str) -> str | None:
        return "text/event-stream"

    def whole(self) -> bytes | None:
        return None

    def chunks(self) -> AsyncIterator[bytes]:
        return self._pieces


class _AsTheyCome:
    """An EventStream (core/endpoint.py) that has been gone through before."""

    error: ProxyError | None = None
    done = surplus = False
    usage: Json | None = None
    tier: str | None = None
    delivered = 0

    def feed(self, chunk: bytes) -> bytes:
        return chunk

    def end(self) -> bytes:
        self.done = True
        return b""
