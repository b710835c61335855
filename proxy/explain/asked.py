"""What an admin asks: `{"team", "request", "endpoint", "key", "headers"}`. The request is taken as its bytes, so that
it is read, and refused, as if it had come by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from proxy.core.endpoint import Endpoint
from proxy.core.errors import BadRequest, InvalidType, MissingParameter
from proxy.core.exchange import Team
from proxy.core.json import Data
from proxy.core.table import type_name
from proxy.stages import parse

MEMBERS: Final = frozenset(("team", "request", "endpoint", "key", "headers"))

HEADERS: Final = ("cache-control", "x-proxy-context", "x-proxy-translation")
"""Those of a request that bear on what becomes of it."""

USUAL: Final = "/v1/chat/completions"

NOBODY: Final = "none"
"""The key of a team that has none yet."""

_MOST_SHOWN: Final = 256
"""Characters of what was asked that are told back."""


class _Envelope(msgspec.Struct):
    request: msgspec.Raw = msgspec.Raw(b"")


@dataclass(frozen=True, slots=True)
class Asked:
    """`body` is the request's, `headers` what it would have sent."""

    team: Team
    key_id: str
    endpoint: Endpoint
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


class Asking:
    """`key_ids(team)` are those of a team's keys; `endpoints` are by their paths."""

    def __init__(
        self,
        teams: Mapping[str, Team],
        key_ids: Callable[[str], Sequence[str]],
        endpoints: Mapping[str, Endpoint],
    ) -> None:
        self._teams = teams
        self._key_ids = key_ids
        self._endpoints = endpoints

    def read(self, data: Data) -> Asked:
        """Raises BadRequest, naming the member at fault."""
        body = parse.read(data, MEMBERS)
        unknown = next((name for name in body if name not in MEMBERS), None)
        if unknown is not None:
            shown = unknown[:_MOST_SHOWN]
            raise BadRequest(f"Unknown parameter: '{shown}'.", param=shown, code="unknown_parameter")
        team = self._named(body, "team", self._teams)
        if "request" not in body:
            raise _missing("request")
        path = USUAL if body.get("endpoint") is None else body["endpoint"]
        return Asked(
            self._teams[team],
            self._key(body.get("key"), team),
            self._endpoints[self._named({"endpoint": path}, "endpoint", self._endpoints)],
            _headers(body.get("headers")),
            bytes(msgspec.json.decode(data, type=_Envelope).request),
        )

    def _key(self, asked: Any, team: str) -> str:
        known = self._key_ids(team)
        if asked is None:
            return next(iter(known), NOBODY)
        return self._named({"key": asked}, "key", known)

    def _named(self, body: Mapping[str, Any], name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
        value = body.get(name)
        if value is None:
            raise _missing(name)
        if not isinstance(value, str):
            raise _wrong_type(name, "a string", value)
        if value not in known:
            raise BadRequest(_UNKNOWN[name].format(value[:_MOST_SHOWN]), param=name)
        return value


_UNKNOWN: Final = {
    "team": "There is no team '{}'.",
    "key": "The team has no key with the id '{}'.",
    "endpoint": "'{}' is no endpoint whose requests can be explained: it has to be one that takes a body.",
}


def _headers(asked: Any) -> tuple[tuple[bytes, bytes], ...]:
    if asked is None:
        return ()
    if not isinstance(asked, dict):
        raise _wrong_type("headers", "an object", asked)
    for name, value in asked.items():
        if name.lower() not in HEADERS:
            raise BadRequest(f"Of headers only these bear on it: {', '.join(HEADERS)}.", param="headers")
        if not isinstance(value, str):
            raise _wrong_type(f"headers.{name}", "a string", value)
        if not value.isascii() or not value.isprintable():
            raise BadRequest("The value of a header is printable ASCII.", param=f"headers.{name}")
    return tuple((name.lower().encode(), value.strip().encode()) for name, value in asked.items())


def _missing(name: str) -> BadRequest:
    return MissingParameter(f"Missing required parameter: '{name}'.", param=name)


def _wrong_type(name: str, expected: str, value: Any) -> BadRequest:
    return InvalidType(f"Invalid type for '{name}': expected {expected}, but got {type_name(value)}.", param=name)
