"""Serving with several processes: the supervisor finds out what is to be served, and each worker serves it."""

from __future__ import annotations

import asyncio
import secrets
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from email.utils import formatdate
from importlib import import_module
from typing import Any, NoReturn

from proxy import supervisor
from proxy.app import Application
from proxy.core.errors import Overloaded, place_of
from proxy.core.metrics.board import Board
from proxy.core.records import Records
from proxy.generation import prepare
from proxy.http.framing import peer, refusal
from proxy.logs import Writer
from proxy.serving.banner import banner
from proxy.serving.current import Current, report
from proxy.serving.plan import CannotStart, Plan, next_plan
from proxy.serving.reload import Reloader
from proxy.serving.server import Server, announce, leave, listen, refusals, run_open, serve
from proxy.supervisor import Applied, CannotServe, Drain, End, NoWorkerStarts, Ready, Refused, Reload, Supervisor
from proxy.upstream import trust


def run(plan: Plan) -> NoReturn:
    """Serve until a signal, which ends the process then. Raises CannotStart, also when no worker can start."""
    server, logging = plan.settings.server, plan.settings.logging
    listener = listen(server.host, server.port)
    log = Writer(sys.stdout.buffer, level=logging.level, format=logging.format)
    text = banner(plan, listener.getsockname()[1])
    report(log, "warning", "config_warning", plan.warnings)
    board, records = Board(server.workers), Records(server.workers)
    shared = Shared(replace(plan, warnings=()), log)
    # What is imported now is in memory once, for all workers.
    for transport in {provider.transport for provider in plan.settings.providers.values()}:
        import_module(f"proxy.upstream.{transport}_transport")

    def work(worker: supervisor.Worker) -> None:
        try:
            run_open(serve(ByOrders(worker, shared.current, board, records), listener))
        except CannotStart as error:
            raise CannotServe(str(error)) from None

    try:
        number = Supervisor(
            server.workers, work, shared, listener, log, lambda: announce(text), away=nobody_serves(log)
        ).run()
    except NoWorkerStarts as error:
        raise CannotStart(f"No worker could start: {error}.") from None
    log.close()
    if number == signal.SIGTERM:
        signal.raise_signal(number)  # which ends any process but the first one of a container
    leave(number)


def nobody_serves(log: Writer) -> Callable[[str], bytes]:
    """Makes the answer to a connection from this address, and the log line of it."""
    refused = refusals(log)
    error = Overloaded("No worker of the proxy is running at the moment. Send the request again later.")

    def answer(client: str) -> bytes:
        request_id = secrets.token_hex(16)
        refused(error, request_id, peer(client))
        return b"".join(refusal(error, request_id, [(b"date", formatdate(usegmt=True).encode())]))

    return answer


class Shared:
    """What all workers serve, as the supervisor sees it."""

    def __init__(self, plan: Plan, log: Writer) -> None:
        self.current = Current(plan, log)
        self._log = log

    @property
    def changes(self) -> bytes:
        return self.current.plan.sources.changes()

    @property
    def generation(self) -> int:
        return self.current.generation

    @property
    def drain(self) -> float:
        return self.current.plan.settings.server.drain

    def look(self, *, asked: bool) -> bool:
        """Whether there is a new one, with which all has been done that may fail in a worker."""
        self._log.flush()  # there is no event loop here that would: lines may wait for room
        planned = self.current.look(asked=asked)
        if planned is None:
            return False
        settings = planned.settings
        try:
            prepare(settings)
            for provider in settings.providers.values():
                trust(provider)
        except Exception as error:
            self.current.failed(error)
            return False
        self.current.took(planned)
        self._log.become(settings.logging.level, settings.logging.format)
        return True


class ByOrders:
    """A worker is led by the supervisor."""

    def __init__(self, worker: supervisor.Worker, current: Current, board: Board, records: Records) -> None:
        self.plan, self.generation = current.plan, current.generation
        self.board, self.records, self.number = board, records, worker.number
        self.always: Mapping[str, Any] = {"worker": worker.number}
        self._worker = worker

    def server(self, app: Application, log: Writer) -> Server:
        return WorkerServer(app, log, lambda: self._worker.tell(Ready(app.current.number)))

    async def lead(self, server: Server, reloader: Reloader) -> None:
        try:
            async for order in self._worker.orders():
                match order:
                    case Reload():
                        self._worker.tell(await self._reloaded(order, reloader))
                    case Drain():
                        server.drain()
                    case End():
                        server.end()
        finally:
            server.drain()  # the supervisor is gone, and nobody else would end this process

    async def _reloaded(self, order: Reload, reloader: Reloader) -> Applied | Refused:
        try:
            sources = self.plan.sources.changed(order.changes)
            planned = await asyncio.to_thread(next_plan, sources, self.plan)
            applied = await reloader.apply(planned, order.generation)
        except Exception as error:  # what is wrong with the settings the supervisor has found before
            reloader.log("error", "unexpected", kind=type(error).__name__, place=place_of(error))
            applied = False
        return Applied(order.generation) if applied else Refused(order.generation)


class WorkerServer(Server):
    """Who leads it says when it ends."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM begins the drain and no second one ends it: systemd sends it to every process of a service, and the
        order of the supervisor comes besides."""
        signal.signal(signal.SIGTERM, lambda *_: self.drain())
        yield

    def drain(self) -> None:
        if not self._application.process.draining:
            super().drain()
