"""The composition root: settings in, a running application out. Nothing below it knows how the parts fit together."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.types import Receive, Scope, Send

from proxy import data
from proxy.core.catalogue import Catalogue
from proxy.core.endpoint import Endpoint
from proxy.core.provider import Provider
from proxy.core.redact import Redactor
from proxy.core.services import Services
from proxy.dispatch import Dispatch
from proxy.guard import Guard
from proxy.logs import Writer
from proxy.pipeline import Configs, fold, inner, outer
from proxy.providers import PROVIDERS
from proxy.routes import Health, http_error, routes
from proxy.settings.model import Settings
from proxy.stages import auth
from proxy.upstream import open_transport
from proxy.upstream.client import Upstream
from proxy.upstream.config import is_loopback


class Application:
    """An ASGI application. `drain()` ends what is still open; set `draining` first, so that readiness says so."""

    def __init__(self, settings: Settings, log: Writer, redact: Redactor, *, simulated: bool = False) -> None:
        self.draining = False
        self._guards: set[Guard] = set()
        self._settings = settings
        self._upstream = Upstream(settings.providers.mistral, open_transport(settings.providers.mistral))
        self._services = Services(
            monotonic=time.monotonic,
            log=log,
            redact=redact,
            catalogue=Catalogue(data.read("models.yaml"), settings.models.aliases),
            simulated=simulated,
        )
        self._app = self._assemble()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def drain(self) -> None:
        """End every request under way with the error `draining`."""
        for guard in list(self._guards):
            guard.drain()

    def _assemble(self) -> Starlette:
        settings, services = self._settings, self._services
        provider = PROVIDERS[settings.providers.mistral.type]
        configs = Configs(
            access_log=settings.logging,
            loopback=is_loopback(settings.server.host),
            hosts=[*settings.server.hosts, settings.server.host],
            auth=auth.Config(teams=settings.teams),
            max_body=settings.server.max_body,
            model=settings.models,
        )
        endpoints = [
            (row, fold(inner(configs, row, services), self._dispatch(row, provider))) for row in provider.endpoints
        ]
        app = Starlette(
            routes=routes(endpoints, self._health()),
            middleware=[Middleware(stage) for stage in outer(configs, services)],
            exception_handlers={HTTPException: http_error},
            lifespan=self._lifespan,
        )
        app.router.redirect_slashes = False  # a redirect would carry the client's key to a URL made of its Host header
        return app

    def _dispatch(self, row: Endpoint, provider: Provider) -> Dispatch:
        models = self._settings.models
        defaults = {"max_tokens": models.default_max_tokens, "temperature": models.default_temperature}
        return Dispatch(
            endpoint=row,
            provider=provider,
            upstream=self._upstream,
            services=self._services,
            strict=self._settings.translation.mode == "strict",
            defaults={name: value for name, value in defaults.items() if value is not None},
            aliases=models.aliases,
            open_guards=self._guards,
        )

    def _health(self) -> Health:
        configured = bool(self._settings.providers.mistral.api_keys)
        return Health(configured=configured, draining=lambda: self.draining)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await self._upstream.close()
