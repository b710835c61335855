"""Refuses a Host that is not ours: a web page that points its own name at 127.0.0.1 must not reach a local proxy.

On a loopback address the names of this machine and `server.hosts` are accepted. Behind any other address the team's key
is what protects, and the proxy cannot know the names it is called by: then only the form is checked.
"""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core.errors import BadFraming, HostNotAllowed
from proxy.core.exchange import Exchange
from proxy.core.services import Middleware, Services

_FORM = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def build(loopback: bool, hosts: list[str], services: Services) -> Middleware:
    """`loopback`: whether the proxy listens on this machine only; `hosts`: further names it is called by there."""
    names = (f"[{name}]" if ":" in name and not name.startswith("[") else name for name in (*_LOOPBACK, *hosts))
    allowed = frozenset(name.lower() for name in names) if loopback else None

    def middleware(app: ASGIApp) -> ASGIApp:
        return Host(app, allowed)

    return middleware


class Host:
    def __init__(self, app: ASGIApp, allowed: frozenset[str] | None) -> None:
        self._app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self._check(Exchange.of(scope))
        await self._app(scope, receive, send)

    def _check(self, exchange: Exchange) -> None:
        values = [value for name, value in exchange.headers if name == b"host"]
        match = _FORM.fullmatch(values[0].decode("latin-1")) if len(values) == 1 else None
        if not match:
            raise BadFraming("The request must have one valid Host header.")
        if self._allowed is not None and match["name"].lower() not in self._allowed:
            raise HostNotAllowed("This proxy does not answer to that Host. Add the name to server.hosts.")
