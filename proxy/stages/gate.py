"""No more requests at a time than this worker can serve: one too many is told so at once, before it costs anything."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core.errors import Overloaded
from proxy.core.services import Middleware, Services


def build(most: int, services: Services) -> Middleware:
    def middleware(app: ASGIApp) -> ASGIApp:
        return Gate(app, most, services)

    return middleware


class Gate:
    """Stands before everything else of every endpoint, and never before `/health`."""

    def __init__(self, app: ASGIApp, most: int, services: Services) -> None:
        self._app = app
        self._most = most
        self._traffic = services.traffic
        self._clock = services.monotonic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        traffic = self._traffic
        if traffic.requests >= self._most:
            raise Overloaded("The proxy serves as many requests as it can at the moment. Send the request again later.")
        traffic.requests += 1
        traffic.last = self._clock()
        try:
            await self._app(scope, receive, send)
        finally:
            traffic.requests -= 1
