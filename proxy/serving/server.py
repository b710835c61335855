"""Runs the application on a socket: from a plan to the banner, from a signal to the last open stream."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from types import FrameType
from typing import Any, NoReturn, Protocol

import uvicorn
import uvloop

from proxy.app import Application
from proxy.core.errors import ProxyError
from proxy.core.metrics.board import Board, Part
from proxy.core.provider import MAIN
from proxy.core.records import Records
from proxy.core.secret import Secret
from proxy.core.services import direct
from proxy.core.trace import Tracer
from proxy.generation import Process
from proxy.http.descriptors import limits_within, raised
from proxy.http.protocol import Protocol as HttpProtocol
from proxy.http.protocol import Refused
from proxy.logs import FromLibraries, Writer, report_uncaught
from proxy.serving.banner import banner
from proxy.serving.current import Current, report
from proxy.serving.plan import CannotStart, Plan
from proxy.serving.reload import Reloader, follow, from_threads
from proxy.serving.stores import Opener
from proxy.settings.model import Settings, Tracing
from proxy.stages.metrics import count_at_the_door

QUIET = 0.5
"""Seconds without a new request after which nobody is thought to come any more."""

FAREWELL = 0.25
"""The part of the drain in which new requests are still served while they come: whoever sends them has to notice first
that readiness has ended."""

LOOK = 0.05
"""Seconds between two looks whether any has come."""

AFTER_DRAIN = 5.0
"""Seconds between the end of the drain, when open requests are told, and the end of their connections by force."""

AT_ONCE = 1.0
"""Seconds instead of that after a second signal: enough for whoever reads to read why."""

LAST_WORDS = 0.1
"""Seconds between the end of a request by force and the end of its connection."""

LINGER = 1.0
"""Seconds, and up to twice that, in which a client that is still sending may read its answer while the process ends."""

KEEP_ALIVE = 75
"""Seconds that an idle client connection stays open: longer than the pools of the SDKs keep theirs, so that the client
closes first and no request meets a closing connection."""


YOUNG = 10_000
"""Objects of which the youngest are looked through for what holds itself. Python's own 700 are less than a crowd of
requests has under way: it would look at all of them again and again, and find nothing."""


class Leader(Protocol):
    """Who says what a server serves, and when it is to end: the `plan` to begin with and its `generation`; `always` are
    fields of every log line. `board` and `records` are where this process counts, and keeps what became of requests,
    at the place of its `number`."""

    plan: Plan
    generation: int
    number: int
    board: Board
    records: Records
    always: Mapping[str, Any]

    def server(self, app: Application, log: Writer) -> Server: ...

    async def lead(self, server: Server, reloader: Reloader) -> None:
        """Runs beside the server."""


class ByFiles:
    """A process by itself is led by its files and by signals."""

    def __init__(self, plan: Plan, listener: socket.socket) -> None:
        self.plan, self.generation, self.number = plan, 1, 1
        self.board, self.records = Board(), Records()
        self.always: Mapping[str, Any] = {}
        self._banner = banner(plan, listener.getsockname()[1])

    def server(self, app: Application, log: Writer) -> Server:
        return Server(app, log, lambda: announce(self._banner))

    async def lead(self, server: Server, reloader: Reloader) -> None:
        await follow(Current(self.plan, from_threads(reloader.log)), reloader)


def run(plan: Plan) -> NoReturn:
    """Serve until a signal, which ends the process then. Raises CannotStart when the port cannot be had."""
    listener = listen(plan.settings.server.host, plan.settings.server.port)
    try:
        run_open(serve(ByFiles(plan, listener), listener))
    except KeyboardInterrupt:
        leave(signal.SIGINT)
    leave(signal.SIGTERM)  # which has ended any process by now but the first one of a container


def run_open(serving: Coroutine[Any, Any, None]) -> None:
    """Run, for a process that ends then: the loop is not closed, which would wait for threads that look up a name."""
    asyncio.Runner(loop_factory=uvloop.new_event_loop).run(serving)


def leave(number: int) -> NoReturn:
    """End at once with the exit code that stands for this signal. `sys.exit` would wait for the same threads."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(128 + number)


def announce(text: str) -> None:
    """Print it, for whoever reads it."""
    with suppress(OSError):
        print(text, flush=True)


