"""Reads the request's body once, within its limit, and parses it once."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core import json
from proxy.core.endpoint import Endpoint
from proxy.core.errors import BodyTooLarge, ClientGone, InvalidJson, UnsupportedMediaType
from proxy.core.exchange import Exchange
from proxy.core.services import Middleware, Services

_CLOSE = [(b"connection", b"close")]  # the rest of the body is not read, so the connection cannot be used again


def build(max_body: int, endpoint: Endpoint, services: Services) -> Middleware | None:
    """`max_body` is in bytes."""
    if endpoint.request is None:
        return None

    def middleware(app: ASGIApp) -> ASGIApp:
        return Body(app, max_body)

    return middleware


class Body:
    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange.of(scope)
        _check_media_type(exchange)
        try:
            exchange.body = _parse(await self._read(exchange, receive))
        except ClientGone:
            exchange.client_gone = True
            return
        await self._app(scope, receive, send)

    async def _read(self, exchange: Exchange, receive: Receive) -> bytes | bytearray:
        length = exchange.header(b"content-length")
        if length is not None and int(length) > self._limit:
            raise self._too_large()
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            whole: bytes = message.get("body", b"")
            if len(whole) > self._limit:
                raise self._too_large()
            return whole
        data = bytearray()
        while message["type"] == "http.request":
            data += message.get("body", b"")
            if len(data) > self._limit:
                raise self._too_large()
            if not message.get("more_body"):
                return data
            message = await receive()
        raise ClientGone

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"The request body is larger than the {self._limit} bytes allowed.", headers=_CLOSE)


def _check_media_type(exchange: Exchange) -> None:
    kind = (exchange.header(b"content-type") or b"").lower()
    media, _, parameters = kind.partition(b";")
    charset = parameters.strip().removeprefix(b"charset=").strip(b'"')
    if media.strip() != b"application/json" or charset not in (b"", b"utf-8"):
        raise UnsupportedMediaType("The body must be JSON: send `content-type: application/json`.", headers=_CLOSE)
    if (exchange.header(b"content-encoding") or b"identity").lower() != b"identity":
        raise UnsupportedMediaType("Compressed request bodies are not accepted.", headers=_CLOSE)


def _parse(data: bytes | bytearray) -> json.Json:
    try:
        body = json.decode(data)
    except json.Malformed as error:
        raise InvalidJson(f"The body is not valid JSON: {error}.") from None
    if not isinstance(body, dict):
        raise InvalidJson("The body must be a JSON object.")
    return body
