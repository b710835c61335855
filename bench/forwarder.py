"""The bare forwarder every figure is compared with: what a competent person writes in 60 lines.

uvicorn (uvloop, httptools), a Starlette route with Request and Response, one aiohttp session. It parses and
re-serialises the JSON both ways and relays streams chunk by chunk; it has no keys, limits, logs or translation.

    UPSTREAM=http://127.0.0.1:9000 UPSTREAM_KEY=... python -m bench.forwarder PORT [MAX_CONNECTIONS]
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

UPSTREAM = os.environ.get("UPSTREAM", "https://api.mistral.ai") + "/v1/chat/completions"
HEADERS = {"authorization": f"Bearer {os.environ.get('UPSTREAM_KEY', '')}", "content-type": "application/json"}


@asynccontextmanager
async def session(max_connections: int) -> AsyncIterator[dict[str, aiohttp.ClientSession]]:
    """The one client session, for as long as the application runs."""
    connector = aiohttp.TCPConnector(limit=max_connections)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=600)) as client:
        yield {"client": client}


async def relay(upstream: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The chunks of a stream as they come."""
    async with upstream:
        async for chunk in upstream.content.iter_any():
            yield chunk


async def chat(request: Request) -> Response:
    """POST /v1/chat/completions."""
    body = msgspec.json.decode(await request.body())
    upstream = await request.state.client.post(UPSTREAM, data=msgspec.json.encode(body), headers=HEADERS)
    if body.get("stream"):
        return StreamingResponse(relay(upstream), upstream.status, media_type="text/event-stream")
    async with upstream:
        answer = msgspec.json.decode(await upstream.read())
    return Response(msgspec.json.encode(answer), upstream.status, media_type="application/json")


def main(port: int, max_connections: int = 1000) -> None:
    """Serve on 127.0.0.1:`port`."""
    routes = [Route("/v1/chat/completions", chat, methods=["POST"])]
    app = Starlette(routes=routes, lifespan=lambda _: session(max_connections))
    uvicorn.run(app, port=port, loop="uvloop", http="httptools", access_log=False, log_level="warning", backlog=4096)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
