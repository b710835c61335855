"""What the body says: parsed once, and strictly, because two readers of one body must understand the same."""

from __future__ import annotations

from collections.abc import Awaitable, Container

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core import strict_json
from proxy.core.endpoint import Endpoint
from proxy.core.errors import (
    BadRequest,
    DuplicateKey,
    InvalidEncoding,
    InvalidJson,
    JsonTooDeep,
    JsonTooLarge,
    NumberOutOfRange,
)
from proxy.core.exchange import exchange_of
from proxy.core.json import Data, Json, Malformed
from proxy.core.services import Middleware, Services

_ERRORS: dict[type[Malformed], type[BadRequest]] = {
    Malformed: InvalidJson,
    strict_json.NotUtf8: InvalidEncoding,
    strict_json.TooDeep: JsonTooDeep,
    strict_json.TooLarge: JsonTooLarge,
    strict_json.Duplicate: DuplicateKey,
    strict_json.OutOfRange: NumberOutOfRange,
}


def build(endpoint: Endpoint, services: Services) -> Middleware | None:
    table = endpoint.request
    if table is None:
        return None

    def middleware(app: ASGIApp) -> ASGIApp:
        return Parse(app, table.rows)

    return middleware


class Parse:
    """`fields` are the names that an error may repeat."""

    def __init__(self, app: ASGIApp, fields: Container[str]) -> None:
        self._app = app
        self._fields = fields

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        exchange = exchange_of(scope)
        exchange.body, exchange.raw = read(exchange.raw or b"", self._fields), None  # one of them is enough to keep
        return self._app(scope, receive, send)


def read(data: Data, fields: Container[str]) -> Json:
    """The object that a body is. Raises BadRequest."""
    try:
        return strict_json.parse(data)
    except Malformed as error:
        key = error.key if isinstance(error, strict_json.Duplicate) else None
        param = key if key in fields else None
        raise _ERRORS[type(error)](f"The body cannot be read: {error}.", param=param) from None
