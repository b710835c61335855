"""Proxies whose upstream the test plays itself."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Proxy, start_proxy
from tests.e2e.quotas import Deploy, Deployment
from tests.e2e.upstream import Reply, Seen, listener, upstream, url_of

PLACES = 4
"""Connections that the proxy may have to the upstream."""

CONFIG = """
server: {{port: 0, drain: 60s}}
providers:
  mistral:
    base_url: {simulator}
    api_keys: ["${{PROVIDER_KEY}}"]
    retry: {{max_attempts: 1, max_delay: 1ms}}
    circuit_breaker: {{failure_threshold: 1000000}}
    transport: {transport}
    max_connections: 4
    timeouts: {{connect: 30s, first_byte: 30s, idle: 30s}}
teams:
  research: {{keys: ["${{TEAM_KEY}}", "${{OTHER_KEY}}"]}}
"""


@dataclass
class Stage:
    """A proxy, and the port where it looks for Mistral. `async with stage.upstream(reply):` puts one there."""

    proxy: Proxy
    held: socket.socket

    @property
    def url(self) -> str:
        return self.proxy.url

    def upstream(self, reply: Reply) -> AbstractAsyncContextManager[Seen]:
        return upstream(self.held, reply)


@pytest.fixture(params=["http1", "httpx"])
def transport(request: pytest.FixtureRequest) -> str:
    """For a proxy of a test's own."""
    name: str = request.param
    return name


@pytest.fixture(scope="session", params=["http1", "httpx"])
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One for each transport; PLACES calls at a time, and deadlines that no test waits for."""
    with listener() as held:
        proxy = start_proxy(tmp_path_factory.mktemp("stage"), url_of(held), request.param, CONFIG)
        yield Stage(proxy, held)
        proxy.program.stop()


@pytest.fixture(scope="module")
def held() -> Iterator[socket.socket]:
    """The port where a module's proxies look for Mistral: `async with upstream(held, reply):` puts one there."""
    with listener() as one:
        yield one


@pytest.fixture
def ends() -> Iterator[ExitStack]:
    """What is to be done when the test is over."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def deploy(tmp_path: Path, ends: ExitStack) -> Deploy:
    def deploy_one(upstream: str, rules: dict[str, str], folder: str = "proxy", **options: Any) -> Deployment:
        one = Deployment(tmp_path / folder, upstream, rules, **options)
        ends.callback(one.stop)
        return one.start()

    return deploy_one
