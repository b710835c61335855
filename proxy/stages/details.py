"""What only somebody wants to know who looks for a fault: one more line per request, at the level debug.

Text of the client's can be a secret that no rule knows by its looks, wherever it stands. So what is shown of it is what
it may be on a short list of ours; of all else only how long it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core.exchange import exchange_of
from proxy.core.services import Middleware, Services

_WORDS: Final = frozenset(
    {
        "*/*", "application/json", "text/event-stream", "gzip", "identity", "chunked", "close", "keep-alive",
        "100-continue", "no-cache", "no-store", "only-if-cached", "strict", "lenient", "true", "false",
        "async:asyncio", "python", "js", "cpython", "node", "linux", "macos", "windows", "x64", "arm64", "http",
        "https", "trailers", "application/json; charset=utf-8",
    }
)  # fmt: skip
_NUMBER: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6}){0,2}")
"""What a value may be that is shown: one of these words, a number or a version."""

_OPEN: Final = frozenset(
    {
        "accept", "accept-encoding", "cache-control", "connection", "content-encoding", "content-length",
        "content-type", "expect", "te", "transfer-encoding", "x-forwarded-proto", "x-proxy-context",
        "x-proxy-translation", "x-stainless-arch", "x-stainless-async", "x-stainless-lang", "x-stainless-os",
        "x-stainless-package-version", "x-stainless-raw-response", "x-stainless-read-timeout",
        "x-stainless-retry-count", "x-stainless-runtime", "x-stainless-runtime-version", "x-stainless-timeout",
    }
)  # fmt: skip
"""Headers whose values may be shown."""

_NAMES: Final = _OPEN | frozenset(
    {
        "accept-language", "authorization", "cookie", "forwarded", "host", "openai-organization",
        "openai-project", "origin", "proxy-authorization", "referer", "traceparent", "tracestate", "upgrade",
        "user-agent", "via", "x-api-key", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "x-request-id",
        "x-stainless-helper-method",
    }
)  # fmt: skip
"""Headers that clients and the proxies before us are known to send."""


_MOST_ALIKE: Final = 3
"""Headers of one name that are shown."""


def build(level: str, services: Services) -> Middleware | None:
    """`level` is the least one that is logged."""
    if level != "debug":
        return None

    def middleware(app: ASGIApp) -> ASGIApp:
        return Details(app, services)

    return middleware


class Details:
    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._log = services.log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = exchange_of(scope)
        try:
            await self._app(scope, receive, send)
        finally:
            headers, others = _shown(exchange.head.headers)
            self._log(
                "debug",
                "request_details",
                **exchange.ids,
                query_bytes=len(scope.get("query_string", b"")),
                headers=headers,
                other_headers=others,
                rewrites=", ".join(exchange.rewrites) or None,
                failed=", ".join(one.code for one in exchange.in_vain) or None,
            )


def _shown(headers: Sequence[tuple[bytes, bytes]]) -> tuple[list[tuple[str, str | int]], int]:
    """Each header that is known, with its value or the bytes of that; and how many there are besides."""
    shown: list[tuple[str, str | int]] = []
    seen: dict[str, int] = {}
    for raw, value in headers:
        name = raw.decode("latin-1")
        seen[name] = seen.get(name, 0) + 1
        if name in _NAMES and seen[name] <= _MOST_ALIKE:
            text = value.decode("latin-1")
            plain = name in _OPEN and (text.lower() in _WORDS or _NUMBER.fullmatch(text))
            shown.append((name, text if plain else len(value)))
    return shown, len(headers) - len(shown)
