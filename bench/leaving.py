"""How soon after its client has left an upstream call is closed: the promise is 250 ms.

    python -m bench.leaving [TRIALS]

A real proxy per transport, between a client and an upstream that both live here. In every trial the client leaves, by
FIN and by RST in turn, and the time runs until the upstream sees its connection closed.
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import msgspec

from bench.load import Route, now
from bench.targets import Place, Target, free_port, proxy, running

TRIALS = 200
PATIENCE = 10.0
"""Seconds after which a call counts as never closed."""

TRANSPORTS = ("http1", "aiohttp", "httpx")
EVENT = b'data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Situation:
    """Where the client leaves: with `events`, at a random byte of so many."""

    name: str
    stream: bool
    events: int = 0


SITUATIONS = (
    Situation("a stream, before its first byte", stream=True),
    Situation("a stream, in the middle", stream=True, events=50),
    Situation("a call that does not stream", stream=False),
)


@dataclass(slots=True)
class Upstream:
    """Sends what the situation has, then waits for the end: when the call arrived and when it was closed."""

    events: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    at: float = 0.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, with one call."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            if self.events:
                writer.write(STREAM + b"".join(b"%x\r\n%b\r\n" % (len(EVENT), EVENT) for _ in range(self.events)))
            self.arrived.set()
            while await reader.read(1 << 16):
                pass
        self.at = now()
        self.closed.set()
        writer.close()


@asynccontextmanager
async def upstream() -> AsyncIterator[tuple[Upstream, int]]:
    """An upstream, and its port."""
    made = Upstream()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    async with server:
        yield made, server.sockets[0].getsockname()[1]


def target(transport: str, port: int, folder: Path) -> Target:
    """The proxy in front of that port, with this transport."""
    made = proxy(Place(free_port(), port, folder, connections=100))
    file = folder / "proxy.yaml"
    settings = msgspec.yaml.decode(file.read_bytes())
    settings["providers"]["mistral"]["transport"] = transport
    file.write_bytes(msgspec.yaml.encode(settings))
    return made


async def trial(route: Route, call: Upstream, situation: Situation, number: int) -> float:
    """Seconds from the client's leaving to the end of the upstream call."""
    call.events = situation.events
    call.arrived.clear()
    call.closed.clear()
    reader, writer = await asyncio.open_connection("127.0.0.1", route.port)
    body = {"model": "mistral-small-latest", "messages": [{"role": "user", "content": "Hello"}]}
    writer.write(route.chat(msgspec.json.encode(body | {"stream": situation.stream})))
    async with asyncio.timeout(PATIENCE):
        await call.arrived.wait()
        if situation.events:
            await reader.readexactly(Random(number).randrange(1, situation.events * len(EVENT)))
        start = now()
        leave(writer, reset=bool(number % 2))
        await call.closed.wait()
    return call.at - start


def leave(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    """Close, as a program that ends does; or reset, as one that was killed with bytes unread."""
    if reset and not writer.transport.is_closing():
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def row(transport: str, situation: Situation, seconds: list[float]) -> str:
    """One line of the table, in milliseconds."""
    ordered = sorted(1e3 * one for one in seconds)
    p99 = ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]
    figures = " | ".join(f"{one:.2f}" for one in (statistics.median(ordered), p99, ordered[-1]))
    return f"| {transport} | {situation.name} | {len(ordered)} | {figures} |"


async def main(trials: int) -> None:
    """Print the table."""
    print("| transport | the client leaves | trials | p50 ms | p99 ms | max ms |\n|---|---|---|---|---|---|")
    for transport in TRANSPORTS:
        with TemporaryDirectory() as folder:
            async with upstream() as (call, port):
                made = target(transport, port, Path(folder))
                async with running(made, frozenset(os.sched_getaffinity(0))):
                    for situation in SITUATIONS:
                        times = [await trial(made.route, call, situation, number) for number in range(trials)]
                        print(row(transport, situation, times), flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else TRIALS))