def listen(host: str, port: int) -> socket.socket:
    """The bound socket. Raises CannotStart."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise CannotStart(f"Cannot listen on {host}:{port}: {error.strerror or error}.") from None
    listener.set_inheritable(True)
    return listener


async def serve(leader: Leader, listener: socket.socket) -> None:
    """Serve on the bound socket until a signal or the leader ends it."""
    plan = leader.plan
    async with AsyncExitStack() as stack:
        aim = pointed_at(await _simulator(stack)) if plan.simulate else lambda settings: settings
        settings = aim(plan.settings)
        log = Writer(sys.stdout.buffer, level=settings.logging.level, format=settings.logging.format, **leader.always)
        process = await stack.enter_async_context(opened(leader, log))
        app = Application(settings, plan.sources.digest, process, leader.generation)
        await app.start()
        logging.getLogger().addHandler(FromLibraries(log, app.redact))
        report_uncaught(log, asyncio.get_running_loop())
        report(log, "warning", "config_warning", plan.warnings)
        server = leader.server(app, log)
        leading = asyncio.ensure_future(leader.lead(server, Reloader(app, aim)))
        stack.callback(leading.cancel)
        await asyncio.sleep(0)  # it hears of signals before anybody hears of us
        gc.set_threshold(YOUNG, 10, 10)
        await server.serve(sockets=[listener])


@asynccontextmanager
async def opened(leader: Leader, log: Writer) -> AsyncIterator[Process]:
    """What the process is made of, with its stores. They are closed at the end of the application, or of this block if
    there never is one. Raises CannotStart."""
    plan = leader.plan
    process = Process(log, simulated=plan.simulate, board=leader.board, records=leader.records, number=leader.number)
    opener = Opener(
        plan.settings,
        plan.sources.environ,
        process.owner,
        log,
        process.wall,
        process.monotonic,
        process.closing,
    )
    async with process.closing:
        process.tracer = _tracer(plan.settings.tracing, process)
        stores = await opener.open()
        process.quotas, process.ledger, process.issued = stores.quotas, stores.ledger, stores.issued
        process.answers = stores.answers
        process.circuits.probes = stores.probes
        yield process


def _tracer(config: Tracing, process: Process) -> Tracer | None:
    """Who takes spans to the collector, until the process closes; with a thread, so no worker can inherit it."""
    if config.otlp_endpoint is None:
        return None
    from proxy.tracing import Otlp  # only this mode pays for it

    tracer = Otlp(config.otlp_endpoint, process.owner, from_threads(process.log), process.monotonic, process.wall)
    process.closing.push_async_callback(tracer.close)
    return tracer


async def _simulator(stack: AsyncExitStack) -> str:
    """The URL of one that runs until the stack ends."""
    from proxy.simulator import server as simulator  # only this mode pays for it

    running = await simulator.start("127.0.0.1", 0)
    stack.push_async_callback(running.stop)
    return running.url


def pointed_at(url: str) -> Callable[[Settings], Settings]:
    """Changes settings so that nothing leaves for anywhere but `url`."""
    # Made up: the provider's key is cut out of answers, and a word would be missing from them.
    key = Secret(secrets.token_hex(16))
    there = {"base_url": url, "api_keys": [key], "transport": "http1", "http2": False, "proxy_url": None}
    there |= {"type": MAIN}  # it speaks nothing else

    def aim(settings: Settings) -> Settings:
        aimed = {name: provider.model_copy(update=there) for name, provider in settings.providers.items()}
        teams = {name: team.model_copy(update={"provider_keys": {}}) for name, team in settings.teams.items()}
        return settings.model_copy(update={"providers": aimed, "teams": teams})

    return aim


def refusals(log: Writer, part: Part | None = None) -> Refused:
    """Writes the access log line of a request that was refused before it was one: no byte of it is in there. It is
    counted in `part`, if this process has one."""

    def refused(error: ProxyError, request_id: str, client: str) -> None:
        level = "error" if error.status >= 500 else "warning"
        told = {"status_code": error.status, "error_code": error.code, "fault": error.fault.value}
        log(level, "request", request_id=request_id, client=client, **told)
        if part:
            count_at_the_door(part, error)

    return refused


class Server(uvicorn.Server):
    """uvicorn with our drain: at the first signal readiness ends, and when no new requests come, no connection is
    accepted any more; what is open after `server.drain` seconds, or at the second signal, ends with an error that says
    so. `announce` is called when requests are answered."""

    def __init__(self, app: Application, log: Writer, announce: Callable[[], None]) -> None:
        protocol = HttpProtocol.bounded(limits_within(raised()), refusals(log, app.process.part))
        super().__init__(
            uvicorn.Config(
                direct(app),
                http=protocol,
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,  # nobody may say where a request came from
                timeout_keep_alive=KEEP_ALIVE,
            )
        )
        self._application = app
        self._log = log
        self._announce = announce
        self._crowd = protocol.crowd
        self._loop = asyncio.get_running_loop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._captured_signals.append(sig)
        if self._application.process.draining:
            self.end()
        else:
            self.drain()

    def drain(self) -> None:
        """Take nothing new once nobody comes; what is open gets `server.drain` seconds. May be called by a signal
        handler."""
        self._application.process.draining = self._crowd.leaves_soon = True
        drain = self._application.current.settings.server.drain
        self._say_farewell(self._loop.time() + FAREWELL * drain)
        self._loop.call_soon_threadsafe(self._end, drain, AFTER_DRAIN)

    def end(self) -> None:
        """As `drain`, without those seconds."""
        self.should_exit = True
        self._loop.call_soon_threadsafe(self._end, 0.0, AT_ONCE)

    def _say_farewell(self, end: float) -> None:
        process = self._application.process
        if process.monotonic() - process.traffic.last >= QUIET or self._loop.time() >= end:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._loop.call_later, LOOK, self._say_farewell, end)

    def _end(self, drain: float, rest: float) -> None:
        self._loop.call_later(drain, self._application.drain)
        self._loop.call_later(drain + rest, self._cancel)
        self._hurry(set())

    def _hurry(self, before: set[Any]) -> None:
        """Wait no longer for clients that had their answer last time and are still sending."""
        closing = {one for one in self.server_state.connections if one.transport.is_closing()}
        for connection in closing & before:
            connection.transport.close()
        self._loop.call_later(LINGER, self._hurry, closing)

    def _cancel(self) -> None:
        """End what has not ended by itself; a request without an answer still gets one."""
        for task in list(self.server_state.tasks):
            task.cancel()
        self._loop.call_later(LAST_WORDS, self._abort)

    def _abort(self) -> None:
        """Whoever is still there had the time to read what we said."""
        self.force_exit = True
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        await self._application.close()
        self._log.close()  # the signal is raised again after this, and may end the process at once
