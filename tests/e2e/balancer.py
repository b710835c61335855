"""The simplest balancer: it looks who is ready, and hands each connection to one that is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

from tests.e2e.wire import ask, request

LOOK = 0.05
"""Seconds between two looks at a replica's readiness."""


class Balancer:
    """In front of `replicas`, by their URLs. A connection that one does not take is given to the next."""

    def __init__(self, replicas: list[str]) -> None:
        self.replicas = replicas
        self.ready: set[str] = set()
        self.url = ""
        self._turn = 0
        self._pipes: set[asyncio.Task[None]] = set()

    async def look(self) -> None:
        """Who is ready at this moment."""
        for replica in list(self.replicas):
            try:
                well = (await ask(replica, request(target="/health/ready"))).status == 200
            except (OSError, asyncio.IncompleteReadError):
                well = False
            (self.ready.add if well else self.ready.discard)(replica)
        self.ready &= set(self.replicas)

    async def watch(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(LOOK)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._pipes.add(task)
        try:
            there, back = await self._open()
            await asyncio.gather(pipe(reader, back), pipe(there, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._pipes.discard(task)

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for _ in range(200):
            for replica in self._in_turn():
                with suppress(OSError):
                    parts = urlsplit(replica)
                    return await asyncio.open_connection(parts.hostname, parts.port)
            await asyncio.sleep(LOOK)  # none is ready: wait for one
        raise ConnectionRefusedError

    def _in_turn(self) -> list[str]:
        ready = sorted(self.ready)
        self._turn += 1
        at = self._turn % len(ready) if ready else 0
        return [*ready[at:], *ready[:at]]

    async def close(self) -> None:
        for task in list(self._pipes):
            task.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    finally:
        with suppress(OSError):
            writer.close()


@asynccontextmanager
async def balanced(*replicas: str) -> AsyncIterator[Balancer]:
    balancer = Balancer(list(replicas))
    await balancer.look()
    server = await asyncio.start_server(balancer.serve, "127.0.0.1", 0)
    balancer.url = "http://{}:{}".format(*server.sockets[0].getsockname()[:2])
    watching = asyncio.create_task(balancer.watch())
    try:
        yield balancer
    finally:
        watching.cancel()
        server.close()
        await balancer.close()
        await asyncio.gather(watching, return_exceptions=True)
