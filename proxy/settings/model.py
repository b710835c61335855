"""The schema of proxy.yaml: the parts' own Config classes put together, and what only a file's author can get wrong.

A section exists here only when the code that reads it exists: a setting that does nothing must not be accepted.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from proxy.core.config import Duration, Size, Strict
from proxy.stages import access_log, auth, model
from proxy.upstream import config as upstream

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_TEAM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def _host(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        # All digits and dots, yet no address: a mistyped one, which DNS must not be asked about.
        if not _HOST_NAME.fullmatch(text) or not re.search("[A-Za-z]", text):
            raise ValueError("expected a host name or an IP address, without port or brackets") from None
        return text.lower()


def _host_header(text: str) -> str:
    """As a Host header has it: an IPv6 address in brackets."""
    host = _host(text[1:-1] if text.startswith("[") and text.endswith("]") else text)
    return f"[{host}]" if ":" in host else host


def _one_worker(count: int) -> int:
    if count != 1:
        raise ValueError("must be 1: more workers need a shared store, which this version does not have")
    return count


def _team_name(name: str) -> str:
    if not _TEAM_NAME.fullmatch(name):
        raise ValueError("a team name has 1 to 64 letters, digits, '_', '.' or '-' and begins with a letter or digit")
    return name


class Server(Strict):
    """`server` of proxy.yaml.

    `hosts` are names a Host header may carry besides the loopback names; `max_body` is in bytes, `drain` in seconds.
    Port 0 takes any free port.
    """

    host: Annotated[str, AfterValidator(_host)] = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65_535)
    workers: Annotated[int, AfterValidator(_one_worker)] = 1
    max_body: Size = Field(32 << 20, ge=1)
    drain: Duration = Field(60.0, ge=0)
    hosts: list[Annotated[str, AfterValidator(_host_header)]] = Field(default_factory=list)


class Providers(Strict):
    """`providers` of proxy.yaml."""

    mistral: upstream.Config = upstream.Config()


class Models(model.Config):
    """`models` of proxy.yaml."""

    @field_validator("aliases")
    @classmethod
    def _not_of_itself(cls, aliases: dict[str, str]) -> dict[str, str]:
        # A target is not looked up again among the aliases, so longer circles cannot exist.
        circles = [name for name, target in aliases.items() if name == target]
        if circles:
            circle = PydanticCustomError("alias_of_itself", "an alias of itself")
            faults = [InitErrorDetails(type=circle, loc=(name,), input=name) for name in circles]
            raise ValidationError.from_exception_data("aliases", faults)
        return aliases


class Team(auth.Team):
    """`teams.<name>` of proxy.yaml."""

    model_config = ConfigDict(validate_default=True)

    @field_validator("keys")
    @classmethod
    def _at_least_one(cls, keys: list[auth.TeamKey]) -> list[auth.TeamKey]:
        if not keys:
            raise ValueError("a team needs at least one key")
        return keys


class Translation(Strict):
    """`translation` of proxy.yaml: what happens to a parameter Mistral does not have, when leaving it out may matter.

    lenient: dropped and reported in `x-proxy-rewrites`; strict: refused with 400 and its name.
    """

    mode: Literal["lenient", "strict"] = "lenient"


class Settings(Strict):
    """The whole of proxy.yaml."""

    server: Server = Server()
    providers: Providers = Providers()
    models: Models = Models()
    translation: Translation = Translation()
    teams: dict[Annotated[str, AfterValidator(_team_name)], Team] = Field(default_factory=dict)
    logging: access_log.Config = access_log.Config()


LATER: dict[type[Strict], frozenset[str]] = {
    Settings: frozenset({"store", "ledger", "cache", "tracing"}),
    Server: frozenset({"cors_origins", "time_zone", "admin_keys", "metrics"}),
    Providers: frozenset({"openai"}),
    upstream.Config: frozenset({"retry", "circuit_breaker"}),
    Models: frozenset({"fallbacks", "prices"}),
    Team: frozenset({"provider_keys", "quotas"}),
}
"""Keys of features that do not exist yet. They are refused as unknown keys are, and told apart from a misspelling."""
