"""Turns whatever was raised into the one error shape. Nothing gets past it: no traceback, no half answer."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.core import wording
from proxy.core.errors import Draining, ProxyError, forget_frames, place_of, render
from proxy.core.exchange import exchange_of
from proxy.core.services import Log, Middleware, Services


def build(services: Services) -> Middleware:
    def middleware(app: ASGIApp) -> ASGIApp:
        return Rescue(app, services.log)

    return middleware


class Rescue:
    """A ProxyError becomes its answer; anything else a 500, whose cause is in the log by type and place only."""

    def __init__(self, app: ASGIApp, log: Log) -> None:
        self._app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
            return
        except ProxyError as raised:
            error = raised
        except asyncio.CancelledError:
            # Only the server cancels a request, when it has waited long enough; and the task ends here anyway.
            error = Draining(wording.SHUTTING_DOWN)
        except Exception as unexpected:
            error = ProxyError("Something went wrong in the proxy. Its log has the cause under this request id.")
            kind, ids = type(unexpected).__name__, exchange_of(scope).ids
            self._log("error", "unexpected", **ids, kind=kind, place=place_of(unexpected))
        forget_frames(error)
        exchange = exchange_of(scope)
        exchange.error = error
        if exchange.status is None:  # once an answer has begun, the server's closing it is all that is left
            await answer(send, error)


async def answer(send: Send, error: ProxyError) -> None:
    body = render(error)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        *error.headers,
    ]
    start: Message = {"type": "http.response.start", "status": error.status, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": body})
