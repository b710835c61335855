"""An upstream on a real socket whose every connection runs a script of the test: read a request, send these bytes.

And the client's side of it: one whole call.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from proxy.upstream.transport import Headers, Transport

T = TypeVar("T")

OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"


def answer(body: bytes, head: bytes = OK) -> bytes:
    """A whole answer with a length."""
    return head + b"content-length: %d\r\n\r\n%s" % (len(body), body)


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body; the empty one ends it."""
    return b"%x\r\n%s\r\n" % (len(data), data)


async def soon(awaitable: Awaitable[T]) -> T:
    """What is awaited here happens at once or never."""
    async with asyncio.timeout(5):
        return await awaitable


@dataclass
class Received:
    """One request as it arrived."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)


class Peer:
    """The server's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def request(self) -> Received:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *fields = head[:-4].split("\r\n")
        headers = [(name, value) for name, _, value in (one.partition(": ") for one in fields)]
        received = Received(line, headers, b"")
        received.body = await self.reader.readexactly(int(received.header("content-length") or 0))
        return received

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def gone(self) -> bytes:
        """Wait for the client to close, gracefully or not; what it sent until then."""
        received = b""
        with suppress(ConnectionError, ssl.SSLError):
            while data := await self.reader.read(1 << 16):
                received += data
        return received

    async def cut(self) -> None:
        """Close the connection without a word, and be sure that it is closed."""
        self.writer.transport.abort()
        with suppress(Exception):
            await self.writer.wait_closed()


Script = Callable[[Peer], Awaitable[object]]


@dataclass
class Upstream:
    port: int
    scheme: str
    connections: int = 0
    mistakes: list[BaseException] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.scheme}://localhost:{self.port}"


@asynccontextmanager
async def upstream(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Upstream]:
    """Serve on a free port of the loopback; a connection is closed when its script ends."""
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        running.add(task)
        here.connections += 1
        try:
            await script(Peer(reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client left between two requests
        except asyncio.CancelledError:
            writer.transport.abort()  # the test is over
        except Exception as mistake:
            here.mistakes.append(mistake)
        finally:
            writer.close()
            with suppress(Exception):
                await writer.wait_closed()
            running.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    here = Upstream(server.sockets[0].getsockname()[1], "https" if tls else "http")
    try:
        yield here
    finally:
        server.close()
        for task in list(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await server.wait_closed()
    assert not here.mistakes


def every_request(reply: bytes) -> Script:
    """Answer every request of a connection with the same bytes."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(reply)

    return script


async def read(
    transport: Transport, path: str = "/", method: str = "POST", headers: Headers | None = None, body: bytes = b"{}"
) -> bytes:
    """One call from its beginning to its end: the body of its answer."""
    async with transport.call(method, path, headers or [], body) as answer:
        return b"".join([chunk async for chunk in answer.chunks()])


async def whole(transport: Transport, **request: Any) -> bytes:
    return await soon(read(transport, **request))
