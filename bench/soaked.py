"""The proxy of the soak: two workers and a Redis where there is one, a key for each kind of client, and its log read
line by line as it is written."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psutil

from bench.crowd import SLOTS
from bench.load import Route, TargetFailedError, once
from bench.measure import on_cores
from bench.moody import Upstream
from bench.targets import free_port
from bench.traffic import MODEL
from bench.watch import Ports
from tests.redis_server import RedisServer, executable

COMMAND = (str(Path(sys.executable).with_name("mistral-proxy")),)
PATIENCE = 20.0
TIMEOUTS = {"connect": "2s", "first_byte": "1s", "idle": "1s", "total": "20s"}
"""To the moody upstream, which often leaves a request without an answer."""

MOST_SPENT = "3 USD/month"
"""Of the team `soak`. Less than the dearest request could cost, more than all can that get an answer."""

TEAMS = {
    "soak": [{"requests": "900000000/minute"}, {"tokens": "900000000000/minute"}, {"spend": MOST_SPENT}],
    "limited": [{"requests": "60/minute"}],
    "narrow": [{"concurrency": SLOTS}],
}
_MOST_LINE = 1 << 20
_SHOWN = 20


@dataclass(slots=True)
class Log:
    """What the lines of a log say: how many of each level and event, how many were lost, and which should not be."""

    events: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    wrong: list[str] = field(default_factory=list)

    async def read(self, stream: asyncio.StreamReader) -> None:
        """To its end."""
        while line := await stream.readline():
            self.take(line)

    def take(self, line: bytes) -> None:
        """Count one line."""
        if b"Traceback" in line or b'"unexpected"' in line:
            self.wrong = [*self.wrong, f"in the log: {line[:500]!r}"][:_SHOWN]
        if line.startswith(b"{"):
            read = msgspec.json.decode(line)
            self.events[f"{read['level']} {read['event']}"] += 1
            self.lost += read["lines"] if read["event"] == "log_lost" else 0


@dataclass(slots=True)
class Soaked:
    """A proxy that is up, and its upstream."""

    process: asyncio.subprocess.Process
    upstream: Upstream
    ports: Ports
    routes: dict[str, Route]
    state: Path
    workers: int
    log: Log
    _config: Config
    reloads: int = 0
    kills: int = 0

    @property
    def ended(self) -> bool:
        return self.process.returncode is not None

    def reload(self) -> None:
        """Another configuration, with another transport to one of its providers."""
        if self.ended:
            return
        self.reloads += 1
        self._config.write(self.reloads)
        self.process.send_signal(signal.SIGHUP)

    def kill(self) -> bool:
        """The youngest worker, at once; whether there is one besides."""
        if self.ended:
            return False
        workers = sorted(psutil.Process(self.process.pid).children(), key=lambda child: child.create_time())
        if len(workers) > 1:
            workers[-1].kill()
            self.kills += 1
        return len(workers) > 1

    async def metrics(self) -> str | None:
        """The text of /metrics; None: there is none."""
        reply = await once(self.routes["admin"], self.routes["admin"].request("/metrics", method="GET"))
        return (reply.body or b"").decode() if reply.status == 200 else None


@dataclass(frozen=True, slots=True)
class Config:
    """proxy.yaml, and the keys it names."""

    file: Path
    ports: Ports
    workers: int
    store: str
    keys: dict[str, str]

    def write(self, number: int) -> None:
        """The file, whole at every moment. Each `number` has another transport to the moody provider."""
        origin = f"http://127.0.0.1:{self.ports.upstream}"
        provider = {"type": "mistral", "api_keys": ["${SOAK_PROVIDER}"]}
        moody = {
            "timeouts": TIMEOUTS,
            "base_url": f"{origin}/moody",
            "transport": ("http1", "aiohttp", "httpx")[number % 3],
            "retry": {"max_attempts": 2, "initial_delay": "10ms", "max_delay": "100ms"},
            "circuit_breaker": {"failure_threshold": 6, "open_duration": "1s", "success_threshold": 1},
        }
        settings = {
            "server": {
                "port": self.ports.proxy,
                "workers": self.workers,
                "drain": "1s",
                "admin_keys": ["${SOAK_ADMIN}"],
            },
            "store": {"url": self.store},
            "providers": {
                "mistral": provider | {"base_url": origin, "circuit_breaker": {"failure_threshold": 1_000_000}},
                "moody": provider | moody,
            },
            "teams": {
                team: {"keys": [f"${{SOAK_{team.upper()}}}"], "quotas": quotas} for team, quotas in TEAMS.items()
            },
            "models": {"prices": {f"moody/{MODEL}": {"input": 0.1, "output": 0.3}}},
            "cache": {"max_bytes": "16MB", "ttl": "1m"},
        }
        aside = self.file.with_suffix(".new")
        aside.write_bytes(msgspec.yaml.encode(settings))
        aside.replace(self.file)

    @property
    def environment(self) -> dict[str, str]:
        return {f"SOAK_{name.upper()}": key for name, key in self.keys.items()}


def redis_or_none() -> RedisServer | None:
    """One of our own, if there is a redis-server on this machine."""
    try:
        executable()
    except AssertionError:
        return None
    return RedisServer()


@asynccontextmanager
async def soaked(
    folder: Path, workers: int, dice: random.Random, cores: frozenset[int], command: Sequence[str] = COMMAND
) -> AsyncIterator[Soaked]:
    """Start all of it, `workers` of the proxy if there is a Redis that they can share, and stop it at the end."""
    async with AsyncExitStack() as stack:
        redis = redis_or_none() if workers > 1 else None
        if redis:
            stack.callback(redis.stop)
        upstream = Upstream(dice)
        server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
        await stack.enter_async_context(server)
        ports = Ports(free_port(), server.sockets[0].getsockname()[1])
        keys = {name: secrets.token_urlsafe() for name in (*TEAMS, "provider", "admin")}
        store = redis.url.reveal() if redis else "memory://"
        config = Config(folder / "proxy.yaml", ports, workers if redis else 1, store, keys)
        config.write(0)
        environment = os.environ | config.environment | {"XDG_STATE_HOME": str(folder)}
        with on_cores(cores):
            process = await asyncio.create_subprocess_exec(
                *(*command, "serve", "--config", str(config.file)),
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                limit=_MOST_LINE,
            )
        log = Log()
        assert process.stdout
        reading = asyncio.ensure_future(log.read(process.stdout))
        try:
            routes = {name: Route(ports.proxy, {"authorization": f"Bearer {key}"}) for name, key in keys.items()}
            routes["nobody"] = Route(ports.proxy)
            await _ready(process, routes["nobody"])
            yield Soaked(process, upstream, ports, routes, folder, config.workers, log, config)
        finally:
            await _stop(process)
            await reading


async def _ready(process: asyncio.subprocess.Process, route: Route) -> None:
    end = asyncio.get_running_loop().time() + PATIENCE
    while True:
        try:
            if (await once(route, route.request("/health/ready", method="GET"))).status == 200:
                return
        except OSError:
            pass
        if process.returncode is not None or asyncio.get_running_loop().time() > end:
            raise TargetFailedError(f"the proxy did not become ready (exit {process.returncode})")
        await asyncio.sleep(0.05)


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), PATIENCE)
    except TimeoutError:
        process.kill()
        await process.wait()
