"""One stream, from the upstream to the client, event by event."""

from __future__ import annotations

from asyncio import sleep
from collections.abc import Callable

from starlette.types import Send

from proxy.core.endpoint import EventStream
from proxy.core.errors import ProxyError, UpstreamFailed, render
from proxy.guard import Guard
from proxy.upstream.transport import Answer

LINGER = 1.0
"""Seconds that the upstream gets to end its answer once the client has all of it: its connection is worth keeping."""

CHUNKS_A_TURN = 8
"""Chunks that one stream may pass on before the others get their turn, should it never have to wait."""

_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),  # nginx would hold events back
    ],
}


class Relay:
    """Nothing is sent before the first event is there: until then an error is still an ordinary error answer."""

    def __init__(self, events: EventStream, guard: Guard, send: Send, scrub: Callable[[bytes], bytes]) -> None:
        self._events = events
        self._guard = guard
        self._send = send
        self._scrub = scrub  # events come whole, so a secret in one is never cut in two
        self.started = False

    async def run(self, answer: Answer) -> None:
        """Pass the answer on until its terminal event. Raises ProxyError when it never comes."""
        if not (answer.header("content-type") or "").startswith("text/event-stream"):
            raise UpstreamFailed("The upstream answered a request for a stream with something else.")
        events, guard = self._events, self._guard
        chunks, passed = answer.chunks(), 0
        async for chunk in chunks:
            guard.heard()
            data = events.feed(chunk)
            if events.error or events.done:
                break
            guard.sending()
            await self._pass(data)
            guard.heard()
            # A server's send() need not suspend, and neither need a chunk that is already there: without this, one fast
            # stream could keep every other client of the worker waiting. A turn of the loop is dear: not each time.
            passed += 1
            if passed % CHUNKS_A_TURN == 0:
                await sleep(0)
        else:
            data = events.end()
        if events.error:
            await self._pass(data)
            raise events.error
        guard.sending()
        await self._pass(data, last=True)
        guard.finishing(LINGER)
        async for _ in chunks:
            pass

    async def finish(self, data: bytes) -> None:
        """End a stream whose answer is complete though its upstream failed to end it."""
        await self._pass(data, last=True)

    async def fail(self, error: ProxyError) -> None:
        """End a stream that has begun. The SDKs raise on this frame; whoever does not look for it sees the end."""
        await self._pass(b"data: %b\n\ndata: [DONE]\n\n" % render(error), last=True)

    async def _pass(self, data: bytes, *, last: bool = False) -> None:
        if not self.started and (data or last):
            self.started = True
            await self._send(dict(_START))
        if data or last:
            await self._send({"type": "http.response.body", "body": self._scrub(data), "more_body": not last})
