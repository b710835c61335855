"""What is measured: how each target is started, when it counts as ready, how it is stopped.

A target is any command that serves POST /v1/chat/completions and calls the bench's upstream. To compare another one,
write a function that describes it and add a row to TARGETS.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec

from bench.load import Route, TargetFailedError, connections, now
from bench.measure import Processes, on_cores

_ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Place:
    """What a target is given to run with."""

    port: int
    upstream: int
    """The upstream's port."""
    folder: Path
    """For its configuration and its output."""
    connections: int
    """How many upstream connections it must be able to hold."""


QUOTAS = [
    {"requests": "900000000/minute"},
    {"tokens": "900000000000/minute"},
    {"spend": "900000 USD/month"},
    {"concurrency": 1_000_000},
]
"""One of each kind."""


@dataclass(frozen=True, slots=True)
class Target:
    """A command to measure. `ready_path` is asked until it answers; with `needs_200`, until it answers 200."""

    name: str
    command: tuple[str, ...]
    route: Route
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    ready_path: str = "/"
    needs_200: bool = False


def forwarder(place: Place, name: str = "forwarder") -> Target:
    """The bare forwarder (bench/forwarder.py)."""
    return Target(
        name=name,
        command=(sys.executable, "-m", "bench.forwarder", str(place.port), str(place.connections)),
        route=Route(place.port),
        log=place.folder / f"{name}.log",
        environment={"UPSTREAM": f"http://127.0.0.1:{place.upstream}", "UPSTREAM_KEY": secrets.token_urlsafe()},
    )


def proxy(place: Place, *, counts: bool = True) -> Target:
    """The product as a user starts it: every stage on, one team key, JSON logs written to a file. Without `counts` it
    has no quotas and no ledger."""
    name, file = ("mistral-proxy", "proxy.yaml") if counts else ("without-counts", "without-counts.yaml")
    team_key = secrets.token_urlsafe()
    provider = {
        "type": "mistral",
        "base_url": f"http://127.0.0.1:{place.upstream}",
        "api_keys": ["${BENCH_PROVIDER_KEY}"],
        "max_connections": place.connections,
    }
    settings = {
        "server": {"host": "127.0.0.1", "port": place.port},
        "providers": {"mistral": provider},
        # More than any run can use: each is counted for every request.
        "teams": {"bench": {"keys": ["${BENCH_TEAM_KEY}"], "quotas": QUOTAS if counts else []}},
        "ledger": {} if counts else {"url": "off"},
        "logging": {"level": "info", "format": "json"},
    }
    config = place.folder / file
    config.write_bytes(msgspec.yaml.encode(settings))
    return Target(
        name=name,
        command=(str(Path(sys.executable).with_name("mistral-proxy")), "serve", "--config", str(config)),
        route=Route(place.port, {"authorization": f"Bearer {team_key}"}),
        log=place.folder / f"{name}.log",
        environment={
            "BENCH_TEAM_KEY": team_key,
            "BENCH_PROVIDER_KEY": secrets.token_urlsafe(),
            "XDG_STATE_HOME": str(place.folder),
        },
        ready_path="/health/live",
        needs_200=True,
    )


def upstream(port: int, folder: Path) -> Target:
    """The upstream itself: the straight way, beside which every target's time is put."""
    return Target(
        name="direct",
        command=(sys.executable, "-m", "bench.upstream", str(port)),
        route=Route(port),
        log=folder / "upstream.log",
        ready_path="/counts",
        needs_200=True,
    )


TARGETS: dict[str, Callable[[Place], Target]] = {
    "forwarder": forwarder,
    "mistral-proxy": proxy,
    "without-counts": partial(proxy, counts=False),
    # The same program twice: how far from 1.00 chance alone takes a ratio on this machine today.
    "forwarder-again": partial(forwarder, name="forwarder-again"),
}
DEFAULT = ["forwarder", "mistral-proxy"]


@dataclass(frozen=True, slots=True)
class Running:
    """A target that is up."""

    target: Target
    processes: Processes
    ready: float
    """Seconds from starting the process to its first answer."""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _answers(target: Target) -> bool:
    request = target.route.request(target.ready_path, method="GET")
    try:
        async with connections(target.route, 1) as [connection]:
            reply = await connection.call(request)
    except OSError:
        return False
    return reply.status == 200 or not target.needs_200


async def _until_ready(target: Target, process: asyncio.subprocess.Process, patience: float) -> None:
    deadline = now() + patience
    while not await _answers(target):
        if process.returncode is not None or now() > deadline:
            tail = target.log.read_text(errors="replace")[-2000:]
            raise TargetFailedError(f"{target.name} did not become ready (exit {process.returncode}):\n{tail}")
        await asyncio.sleep(0.002)


async def _stop(process: asyncio.subprocess.Process, patience: float) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), patience)
    except TimeoutError:
        process.kill()
        await process.wait()


@asynccontextmanager
async def running(target: Target, cores: frozenset[int], patience: float = 20.0) -> AsyncIterator[Running]:
    """Start `target` on `cores`, yield it when it is ready, stop it at the end of the block."""
    environment = os.environ | {
        "PYTHONPATH": str(_ROOT),
        "XDG_STATE_HOME": str(target.log.parent),
        **target.environment,
    }
    with target.log.open("ab") as log, on_cores(cores):
        start = now()
        process = await asyncio.create_subprocess_exec(
            *target.command, env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        await _until_ready(target, process, patience)
        ready = now() - start
        yield Running(target, Processes.of(process.pid), ready)
    finally:
        await _stop(process, patience)
