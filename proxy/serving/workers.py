"""Serving with several processes: the supervisor finds out what is to be served, and each worker serves it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import NoReturn

import uvloop

from proxy import supervisor
from proxy.app import Application
from proxy.core.errors import Overloaded, render
from proxy.generation import prepare
from proxy.logs import Writer
from proxy.serving.banner import banner
from proxy.serving.plan import CannotStart, Plan, held
from proxy.serving.reload import Reloader, next_plan, report
from proxy.serving.server import Server, listen, serve
from proxy.settings.load import SettingsError, Sources
from proxy.settings.problems import Problem
from proxy.settings.reload import Looks, Watch
from proxy.supervisor import Applied, CannotServe, Drain, End, NoWorkerStarts, Ready, Refused, Reload, Supervisor
from proxy.upstream import trust


def run(plan: Plan) -> NoReturn:
    """Serve until a signal, which ends the process then. Raises CannotStart, also when no worker can start."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the supervisor listens to it
    server, logging = plan.settings.server, plan.settings.logging
    listener = listen(server.host, server.port)
    log = Writer(sys.stdout.buffer, level=logging.level, format=logging.format)
    text = banner(plan, listener.getsockname()[1])
    report(log, "warning", "config_warning", plan.warnings)
    current = Current(replace(plan, warnings=()), log)
    # What is imported now is in memory once, for all workers.
    import_module(f"proxy.upstream.{plan.settings.providers.mistral.transport}_transport")

    def work(worker: supervisor.Worker) -> None:
        _work(worker, current, listener)

    def announce() -> None:
        print(text, flush=True)

    try:
        number = Supervisor(server.workers, work, current, listener, log, announce, away=_away()).run()
    except NoWorkerStarts as error:
        raise CannotStart(f"No worker could start: {error}.") from None
    signal.raise_signal(number)
    sys.exit(128 + number)  # by the SIGTERM that ends any process but the first one of a container


def _away() -> bytes:
    body = render(Overloaded("No worker of the proxy is running at the moment. Send the request again later."))
    return (
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 5\r\n"
        b"connection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    )


class Current:
    """The configuration that is to be served: the last one in which nothing was found to be wrong."""

    def __init__(self, plan: Plan, log: Writer) -> None:
        self.plan, self.generation = plan, 1
        self._log = log
        self._looks = Looks(plan.sources, log)
        self._watch = Watch(plan.sources.files)
        self._attended = os.isatty(0)

    @property
    def sources(self) -> bytes:
        return self.plan.sources.to_bytes()

    @property
    def drain(self) -> float:
        return self.plan.settings.server.drain

    def look(self, *, asked: bool) -> bool:
        """Whether there is a new one. What is wrong with one that there is not is in the log."""
        if asked and self._attended and not os.isatty(0):
            signal.raise_signal(signal.SIGTERM)  # somebody has closed the window of our terminal
            return False
        if not asked and not self._watch.changed():
            return False
        try:
            return self._differs(asked=asked) and self._succeed()
        except SettingsError as error:
            problems = error.problems
        except CannotStart as error:
            problems = [Problem(self._looks.last.file or "environment", None, "", str(error))]
        self._looks.ended(well=False)
        report(self._log, "error", "reload_failed", problems)
        return False

    def _differs(self, *, asked: bool) -> bool:
        """Read again; whether there is something to be tried."""
        sources = self._looks.last.again()
        if self._watch.files != sources.files:
            self._watch = Watch(sources.files)
        return self._looks.found(sources, self.plan.sources, self.generation, asked=asked)

    def _succeed(self) -> bool:
        """Do all that may fail in a worker; then it is the current one."""
        planned = next_plan(self._looks.last, self.plan)
        settings, _ = held(planned.settings, self.plan.settings)
        prepare(settings)
        trust(settings.providers.mistral)
        self.plan, self.generation = replace(planned, settings=settings), self.generation + 1
        self._looks.ended(well=True)
        self._log.become(settings.logging.level, settings.logging.format)
        return True


def _work(worker: supervisor.Worker, current: Current, listener: socket.socket) -> None:
    """What one worker does, from its first moment to its last."""

    async def follow(reloader: Reloader, server: Server) -> None:
        await _obey(worker, reloader, server)

    def make(app: Application, log: Writer, banner: str) -> Server:
        return Led(app, log, worker)

    serving = serve(current.plan, listener, follow, make, current.generation, worker=worker.number)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(serving)
        except CannotStart as error:
            raise CannotServe(str(error)) from None


async def _obey(worker: supervisor.Worker, reloader: Reloader, server: Server) -> None:
    try:
        async for order in worker.orders():
            match order:
                case Reload(generation, sources):
                    applied = await reloader.apply(Sources.from_bytes(sources), generation)
                    worker.tell(Applied(generation) if applied else Refused(generation))
                case Drain():
                    server.drain()
                case End():
                    server.end()
    finally:
        server.drain()  # the supervisor is gone, and nobody else would end this process


class Led(Server):
    """A worker's server: who leads it says when it ends."""

    def __init__(self, app: Application, log: Writer, worker: supervisor.Worker) -> None:
        super().__init__(app, log, "")
        self._worker = worker

    def announce(self) -> None:
        self._worker.tell(Ready(self._application.current.number))

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM begins the drain and no second one ends it: systemd sends it to every process of a service, and the
        order of the supervisor comes besides."""
        signal.signal(signal.SIGTERM, lambda *_: self.drain())
        yield

    def drain(self) -> None:
        if not self._application.process.draining:
            super().drain()
