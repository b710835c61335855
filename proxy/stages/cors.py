"""Answers for the pages of listed origins (CORS): a browser shows a page nothing of an answer that does not name it.

Starlette's CORSMiddleware is not used: it refuses in plain text, with a 400 that tells who is listed, and it repeats
whatever a preflight asks for, of any length, instead of names of headers only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.core.errors import Headers
from proxy.core.exchange import Exchange, exchange_of
from proxy.core.services import Middleware, Services

_METHODS = b"GET, POST"
_SECONDS = b"600"

EXPOSED = b", ".join(
    [
        b"x-request-id", b"x-proxy-upstream", b"x-proxy-attempts", b"x-proxy-rewrites", b"x-proxy-simulated",
        b"x-proxy-decision", b"x-proxy-cache", b"x-proxy-cache-key", b"age",
        b"x-upstream-request-id", b"retry-after", b"retry-after-ms", b"x-should-retry", b"x-proxy-cost-usd",
        b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests",
        b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens",
    ]
)  # fmt: skip
"""Headers of ours that a page may read. `*` would not do: with credentials it is a header of that name."""

# Names of headers (RFC 9110, 5.6.2) with commas between them: what OpenAI's SDK sends are authorization, content-type,
# a dozen x-stainless-*, openai-* and whatever the page adds.
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}"
_NAMES = re.compile(rb"[ \t]*%b(?:[ \t]*,[ \t]*%b){0,63}[ \t]*" % (_TOKEN, _TOKEN))


def build(origins: Sequence[str], services: Services) -> Middleware | None:
    """`origins` are such as https://chat.example.com, or `*` alone. None when there are none: then no answer says a
    word of CORS, and nothing is looked at."""
    if not origins:
        return None
    listed = frozenset(origin.encode() for origin in origins)

    def middleware(app: ASGIApp) -> ASGIApp:
        return Cors(app, listed)

    return middleware


class Cors:
    """A page of another origin gets the answer that a program gets; its browser keeps it from the page.

    Credentials are never allowed: keys travel in Authorization, and a cookie means nothing here.
    """

    def __init__(self, app: ASGIApp, listed: frozenset[bytes]) -> None:
        self._app = app
        self._everyone = b"*" in listed
        self._headers = {origin: _answer_headers(origin) for origin in listed}
        self._others: Headers = [] if self._everyone else [(b"vary", b"origin")]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = exchange_of(scope)
        headers = self._of(exchange)
        if headers and exchange.method == "OPTIONS" and exchange.head.header(b"access-control-request-method"):
            await _answer(send, [*headers, *_preflight(exchange)])
            return
        added = headers or self._others

        async def naming(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        await self._app(scope, receive, naming)

    def _of(self, exchange: Exchange) -> Headers | None:
        """The headers for who asks; None for no page, one that is not listed, and one that claims two origins."""
        origins = exchange.head.values(b"origin")
        if len(origins) != 1:
            return None
        return self._headers.get(b"*" if self._everyone else origins[0])


def _answer_headers(origin: bytes) -> Headers:
    headers = [(b"access-control-allow-origin", origin), (b"access-control-expose-headers", EXPOSED)]
    return headers if origin == b"*" else [*headers, (b"vary", b"origin")]


def _preflight(exchange: Exchange) -> Headers:
    """What the page may send. Whatever it names is allowed, since a header that we do not know does nothing; but only
    names are repeated."""
    headers = [(b"access-control-allow-methods", _METHODS), (b"access-control-max-age", _SECONDS)]
    asked = exchange.head.header(b"access-control-request-headers")
    if asked and _NAMES.fullmatch(asked):
        headers.append((b"access-control-allow-headers", asked.strip()))
    return headers


async def _answer(send: Send, headers: Headers) -> None:
    start: Message = {"type": "http.response.start", "status": 204, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": b""})
