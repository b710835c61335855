"""One stream, from the upstream to the client, event by event."""

from __future__ import annotations

from asyncio import Task, create_task, sleep
from collections.abc import AsyncIterator, Callable

from starlette.types import Send

from proxy.core.endpoint import EventStream
from proxy.core.errors import ProxyError, UpstreamFailed, render
from proxy.core.sse import KEEP_ALIVE
from proxy.core.success import stream_start
from proxy.guard import Guard
from proxy.upstream.transport import Answer

LINGER = 1.0
"""Seconds that the upstream gets to end its answer once the client has all of it: its connection is worth keeping."""

CHUNKS_A_TURN = 8
"""Chunks that one stream may pass on before the others get their turn, should it never have to wait. One that is
larger than CHUNK counts as several."""

CHUNK = 2048
"""Bytes. A stream's events mostly come one by one; many at once are as much work as they would be alone."""


class Relay:
    """Nothing is sent before the first event is there: until then an error is still an ordinary error answer.

    Only whole events are sent, so that a secret in one is never cut in two, and a comment may go between any two.
    `whole` is called when the answer is there, before the last of it goes on.
    """

    def __init__(
        self,
        events: EventStream,
        guard: Guard,
        send: Send,
        scrub: Callable[[bytes], bytes],
        whole: Callable[[], object] | None = None,
    ) -> None:
        self._whole = whole
        self._events = events
        self._guard = guard
        self._send = send
        self._scrub = scrub
        self._begun = False
        self.unsent = b""
        """What the client is still to get. A `send` that is cancelled has sent nothing: a server waits first."""
        self._comment: Task[None] | None = None

    @property
    def started(self) -> bool:
        """Whether the client has, or will have, a part of the answer: then what goes wrong is an error frame."""
        return self._begun or bool(self.unsent)

    async def run(self, answer: Answer) -> None:
        """Pass the answer on until its terminal event. Raises ProxyError when it never comes, and also when more comes
        behind it: then the client has its whole answer, but the connection is not to be used again."""
        if not (answer.header("content-type") or "").lower().startswith("text/event-stream"):
            raise UpstreamFailed("The upstream answered a request for a stream with something else.")
        chunks = answer.chunks()
        try:
            await self._pass_all(chunks)
        finally:
            if self._comment:
                self._comment.cancel()
                self._comment = None
        self._guard.finishing(LINGER)
        if self._events.surplus or await anext(chunks, b"") != b"":
            raise UpstreamFailed("The upstream went on after the end of its answer.")

    async def finish(self, data: bytes) -> None:
        """End a stream whose answer is complete though its upstream failed to end it."""
        await self._pass(self.unsent + data, last=True)

    async def fail(self, error: ProxyError) -> None:
        """End a stream that has begun. The SDKs raise on this frame; whoever does not look for it sees the end."""
        await self._pass(b"%bdata: %b\n\ndata: [DONE]\n\n" % (self.unsent, render(error)), last=True)

    async def _pass_all(self, chunks: AsyncIterator[bytes]) -> None:
        events, guard, passed = self._events, self._guard, 0
        async for chunk in chunks:
            data = events.feed(chunk)
            if events.error or events.done:
                break
            if data:
                guard.sending()
                await self._pass(data)
                guard.sent()
            else:
                guard.heard()
            # A server's send() need not suspend, and neither need a chunk that is already there: without this, one fast
            # stream could keep every other client of the worker waiting. A turn of the loop is dear: not each time.
            passed += 1 + len(chunk) // CHUNK
            if passed >= CHUNKS_A_TURN:
                passed = 0
                await sleep(0)
        else:
            data = events.end()
        if events.error:
            # What came before it is sent with the error, when the upstream's connection is no longer held.
            self.unsent = data
            raise events.error
        guard.sending()
        await self._pass(data, last=True)

    async def _pass(self, data: bytes, *, last: bool = False) -> None:
        self.unsent = data
        if not self._begun:
            await self._send(stream_start())
            self._begun = True
            if not last:  # else the guard may have been left, and would hold this
                self._guard.on_silence = self._keep_alive
        if last and self._whole and self._events.done:
            self._whole()
        if self._comment:
            await self._comment
            self._comment = None
        await self._send({"type": "http.response.body", "body": self._scrub(data), "more_body": not last})
        self.unsent = b""

    def _keep_alive(self) -> None:
        if self._comment is None or self._comment.done():  # else the client does not read
            self._comment = create_task(self._say_that_we_are_there())

    async def _say_that_we_are_there(self) -> None:
        await self._send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})
