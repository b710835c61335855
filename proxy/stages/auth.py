"""Who is asking: the team behind the key."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core.catalogue import Catalogue, Pattern
from proxy.core.config import Strict
from proxy.core.endpoint import Endpoint
from proxy.core.errors import BadFraming, InvalidApiKey, ProxyError, StoreUnavailable, TooManyAuthFailures
from proxy.core.exchange import Exchange
from proxy.core.exchange import Team as Caller
from proxy.core.failures import Failures
from proxy.core.quota import StoreGone
from proxy.core.secret import Secret
from proxy.core.services import Middleware, Services
from proxy.core.team_key import Issued, is_whole


class TeamKey:
    """A team's key as SHA-256; `secret` is its text where we have it (for redaction), None for `sha256:` entries."""

    __slots__ = ("digest", "secret")

    def __init__(self, digest: bytes, secret: Secret | None = None) -> None:
        self.digest = digest
        self.secret = secret

    @property
    def id(self) -> str:
        """What it is called in logs and rows."""
        return self.digest.hex()[:12]


def _team_key(value: Any) -> TeamKey:
    if isinstance(value, TeamKey):
        return value
    if isinstance(value, Secret):
        if is_whole(value.reveal().encode()):
            raise ValueError("this key was issued by `keys new`: it is known already, and here it could not be revoked")
        return TeamKey(value.digest(), value)
    if isinstance(value, str) and value.startswith("sha256:"):
        digest = value.removeprefix("sha256:")
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise ValueError("expected sha256: and 64 lower-case hexadecimal digits")
        return TeamKey(bytes.fromhex(digest))
    raise ValueError("a key is not written into the file: use ${NAME}, file:/path or sha256:<hex>")


class Team(Strict):
    """`teams.<name>` of proxy.yaml. Nothing of it goes to any but its `providers`; None: to all."""

    keys: list[Annotated[TeamKey, BeforeValidator(_team_key)]] = Field(default_factory=list)
    models: list[str] = Field(default_factory=lambda: ["*"], min_length=1)
    providers: Annotated[list[str], Field(min_length=1)] | None = None
    log_content: bool = False


@dataclass(frozen=True, slots=True)
class Config:
    """`issued` are the keys that no file names; None: there are none. `failures` outlive a configuration, or a reload
    would forgive them."""

    teams: Mapping[str, Team]
    issued: Issued | None = None
    failures: Failures = field(default_factory=Failures)


Known = tuple[Caller, str]
"""A team, and the id of the key that led to it."""

_NOBODY = bytes(32)


def build(config: Config, endpoint: Endpoint, services: Services) -> Middleware:
    teams = {
        name: Caller(name, allow_list(team.models, team.providers, services.catalogue), team.log_content)
        for name, team in config.teams.items()
    }
    written = {key.digest: (teams[name], key.id) for name, team in config.teams.items() for key in team.keys}
    keys = Keys(written, teams, config.issued)

    def middleware(app: ASGIApp) -> ASGIApp:
        return Auth(app, keys, config.failures, services.monotonic)

    return middleware


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

    def find(self, token: bytes) -> Known | None:
        """Raises StoreGone when it may be a key that was issued and nobody can know."""
        digest = hashlib.sha256(token).digest()
        known = digest if digest in self._written else _NOBODY
        if hmac.compare_digest(known, digest):
            return self._written[digest]
        found = self._issued.lookup(token) if self._issued else None
        if found is None:
            return None
        team, key_id = found
        caller = self._teams.get(team)  # its configuration may have lost the team
        return (caller, key_id) if caller else None


class Auth:
    """Absent, malformed, unknown, expired and revoked keys get one and the same 401; an address that sends ever more of
    them a 429, which holds up nobody who has a key. Two keys are no key but two readers' quarrel: whoever is in front
    of us may have looked at the other one.
    """

    def __init__(self, app: ASGIApp, keys: Keys, failures: Failures, monotonic: Callable[[], float]) -> None:
        self._app = app
        self._keys = keys
        self._failures = failures
        self._clock = monotonic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange.of(scope)
        token = _bearer(exchange)
        try:
            known = self._keys.find(token)
        except StoreGone:
            raise StoreUnavailable("Keys cannot be checked at the moment. Send the request again later.") from None
        if known is None:
            raise self._refusal(exchange.client, token)
        exchange.team, exchange.key_id = known
        await self._app(scope, receive, send)

    def _refusal(self, client: str, token: bytes) -> ProxyError:
        # Who sends no key at all guesses none.
        wait = self._failures.failed(client, self._clock()) if token else 0.0
        if wait:
            return TooManyAuthFailures(
                "Too many incorrect API keys came from your address. A correct one works at any time; "
                f"wait {wait:.0f} seconds before you try another.",
                wait=int(wait * 1000),
            )
        return InvalidApiKey(
            "Incorrect API key provided. Use a team key of this proxy: `Authorization: Bearer <key>`.",
            headers=[(b"www-authenticate", b"Bearer")],
        )


def _bearer(exchange: Exchange) -> bytes:
    values = [value for name, value in exchange.headers if name == b"authorization"]
    if len(values) > 1:
        raise BadFraming("The request must have one Authorization header.")
    value = values[0].strip(b" \t") if values else b""  # what surrounds a value is no part of it (RFC 9110, 5.5)
    return value[7:].lstrip(b" ") if value[:7].lower() == b"bearer " else b""
