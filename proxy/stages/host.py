"""Refuses a Host that is not ours: a web page that points its own name at 127.0.0.1 must not reach a local proxy.

On a loopback address the names of this machine and `server.hosts` are accepted. Behind any other address the team's key
is what protects, and the proxy cannot know the names it is called by. That there is one Host and that it is well-formed
has been checked before any stage, by `proxy.http.framing`.
"""

from __future__ import annotations

from collections.abc import Awaitable

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core.errors import HostNotAllowed
from proxy.core.exchange import Exchange, exchange_of
from proxy.core.services import Middleware, Services
from proxy.http.framing import HOST

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


MOST = 64
"""Spellings of its own names that are remembered."""


def build(loopback: bool, hosts: list[str], services: Services) -> Middleware:
    """`loopback`: whether the proxy listens on this machine only; `hosts`: further names it is called by there."""
    names = (f"[{name}]" if ":" in name and not name.startswith("[") else name for name in (*_LOOPBACK, *hosts))
    allowed = frozenset(name.lower().encode() for name in names)

    def middleware(app: ASGIApp) -> ASGIApp:
        return Host(app, allowed) if loopback else app

    return middleware


class Host:
    def __init__(self, app: ASGIApp, allowed: frozenset[bytes]) -> None:
        self._app = app
        self._allowed = allowed
        self._right: set[bytes] = set()
        """Values that were right before, up to MOST."""

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http":
            self._check(exchange_of(scope))
        return self._app(scope, receive, send)

    def _check(self, exchange: Exchange) -> None:
        host = exchange.head.header(b"host") or b""
        if host in self._right:
            return
        match = HOST.fullmatch(host)
        if not match or match["name"].lower() not in self._allowed:
            raise HostNotAllowed("This proxy does not answer to that Host. Add the name to server.hosts.")
        if len(self._right) < MOST:
            self._right.add(host)
