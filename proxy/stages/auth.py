"""Who is asking: the team behind the key."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core.catalogue import Pattern
from proxy.core.config import Strict
from proxy.core.endpoint import Endpoint
from proxy.core.errors import BadFraming, InvalidApiKey
from proxy.core.exchange import Exchange
from proxy.core.exchange import Team as Caller
from proxy.core.secret import Secret
from proxy.core.services import Middleware, Services


class TeamKey:
    """A team's key as SHA-256; `secret` is its text where we have it (for redaction), None for `sha256:` entries."""

    __slots__ = ("digest", "secret")

    def __init__(self, digest: bytes, secret: Secret | None = None) -> None:
        self.digest = digest
        self.secret = secret


def _team_key(value: Any) -> TeamKey:
    if isinstance(value, TeamKey):
        return value
    if isinstance(value, Secret):
        return TeamKey(value.digest(), value)
    if isinstance(value, str) and value.startswith("sha256:"):
        digest = value.removeprefix("sha256:")
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise ValueError("expected sha256: and 64 lower-case hexadecimal digits")
        return TeamKey(bytes.fromhex(digest))
    raise ValueError("a key is not written into the file: use ${NAME}, file:/path or sha256:<hex>")


class Team(Strict):
    """`teams.<name>` of proxy.yaml."""

    keys: list[Annotated[TeamKey, BeforeValidator(_team_key)]] = Field(default_factory=list)
    models: list[str] = Field(default_factory=lambda: ["*"], min_length=1)
    log_content: bool = False


class Config(Strict):
    teams: Mapping[str, Team] = Field(default_factory=dict)


_NOBODY = bytes(32)


def build(config: Config, endpoint: Endpoint, services: Services) -> Middleware:
    keys = {
        key.digest: (Caller(name, allow_list(team.models), team.log_content), key.digest.hex()[:12])
        for name, team in config.teams.items()
        for key in team.keys
    }

    def middleware(app: ASGIApp) -> ASGIApp:
        return Auth(app, keys)

    return middleware


def allow_list(patterns: list[str]) -> Callable[[str], bool]:
    """Whether a model name matches one of the patterns; `*` is the only wildcard a name needs."""
    if "*" in patterns:
        return lambda model: True
    listed = [Pattern(pattern) for pattern in patterns]
    return lambda model: any(pattern.matches(model) for pattern in listed)


class Auth:
    """The key is looked up by its SHA-256, so neither the time nor the answer tells how near a guess was.

    Absent, malformed, unknown and revoked keys get one and the same 401. Two keys are no key but two readers' quarrel:
    whoever is in front of us may have looked at the other one.
    """

    def __init__(self, app: ASGIApp, keys: dict[bytes, tuple[Caller, str]]) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange.of(scope)
        digest = hashlib.sha256(_bearer(exchange)).digest()
        known = digest if digest in self._keys else _NOBODY
        if not hmac.compare_digest(known, digest):
            raise InvalidApiKey(
                "Incorrect API key provided. Use a team key of this proxy: `Authorization: Bearer <key>`.",
                headers=[(b"www-authenticate", b"Bearer")],
            )
        exchange.team, exchange.key_id = self._keys[digest]
        await self._app(scope, receive, send)


def _bearer(exchange: Exchange) -> bytes:
    values = [value for name, value in exchange.headers if name == b"authorization"]
    if len(values) > 1:
        raise BadFraming("The request must have one Authorization header.")
    value = values[0].strip(b" \t") if values else b""  # what surrounds a value is no part of it (RFC 9110, 5.5)
    return value[7:].lstrip(b" ") if value[:7].lower() == b"bearer " else b""
