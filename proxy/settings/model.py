"""The schema of proxy.yaml: the parts' own Config classes put together, and what only a file's author can get wrong.

A section exists here only when the code that reads it exists: a setting that does nothing must not be accepted.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from proxy.core.access import WrittenKey
from proxy.core.catalogue import micro_usd
from proxy.core.config import Duration, ModelName, SecretText, Size, Strict
from proxy.core.provider import MAIN
from proxy.core.secret import Secret
from proxy.core.team_name import RULE, is_team_name
from proxy.stages import access_log, auth, model, quota
from proxy.stages import cache as answers
from proxy.stages.context import WhenTooLong
from proxy.upstream import config as upstream

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_ORIGIN = re.compile(r"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")
_OWN_PORT = {"http": 80, "https": 443}
IN_MEMORY = "memory://"
OFF = "off"
SHORTEST_PEPPER = 32
_REDIS = ("redis", "rediss")
_SQLITE = re.compile(r"sqlite:///[^?#\x00]+")
_PROVIDER_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")


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


def _origin(text: str) -> str:
    """As a browser writes it: lower case, and no port where it is the scheme's own."""
    if text == "*":
        return text
    match = _ORIGIN.fullmatch(text.lower())
    port = int(match["port"] or _OWN_PORT[match["scheme"]]) if match else 0
    if not match or not 0 < port <= 65_535:
        raise ValueError('expected an origin such as https://chat.example.com, without a path, or "*" alone')
    scheme, host = match["scheme"], _host_header(match["host"])
    return f"{scheme}://{host}" if port == _OWN_PORT[scheme] else f"{scheme}://{host}:{port}"


def _everyone_alone(origins: list[str]) -> list[str]:
    if "*" in origins and len(origins) > 1:
        raise ValueError('"*" stands for every origin, so it stands alone')
    return origins


def _network(text: str) -> str:
    """IPv4 written as IPv6 (::ffff:10.0.0.0/104) becomes what it is."""
    try:
        network = ipaddress.ip_network("" if "%" in text else text)
    except ValueError:
        raise ValueError("expected an IP address, or a network such as 10.0.0.0/8") from None
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped:
        network = ipaddress.ip_network((mapped, network.prefixlen - 96))
    if network.prefixlen == 0:
        raise ValueError("this is every address there is: anybody could say where a request comes from")
    return str(network)


def _store_url(value: object) -> Secret:
    """A URL with a password comes from outside the file, as every secret does; one without may be written there."""
    text = value.reveal() if isinstance(value, Secret) else str(value)
    if text == IN_MEMORY:
        return Secret(text)
    try:
        parts = urlsplit(text)
        shared = parts.scheme in _REDIS and parts.hostname and parts.port != 0
    except ValueError:
        shared = False
    if not shared:
        raise ValueError("expected memory://, redis://host:6379/0 or rediss://host:6379/0")
    if parts.password is not None and not isinstance(value, Secret):
        raise ValueError("a password is not written into the file: use ${NAME} or file:/path")
    return Secret(text)


def _ledger_url(value: object) -> Secret:
    """As `_store_url`. `off` keeps no ledger."""
    text = value.reveal() if isinstance(value, Secret) else str(value)
    if text == OFF or _SQLITE.fullmatch(text):
        return Secret(text)
    try:
        parts = urlsplit(text)
        known = parts.scheme == "postgresql" and parts.port != 0 and len(parts.path) > 1
    except ValueError:
        known = False
    if not known:
        raise ValueError("expected sqlite:///path of the file, postgresql://user@host/database or off")
    if parts.password is not None and not isinstance(value, Secret):
        raise ValueError("a password is not written into the file: use ${NAME} or file:/path")
    return Secret(text)


