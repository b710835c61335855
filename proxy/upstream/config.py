"""Settings of one provider: where it is, with which key, how long to wait."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Final, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from proxy.core.config import Duration, SecretText, Strict

_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]{2,45}")


def is_loopback(host: str) -> bool:
    """Whether `host` names this machine and nothing else. No DNS is asked."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def split_url(url: str, example: str) -> SplitResult:
    """The parts of an http or https URL. Its text is in no error: it may hold a secret by mistake."""
    try:
        parts = urlsplit(url)
        well_formed = parts.scheme in ("https", "http") and _HOST.fullmatch(parts.hostname or "") and parts.port != 0
    except ValueError:
        well_formed = None
    if not well_formed:
        raise ValueError(f"expected a URL such as {example}") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError("no user name or password in a URL")
    return parts


def _origin(url: str) -> str:
    parts = split_url(url, "https://api.mistral.ai")
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise ValueError("https is required except for loopback hosts: the key would travel in clear text")
    if parts.query or parts.fragment:
        raise ValueError("no query and no fragment in a base URL")
    if parts.path.rstrip("/").endswith("/v1"):
        raise ValueError("leave /v1 out: the proxy adds the path")
    return url.rstrip("/")


def _egress(url: str) -> str:
    parts = split_url(url, "http://proxy.internal:3128")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("expected a URL such as http://proxy.internal:3128, without a path")
    return url


class Timeouts(Strict):
    """Seconds; every one is finite."""

    connect: Duration = Field(10.0, gt=0)
    first_byte: Duration = Field(60.0, gt=0)
    idle: Duration = Field(60.0, gt=0)
    total: Duration = Field(600.0, gt=0)


def _percent(value: object) -> float:
    match = re.fullmatch(r"([0-9]{1,2}|100)%", value) if isinstance(value, str) else None
    if not match:
        raise ValueError("expected a percentage from 0% to 100%, such as 10%")
    return int(match[1]) / 100


Percent = Annotated[float, BeforeValidator(_percent)]
"""A part of 1. Written 10%."""


class Retry(Strict):
    """`providers.*.retry`. Delays are seconds; one varies by `jitter`, a part of it, to both sides. Retries are at most
    `budget` of all requests. `retry_unsafe`: also when the provider may have done the work, and ask money for both."""

    max_attempts: int = Field(3, ge=1, le=10)
    initial_delay: Duration = Field(1.0, gt=0)
    multiplier: float = Field(2.0, ge=1, le=100)
    max_delay: Duration = Field(60.0, gt=0)
    jitter: float = Field(0.25, ge=0, le=1)
    budget: Percent = 0.1
    retry_unsafe: bool = False


class CircuitBreaker(Strict):
    """`providers.*.circuit_breaker`. Counts are of calls in a row; `open_duration` is in seconds."""

    failure_threshold: int = Field(5, ge=1, le=1_000_000)
    success_threshold: int = Field(3, ge=1, le=1_000_000)
    open_duration: Duration = Field(30.0, gt=0)
    half_open_max_requests: int = Field(1, ge=1, le=1_000)


TYPES: Final[Mapping[str, str]] = MappingProxyType(
    {"mistral": "https://api.mistral.ai", "openai": "https://api.openai.com"}
)
"""The APIs that a provider may speak, and who speaks it unless a base_url says otherwise."""


class Config(Strict):
    """`providers.<name>` of proxy.yaml. Its models are asked with all of `api_keys` in turn."""

    type: Literal["mistral", "openai"] = "mistral"
    base_url: Annotated[str, AfterValidator(_origin)] = TYPES["mistral"]
    api_keys: list[SecretText] = Field(default_factory=list)
    timeouts: Timeouts = Timeouts()
    retry: Retry = Retry()
    circuit_breaker: CircuitBreaker = CircuitBreaker()
    transport: Literal["http1", "aiohttp", "httpx"] = "http1"
    http2: bool = False
    proxy_url: Annotated[str, AfterValidator(_egress)] | None = None
    max_connections: int = Field(1000, ge=1, le=65_535)

    @model_validator(mode="before")
    @classmethod
    def _where(cls, given: object) -> object:
        if not isinstance(given, dict) or given.get("type") not in TYPES:
            return given
        return {"base_url": TYPES[given["type"]], **given}

    @model_validator(mode="after")
    def _only_httpx_can(self) -> Config:
        if self.transport != "httpx" and (self.http2 or self.proxy_url):
            raise ValueError("http2 and proxy_url need `transport: httpx`")
        return self
