"""One configuration in force: everything that is made of it, from the redactor to the routes. Never changed, only
replaced by the next one. Nothing below knows how the parts fit together."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from starlette.types import ASGIApp

from proxy import data
from proxy.core.catalogue import Catalogue
from proxy.core.endpoint import Endpoint
from proxy.core.provider import Provider
from proxy.core.redact import Redactor
from proxy.core.services import Drainable, Services
from proxy.dispatch import Dispatch
from proxy.logs import Writer
from proxy.pipeline import Configs, fold, inner, outer
from proxy.providers import PROVIDERS
from proxy.routes import Health, router
from proxy.settings.model import Settings
from proxy.stages import auth
from proxy.upstream.client import Upstream
from proxy.upstream.config import is_loopback


@dataclass(slots=True)
class Process:
    """What outlives every generation. `drainables` are the parts of all requests under way that can be ended."""

    log: Writer
    monotonic: Callable[[], float] = time.monotonic
    simulated: bool = False
    draining: bool = False
    drainables: set[Drainable] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Parts:
    """What takes its time to make, files to be read included. Made apart, so that no request waits for it."""

    catalogue: Catalogue
    redact: Redactor


def prepare(settings: Settings) -> Parts:
    """The slow parts of a generation. May run in a thread."""
    return Parts(Catalogue(_file("models.yaml"), settings.models.aliases), _redactor(settings))


def _redactor(settings: Settings) -> Redactor:
    keys = [key for team in settings.teams.values() for key in team.keys]
    known = [*settings.providers.mistral.api_keys, *(key.secret for key in keys if key.secret)]
    return Redactor(_file("redaction.yaml"), known, [key.digest for key in keys])


@cache
def _file(name: str) -> Any:
    """Read once: the files of another version may lie there by the time of a reload."""
    return data.read(name)


class Generation:
    """`app` is the application; `requests` counts those under way. `config` tells the file from others."""

    def __init__(
        self,
        number: int,
        settings: Settings,
        config: str | None,
        parts: Parts,
        upstream: Upstream,
        process: Process,
    ) -> None:
        self.number = number
        self.settings = settings
        self.config = config
        self.upstream = upstream
        self.redact = parts.redact
        self.requests = 0
        self._process = process
        self._services = Services(
            monotonic=process.monotonic,
            log=process.log,
            redact=parts.redact,
            catalogue=parts.catalogue,
            simulated=process.simulated,
            generation=number,
            drainables=process.drainables,
        )
        self.app = self._assemble()

    def _assemble(self) -> ASGIApp:
        settings, services = self.settings, self._services
        provider = PROVIDERS[settings.providers.mistral.type]
        configs = Configs(
            trusted_proxies=settings.server.trusted_proxies,
            access_log=settings.logging,
            cors_origins=settings.server.cors_origins,
            loopback=is_loopback(settings.server.host),
            hosts=[*settings.server.hosts, settings.server.host],
            auth=auth.Config(teams=settings.teams),
            max_body=settings.server.max_body,
            model=settings.models,
        )
        endpoints = [
            (row, fold(inner(configs, row, services), self._dispatch(row, provider))) for row in provider.endpoints
        ]
        return fold(outer(configs, services), router(endpoints, self._health()))

    def _dispatch(self, row: Endpoint, provider: Provider) -> Dispatch:
        models = self.settings.models
        defaults = {"max_tokens": models.default_max_tokens, "temperature": models.default_temperature}
        return Dispatch(
            endpoint=row,
            provider=provider,
            upstream=self.upstream,
            services=self._services,
            strict=self.settings.translation.mode == "strict",
            defaults={name: value for name, value in defaults.items() if value is not None},
            aliases=models.aliases,
        )

    def _health(self) -> Health:
        return Health(
            configured=bool(self.settings.providers.mistral.api_keys),
            draining=lambda: self._process.draining,
            generation=self.number,
            config=self.config,
        )
