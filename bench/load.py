"""The load generator: an HTTP/1.1 client of keep-alive connections on asyncio.Protocol and httptools.

It runs inside bench.run's process, which does nothing else meanwhile: never in the process of a target or of the
upstream. Every answer is read to its end, and its status, size and chunks are counted.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import cast

import httptools

now = time.perf_counter

_TRACE = "TRACE"


class TargetFailedError(Exception):
    """A target did not start, or did not answer as it must for a measurement to mean anything."""


@dataclass(frozen=True, slots=True)
class Route:
    """A way to the upstream: straight to it, or through a target."""

    port: int
    headers: Mapping[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"

    def request(self, path: str, body: bytes = b"", method: str = "POST") -> bytes:
        """One HTTP/1.1 request, with the headers of an API client."""
        headers = {
            "host": f"{self.host}:{self.port}",
            "accept": "application/json",
            "content-type": "application/json",
            "content-length": str(len(body)),
            "user-agent": "bench/1",
        }
        lines = [
            f"{method} {path} HTTP/1.1",
            *(f"{name}: {value}" for name, value in {**headers, **self.headers}.items()),
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    def chat(self, body: bytes) -> bytes:
        """A chat completion request."""
        return self.request("/v1/chat/completions", body)

    def traced(self, body: bytes) -> Callable[[], bytes]:
        """Such requests, each with a trace of its own, as a client sends them that is traced itself: no two have the
        same head."""
        asking = replace(self, headers={**self.headers, "traceparent": _TRACE}).chat(body)
        before, after = asking.split(_TRACE.encode())
        numbers = count(1)
        return lambda: b"%b00-%032x-00f067aa0ba902b7-00%b" % (before, next(numbers), after)


@dataclass(slots=True)
class Reply:
    """One answer. Times are seconds on time.perf_counter."""

    sent: float
    status: int = 0
    size: int = 0
    chunks: int = 0
    """Pieces of the body as HTTP framed them: events that a target read together arrive as one."""
    first: float = 0.0
    done: float = 0.0
    body: bytes | None = None

    def brief(self) -> str:
        """Enough of the answer to see what is wrong with it."""
        return f"status {self.status}, {self.size} bytes: {(self.body or b'')[:300].decode(errors='replace')}"


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self, keep_bodies: bool = False) -> None:
        self.keep_bodies = keep_bodies
        self.parser = httptools.HttpResponseParser(self)
        self.reply = Reply(0.0)
        self.waiter: asyncio.Future[Reply] | None = None

    def call(self, request: bytes) -> asyncio.Future[Reply]:
        """Send `request`; the future is done with the answer's last byte, or fails with ConnectionError."""
        self.waiter = asyncio.get_running_loop().create_future()
        self.reply = Reply(now(), body=b"" if self.keep_bodies else None)
        if self.transport.is_closing():
            self.waiter.set_exception(ConnectionResetError("the connection was closed between two requests"))
        else:
            self.transport.write(request)
        return self.waiter

    def close(self) -> None:
        """Hang up."""
        self.transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio.Transport
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.waiter and not self.waiter.done():
            self.waiter.set_exception(exc or ConnectionResetError("the connection was closed before the answer ended"))

    def on_body(self, data: bytes) -> None:
        """httptools: a piece of the body was read."""
        reply = self.reply
        if not reply.chunks:
            reply.first = now()
        reply.chunks += 1
        reply.size += len(data)
        if reply.body is not None:
            reply.body += data

    def on_message_complete(self) -> None:
        """httptools: the answer is whole."""
        reply = self.reply
        reply.done, reply.status = now(), self.parser.get_status_code()
        if self.waiter and not self.waiter.done():
            self.waiter.set_result(reply)


async def connect(route: Route, keep_bodies: bool = False) -> Connection:
    """A new connection; OSError if nobody listens."""
    loop = asyncio.get_running_loop()
    return (await loop.create_connection(lambda: Connection(keep_bodies), route.host, route.port))[1]


