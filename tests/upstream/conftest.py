"""All transports, on both event loops: whatever is asked of one is asked of the other."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

import pytest
import trustme

from proxy.upstream import tls
from proxy.upstream.aiohttp_transport import AiohttpTransport
from proxy.upstream.config import Config, Timeouts
from proxy.upstream.http1_transport import Http1Transport
from proxy.upstream.httpx_transport import HttpxTransport
from proxy.upstream.transport import Transport
from tests.upstream.scripted import soon

Open = Callable[..., Transport]


@pytest.fixture(
    params=[("asyncio", {"use_uvloop": True}), ("asyncio", {"use_uvloop": False})], ids=["uvloop", "asyncio"]
)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    backend: tuple[str, dict[str, Any]] = request.param
    return backend


@dataclass(frozen=True)
class Authority:
    """A certificate authority that the transports under test trust beside the system's."""

    ca: trustme.CA

    @cache  # noqa: B019  # reading the system's authorities takes 30 ms; there is one instance
    def client(self, transport: str) -> ssl.SSLContext:
        """One for each transport: httpx2 writes its ALPN into it."""
        context = tls.client_context()
        self.ca.configure_trust(context)
        return context

    def server(self, *names: str, **dates: Any) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*(names or ("localhost",)), **dates).configure_cert(context)
        return context

    def expired(self) -> ssl.SSLContext:
        return self.server(not_before=datetime(2020, 1, 1, tzinfo=UTC), not_after=datetime(2020, 2, 1, tzinfo=UTC))


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority(trustme.CA())


@pytest.fixture
async def opened() -> AsyncIterator[list[Transport]]:
    transports: list[Transport] = []
    yield transports
    for transport in transports:
        await soon(transport.close())


def settings(base_url: str, connect: float = 5.0, **options: Any) -> Config:
    return Config(base_url=base_url, timeouts=Timeouts.model_construct(connect=connect), **options)


@pytest.fixture
async def open_aiohttp(opened: list[Transport], authority: Authority) -> Open:
    def open_to(base_url: str, **options: Any) -> Transport:
        config = settings(base_url, transport="aiohttp", **options)
        opened.append(AiohttpTransport(config, ssl_context=authority.client("aiohttp")))
        return opened[-1]

    return open_to


@pytest.fixture
async def open_http1(opened: list[Transport], authority: Authority) -> Open:
    def open_to(base_url: str, **options: Any) -> Transport:
        opened.append(Http1Transport(settings(base_url, **options), ssl_context=authority.client("http1")))
        return opened[-1]

    return open_to


@pytest.fixture
async def open_httpx(opened: list[Transport], authority: Authority) -> Open:
    def open_to(base_url: str, **options: Any) -> Transport:
        config = settings(base_url, transport="httpx", **options)
        opened.append(HttpxTransport(config, ssl_context=authority.client("httpx")))
        return opened[-1]

    return open_to


@pytest.fixture(params=["http1", "aiohttp"])
async def open_reusing(request: pytest.FixtureRequest, open_http1: Open, open_aiohttp: Open) -> Open:
    """One of those that use an HTTP/1.1 connection again."""
    return {"http1": open_http1, "aiohttp": open_aiohttp}[request.param]


@pytest.fixture(params=["http1", "aiohttp", "httpx"])
async def open_to(request: pytest.FixtureRequest, open_http1: Open, open_aiohttp: Open, open_httpx: Open) -> Open:
    """Open a transport to a base URL; it is closed after the test."""
    return {"http1": open_http1, "aiohttp": open_aiohttp, "httpx": open_httpx}[request.param]
