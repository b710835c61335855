"""Requests that have a canary in every place where a client can put a text, each broken in its own way.

`traffic(seed, count, cast)` are always the same ones. Shapes stand for texts by marks (`@@prompt@@`); what mutations do
is done to the shapes, so that a canary goes out whole or not at all: half a key is nothing that a proxy could know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from random import Random
from typing import Any
from urllib.parse import quote

from tests.canary.armed import TRIPS
from tests.canary.cast import ALL, HEADERS, UNKNOWN, Cast, Sender
from tests.canary.spelling import READ, SPELLINGS
from tests.canary.table import Canary, Kind
from tests.e2e.wire import CHAT, request
from tests.fuzz.mutate import mutated

CI_COUNT, CI_SEED = 1200, 7
"""Requests that the suite sends to each kind of deployment, and which. More: `python -m tests.canary.run`."""

EMBEDDINGS = "/v1/embeddings"

_PLACES = sorted({*Cast("").senders[0].canaries, "operator", "provider"})
Shape = str | tuple[str, dict[str, Any]]
"""A target to be got, or a path and a body to be sent there."""

_MARK = re.compile(f"@@({'|'.join(_PLACES)})@@")  # what a mutation has made of another one stands for nothing
_SAID = [{"role": "user", "content": "@@prompt@@"}]
_CHAT: dict[str, Any] = {"model": "mistral-small-latest", "messages": _SAID}
_TOOL = {
    "name": "@@tool@@",
    "description": "@@tool_text@@",
    "parameters": {"type": "object", "properties": {"@@property@@": {"type": "string", "enum": ["@@stop@@"]}}},
}
_IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,@@image@@"}}
_CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "@@tool@@", "arguments": '{"x": "@@tool_argument@@"}'},
}

BODIES: list[tuple[str, dict[str, Any]]] = [
    (CHAT, _CHAT),
    (CHAT, _CHAT | {"stream": True, "user": "@@user@@", "stop": ["@@stop@@"]}),
    (CHAT, _CHAT | {"user": "@@user@@", "metadata": {"a": "@@metadata@@"}, "prompt_cache_key": "@@cache_key@@"}),
    (CHAT, _CHAT | {"temperature": 0, "safety_identifier": "@@user@@", "store": True}),
    (CHAT, _CHAT | {"temperature": 0, "stream": True, "model": "codestral-latest"}),
    (CHAT, _CHAT | {"model": "@@model@@"}),
    (CHAT, _CHAT | {"model": "nowhere/@@model@@"}),
    (CHAT, _CHAT | {"model": "mistral-large-latest", "stream": True}),
    (CHAT, _CHAT | {"@@field@@": 1}),
    (CHAT, _CHAT | {"messages": [{"role": "user", "content": "@@prompt@@", "@@field@@": "@@metadata@@"}]}),
    (CHAT, _CHAT | {"tools": [{"type": "function", "function": _TOOL}], "tool_choice": "auto"}),
    (CHAT, _CHAT | {"tools": [{"type": "function", "function": _TOOL | {"@@field@@": "@@stop@@"}}], "stream": True}),
    (
        CHAT,
        _CHAT
        | {
            "messages": [
                {"role": "system", "content": "@@system@@"},
                {"role": "user", "content": [{"type": "text", "text": "@@prompt@@"}, _IMAGE]},
                {"role": "assistant", "content": "", "tool_calls": [_CALL]},
                {"role": "tool", "tool_call_id": "abcdefghi", "content": "@@tool_result@@"},
            ]
        },
    ),
    (
        CHAT,
        _CHAT
        | {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": _TOOL["parameters"]}}},
    ),
    (CHAT, _CHAT | {"messages": [{"role": "user", "content": "Mail @@mail@@ with @@found@@."}]}),
    (CHAT, _CHAT | {"messages": [{"role": "user", "content": "My key is @@key@@, keep it."}], "user": "@@key@@"}),
    (CHAT, _CHAT | {"messages": [{"role": "user", "content": "@@key@@"}], "stream": True}),
    (CHAT, _CHAT | {"messages": [{"role": "user", "content": "@@provider@@"}], "stream": True}),
    (CHAT, _CHAT | {"messages": [{"role": "user", "content": "@@provider@@"}]}),
    (CHAT, _CHAT | {"model": "@@key@@"}),
    (CHAT, _CHAT | {"model": "a.@@key@@.b", "stream": True}),
    (CHAT, _CHAT | {"@@key@@": 1}),
    (CHAT, _CHAT | {"messages": [{"role": "@@user@@", "content": "@@prompt@@"}]}),
    (CHAT, _CHAT | {"n": "@@user@@", "temperature": "@@stop@@"}),
    (EMBEDDINGS, {"model": "mistral-embed", "input": "@@embedded@@"}),
    (EMBEDDINGS, {"model": "mistral-embed", "input": ["@@embedded@@", "@@prompt@@"], "user": "@@user@@"}),
    (EMBEDDINGS, {"model": "@@model@@", "input": "@@embedded@@", "encoding_format": "base64"}),
]

TARGETS = (
    "/v1/models", "/v1/models/mistral-small-latest", "/v1/models/@@model@@", "/v1/models?api_key=@@query@@",
    "/nowhere/@@path@@", "/@@path@@", "/nowhere/@@key_in_path@@", "/v1/models/x/@@key_in_path@@",
    "/nowhere/@@key@@", "/nowhere?key=@@key@@", "/v1/files/@@path@@?token=@@query@@", "/admin/cache?team=@@query@@",
    "/admin/@@key_in_path@@", "/health?@@query@@", "/" + "a/" * 92 + "@@key@@/x", "/" + "a" * 178 + "/@@key@@",
    "/metrics?@@query@@", "/a/%7B@@key_in_path@@", "/nowhere/@@operator@@", "/nowhere?k=@@operator@@",
)  # fmt: skip


@dataclass(frozen=True)
class Sent:
    sender: Sender
    data: bytes


def traffic(seed: int, count: int, cast: Cast) -> Iterator[Sent]:
    """First every shape from every sender, then every trip, then whatever comes."""
    random, trips = Random(seed), cycle(TRIPS)
    places: list[Shape] = [*BODIES, *TARGETS]
    whole = [(sender, shape) for shape in places for sender in cast.senders]
    for at in range(count):
        if at < len(whole):
            sender, shape = whole[at]
            yield Sent(sender, _written(cast, sender, shape, random))
            continue
        sender = random.choices(cast.senders, _HOW_OFTEN)[0]
        shape = random.choice(BODIES) if random.random() < 0.75 else random.choice(TARGETS)
        trip = next(trips) if random.random() < 0.3 else ""
        yield Sent(sender, _written(cast, sender, shape, random, trip, bent=random.random() < 0.3))


_HOW_OFTEN = (6, 6, 6, 6, 1)
"""Of each sender: who has no key gets no further than that."""

_WRITTEN = [json.dumps(body).encode() for _, body in BODIES]


def _written(cast: Cast, sender: Sender, shape: Shape, random: Random, trip: str = "", *, bent: bool = False) -> bytes:
    words = _Words(cast, sender, random)
    headers = _headers(cast, sender, random, trip)
    if isinstance(shape, str):
        target = _bent(shape, random) if bent else shape
        return request("GET", _MARK.sub(words.in_path, target), b"", **headers)
    path, body = shape
    data = json.dumps(body).encode()
    if bent:
        data = _broken(data, random)
    # So that not every answer is a kept one, nor none.
    data = data.replace(b"@@prompt@@", b"@@prompt@@ %d" % random.randrange(50))
    data = _MARK.sub(words.in_json, data.decode("latin-1")).encode("latin-1")
    query = quote(words.spelled(sender.canaries["query"]), safe="")
    return request("POST", f"{path}?q={query}", data, **headers)


def _headers(cast: Cast, sender: Sender, random: Random, trip: str) -> dict[str, str]:
    canaries = sender.canaries
    address = f"192.0.{random.randrange(256)}.{random.randrange(256)}"  # nobody is held up for wrong keys
    headers = {"authorization": f"Bearer {canaries['key'].text}", "x_forwarded_for": address, "x_trip": trip}
    if random.random() < 0.04:
        headers["authorization"] = random.choice(("Basic {}", "bearer {0} {0}", "{}")).format(canaries["key"].text)
    words = _Words(cast, sender, random)
    for name in HEADERS:
        if name != "query" and random.random() < 0.7:
            headers[name] = words.spelled(canaries[name])
    if "cookie" in headers:
        headers["cookie"] = f"session={headers['cookie']}; a=b"
    if random.random() < 0.5:
        headers["x_request_id"] = canaries["request_id"].text
    elif random.random() < 0.3:
        headers["x_request_id"] = words.read(random.choice((canaries["key"], random.choice(cast.told))))
    if random.random() < 0.5:
        headers["traceparent"] = f"00-{canaries['traceparent'].text}-00f067aa0ba902b7-01"
    if random.random() < 0.2:
        headers["user_agent"] = f"{words.spelled(canaries['user_agent'])} {random.choice(cast.told).text}"
    headers["x_proxy_translation"] = random.choice(("", "", "lenient", "strict"))
    headers["cache_control"] = random.choice(("", "no-cache", "no-store", "only-if-cached", "max-age=1") + ("",) * 15)
    return headers


class _Words:
    """What marks stand for, when `sender` says it."""

    def __init__(self, cast: Cast, sender: Sender, random: Random) -> None:
        self._cast, self._sender, self._random = cast, sender, random

    def canary(self, mark: str) -> Canary:
        if mark == "operator":
            # Whoever has a key is told what he has asked for: nobody but the operator should know these.
            return (
                self._random.choice(self._cast.told) if self._sender.name == UNKNOWN else self._sender.canaries["path"]
            )
        if mark == "provider":
            return ALL["provider"]
        if mark == "key" and self._sender.name == UNKNOWN:
            mark = "key_in_path"  # a key that is nobody's is known by its looks
        return self._sender.canaries[mark]

    def in_json(self, match: re.Match[str]) -> str:
        """As the inside of a string of JSON."""
        canary = self.canary(match[1])
        if canary.kind is Kind.PROVIDER_KEY or match[1] == "tool":
            return json.dumps(canary.text)[1:-1]
        if self._random.random() < 0.3:
            return "".join(f"\\u{ord(letter):04x}" for letter in canary.text)
        is_logged = canary.kind not in (Kind.CONTENT, Kind.HEADER)
        return json.dumps(self.read(canary) if is_logged else self.spelled(canary))[1:-1]

    def in_path(self, match: re.Match[str]) -> str:
        canary = self.canary(match[1])
        if canary.kind is Kind.HEADER and "/" in canary.text:
            return quote(self.spelled(canary), safe="")
        # What is known by its looks or its hash alone must not stand among letters.
        return quote(f".{self.read(canary)}.", safe="")

    def read(self, canary: Canary) -> str:
        """As the redactor knows it again: of what is known by its looks or its hash alone, only as it is."""
        known = canary.kind in (Kind.TEAM_KEY, Kind.OPERATOR) and "/" in canary.text
        return self._spelled(canary, self._random.choice(READ) if known and self._random.random() < 0.5 else "plain")

    def spelled(self, canary: Canary) -> str:
        if self._random.random() < 0.5:
            return canary.text
        return self._spelled(canary, self._random.choice([name for name in SPELLINGS if name != "UTF-16"]))

    def _spelled(self, canary: Canary, name: str) -> str:
        written = self._random.choice(list(SPELLINGS[name](canary.text.encode())))
        return written.decode().replace("=\n", "").replace("\n", "")


def _bent(shape: str, random: Random) -> str:
    """Another target, of the characters that one may have. What only a query may have stays in one."""
    data = mutated([shape.encode(), *(target.encode() for target in TARGETS)], random, 600)
    path, mark, query = quote(data, safe="/?@=&%;:.-_~").removeprefix("/").partition("?")
    return f"/{path.replace('@@query@@', '@@key_in_path@@')}{mark}{query}"


def _broken(data: bytes, random: Random) -> bytes:
    """A mutation in which no content has become a name: names are told to the log."""
    for _ in range(10):
        broken = mutated([data], random, 1 << 14) if random.random() < 0.7 else mutated(_WRITTEN, random, 1 << 14)
        if not _NAMED.search(broken):
            return broken
    return data


_CONTENT_MARK = rb"@@(?!key@@|field@@|model@@|property@@)[a-z_]+@@"
_NAMED = re.compile(rb'"[^"]*%b[^"]*"\s*:|"model"\s*:\s*"[^"]*%b' % (_CONTENT_MARK, _CONTENT_MARK))