def _collector(url: str) -> str:
    """Plain http is the rule where a collector is a neighbour; what goes there holds no secret."""
    parts = upstream.split_url(url, "http://otel-collector:4318")
    if parts.query or parts.fragment:
        raise ValueError("no query and no fragment: a key goes into the variable OTEL_EXPORTER_OTLP_HEADERS")
    return url.rstrip("/")


def _pepper(secret: Secret) -> Secret:
    if len(secret.reveal()) < SHORTEST_PEPPER:
        raise ValueError(f"a pepper has at least {SHORTEST_PEPPER} characters, as `openssl rand -hex 32` makes them")
    return secret


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("there is no such time zone; expected a name such as UTC or Europe/Paris") from None
    return name


def _provider_name(name: str) -> str:
    if not _PROVIDER_NAME.fullmatch(name):
        raise ValueError("a provider's name has 1 to 32 of a-z, 0-9 and '-', and begins with a letter")
    return name


def _team_name(name: str) -> str:
    if not is_team_name(name):
        raise ValueError(RULE)
    return name


class Metrics(Strict):
    """`server.metrics` of proxy.yaml. `public`: whoever gets there may read them."""

    public: bool = False


class Server(Strict):
    """`server` of proxy.yaml.

    `hosts` are names a Host header may carry besides the loopback names; `max_body` is in bytes, `drain` in seconds.
    Port 0 takes any free port. A worker serves `max_requests` at a time. `time_zone` is where the days, weeks and
    months of quotas begin; `key_pepper` keys the hashes under which issued team keys are stored. `admin_keys` open
    `/admin`, which is not there without any. Pages of `cors_origins` may call the API from a browser; `trusted_proxies`
    are addresses and networks whose `x-forwarded-for` says who sent a request. `metrics` says who may read /metrics.
    """

    host: Annotated[str, AfterValidator(_host)] = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65_535)
    workers: int = Field(1, ge=1, le=256)
    max_requests: int = Field(2_000, ge=1, le=1_000_000)
    max_body: Size = Field(32 << 20, ge=1)
    drain: Duration = Field(60.0, ge=0)
    time_zone: Annotated[str, AfterValidator(_zone)] = "UTC"
    key_pepper: Annotated[SecretText, AfterValidator(_pepper)] | None = None
    admin_keys: list[WrittenKey] = Field(default_factory=list)
    metrics: Metrics = Metrics()
    hosts: list[Annotated[str, AfterValidator(_host_header)]] = Field(default_factory=list)
    cors_origins: Annotated[list[Annotated[str, AfterValidator(_origin)]], AfterValidator(_everyone_alone)] = Field(
        default_factory=list
    )
    trusted_proxies: list[Annotated[str, AfterValidator(_network)]] = Field(default_factory=list)


class Store(Strict):
    """`store` of proxy.yaml: what workers share. The URL is a secret, since a password may be part of it.

    `on_outage`, of a store that is gone: each worker lets in its own share (local), everything that is not limited by
    spend (open), or nothing that is limited (closed).
    """

    url: Annotated[Secret, BeforeValidator(_store_url)] = Field(default_factory=lambda: Secret(IN_MEMORY))
    on_outage: Literal["local", "open", "closed"] = "local"

    @property
    def shared(self) -> bool:
        """Whether another process can have it too."""
        return self.url.reveal() != IN_MEMORY


class Ledger(Strict):
    """`ledger` of proxy.yaml: where usage is written down. Without a `url` it is a file of this user's; `retention` is
    how many seconds single rows are kept, their sums are kept longer."""

    url: Annotated[Secret, BeforeValidator(_ledger_url)] | None = None
    retention: Duration = Field(90 * 86_400.0, ge=86_400)

    @property
    def off(self) -> bool:
        return self.url is not None and self.url.reveal() == OFF


def _price(value: object) -> int:
    if isinstance(value, int):
        return value
    try:
        return micro_usd(str(value))
    except ValueError:
        raise ValueError("expected USD per million tokens, such as 0.5; finer than a millionth is no price") from None


