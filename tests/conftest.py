"""What tests share: one simulator and one proxy, as real processes, for everything that goes over sockets."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from blockbuster import blockbuster_ctx
from hypothesis import settings

from tests.programs import Program

# What is started in the background of a script ignores SIGINT, and so would every program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No test judges speed. (Under CI hypothesis has such a profile of its own, and draws the same examples each time.)
settings.register_profile("no deadline", deadline=None)
if not os.environ.get("CI"):
    settings.load_profile("no deadline")

TEAM_KEY = "sk-test-team-key-0123456789abcdef"
OTHER_KEY = "sk-test-other-key-0123456789abcdef"
PROVIDER_KEY = "provider-key-that-clients-never-see-42"

CONFIG = """
server: {{port: 0, max_body: 1MB, drain: 2s}}
providers:
  mistral:
    base_url: {simulator}
    api_keys: ["${{PROVIDER_KEY}}"]
    retry: {{max_attempts: 1}}
    circuit_breaker: {{failure_threshold: 1000000}}
    transport: {transport}
    timeouts: {{connect: 2s, first_byte: 2s, idle: 2s, total: 20s}}
    max_connections: 2000
models:
  default: mistral-small-latest
  aliases: {{house-model: mistral-small-latest}}
teams:
  research: {{keys: ["${{TEAM_KEY}}"]}}
  narrow: {{keys: ["${{OTHER_KEY}}"], models: ["codestral-*", "mistral-embed"]}}
logging: {{level: info}}
"""


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    """A call of the proxy's that would stop every other request (a file, a socket, a sleep) fails its test."""
    with blockbuster_ctx("proxy") as guarded:
        for name in ("io.BufferedReader.read", "os.stat"):
            # Data files are read at start, which in a test may be inside a loop.
            guarded.functions[name].can_block_in("proxy/data.py", "read")
            guarded.functions[name].can_block_in("proxy/generation.py", "prepare")  # a time zone
        yield


@dataclass
class Simulator:
    """The simulated Mistral; `calls()` is what it has seen."""

    url: str

    def calls(self) -> list[dict[str, Any]]:
        answer: list[dict[str, Any]] = httpx2.get(f"{self.url}/_sim/calls").json()
        return answer

    def clear(self) -> None:
        httpx2.delete(f"{self.url}/_sim/calls")

    def script(self, *faults: str) -> None:
        httpx2.post(f"{self.url}/_sim/script", json=list(faults)).raise_for_status()


@dataclass
class Proxy:
    """The proxy under test; `program.logged()` reads its log."""

    url: str
    program: Program
    key: str = TEAM_KEY
    other_key: str = OTHER_KEY
    provider_key: str = PROVIDER_KEY

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    def client(self, **options: Any) -> httpx2.Client:
        headers = {"authorization": f"Bearer {self.key}"} | options.pop("headers", {})
        return httpx2.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False, **options)


@pytest.fixture(scope="session")
def simulator() -> Iterator[Simulator]:
    program = Program("simulate", "--port", "0")
    yield Simulator(program.url())
    program.stop()


def start_proxy(folder: Path, simulator: str, transport: str = "http1", config: str = CONFIG) -> Proxy:
    file = folder / "proxy.yaml"
    file.write_text(config.format(simulator=simulator, transport=transport))
    keys = {"PROVIDER_KEY": PROVIDER_KEY, "TEAM_KEY": TEAM_KEY, "OTHER_KEY": OTHER_KEY}
    program = Program("serve", "--config", str(file), env=keys, cwd=folder)
    return Proxy(program.url(), program)


@pytest.fixture(scope="session", params=["http1", "httpx"])
def proxy(
    request: pytest.FixtureRequest, simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    """The proxy in front of the simulator, over each of its transports."""
    running = start_proxy(tmp_path_factory.mktemp("proxy"), simulator.url, request.param)
    yield running
    running.program.stop()
