"""The route table: what is there, and the two ways of not being there."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from proxy import __version__
from proxy.core.errors import MethodNotAllowed, NotFound, UnsupportedEndpoint
from proxy.core.model import is_id
from proxy.providers import PROVIDERS
from proxy.routes import UNSERVED, Health, router
from tests.asgi import Answer, call, ok

ENDPOINTS = PROVIDERS["mistral"].endpoints


class End:
    """An ASGI application as the stages are, and no function: Starlette would take that for a view."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await ok(scope, receive, send)


class State:
    draining = False


def app(state: State | None = None, configured: bool = True) -> Router:
    health = Health(configured=configured, draining=lambda: bool(state and state.draining))
    return router([(row, End()) for row in ENDPOINTS], health, End())


async def ask(path: str, method: str = "GET", raw_path: bytes | None = None, **options: Any) -> Answer:
    raw: dict[str, Any] = {} if raw_path is None else {"raw_path": raw_path}
    return await call(app(**options), method, path, query_string=b"", root_path="", **raw)


@pytest.mark.parametrize("row", ENDPOINTS, ids=lambda row: row.operation)
async def test_every_endpoint_has_its_route(row: Any) -> None:
    answer = await ask(row.path.replace("{id}", "some-model"), row.method)
    assert answer.body == b"ok"
    assert answer.scope["route"].path == row.path


@pytest.mark.parametrize("name", ["ft:open-mistral-7b:me:1", "a.b-c_d+e=f@g~", "x", "1", "a" * 256])
async def test_c1_an_id_is_what_stands_in_the_path_decoded_once(name: str) -> None:
    for raw in (name, quote(name, safe=""), "".join(f"%{ord(letter):02x}" for letter in name)):
        answer = await ask(f"/v1/models/{name}", raw_path=f"/v1/models/{raw}".encode())
        assert answer.scope["path_params"] == {"id": name}


NO_IDS = [
    "", ".", "..", "...", "%2e%2e", "a..b", "-", "a%2fb", "a%2Fb", "..%2f..%2fadmin", "a%5cb", "a\\b", "a;x", "a%3bx",
    "a%3fb", "a%23b", "a#b", "a b", "a%20b", "a+%20", "%00", "a%00", "a%0a", "a%0d%0ab", "%ff", "caf%c3%a9", "a%7fb",
    "%252e%252e", "a%252fb", "%2561",
    "a%252e", "a%", "a%2", "a%zz", "a%25", "a%u0041", "a*", "a,b", "a'b", "a(b)", "a!b", "a$b", "a&b",
    "a|b", "a^b", "a<b>", "a%EF%BC%8Fb", "a%c0%afb", "a" * 257, "%61" * 257,
]  # fmt: skip


@pytest.mark.parametrize("raw", NO_IDS)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_c1_whatever_else_stands_there_is_no_id(raw: str, method: str) -> None:
    decoded = unquote(f"/v1/models/{raw}")  # as servers do
    with pytest.raises(NotFound):
        await ask(decoded, method, raw_path=f"/v1/models/{raw}".encode())


@given(st.text(st.sampled_from("ab./\\%25eEfF0aAdD;?#:-_ \r\n\0é"), max_size=12) | st.binary(max_size=8).map(quote))
async def test_c1_what_reaches_an_endpoint_is_an_id(raw: str) -> None:
    with suppress(NotFound):
        answer = await ask(unquote(f"/v1/models/{raw}"), raw_path=f"/v1/models/{raw}".encode())
        found = answer.scope["path_params"]["id"]
        assert is_id(found)
        assert unquote(raw) == found
        assert "/" not in found


PATHS = sorted({row.path.replace("{id}", "x") for row in ENDPOINTS} | {"/health", "/health/live", "/health/ready"})