@asynccontextmanager
async def connections(route: Route, count: int, keep_bodies: bool = False) -> AsyncIterator[list[Connection]]:
    """`count` connections, closed at the end of the block."""
    opened: list[Connection] = []
    async with AsyncExitStack() as stack:
        for _ in range(count):
            opened.append(await connect(route, keep_bodies))
            stack.callback(opened[-1].close)
        yield opened


async def once(route: Route, request: bytes) -> Reply:
    """One request on a connection of its own, with its body kept."""
    async with connections(route, 1, keep_bodies=True) as [connection]:
        return await connection.call(request)


@dataclass(slots=True)
class Burst:
    """What `burst` saw."""

    seconds: float = 0.0
    answers: int = 0
    failures: int = 0
    chunks: int = 0
    sizes: set[int] = field(default_factory=set)


async def burst(calls: list[Connection], request: bytes | Callable[[], bytes], count: int) -> Burst:
    """Send `request`, or what it makes, `count` times over all connections, each sending its next when it has its
    answer (closed loop)."""
    seen, tickets = Burst(), iter(range(count))
    ask = request if callable(request) else partial(bytes, request)

    async def work(connection: Connection) -> None:
        for _ in tickets:
            try:
                reply = await connection.call(ask())
            except ConnectionError:
                seen.failures += 1
                return
            seen.answers += 1
            seen.failures += reply.status != 200
            seen.chunks += reply.chunks
            seen.sizes.add(reply.size)

    start = now()
    await asyncio.gather(*map(work, calls))
    seen.seconds = now() - start
    return seen


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds from sending a request to its first body byte and to its last."""

    first: float
    whole: float


async def take_turns(routes: Mapping[str, tuple[Route, bytes]], count: int) -> dict[str, list[Timing]]:
    """Send one request by each route in turn, `count` turns, one request at a time: drift hits all routes alike."""
    times: dict[str, list[Timing]] = {name: [] for name in routes}
    async with AsyncExitStack() as stack:
        lanes = {
            name: ((await stack.enter_async_context(connections(route, 1)))[0], request)
            for name, (route, request) in routes.items()
        }
        for _ in range(count):
            for name, (connection, request) in lanes.items():
                reply = await connection.call(request)
                if reply.status != 200:
                    raise TargetFailedError(f"{name} answered {reply.status}")
                times[name].append(Timing(reply.first - reply.sent, reply.done - reply.sent))
    return times


@dataclass(slots=True)
class OpenStreams:
    """Streams that stand open together, each on its own connection."""

    calls: list[Connection]
    futures: list[asyncio.Future[Reply]]

    async def received(self, size: int, patience: float = 60.0) -> None:
        """Return when every stream has received `size` bytes; TargetFailedError if one never does."""
        deadline = now() + patience
        while short := sum(call.reply.size < size for call in self.calls):
            if ended := sum(future.done() for future in self.futures):
                raise TargetFailedError(f"{ended} of {len(self.calls)} streams ended before half of their events")
            if now() > deadline:
                raise TargetFailedError(f"{short} of {len(self.calls)} streams still wait after {patience:g} s")
            await asyncio.sleep(0.02)

    async def identical(self, expected: bytes, patience: float = 60.0) -> int:
        """How many streams end within `patience` seconds, well, and with a body of the same SHA-256 as `expected`."""
        digest = hashlib.sha256(expected).digest()
        ended, late = await asyncio.wait(self.futures, timeout=patience)
        for future in late:
            future.cancel()
        return sum(_well(future, digest) for future in ended)


def _well(ended: asyncio.Future[Reply], digest: bytes) -> bool:
    if ended.exception() or ended.result().status != 200:
        return False
    return hashlib.sha256(ended.result().body or b"").digest() == digest


@asynccontextmanager
async def open_streams(route: Route, request: bytes, count: int) -> AsyncIterator[OpenStreams]:
    """`count` streams opened one after the other, all open at once."""
    async with connections(route, count, keep_bodies=True) as calls:
        yield OpenStreams(calls, [call.call(request) for call in calls])
