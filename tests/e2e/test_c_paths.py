"""Paths and methods: what is in the route table, written as it is there, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Proxy
from tests.e2e.conftest import Stage
from tests.e2e.upstream import JSON, Seen
from tests.e2e.wire import CHAT, Answer, ask, chat, connect, request, soon
from tests.test_routes import NO_IDS, PATHS, spellings
from tests.upstream.scripted import Peer, Received, answer

MODELS = "/v1/models"
EVIL = "evil.example"


async def a_model(peer: Peer, received: Received) -> None:
    await peer.send(answer(b'{"id": "x", "object": "model"}', JSON))


async def sent_away(stage: Stage, data: bytes) -> Answer:
    refused = await ask(stage.url, data)
    assert refused.status in (400, 404), data[:80]
    assert refused.error()["type"] == "invalid_request_error"
    assert refused.header("location") is None
    return refused


async def only(stage: Stage, seen: Seen, target: str) -> None:
    """The upstream has seen nothing, though it is there."""
    assert not seen.requests
    assert (await ask(stage.url, request(target=target))).status == 200
    assert [received.line for received in seen.requests] == [f"GET {target} HTTP/1.1"]


@pytest.mark.parametrize("path", PATHS)
async def test_c1_another_spelling_of_a_path_leads_nowhere(stage: Stage, path: str) -> None:
    """The exact path is the check: no front server's rule about a path can be gone round by writing it otherwise."""
    method, body = ("POST", b"{}") if path in (CHAT, "/v1/embeddings") else ("GET", b"")
    async with stage.upstream(a_model) as seen:
        for target in spellings(path):
            await sent_away(stage, request(method, target, body))
        await only(stage, seen, "/v1/models/x")


@pytest.mark.parametrize(
    "ids",
    [
        NO_IDS,
        ["..%2f..%2fmodels", "../../models", "%2e%2e/%2e%2e/models", "..%5c..%5cmodels", "..;/models", "x/../../admin"],
        [f"x%{code:02x}" for code in (*range(0x21), 0x7F, *range(0x80, 0x100, 16))],
    ],
)
async def test_c1_what_is_no_id_reaches_no_upstream(stage: Stage, ids: list[str]) -> None:
    async with stage.upstream(a_model) as seen:
        for one in ids:
            await sent_away(stage, request(target=f"{MODELS}/{one}"))
        await only(stage, seen, "/v1/models/x")


@pytest.mark.parametrize(
    "name", ["ft:open-mistral-7b:me:1", "ft%3Aopen-mistral-7b%3Ame%3A1", "a+b", "~a", "a@b", "%61.b"]
)
async def test_c1_an_id_goes_upstream_as_one_path_segment(stage: Stage, name: str) -> None:
    async with stage.upstream(a_model) as seen:
        assert (await ask(stage.url, request(target=f"{MODELS}/{name}"))).status == 200
    [received] = seen.requests
    method, target, version = received.line.split(" ")
    assert (method, version) == ("GET", "HTTP/1.1")
    assert target.startswith("/v1/models/")
    assert not set(target.removeprefix("/v1/models/")) & set("/?#;\\")


@pytest.mark.parametrize(
    "target",
    [
        "/v1/models#x", "/v1/models/x#", "/v1/models/x#/../y", "/v1/models/x\0", "/v1/models/\xff",
        "/v1/models/\xc3\xa9",
        "/v1/models/%00", "/v1/models/x%0d%0aGET%20/admin%20HTTP/1.1%0d%0a", "/v1/models/x%3fy", "/v1/models/x%23y",
        "/v1/models/%ff", "/v1/models/%e2%80%ae", "/v1/models/x%ef%bf%bd", "/v1/models/x\ty", "/v1/models/x\x7f",
    ],
)  # fmt: skip
async def test_c2_bytes_that_are_no_path(stage: Stage, target: str) -> None:
    async with stage.upstream(a_model) as seen:
        await sent_away(stage, request(target=target))
        await only(stage, seen, "/v1/models/x")


