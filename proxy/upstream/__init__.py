"""The network: everything that leaves for a provider goes through one Transport."""

from __future__ import annotations

from proxy.upstream.config import Config
from proxy.upstream.transport import Transport


def open_transport(config: Config) -> Transport:
    """The transport the settings choose. Call it inside the running event loop.

    Only the chosen library is imported: httpx2 would add 150 ms to every start.
    """
    if config.transport == "httpx":
        from proxy.upstream.httpx_transport import HttpxTransport

        return HttpxTransport(config)
    from proxy.upstream.aiohttp_transport import AiohttpTransport

    return AiohttpTransport(config)
