"""Who is asking: the team behind the key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core.access import Refusals, Token, WrittenKey, bearer, find
from proxy.core.catalogue import Catalogue, Pattern
from proxy.core.config import Strict
from proxy.core.endpoint import Endpoint
from proxy.core.errors import StoreUnavailable
from proxy.core.exchange import Team as Caller
from proxy.core.exchange import exchange_of
from proxy.core.failures import Failures
from proxy.core.log_content import TeamContent
from proxy.core.quota import StoreGone
from proxy.core.services import Middleware, Services
from proxy.core.team_key import Issued


class Team(Strict):
    """`teams.<name>` of proxy.yaml. Nothing of it goes to any but its `providers`; None: to all."""

    keys: list[WrittenKey] = Field(default_factory=list)
    models: list[str] = Field(default_factory=lambda: ["*"], min_length=1)
    providers: Annotated[list[str], Field(min_length=1)] | None = None
    log_content: TeamContent = False


@dataclass(frozen=True, slots=True)
class Config:
    """`issued` are the keys that no file names; None: there are none. `failures` outlive a configuration, or a reload
    would forgive them. `characters` is how many of a prompt or an answer are logged for a team that says so."""

    teams: Mapping[str, Team]
    issued: Issued | None = None
    failures: Failures = field(default_factory=Failures)
    characters: Callable[[TeamContent], int] = lambda said: 0

    @property
    def log_content(self) -> bool:
        """Whether any team has prompts and answers logged."""
        return any(self.characters(team.log_content) for team in self.teams.values())


Known = tuple[Caller, str]
"""A team, and the id of the key that led to it."""


def build(config: Config, endpoint: Endpoint, services: Services) -> Middleware:
    teams = callers(config, services.catalogue)
    written = {key.digest: (teams[name], key.id) for name, team in config.teams.items() for key in team.keys}
    keys = Keys(written, teams, config.issued)

    def middleware(app: ASGIApp) -> ASGIApp:
        return Auth(app, keys, config.failures, services.monotonic)

    return middleware


def callers(config: Config, catalogue: Catalogue) -> dict[str, Caller]:
    return {
        name: Caller(name, allow_list(team.models, team.providers, catalogue), config.characters(team.log_content))
        for name, team in config.teams.items()
    }


def allow_list(patterns: list[str], providers: list[str] | None, catalogue: Catalogue) -> Callable[[str], bool]:
    """Whether a model name matches one of the patterns, and its provider is one of those; `*` is the only wildcard a
    name needs."""
    listed = [] if "*" in patterns else [Pattern(pattern) for pattern in patterns]

    def named(model: str) -> bool:
        return not listed or any(pattern.matches(model) for pattern in listed)

    if providers is None:
        return named
    return lambda model: catalogue.place(model)[0] in providers and named(model)


class Keys:
    """All keys: those of the configuration by their SHA-256, those that were issued by their HMAC. Neither the time nor
    the answer tells how near a guess was: whatever is wrong with a key, one of each is made of it."""

    def __init__(self, written: Mapping[bytes, Known], teams: Mapping[str, Caller], issued: Issued | None) -> None:
        self._written = written
        self._teams = teams
        self._issued = issued

    def find(self, token: Token) -> Known | None:
        """Raises StoreGone when it may be a key that was issued and nobody can know."""
        known = find(token, self._written)
        if known:
            return known
        found = self._issued.lookup(token.text) if self._issued else None
        if found is None:
            return None
        team, key_id = found
        caller = self._teams.get(team)  # its configuration may have lost the team
        return (caller, key_id) if caller else None


class Auth:
    """Absent, malformed, unknown, expired and revoked keys get one and the same 401; an address that sends ever more of
    them a 429, which holds up nobody who has a key."""

    def __init__(self, app: ASGIApp, keys: Keys, failures: Failures, monotonic: Callable[[], float]) -> None:
        self._app = app
        self._keys = keys
        self._refusals = Refusals(failures, monotonic, "a team key")

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        exchange = exchange_of(scope)
        token = exchange.head.once(bearer)
        try:
            known = self._keys.find(token)
        except StoreGone:
            raise StoreUnavailable("Keys cannot be checked at the moment. Send the request again later.") from None
        if known is None:
            raise self._refusals.refuse(exchange.client, token.text)
        exchange.team, exchange.key_id = known
        return self._app(scope, receive, send)
