"""Who is asking: an admin. No team's key is one, and no admin's key is a team's: settings refuse a key that is both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core.access import AccessKey, Refusals, bearer, find
from proxy.core.exchange import Exchange
from proxy.core.failures import Failures
from proxy.core.services import Middleware, Services


@dataclass(frozen=True, slots=True)
class Config:
    """`keys` are `server.admin_keys`. `failures` are those of the teams' keys, too: whoever guesses at both doors has
    no more guesses."""

    keys: Sequence[AccessKey] = ()
    failures: Failures = field(default_factory=Failures)


def build(config: Config, services: Services) -> Middleware:
    ids = {key.digest: key.id for key in config.keys}

    def middleware(app: ASGIApp) -> ASGIApp:
        return Admin(app, ids, config.failures, services.monotonic)

    return middleware


class Admin:
    """Whatever is wrong with a key, the answer is one and the same 401; see core/access.py."""

    def __init__(
        self, app: ASGIApp, ids: Mapping[bytes, str], failures: Failures, monotonic: Callable[[], float]
    ) -> None:
        self._app = app
        self._ids = ids
        self._refusals = Refusals(failures, monotonic, "an admin key")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange.of(scope)
        token = bearer(exchange)
        key_id = find(token, self._ids)
        if key_id is None:
            raise self._refusals.refuse(exchange.client, token)
        exchange.key_id = key_id
        await self._app(scope, receive, send)
