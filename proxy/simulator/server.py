"""Serving a simulator: inside a running event loop (tests, `serve --simulate`) or as a process of its own.

uvicorn's HTTP protocol does the work; its Server is left out, because it takes the process's signals and stops by
polling. The protocol is given one more task: it hands its transport to the application, which has to cut connections.
"""

import asyncio
import signal
import ssl
import sys
from typing import Any

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from proxy.simulator.app import Simulator, create_app
from proxy.simulator.wire import TRANSPORT

_GRACE = 5.0  # seconds for open answers when the command is stopped


class _Protocol(HttpToolsProtocol):
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {TRANSPORT: self.transport}  # type: ignore[dict-item]


class RunningServer:
    """A simulator that accepts connections at `url` until `stop()`."""

    def __init__(self, server: asyncio.Server, state: ServerState, app: Simulator, url: str) -> None:
        self._server = server
        self._state = state
        self.app = app
        self.url = url

    async def stop(self, grace: float = 0.0) -> None:
        """Stop listening, give open answers `grace` seconds, then close their connections."""
        self._server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        tasks = set(self._state.tasks)
        if tasks and grace:
            await asyncio.wait(tasks, timeout=grace)
        for connection in list(self._state.connections):
            connection.transport.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()


async def start(
    host: str = "127.0.0.1", port: int = 0, *, app: Simulator | None = None, tls: ssl.SSLContext | None = None
) -> RunningServer:
    """Serve `app` (a fresh simulator if none is given) from the running loop; port 0 takes a free one.

    Raises OSError if the address cannot be had.
    """
    app = app or create_app()
    options: dict[str, Any] = {"lifespan": "off", "ws": "none", "log_config": None, "access_log": False}
    config = Config(app, http=_Protocol, **options)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: _Protocol(config, state, {}, loop), host, port, ssl=tls, backlog=config.backlog
    )
    bound = server.sockets[0].getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    return RunningServer(server, state, app, f"{'https' if tls else 'http'}://{shown}:{bound}")


async def _until_signalled(host: str, port: int, app: Simulator | None) -> int:
    running = await start(host, port, app=app)
    print(f"Simulated Mistral API on {running.url} (any key, no network, answers are made up)", flush=True)
    received: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def stop(number: int) -> None:
        if not received.done():
            received.set_result(number)

    for handled in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(handled, stop, handled)
    number = await received
    await running.stop(_GRACE)
    return 128 + number


def run(host: str = "127.0.0.1", port: int = 8081, *, app: Simulator | None = None) -> int:
    """Serve until SIGINT or SIGTERM, let open answers end, and return the exit code of a process so stopped."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_until_signalled(host, port, app))


def _loop_factory() -> Any:
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop
