"""One configuration in force: everything that is made of it, from the redactor to the routes. Never changed, only
replaced by the next one. Nothing below knows how the parts fit together."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC
from typing import Protocol
from urllib.parse import unquote, urlsplit
from zoneinfo import ZoneInfo

from starlette.types import ASGIApp

from proxy import data, explain, remembered
from proxy.admin import Resource, resources
from proxy.core.cache import Answers
from proxy.core.calendar import Calendar
from proxy.core.catalogue import Catalogue
from proxy.core.circuit import Circuits
from proxy.core.endpoint import Endpoint
from proxy.core.failures import Failures
from proxy.core.ledger import Ledger
from proxy.core.metrics.board import Board, Part
from proxy.core.notices import Notices
from proxy.core.provider import MAIN
from proxy.core.quota import Counter, QuotaStore, Rule
from proxy.core.records import Records
from proxy.core.redact import Redactor
from proxy.core.secret import Secret
from proxy.core.services import Drainables, Services, Traffic, direct
from proxy.core.team_key import Issued
from proxy.core.trace import Tracer
from proxy.dispatch import Dispatch, Way
from proxy.logs import Writer
from proxy.pipeline import Configs, administration, fold, inner, measuring, outer
from proxy.providers import PROVIDERS
from proxy.routes import Health, router
from proxy.scrape import Scrape
from proxy.settings.model import Settings
from proxy.settings.rules import catalogue_of, rules_of
from proxy.stages import admin, auth, breaker, cache, quota, trace, translate
from proxy.standings import Standings
from proxy.store.memory import MemoryStore
from proxy.upstream.client import Upstream
from proxy.upstream.config import is_loopback


class Counters(QuotaStore, Protocol):
    """`calendar` says when days, weeks and months begin; another one may take its place."""

    async def recount(self, counter: Counter, *, missed: bool) -> bool:
        """Have a calendar counter count no less than the ledger knows of its period; False: there is none. `missed`: it
        is known that it has missed something; if it may have, that is found out first. Raises StoreGone."""
        ...

    @property
    def calendar(self) -> Calendar: ...
    @calendar.setter
    def calendar(self, calendar: Calendar) -> None: ...


def unix_milliseconds() -> int:
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class Process:
    """What outlives every generation: the log, the counters, the ledger, who holds which issued key, the answers that
    are kept, who keeps spans. On the `board` all processes of the proxy count, each in its `part`; `records` are of
    what became of their requests. `drainables` are the parts of all requests under way that can be ended. `owner` is
    this process among all that share a store; `closing` is closed when its last request has ended; `look` brings up to
    date what is told of it."""

    log: Writer
    quotas: Counters = field(default_factory=lambda: MemoryStore(Calendar(UTC), unix_milliseconds))
    ledger: Ledger | None = None
    issued: Issued | None = None
    answers: Answers | None = None
    tracer: Tracer | None = None
    owner: str = field(default_factory=lambda: secrets.token_hex(6))
    wall: Callable[[], int] = unix_milliseconds
    monotonic: Callable[[], float] = time.monotonic
    simulated: bool = False
    draining: bool = False
    drainables: Drainables = field(default_factory=Drainables)
    traffic: Traffic = field(default_factory=Traffic)
    failures: Failures = field(default_factory=Failures)
    board: Board = field(default_factory=Board)
    part: Part = field(init=False)
    records: Records = field(default_factory=Records)
    number: int = 1
    look: Callable[[], object] = lambda: None
    notices: Notices = field(default_factory=Notices)
    closing: AsyncExitStack = field(default_factory=AsyncExitStack)
    circuits: Circuits = field(init=False)
    _count: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.circuits = Circuits(self.monotonic, self.log)
        self.part = self.board.parts[self.number - 1]

    def next_call(self) -> str:
        """An id that no other request has, of any process."""
        return f"{self.owner}-{next(self._count)}"


@dataclass(frozen=True, slots=True)
class Parts:
    """What takes its time to make, files to be read included. Made apart, so that no request waits for it."""

    catalogue: Catalogue
    redact: Redactor
    calendar: Calendar
    rules: Mapping[str, Sequence[Rule]]


def prepare(settings: Settings) -> Parts:
    """The slow parts of a generation. May run in a thread."""
    catalogue = catalogue_of(settings)
    return Parts(
        catalogue,
        _redactor(settings),
        Calendar(ZoneInfo(settings.server.time_zone)),
        {name: rules_of(team, catalogue) for name, team in settings.teams.items()},
    )


def _redactor(settings: Settings) -> Redactor:
    keys = [*settings.server.admin_keys, *(key for team in settings.teams.values() for key in team.keys)]
    paid = [key for provider in settings.providers.values() for key in provider.api_keys]
    paid += [key for team in settings.teams.values() for key in team.provider_keys.values()]
    places = [url for url in (settings.store.url, settings.ledger.url) if url]
    own = [secret for secret in (settings.server.key_pepper, *map(_password, places)) if secret]
    known = [*paid, *own, *(key.secret for key in keys if key.secret)]
    return Redactor(data.read_once("redaction.yaml"), known, [key.digest for key in keys])


def _password(url: Secret) -> Secret | None:
    """Of a store, as whoever tells it tells it: a URL has it with escapes."""
    password = urlsplit(url.reveal()).password
    return Secret(unquote(password)) if password else None


def own_keys(settings: Settings, provider: str) -> dict[str, Secret]:
    """The teams that pay this provider themselves, and the key of each."""
    keys = {name: team.provider_keys.get(provider) for name, team in settings.teams.items()}
    return {name: key for name, key in keys.items() if key}


def places(settings: Settings, *, simulated: bool) -> dict[str, cache.Place]:
    """Where each provider is, as the cache has to know it."""
    found = {}
    for name, config in settings.providers.items():
        # Each process has a simulator of its own, somewhere; they all answer alike.
        address = ("simulated", config.type) if simulated else (config.type, config.base_url)
        found[name] = cache.Place(address, config.timeouts.total, frozenset(own_keys(settings, name)))
    return found


class Generation:
    """`app` is the application; `requests` counts those under way. `config` tells the file from others. `upstreams` are
    by their provider's name. `rules` are the quotas of each team, `calendar` says when their days begin."""

    def __init__(
        self,
        number: int,
        settings: Settings,
        config: str | None,
        parts: Parts,
        upstreams: Mapping[str, Upstream],
        process: Process,
    ) -> None:
        self.number = number
        self.settings = settings
        self.config = config
        self.upstreams = upstreams
        self.redact = parts.redact
        self.requests = 0
        self._process = process
        self._services = Services(
            monotonic=process.monotonic,
            log=process.log,
            redact=parts.redact,
            catalogue=parts.catalogue,
            quotas=process.quotas,
            ledger=process.ledger,
            wall=process.wall,
            circuits=process.circuits,
            next_call=process.next_call,
            part=process.part,
            ring=process.records.rings[process.number - 1],
            answers=process.answers,
            tracer=process.tracer,
            simulated=process.simulated,
            generation=number,
            drainables=process.drainables,
            traffic=process.traffic,
            notices=process.notices,
        )
        self.rules = parts.rules
        self.calendar = parts.calendar
        self.app = direct(self._assemble())

    def _assemble(self) -> ASGIApp:
        settings, services = self.settings, self._services
        configs = Configs(
            trusted_proxies=settings.server.trusted_proxies,
            trace=self._traced(),
            access_log=settings.logging,
            cors_origins=settings.server.cors_origins,
            loopback=is_loopback(settings.server.host),
            hosts=[*settings.server.hosts, settings.server.host],
            auth=auth.Config(settings.teams, self._process.issued, self._process.failures, settings.logging.characters),
            admin=admin.Config(settings.server.admin_keys, self._process.failures),
            public_metrics=settings.server.metrics.public,
            max_requests=settings.server.max_requests,
            max_body=settings.server.max_body,
            model=settings.models,
            fallbacks=settings.models.fallbacks,
            context=settings.models.context,
            translate=self._translation(),
            cache=cache.Sources(settings.cache, self._rows, places(settings, simulated=self._process.simulated)),
            quota=quota.Config(self.rules),
            breaker=breaker.Config(
                {name: provider.circuit_breaker for name, provider in settings.providers.items()},
                {name: own_keys(settings, name) for name in settings.providers},
            ),
        )
        # A path is where the main provider has it; what the others serve under it, they serve in their own way.
        endpoints = [(row, inner(configs, row, services, self._dispatch(row))) for row in PROVIDERS[MAIN].endpoints]
        for_admins = [
            (one, administration(configs, services, one.app, reads=one.reads)) for one in self._for_admins(configs)
        ]
        metrics = measuring(configs, services, self._scrape())
        return fold(outer(configs, services), router(endpoints, self._health(), metrics, for_admins))

    def _scrape(self) -> Scrape:
        process = self._process
        standings = Standings(self.rules, process.quotas)
        return Scrape(
            process.board,
            process.monotonic,
            lambda: process.look(),
            standings.samples,
            generation=self.number,
            config=self.config,
        )

    def _for_admins(self, configs: Configs) -> Sequence[Resource]:
        if not self.settings.server.admin_keys:
            return ()
        answers = self._services.answers
        # Also while nothing is answered with it: what was kept before has to be found and forgotten.
        of_cache = resources(answers.backend) if answers else []
        process = self._process
        return [
            *of_cache,
            explain.resource(configs, self._services, PROVIDERS[MAIN].endpoints),
            remembered.resource(process.records, process.wall),
        ]

    def _dispatch(self, row: Endpoint) -> Dispatch:
        return Dispatch(ways=dict(self._ways(row)), services=self._services)

    def _translation(self) -> translate.Config:
        models = self.settings.models
        defaults = {"max_tokens": models.default_max_tokens, "temperature": models.default_temperature}
        return translate.Config(
            rows=self._rows,
            strict=self.settings.translation.mode == "strict",
            defaults={name: value for name, value in defaults.items() if value is not None},
            aliases=models.aliases,
        )

    def _rows(self, row: Endpoint) -> Mapping[str, Endpoint]:
        return {name: way.endpoint for name, way in self._ways(row)}

    def _traced(self) -> trace.Config:
        providers = {name: (config.type, config.base_url) for name, config in self.settings.providers.items()}
        return trace.Config(PROVIDERS[MAIN].endpoints, providers, self.settings.tracing.part)

    def _ways(self, row: Endpoint) -> Iterator[tuple[str, Way]]:
        for name, config in self.settings.providers.items():
            provider = PROVIDERS[config.type]
            for own in provider.endpoints:
                if (own.method, own.path) == (row.method, row.path):
                    yield name, Way(own, provider, self.upstreams[name])

    def _health(self) -> Health:
        return Health(
            configured=bool(self.settings.mistral.api_keys),
            draining=lambda: self._process.draining,
            generation=self.number,
            config=self.config,
        )
