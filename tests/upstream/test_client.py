"""Calls to one provider: its key is sent, and never comes back, however an upstream spells it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.secret import Secret
from proxy.upstream.client import Upstream, read
from proxy.upstream.config import Config
from proxy.upstream.transport import Call, Connections, Headers

KEY = "pr0vider/Key+with-signs_42"


class Network:
    connections = Connections(0, 0)

    def call(
        self, method: str, path: str, headers: Headers, body: bytes, *, more: Headers = (), fresh: bool = False
    ) -> Call:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


def upstream(key: str = KEY) -> Upstream:
    return Upstream(Config(api_keys=[Secret(key)]), Network())


def spelled(key: str, escaped: list[bool], upper: bool = False) -> str:
    """The key with some of its characters as JSON escapes."""
    hexed = "\\u{:04X}" if upper else "\\u{:04x}"
    return "".join(hexed.format(ord(char)) if escape else char for char, escape in zip(key, escaped, strict=True))


@given(st.lists(st.booleans(), min_size=len(KEY), max_size=len(KEY)), st.booleans(), st.integers(0, 4))
def test_no_spelling_of_the_key_passes(escaped: list[bool], upper: bool, depth: int):
    text = spelled(KEY, escaped, upper).replace("/", "\\/" if upper else "/")
    for _ in range(depth):
        text = json.dumps(text)[1:-1]
    before, after = '{"content": "It is ', '. \\u00e9"}'
    assert upstream().scrub(f"{before}{text}{after}".encode()) == f"{before}***{after}".encode()


def test_what_is_no_key_is_not_touched():
    for data in (b"", b"hello", b"\\u0070r0vider/Key+with-signs_4", b"\\u" * 1000):
        assert upstream().scrub(data) == data


@pytest.mark.parametrize("depth", range(4))
@pytest.mark.parametrize("before", ["", "\\", "\\\\", "\\\\\\"])
def test_what_stands_before_the_key_hides_nothing(depth: int, before: str):
    text = before + spelled(KEY, [True] * len(KEY))
    for _ in range(depth):
        text = json.dumps(text)[1:-1]
    assert upstream().scrub(text.encode()) == b"***"


def test_a_slash_has_a_spelling_of_its_own():
    assert upstream().scrub(KEY.replace("/", "\\/").encode()) == b"***"
    assert upstream().scrub(json.dumps(KEY.replace("/", "\\/")).encode()) == b'"***"'
    assert upstream("key").scrub(b"k\\/ey \\/") == b"k\\/ey \\/"


def test_every_place_is_found():
    assert upstream().scrub(f"{KEY} {KEY} {spelled(KEY, [True] * len(KEY))}".encode()) == b"*** *** ***"


def test_without_a_key_there_is_nothing_to_take_out():
    assert Upstream(Config(), Network()).scrub(b"\\u0070") == b"\\u0070"


def test_a_key_is_no_pattern():
    assert upstream("a.c*(x)+[y]{2}|$^?").scrub(b"abc \\u0061.c*(x)+[y]{2}|$^?") == b"abc ***"


@pytest.mark.parametrize(
    "run",
    [b"\\" * 1_000_000 + b"u", b"\\u0070" * 200_000, b"\\u0070r0vider/Key+with-signs_" * 40_000, b"\\\\u00" * 200_000],
)
def test_a_million_escapes_take_no_longer_than_others(run: bytes):
    """Quadratic time would be minutes."""
    assert upstream().scrub(run + b"\\u00") == run + b"\\u00"


# whole answers


class Body:
    """An answer of these pieces."""

    status = 200

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces
        self.taken = 0

    def header(self, name: str) -> str | None:
        return None

    def whole(self) -> bytes | None:
        return None

    async def chunks(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            self.taken += 1
            yield piece


@pytest.mark.parametrize(("most", "whole"), [(6, b"abcdef"), (5, None)])
async def test_d25_no_more_is_read_than_may_be(most: int, whole: bytes | None):
    heard: list[None] = []
    assert await read(Body(b"abc", b"def"), lambda: heard.append(None), most) == whole
    assert len(heard) == 2
    body = Body(*[b"abc"] * 9)
    assert await read(body, lambda: None, most) is None
    assert body.taken <= 3


def test_of_keys_that_begin_alike_nothing_is_left():
    config = Config(api_keys=[Secret("sk-abcdefgh"), Secret("sk-abcdefgh-LONGTAIL")])
    made = Upstream(config, Network(), own_keys={"a": Secret("sk-abc")})
    for key in ("sk-abcdefgh-LONGTAIL", "sk-abcdefgh", "sk-abc"):
        assert made.scrub(f"echo {key}!".encode()) == b"echo ***!"
        assert made.scrub(f"echo {spelled(key, [True] * len(key))}!".encode()) == b"echo ***!"


def test_a_team_pays_with_its_own_key_and_the_others_with_theirs():
    made = Upstream(Config(api_keys=[Secret("shared-key-1")]), Network(), own_keys={"a": Secret("own-key-1")})
    assert made.keys("a").keys[0].headers == [("Authorization", "Bearer own-key-1")]
    for team in ("b", None):
        assert made.keys(team).keys[0].headers == [("Authorization", "Bearer shared-key-1")]
