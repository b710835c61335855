"""The route table: what is there, and the two ways of not being there."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from proxy import __version__
from proxy.core.errors import MethodNotAllowed, NotFound, UnsupportedEndpoint
from proxy.providers import PROVIDERS
from proxy.routes import UNSERVED, Health, http_error, routes
from tests.asgi import Answer, call, ok

ENDPOINTS = PROVIDERS["mistral"].endpoints


class End:
    """An ASGI application as the stages are, and no function: Starlette would take that for a view."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await ok(scope, receive, send)


class State:
    draining = False


def app(state: State | None = None, configured: bool = True) -> Starlette:
    health = Health(configured=configured, draining=lambda: bool(state and state.draining))
    made = Starlette(
        routes=routes([(row, End()) for row in ENDPOINTS], health), exception_handlers={HTTPException: http_error}
    )
    made.router.redirect_slashes = False
    return made


async def ask(path: str, method: str = "GET", **options: Any) -> Answer:
    return await call(app(**options), method, path, query_string=b"", root_path="")


@pytest.mark.parametrize("row", ENDPOINTS, ids=lambda row: row.operation)
async def test_every_endpoint_has_its_route(row: Any) -> None:
    answer = await ask(row.path.replace("{id}", "some-model"), row.method)
    assert answer.body == b"ok"
    assert answer.scope["route"].path == row.path


async def test_the_id_is_what_stands_in_the_path() -> None:
    answer = await ask("/v1/models/ft:open-mistral-7b:a?b")
    assert answer.scope["path_params"] == {"id": "ft:open-mistral-7b:a?b"}


@pytest.mark.parametrize(
    "path", ["/", "", "/v1", "/v1/models/", "//v1/models", "/v1/models/a/b", "/v1/chat", "/V1/models", "/v1/batch/jobs"]
)
async def test_anything_else_is_not_there(path: str) -> None:
    with pytest.raises(NotFound) as caught:
        await ask(path)
    assert caught.value.code == "unknown_url"
    assert "/v1" in caught.value.message


@pytest.mark.parametrize(
    ("path", "method", "allow"),
    [("/v1/chat/completions", "GET", b"POST"), ("/v1/models", "POST", b"GET, HEAD"), ("/health", "PUT", b"GET, HEAD")],
)
async def test_another_method(path: str, method: str, allow: bytes) -> None:
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
