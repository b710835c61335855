"""Who sends requests, and every secret there is. Always the same ones: a run can be repeated by its seed."""

from __future__ import annotations

import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from tests.canary.table import Canary, Kind

_LETTERS = string.ascii_letters + string.digits

UNKNOWN = "unknown"
"""The sender that has no key."""


def plain(name: str, length: int = 24, letters: str = _LETTERS) -> str:
    """A text that is like no other; letters and digits."""
    random = Random(f"canary {name}")
    return "".join(random.choices(letters, k=length))


def odd(name: str) -> str:
    """One that looks otherwise in almost every spelling, and that no rule of the redactor's knows by its looks."""
    one = plain(name)
    return "".join(f"{one[at : at + 4]}/{one[at + 4 : at + 7]}+{one[at + 7 : at + 9]}&" for at in (0, 12))


HEADERS = ("x_api_key", "cookie", "x_anything", "user_agent", "referer", "proxy_authorization", "tracestate", "query")
CONTENT = (
    "prompt", "system", "tool_text", "tool_argument", "tool_result", "user", "metadata", "image", "stop",
    "embedded", "property", "cache_key",
)  # fmt: skip


@dataclass
class Sender:
    """`canaries` are by their place in a request, `key` is the one that is sent. `opted`: has `log_content`. `spoken`
    are the places whose texts may be written in any way."""

    name: str
    key: Canary
    opted: bool = False
    canaries: dict[str, Canary] = field(default_factory=dict)

    def __post_init__(self) -> None:
        make = self._make
        for place in HEADERS:
            make(place, Kind.HEADER, odd(f"{self.name} {place}"))
        digits = plain(f"{self.name} key in path", 6, string.digits)
        make("key_in_path", Kind.HEADER, f"sk-{digits}{plain(f'{self.name} key in path')}")
        make("request_id", Kind.TRACE, plain(f"{self.name} id"))
        make("traceparent", Kind.TRACE, plain(f"{self.name} trace", 32, "0123456789abcdef"))
        make("model", Kind.MODEL, "m-" + plain(f"{self.name} model"))
        make("field", Kind.FIELD, "f_" + plain(f"{self.name} field"))
        make("path", Kind.PATH, plain(f"{self.name} path"))
        for place in CONTENT:
            make(place, Kind.CONTENT, odd(f"{self.name} {place}"))
        make("tool", Kind.CONTENT, plain(f"{self.name} tool"))  # which characters it has is checked
        make("mail", Kind.PERSONAL, plain(f"{self.name} mail") + "@example.com")
        make("found", Kind.PERSONAL, "ghp_" + plain(f"{self.name} found", 36))
        self.canaries["key"] = self.key

    def _make(self, place: str, kind: Kind, text: str) -> None:
        self.canaries[place] = Canary(f"{self.name}: {place}", kind, text, self.name)


def _team_key(owner: str, how: str, text: str) -> Canary:
    return Canary(f"{owner}: key, {how}", Kind.TEAM_KEY, text, owner)


class Cast:
    """`issued` is what `keys new` has printed for the team green. `told`: what the operator has told the proxy, and
    somebody may have heard."""

    def __init__(self, issued: str, *, shared: bool = False) -> None:
        names = ("admin", "pepper", "provider", "own", *(("redis", "postgres") if shared else ()))
        self.told = [ALL[name] for name in names]
        self.senders = [
            Sender("red", _team_key("red", "plain", odd("red key")), opted=True),
            Sender("blue", _team_key("blue", "hashed", plain("blue key", 32))),
            Sender("yellow", _team_key("yellow", "from a file", odd("yellow key"))),
            Sender("green", _team_key("green", "issued", issued), opted=True),
            Sender(UNKNOWN, Canary("unknown: a wrong key", Kind.HEADER, odd("wrong key"), UNKNOWN)),
        ]

    def everything(self) -> Iterator[Canary]:
        yield from ALL.values()
        for sender in self.senders:
            yield from sender.canaries.values()


def _all() -> Iterator[Canary]:
    for name in ("admin", "pepper", "redis", "postgres"):
        yield Canary(name, Kind.OPERATOR, odd(name) + odd(f"{name}, the rest of it"))
    yield Canary("environment", Kind.ENVIRONMENT, odd("environment"))
    yield Canary("literal", Kind.LITERAL, odd("literal"))
    yield Canary("provider", Kind.PROVIDER_KEY, odd("provider"))
    yield Canary("own", Kind.PROVIDER_KEY, odd("own"))
    yield Canary("told", Kind.TOLD, odd("told"))
    for name in ("www-authenticate", "location", "set-cookie", "x-internal", "server"):
        yield Canary(name, Kind.UPSTREAM, odd(name))


ALL = {canary.name: canary for canary in _all()}
"""Those that are nobody's in particular: the operator's, and what the provider says."""
