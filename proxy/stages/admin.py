"""Who is asking: an admin. No team's key is one, and no admin's key is a team's: settings refuse a key that is both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core.access import AccessKey, Refusals, bearer, find
from proxy.core.exchange import exchange_of
from proxy.core.failures import Failures
from proxy.core.services import Middleware, Services


@dataclass(frozen=True, slots=True)
class Config:
    """`keys` are `server.admin_keys`. `failures` are those of the teams' keys, too: whoever guesses at both doors has
    no more guesses."""

    keys: Sequence[AccessKey] = ()
    failures: Failures = field(default_factory=Failures)


def build(config: Config, services: Services, *, near: bool = False) -> Middleware:
    """`near`: the proxy is for its own machine alone, and whoever is there needs no key."""
    ids = {key.digest: key.id for key in config.keys}

    def middleware(app: ASGIApp) -> ASGIApp:
        return Admin(app, ids, near, config.failures, services.monotonic)

    return middleware


class Admin:
    """Whatever is wrong with a key, the answer is one and the same 401; see core/access.py."""

    def __init__(
        self, app: ASGIApp, ids: Mapping[bytes, str], near: bool, failures: Failures, monotonic: Callable[[], float]
    ) -> None:
        self._app = app
        self._near = near
        self._ids = ids
        self._refusals = Refusals(failures, monotonic, "an admin key")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        if self._near and _is_here(scope):
            await self._app(scope, receive, send)
            return
        token = exchange.head.once(bearer)
        key_id = find(token, self._ids)
        if key_id is None:
            raise self._refusals.refuse(exchange.client, token.text)
        exchange.key_id = key_id
        await self._app(scope, receive, send)


_FOR_OTHERS: Final = frozenset({b"forwarded", b"origin", b"via", b"x-forwarded-for", b"x-real-ip"})
"""Headers by which a proxy says that it speaks for somebody else, and a browser that a page has asked."""


def _is_here(scope: Scope) -> bool:
    """Whether it is this machine that asks, for itself."""
    client = scope.get("client")
    try:
        here = client is not None and ip_address(client[0]).is_loopback
    except ValueError:
        return False
    return here and not any(name in _FOR_OTHERS for name, _ in scope["headers"])
