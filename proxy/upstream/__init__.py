"""The network: everything that leaves for a provider goes through one Transport."""

from __future__ import annotations

import ssl

from proxy.upstream import tls
from proxy.upstream.config import Config
from proxy.upstream.transport import Transport


def trust(config: Config) -> ssl.SSLContext | None:
    """What `open_transport` would take 20 ms for, or 150 with a library to be imported. May run in a thread, so that no
    request waits for it."""
    if config.transport == "httpx":
        import proxy.upstream.httpx_transport  # noqa: F401

        return tls.client_context()
    return tls.client_context() if config.base_url.lower().startswith("https:") else None


def open_transport(config: Config, ssl_context: ssl.SSLContext | None = None) -> Transport:
    """The transport the settings choose; `ssl_context` as `trust` makes it. Call it inside the running event loop.

    Only the chosen library is imported: httpx2 would add 150 ms to every start.
    """
    if config.transport == "httpx":
        from proxy.upstream.httpx_transport import HttpxTransport

        return HttpxTransport(config, ssl_context)
    if config.transport == "aiohttp":
        from proxy.upstream.aiohttp_transport import AiohttpTransport

        return AiohttpTransport(config, ssl_context)
    from proxy.upstream.http1_transport import Http1Transport

    return Http1Transport(config, ssl_context)