async def test_c2_a_query_is_no_part_of_the_id_and_goes_nowhere(stage: Stage) -> None:
    async with stage.upstream(a_model) as seen:
        assert (await ask(stage.url, request(target="/v1/models/x?/../y%00"))).status == 200
    assert [received.line for received in seen.requests] == ["GET /v1/models/x HTTP/1.1"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("end", ["/", "//", "/?x=1", "/.", "/%2f"])
async def test_c3_a_slash_at_the_end_is_no_redirect(stage: Stage, path: str, end: str) -> None:
    """A redirect would be made of the client's Host, and carry its key there."""
    async with stage.upstream(a_model) as seen:
        for host in ("127.0.0.1", EVIL):
            for method in ("GET", "POST"):
                refused = await ask(stage.url, request(method, path + end, host=host))
                assert refused.status == (421 if host == EVIL else 404)
                assert refused.error()
                assert EVIL not in str(refused)
                assert refused.header("location") is None
    assert not seen.requests


UNKNOWN = [
    "/", "/v1", "/v1/", "/v1/foo", "/v1/admin", "/v1/users", "/v1/connectors", "/v1/workflows", "/v1/observability",
    "/v1/models/openai/gpt-4o", "/health/x", "/healthz", "/favicon.ico", "/mistral/v1/chat/completions", "/_sim/calls",
    "/v1/embedding", "/v2/models", "/models", "/chat/completions", "/robots.txt", "/.env", "/.git/config",
]  # fmt: skip
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")


async def headed(stage: Stage, method: str, target: str) -> Answer:
    """The answer to any method, the one that has no body too; the connection is good afterwards."""
    async with connect(stage.url) as client:
        await client.send(request(method, target))
        answered = await client.head()
        if method != "HEAD":
            length = int(answered.header("content-length") or 0)
            answered.chunks.append(await soon(client.reader.readexactly(length)))
        await client.send(request())
        assert (await client.answer()).status == 200
    return answered


@pytest.mark.parametrize("method", METHODS)
async def test_c4_what_is_not_in_the_route_table_is_not_there(stage: Stage, method: str) -> None:
    async with stage.upstream(a_model) as seen:
        for target in UNKNOWN:
            refused = await headed(stage, method, target)
            assert refused.status == 404
            assert method == "HEAD" or refused.error()["code"] == "unknown_url"
            assert refused.header("cache-control") == "no-store"
    assert not seen.requests


ALLOWED = {path: "POST" if path in (CHAT, "/v1/embeddings") else "GET, HEAD" for path in PATHS}


@pytest.mark.parametrize(
    ("target", "method"),
    [(target, method) for target, allow in ALLOWED.items() for method in METHODS if method not in allow.split(", ")],
)
async def test_c4_other_methods_are_told_which_ones_there_are(stage: Stage, target: str, method: str) -> None:
    async with stage.upstream(a_model) as seen:
        refused = await headed(stage, method, target)
        assert (refused.status, refused.header("allow")) == (405, ALLOWED[target])
        assert method == "HEAD" or refused.error()["code"] == "method_not_allowed"
    assert not seen.requests


async def test_c4_nothing_of_a_trace_comes_back(stage: Stage) -> None:
    refused = await headed(stage, "TRACE", "/v1/models")
    assert b"authorization" not in refused.body.lower()


async def test_c4_head_is_get_without_a_body(proxy: Proxy) -> None:
    for target in ("/health", MODELS):
        async with connect(proxy.url) as client:
            await client.send(request("HEAD", target))
            answered = await client.head()
            assert (answered.status, answered.header("content-type")) == (200, "application/json")
            await client.send(request())
            assert (await client.head()).status == 200


@pytest.mark.parametrize(
    "target",
    [
        "/v1/responses",
        "/v1/completions",
        "/v1/moderations",
        "/v1/audio/speech",
        "/v1/images/generations",
        "/v1/files/x",
        "/v1/files/..%2f..%2fmodels",
    ],
)
async def test_c4_what_openai_has_and_we_have_not_names_what_is_near(stage: Stage, target: str) -> None:
    refused = await sent_away(stage, request("POST", target, b"{}"))
    assert (refused.status, refused.error()["code"]) == (404, "unsupported_endpoint")
    assert "/v1/" in refused.error()["message"].partition("nearest")[2]


INSIDE = [
    "/metrics/", "/admin", "/admin/", "/admin/keys", "/admin/config", "/config", "/docs", "/redoc", "/openapi.json",
    "/v1/openapi.json", "/debug", "/debug/pprof", "/server-status", "/console", "/v1/keys", "/v1/usage", "/status",
]  # fmt: skip


@pytest.mark.parametrize("key", [{}, {"authorization": ""}, {"authorization": "Bearer wrong"}])
async def test_c21_nothing_of_the_inside_has_an_address(stage: Stage, key: Any) -> None:
    for target in INSIDE:
        for method in ("GET", "POST"):
            refused = await ask(stage.url, request(method, target, **key))
            assert (refused.status, refused.error()["code"]) == (404, "unknown_url")


@pytest.mark.parametrize("key", [{}, {"authorization": ""}, {"authorization": "Bearer wrong"}])
async def test_c21_metrics_are_for_whoever_is_on_the_machine(stage: Stage, key: Any) -> None:
    assert (await ask(stage.url, request("GET", "/metrics", **key))).status == 200
    for through in ("x_forwarded_for", "forwarded", "via", "x_real_ip"):
        refused = await ask(stage.url, request("GET", "/metrics", **(key | {through: "127.0.0.1"})))
        assert (refused.status, refused.error()["code"]) == (401, "invalid_api_key")


async def test_c3_the_chat_goes_on(stage: Stage) -> None:
    """Or the tests above would show nothing."""
    async with stage.upstream(a_model) as seen:
        await ask(stage.url, chat())
    assert len(seen.requests) == 1