def spellings(path: str) -> list[str]:
    """Other ways to write a path, which one server or another takes for the same."""
    after = ("/", "//", "/.", "/..", "/x/..", ";", ";x=1", "%00", "%0a", "%0d%0a", "%20", "%2f", "%3f", "%23", "%3fx=1")
    found = [path + end for end in after] + [start + path for start in ("/", "/.", "/x/..", "/%2e", "/%2e%2e", "%2f")]
    found += [
        path.replace("/", slash) for slash in ("//", "/./", "%2f", "%2F", "\\", "%5c", "/%2e/", "%252f", "/x/../")
    ]
    found += [path.title(), path.upper(), path[:2] + path[2:].upper(), path[:-1], path[1:]]
    found += [path[:at] + f"%{ord(path[at]):02x}" + path[at + 1 :] for at in (1, 2, 4)]
    return [one for one in found if one not in PATHS]


@pytest.mark.parametrize("path", PATHS)
async def test_c1_a_path_has_one_spelling(path: str) -> None:
    for raw in spellings(path):
        with pytest.raises(NotFound) as caught:
            await ask(unquote(raw), raw_path=raw.encode())
        assert caught.value.code == "unknown_url"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        "/v1",
        "/v1/models/",
        "//v1/models",
        "/v1/models/a/b",
        "/v1/chat",
        "/V1/models",
        "/v1/batch/jobs",
        "/v1/foo",
    ],
)
async def test_c4_anything_else_is_not_there(path: str) -> None:
    with pytest.raises(NotFound) as caught:
        await ask(path)
    assert caught.value.code == "unknown_url"
    assert "/v1" in caught.value.message


@pytest.mark.parametrize(
    ("path", "method", "allow"),
    [("/v1/chat/completions", "GET", b"POST"), ("/v1/models", "POST", b"GET, HEAD"), ("/health", "PUT", b"GET, HEAD")],
)
async def test_c4_another_method(path: str, method: str, allow: bytes) -> None:
    with pytest.raises(MethodNotAllowed) as caught:
        await ask(path, method)
    assert caught.value.headers == [(b"allow", allow)]
    assert allow.decode() in caught.value.message


@pytest.mark.parametrize("prefix", sorted(UNSERVED))
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_what_only_openai_serves(prefix: str, method: str) -> None:
    for path in (prefix, f"{prefix}/x", f"{prefix}/x/y"):
        with pytest.raises(UnsupportedEndpoint) as caught:
            await ask(path, method)
        assert prefix in caught.value.message


@pytest.mark.parametrize("prefix", sorted(UNSERVED))
async def test_it_is_the_whole_word(prefix: str) -> None:
    with pytest.raises(NotFound) as caught:
        await ask(f"{prefix}-else")
    assert caught.value.code == "unknown_url"


@pytest.mark.parametrize("nearest", UNSERVED.values())
def test_the_nearest_thing_exists(nearest: str) -> None:
    found = re.match(r"(POST|GET) (/v1/\S+) ", nearest)
    assert found
    assert (found[1], found[2]) in {(row.method, row.path) for row in ENDPOINTS}


def test_nothing_that_is_served_is_said_to_be_unserved() -> None:
    assert not {row.path for row in ENDPOINTS} & set(UNSERVED)


@pytest.mark.parametrize("configured", [True, False])
async def test_health(configured: bool) -> None:
    answer = await ask("/health", configured=configured)
    assert answer.status == 200
    assert json.loads(answer.body) == {
        "status": "ok", "service": "mistral-proxy", "version": __version__, "mistral_configured": configured,
    }  # fmt: skip


async def test_while_it_drains_it_lives_and_is_not_ready() -> None:
    state = State()
    made = app(state)

    async def health(path: str) -> Answer:
        return await call(made, "GET", path, query_string=b"", root_path="")

    assert (await health("/health/ready")).status == 200
    state.draining = True
    ready = await health("/health/ready")
    assert (ready.status, ready.header("retry-after")) == (503, "5")
    assert (await health("/health/live")).status == 200
    assert json.loads((await health("/health")).body)["status"] == "draining"
