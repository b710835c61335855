"""A supervisor whose workers do next to nothing, as a program: python -m tests.supervisor.program FOLDER [WORKERS]

A worker answers every connection with its number, its pid, the generation it serves and the sources, as JSON. What
happens besides is up to files in FOLDER, which a test writes and removes: `sources` is what is to be served (refused by
the supervisor when it begins with "broken", by a worker when it begins with "sour"); with `raise`, `exit` or `hang` a
worker does that instead of getting ready.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from proxy.supervisor import (
    Applied,
    CannotServe,
    Drain,
    End,
    NoWorkerStarts,
    Ready,
    Refused,
    Reload,
    Supervisor,
    Timing,
    Worker,
)


def log(level: str, event: str, **fields: Any) -> None:
    os.write(1, json.dumps({"level": level, "event": event, **fields}).encode() + b"\n")


class Configuration:
    def __init__(self, file: Path) -> None:
        self._file = file
        self.changes, self.generation, self.drain = file.read_bytes(), 1, 0.5

    def look(self, *, asked: bool) -> bool:
        new = self._file.read_bytes()
        if asked:
            log("info", "asked")
        if new == b"a fault":
            raise RuntimeError("a secret")
        if new == self.changes or new.startswith(b"broken"):
            return False
        self.changes, self.generation = new, self.generation + 1
        return True


class Server:
    """What one worker serves."""

    def __init__(self, worker: Worker, configuration: Configuration) -> None:
        self.worker, self.sources, self.generation = worker, configuration.changes, configuration.generation
        self.ended = asyncio.Event()
        self.draining = False
        self.open: set[asyncio.StreamWriter] = set()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        facts = [self.worker.number, os.getpid(), self.generation, self.sources.decode()]
        self.open.add(writer)
        writer.write(json.dumps(facts).encode() + b"\n")
        with suppress(ConnectionError):
            await reader.read()  # until the client leaves
        self.open.discard(writer)
        writer.close()
        self.end_if_idle()

    async def serve(self, listener: socket.socket) -> None:
        server = await asyncio.start_server(self.answer, sock=listener)
        self.worker.tell(Ready(self.generation))
        obeying = asyncio.ensure_future(self.obey(server))
        await self.ended.wait()
        obeying.cancel()

    async def obey(self, server: asyncio.Server) -> None:
        async for order in self.worker.orders():
            match order:
                case Reload(generation, sources) if not sources.startswith(b"sour"):
                    self.generation, self.sources = generation, sources
                    self.worker.tell(Applied(generation))
                case Reload(generation):
                    self.worker.tell(Refused(generation))
                case Drain():
                    log("info", "drain", worker=self.worker.number)
                    server.close()
                    self.draining = True
                    self.end_if_idle()
                case End():
                    log("info", "end", worker=self.worker.number)
                    self.ended.set()
        self.ended.set()

    def end_if_idle(self) -> None:
        if self.draining and not self.open:
            self.ended.set()


def main(folder: Path, count: int) -> None:
    configuration = Configuration(folder / "sources")
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()

    def work(worker: Worker) -> None:
        if (folder / "raise").exists():
            raise ValueError("a secret")
        if (folder / "refuse").exists():
            raise CannotServe("There is nothing to serve.")
        if (folder / "exit").exists():
            sys.exit(7)
        if (folder / "hang").exists():
            time.sleep(60)
        asyncio.run(Server(worker, configuration).serve(listener))

    def announce() -> None:
        print(f"ready on http://{address[0]}:{address[1]}", flush=True)

    def away(client: str) -> bytes:
        return f"nobody for {client}\n".encode()

    given = {name: float(os.environ[name]) for name in ("ready", "again", "wait", "last") if name in os.environ}
    timing = Timing(**{"look": 0.02, "ready": 20.0, "last": 20.0} | given)
    try:
        number = Supervisor(count, work, configuration, listener, log, announce, away=away, timing=timing).run()
    except NoWorkerStarts as error:
        sys.exit(f"no worker: {error}")
    log("info", "over", signal=signal.Signals(number).name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2)
