"""The door: at which address, under which name, on which path; and one answer for everybody who is sent away."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from tests.conftest import TEAM_KEY, Proxy
from tests.e2e.conftest import Stage
from tests.e2e.upstream import STREAM, event
from tests.e2e.wire import CHAT, ask, chat, connect, request, soon
from tests.programs import Program
from tests.upstream.scripted import Peer, Received, answer, chunk

MODELS = "/v1/models"

# Addresses.


def test_it_listens_on_the_loopback_unless_told_otherwise(proxy: Proxy) -> None:
    process = psutil.Process(proxy.program.process.pid)
    listening = [one.laddr.ip for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN]
    assert listening == ["127.0.0.1"]
    assert proxy.url.startswith("http://127.0.0.1:")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
@pytest.mark.parametrize("simulate", [False, True])
def test_without_teams_it_listens_nowhere_else(tmp_path: Path, host: str, simulate: bool) -> None:
    arguments = ["serve", "--host", host, "--port", "0", *(["--simulate"] if simulate else [])]
    program = Program(*arguments, env={"MISTRAL_API_KEY": "sk-mistral-0123456789"}, cwd=tmp_path)
    assert program.process.wait(20) == 2
    program.stop()
    assert not program.out
    [line] = program.err
    assert "at least one team" in line
    assert host in line


def test_with_a_team_it_may(tmp_path: Path) -> None:
    (tmp_path / "proxy.yaml").write_text('teams: {a: {keys: ["${TEAM_KEY}"]}}')
    program = Program(
        "serve", "--host", "0.0.0.0", "--port", "0", "--simulate", env={"TEAM_KEY": TEAM_KEY}, cwd=tmp_path
    )
    try:
        assert program.url().startswith("http://127.0.0.1:")  # an address to paste
        assert TEAM_KEY not in program.everything()
    finally:
        program.stop()


# Host.


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST:1", "127.0.0.1:8080", "[::1]:80"])
async def test_hosts_that_are_ours(proxy: Proxy, host: str) -> None:
    assert (await ask(proxy.url, request(host=host))).status == 200


@pytest.mark.parametrize(
    "host", ["example.org", "127.0.0.1.example.org", "localhost.", "0.0.0.0", "[::]", "127.0.0.2", "2130706433", "a:80"]
)
@pytest.mark.parametrize("target", ["/health", MODELS, "/nowhere"])
async def test_hosts_that_are_not(proxy: Proxy, host: str, target: str) -> None:
    """DNS rebinding: a web page whose name leads to this machine learns nothing, whatever it asks."""
    refused = await ask(proxy.url, request(target=target, host=host))
    assert (refused.status, refused.error()["code"]) == (421, "host_not_allowed")


@pytest.mark.parametrize(
    "hosts", [[], ["localhost", "localhost"], ["localhost", "evil"], ["local host"], ["a/b"], ["@a"]]
)
async def test_hosts_that_are_none(proxy: Proxy, hosts: list[str]) -> None:
    lines = "".join(f"host: {host}\r\n" for host in hosts)
    refused = await ask(proxy.url, f"GET /health HTTP/1.1\r\n{lines}\r\n".encode())
    assert (refused.status, refused.error()["type"]) == (400, "invalid_request_error")


# Paths and methods.


@pytest.mark.parametrize(
    "target",
    [
        "/", "/v1", "/v1/", "//v1/models", "/v1//models", "/v1/models/", "/v1/./models", "/v1/../v1/models",
        "/%2e%2e/v1/models", "/v1/%2e/models", "/v1/x/%2e%2e/models", "/v1%5cmodels", "/v1%2f/models", "/v1/models%20",
        "/v1/models%00", "/v1/models;x", "/v1/models;x=y", "/V1/models", "/v1/Models", "/v1/MODELS", "/v1/models%2f",
        "/v1/models/a/b", "/v1/models/openai/gpt-4o", "/v1/models/a%2fb", "/v1/models/..%2f..%2fadmin",
        "/v1/models/%2e%2e%2fadmin", "/v1/admin", "/v1/users", "/v1/connectors", "/v1/workflows", "/v1/observability",
        "/admin", "/metrics", "/health/", "/health/ready/", "/healthz", "/favicon.ico", "/docs", "/openapi.json",
        "/v1/chat/completions/", "/mistral/v1/chat/completions", "/_sim/calls", "/v1/models/x/", "/v1/embedding",
        "/%76%31/%6dodels/",
    ],
)  # fmt: skip
async def test_what_is_not_in_the_route_table_is_not_there(proxy: Proxy, target: str) -> None:
    for method, body in (("GET", b""), ("POST", b"{}")):
        refused = await ask(proxy.url, request(method, target, body))
        assert (refused.status, refused.error()["code"]) == (404, "unknown_url")
        assert refused.header("location") is None


@pytest.mark.parametrize(
    "target", ["/v1/models/%2e%2e", "/v1/models/..", "/v1/models/a..b", "/v1/models/%20", "/v1/models/%ff"]
)
async def test_an_id_is_a_name_and_no_way_up(proxy: Proxy, target: str) -> None:
    refused = await ask(proxy.url, request(target=target))
    assert (refused.status, refused.error()["param"]) == (400, "model")


@pytest.mark.parametrize("name", ["ft:open-mistral-7b:me:1", "a%3Fb", "a%23b", "a%25b", "a+b", "~a", "a%2525"])
async def test_an_id_goes_upstream_as_one_path_segment(stage: Stage, name: str) -> None:
    async def script(peer: Peer, received: Received) -> None:
        await peer.send(answer(b'{"id": "x", "object": "model"}'))

    async with stage.upstream(script) as seen:
        found = await ask(stage.url, request(target=f"/v1/models/{name}"))
    assert found.status == 200
    [received] = seen.requests
    method, target, version = received.line.split(" ")
    assert (method, version) == ("GET", "HTTP/1.1")
    assert target.startswith("/v1/models/")
    assert not set(target.removeprefix("/v1/models/")) & set("/?#;\\")


async def test_the_dot_is_no_name(stage: Stage) -> None:
    """Upstream, `/v1/models/.` would be `/v1/models/`: something else than what was allowed."""

    async def script(peer: Peer, received: Received) -> None:
        await peer.send(answer(b'{"id": "x", "object": "model"}'))

    async with stage.upstream(script) as seen:
        for target in ("/v1/models/.", "/v1/models/%2e"):
            refused = await ask(stage.url, request(target=target))
            assert (refused.status, refused.error()["param"]) == (400, "model")
    assert not seen.requests


@pytest.mark.parametrize(
    "target",
    [
        "/v1/responses",
        "/v1/completions",
        "/v1/moderations",
        "/v1/audio/speech",
        "/v1/images/generations",
        "/v1/files/x",
    ],
)
async def test_what_openai_has_and_we_have_not_names_what_is_near(proxy: Proxy, target: str) -> None:
    refused = await ask(proxy.url, request("POST", target, b"{}"))
    assert (refused.status, refused.error()["code"]) == (404, "unsupported_endpoint")
    assert "/v1/" in refused.error()["message"].partition("nearest")[2]


ALLOWED = {
    CHAT: "POST",
    "/v1/embeddings": "POST",
    MODELS: "GET, HEAD",
    "/v1/models/x": "GET, HEAD",
    "/health": "GET, HEAD",
    "/health/live": "GET, HEAD",
    "/health/ready": "GET, HEAD",
}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


@pytest.mark.parametrize(
    ("target", "method"),
    [(target, method) for target, allow in ALLOWED.items() for method in METHODS if method not in allow.split(", ")],
)
async def test_other_methods_are_told_which_ones_there_are(proxy: Proxy, target: str, method: str) -> None:
    async with connect(proxy.url) as client:
        await client.send(request(method, target))
        refused = await client.head()
        assert refused.status == 405
        assert refused.header("allow") == ALLOWED[target]
        if method != "HEAD":
            length = int(refused.header("content-length") or 0)
            refused.chunks.append(await soon(client.reader.readexactly(length)))
            assert refused.error()["code"] == "method_not_allowed"
        await client.send(request())  # nothing of a body that HEAD does not have stands in the way
        assert (await client.head()).status == 200


async def test_head_is_get_without_a_body(proxy: Proxy) -> None:
    for target in ("/health", MODELS):
        async with connect(proxy.url) as client:
            await client.send(request("HEAD", target))
            answered = await client.head()
            assert (answered.status, answered.header("content-type")) == (200, "application/json")
            await client.send(request())
            assert (await client.head()).status == 200


async def test_a_thousand_offers_to_upgrade_in_one_segment(proxy: Proxy) -> None:
    offer = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
    async with connect(proxy.url) as client:
        await client.send(offer * 1000)
        for _ in range(1000):
            assert (await client.answer()).status == 200


async def test_nothing_is_written_into_an_answer_under_way(stage: Stage) -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer, received: Received) -> None:
        await peer.send(STREAM + chunk(event("Hello")))
        await go_on.wait()

    async with stage.upstream(script), connect(stage.url) as client:
        await client.send(chat("x", stream=True))
        assert (await client.head()).status == 200
        assert await client.chunk() == event("Hello")
        await client.send(b"garbage\r\n\r\n")
        assert b"400" not in await client.end()
        go_on.set()