UsdPerMillion = Annotated[int, BeforeValidator(_price)]
"""A price in micro-USD per million tokens, written in USD."""


class ModelPrice(Strict):
    """`models.prices.<name>` of proxy.yaml. Without an `output` price it gives no answers in tokens; without one for
    `cached` tokens these cost what others do. `context` is how many tokens the model takes, where that is not known;
    `priority` by how much more the priority tier costs, a factor."""

    input: UsdPerMillion
    output: UsdPerMillion | None = None
    cached: UsdPerMillion | None = None
    context: int | None = Field(None, ge=1)
    priority: float | None = Field(None, ge=0, le=100)


class Models(model.Config):
    """`models` of proxy.yaml. `prices` are over those of the catalogue; `fallbacks` are the models to turn to when one
    does not answer, in this order; `context` says what becomes of conversations that are too long."""

    fallbacks: dict[ModelName, Annotated[list[ModelName], Field(min_length=1)]] = Field(default_factory=dict)
    context: dict[ModelName, WhenTooLong] = Field(default_factory=dict)
    prices: dict[ModelName, ModelPrice] = Field(default_factory=dict)

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
    """`teams.<name>` of proxy.yaml. `provider_keys` are those that it pays providers with, by their names."""

    provider_keys: dict[str, SecretText] = Field(default_factory=dict)
    quotas: list[quota.Quota] = Field(default_factory=list)


class Translation(Strict):
    """`translation` of proxy.yaml: what happens to a parameter Mistral does not have, when leaving it out may matter.

    lenient: dropped and reported in `x-proxy-rewrites`; strict: refused with 400 and its name.
    """

    mode: Literal["lenient", "strict"] = "lenient"


class Tracing(Strict):
    """`tracing` of proxy.yaml: the collector that spans are sent to, if there is one, and the part of the traces that
    begin here of which any are."""

    otlp_endpoint: Annotated[str, AfterValidator(_collector)] | None = None
    sample: float = Field(1.0, ge=0, le=1)

    @property
    def part(self) -> float:
        return self.sample if self.otlp_endpoint else 0.0


class Settings(Strict):
    """The whole of proxy.yaml."""

    server: Server = Server()
    store: Store = Field(default_factory=Store)
    ledger: Ledger = Ledger()
    providers: dict[Annotated[str, AfterValidator(_provider_name)], upstream.Config] = Field(
        default_factory=lambda: {MAIN: upstream.Config(type=MAIN)}
    )
    models: Models = Models()
    translation: Translation = Translation()
    teams: dict[Annotated[str, AfterValidator(_team_name)], Team] = Field(default_factory=dict)
    cache: answers.Config = answers.Config()
    logging: access_log.Config = access_log.Config()
    tracing: Tracing = Tracing()

    @property
    def mistral(self) -> upstream.Config:
        """The provider of every model whose name does not say another."""
        return self.providers[MAIN]

    @field_validator("providers", mode="before")
    @classmethod
    def _typed_by_name(cls, providers: object) -> object:
        """The main one is always there, and what is called as a type is of that type."""
        if not isinstance(providers, dict):
            return providers
        named: dict[object, object] = {MAIN: {}, **providers}
        for name, one in named.items():
            if name in upstream.TYPES and isinstance(one, dict):
                named[name] = {"type": name, **one}
        return named

    @model_validator(mode="after")
    def _workers_share(self) -> Settings:
        if self.server.workers > 1 and not self.store.shared:
            alone = PydanticCustomError("workers_alone", "workers without a shared store")
            fault = InitErrorDetails(type=alone, loc=("server", "workers"), input=self.server.workers)
            raise ValidationError.from_exception_data("workers", [fault])
        return self


WORDS: dict[type[Strict], dict[str, dict[str, object]]] = {Ledger: {OFF: {"url": Secret(OFF)}}}
"""Sections for which one word may stand, and what it means."""
