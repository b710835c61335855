"""Runs the application on a socket: from settings to the banner, from a signal to the last open stream."""

from __future__ import annotations

import asyncio
import logging
import secrets
import shlex
import socket
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn
import uvloop

from proxy import data, local_key
from proxy.app import Application
from proxy.core import json
from proxy.core.redact import Redactor
from proxy.core.secret import Secret
from proxy.logs import FromLibraries, Writer
from proxy.protocol import Protocol
from proxy.settings.model import Settings
from proxy.stages.auth import Team, TeamKey
from proxy.upstream.config import is_loopback

AFTER_DRAIN = 5.0
"""Seconds between the end of the drain, when open requests are told, and the end of their tasks by force."""

KEEP_ALIVE = 75
"""Seconds that an idle client connection stays open: longer than the pools of the SDKs keep theirs, so that the client
closes first and no request meets a closing connection."""


class CannotStart(Exception):
    """The text is one sentence that says what to do."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What `serve` has decided to run. `local` is the minted key's text and place, when there are no teams."""

    settings: Settings
    config_file: Path | None
    simulate: bool
    local: tuple[Secret, Path] | None = None


def plan(settings: Settings, config_file: Path | None, environ: Mapping[str, str], *, simulate: bool) -> Plan:
    """Settle what the settings leave open. Raises CannotStart."""
    if not simulate and not settings.providers.mistral.api_keys:
        raise CannotStart("Set MISTRAL_API_KEY to your Mistral key, or try the proxy without one: serve --simulate.")
    if settings.teams:
        return Plan(settings, config_file, simulate)
    if exposed := exposure(settings):
        raise CannotStart(exposed)
    file = local_key.path(environ)
    try:
        secret = local_key.read_or_mint(file)
    except OSError as error:
        raise CannotStart(
            f"The local key could not be kept: {error}. Configure a team, or set XDG_STATE_HOME."
        ) from None
    teams = {"local": Team(keys=[TeamKey(secret.digest(), secret)])}
    return Plan(settings.model_copy(update={"teams": teams}), config_file, simulate, (secret, file))


def exposure(settings: Settings) -> str | None:
    """Why these settings would let strangers in, or None."""
    if settings.teams or is_loopback(settings.server.host):
        return None
    return (
        f"Listening on {settings.server.host} needs at least one team with a key under `teams`: "
        "without one, anybody who reaches the port could spend your Mistral key."
    )


def run(plan: Plan) -> None:
    """Serve until a signal. Raises CannotStart when the port cannot be had."""
    listener = _listen(plan.settings.server.host, plan.settings.server.port)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(plan, listener))


def _listen(host: str, port: int) -> socket.socket:
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


async def _serve(plan: Plan, listener: socket.socket) -> None:
    settings = plan.settings
    async with AsyncExitStack() as stack:
        if plan.simulate:
            from proxy.simulator import server as simulator  # only this mode pays for it

            running = await simulator.start("127.0.0.1", 0)
            stack.push_async_callback(running.stop)
            settings = _pointed_at(settings, running.url)
        redact = _redactor(settings)
        log = Writer(sys.stdout.buffer, level=settings.logging.level, format=settings.logging.format)
        logging.getLogger().addHandler(FromLibraries(log, redact))
        app = Application(settings, log, redact, simulated=plan.simulate)
        server = Server(app, log, settings.server.drain, banner(plan, listener.getsockname()[1]))
        await server.serve(sockets=[listener])


def _pointed_at(settings: Settings, url: str) -> Settings:
    mistral = settings.providers.mistral.model_copy(
        update={"base_url": url, "api_keys": [Secret(secrets.token_hex(16))], "transport": "aiohttp", "proxy_url": None}
    )
    return settings.model_copy(update={"providers": settings.providers.model_copy(update={"mistral": mistral})})


def _redactor(settings: Settings) -> Redactor:
    keys = [key for team in settings.teams.values() for key in team.keys]
    known = [*settings.providers.mistral.api_keys, *(key.secret for key in keys if key.secret)]
    return Redactor(data.read("redaction.yaml"), known, [key.digest for key in keys])


class Server(uvicorn.Server):
    """uvicorn with our drain: at the first signal readiness ends and no connection is accepted; what is open after
    `drain` seconds, or at the second signal, ends with an error that says so."""

    def __init__(self, app: Application, log: Writer, drain: float, banner: str) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                ws="none",
                lifespan="on",
                interface="asgi3",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,  # nobody may say where a request came from
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=int(drain + AFTER_DRAIN),
            )
        )
        self._application = app
        self._log = log
        self._drain = drain
        self._banner = banner
        self._loop = asyncio.get_running_loop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self._banner, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        again = self._application.draining
        self._application.draining = True
        delay = 0.0 if again else self._drain
        self._loop.call_soon_threadsafe(lambda: self._loop.call_later(delay, self._application.drain))
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        self._log.flush()  # the signal is raised again after this, and may end the process at once


def banner(plan: Plan, port: int) -> str:
    """What `serve` prints once it answers: where, with which key, and a line to try it with."""
    url = f"http://{_reachable(plan.settings.server.host)}:{port}"
    shown, export, pasted = "one of the team keys of the configuration", "<your team key>", "$OPENAI_API_KEY"
    if plan.local:
        secret, file = plan.local
        shown, export, pasted = f"{secret.reveal()}  (kept in {file})", secret.reveal(), secret.reveal()
    model = json.encode(plan.settings.models.default or "mistral-small-latest").decode()
    body = shlex.quote(f'{{"model": {model}, "messages": [{{"role": "user", "content": "Hello!"}}]}}')
    simulated = "\n  SIMULATED: answers are made up here, nothing is sent to Mistral" if plan.simulate else ""
    return f"""\
mistral-proxy is ready on {url}
  config  {plan.config_file or "none (defaults and environment)"}
  teams   {", ".join(plan.settings.teams)}
  key     {shown}{simulated}

export OPENAI_BASE_URL={url}/v1
export OPENAI_API_KEY='{export}'

curl {url}/v1/chat/completions \\
  -H "Authorization: Bearer {pasted}" \\
  -H "Content-Type: application/json" \\
  -d {body}
"""


def _reachable(host: str) -> str:
    """A host to write into a URL: the loopback address for a listener on all addresses, brackets around IPv6."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host
