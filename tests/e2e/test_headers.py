"""What crosses the proxy besides bodies: a few named headers in each direction, and never a key."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy import __version__
from tests.conftest import PROVIDER_KEY, TEAM_KEY, Proxy, Simulator
from tests.e2e.conftest import Stage
from tests.e2e.upstream import DONE, Reply, completion, event
from tests.e2e.wire import CHAT, Answer, ask, chat, request
from tests.programs import Program
from tests.upstream.scripted import Peer, Received, answer, chunk

MODEL = "mistral-small-latest"

# Requests.

OF_THE_CLIENT = {
    "cookie": "session=client-secret", "user_agent": "client-agent", "accept": "client/accept",
    "accept_encoding": "gzip, br", "openai_organization": "client-org", "openai_project": "client-project",
    "x_stainless_lang": "client-python", "x_forwarded_for": "203.0.113.9", "x_real_ip": "203.0.113.9",
    "forwarded": "for=client", "origin": "https://client.example", "referer": "https://client.example",
    "x_request_id": "client-id", "traceparent": "00-client", "x_api_key": "client-key", "x_sim_fault": "status=500",
    "proxy_authorization": "Basic client", "te": "trailers", "via": "client", "priority": "u=1",
    "idempotency_key": "client-key", "range": "bytes=0-1", "if_none_match": "client", "x_client": "client",
    "connection": "keep-alive, x-client", "x_proxy_translation": "lenient", "keep_alive": "timeout=5",
}  # fmt: skip

ALWAYS = {
    "accept-encoding": "identity",
    "user-agent": f"mistral-proxy/{__version__}",
    "authorization": f"Bearer {PROVIDER_KEY}",
}


async def sent(stage: Stage, data: bytes, reply: bytes) -> Received:
    async def script(peer: Peer, received: Received) -> None:
        await peer.send(reply)

    async with stage.upstream(script) as seen:
        assert (await ask(stage.url, data)).status == 200
    [received] = seen.requests
    return received


@pytest.mark.parametrize("stream", [False, True])
async def test_a_chat_request_goes_up_with_these_headers_and_no_others(stage: Stage, stream: bool) -> None:
    events = event("", "stop") + DONE
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    reply = answer(events, head) if stream else completion()
    received = await sent(stage, chat("x", stream, headers=OF_THE_CLIENT), reply)
    expected = ALWAYS | {
        "host": stage.held.getsockname()[0] + f":{stage.held.getsockname()[1]}",
        "accept": "text/event-stream" if stream else "application/json",
        "content-type": "application/json",
        "content-length": str(len(received.body)),
    }
    assert received.line == f"POST {CHAT} HTTP/1.1"
    assert sorted((name.lower(), value) for name, value in received.headers) == sorted(expected.items())
    assert TEAM_KEY.encode() not in received.body


@pytest.mark.parametrize(
    ("target", "reply"), [("/v1/models", b'{"data": []}'), ("/v1/models/x", b'{"id": "x", "object": "model"}')]
)
async def test_a_get_goes_up_with_these_headers_and_no_others(stage: Stage, target: str, reply: bytes) -> None:
    received = await sent(stage, request("GET", target + "?key=client", b"", **OF_THE_CLIENT), answer(reply))
    expected = ALWAYS | {"host": f"127.0.0.1:{stage.held.getsockname()[1]}", "accept": "application/json"}
    assert received.line == f"GET {target} HTTP/1.1"
    assert sorted((name.lower(), value) for name, value in received.headers) == sorted(expected.items())


async def test_what_goes_up_is_the_body_that_was_checked(stage: Stage) -> None:
    """Read once, written anew: two readers of one body cannot differ about a key given twice."""
    says = b'[{"role":"user","content":"\\u0041\\ud83d\\udc4d"}]'
    doubled = b'{"model": "a", "model":"mistral-small-latest", "messages": %b}' % says
    received = await sent(stage, request("POST", CHAT, doubled), completion())
    assert json.loads(received.body) == {"model": MODEL, "messages": [{"role": "user", "content": "A👍"}]}
    assert received.body.count(b'"model"') == 1


# Answers.

OF_THE_PROVIDER = (
    b"set-cookie: __cf_bm=provider-cookie; path=/\r\nserver: cloudflare\r\nx-powered-by: kong\r\ncf-ray: 1-CDG\r\n"
    b"x-ratelimit-limit-req-minute: 60\r\nx-ratelimit-remaining-req-minute: 59\r\nx-ratelimitbysize-limit-minute: 1\r\n"
    b"access-control-allow-origin: *\r\naccess-control-expose-headers: x\r\nalt-svc: h3=\":443\"\r\nvia: kong/3\r\n"
    b"x-kong-request-id: 1\r\nx-envoy-upstream-service-time: 3\r\nstrict-transport-security: max-age=1\r\nnel: {}\r\n"
    b"date: Thu, 01 Jan 1970 00:00:00 GMT\r\nlocation: https://elsewhere.example\r\nwww-authenticate: provider\r\n"
    b"content-encoding: identity\r\netag: provider\r\ncache-control: public\r\nx-request-id: provider\r\nage: 9\r\n"
    b"x-echo: Bearer %b\r\nauthorization: Bearer %b\r\nmistral-correlation-id: correlation-1\r\nx-other: 1\r\n"
    b"x-proxy-upstream: provider\r\nx-should-retry: provider\r\nretry-after: 7\r\nopenai-organization: provider\r\n"
) % (PROVIDER_KEY.encode(), PROVIDER_KEY.encode())  # fmt: skip

OURS = {"date", "content-type", "x-request-id", "x-proxy-upstream", "x-proxy-attempts", "x-upstream-request-id"}


def with_headers(status: bytes, kind: bytes, body: bytes) -> Reply:
    """An answer with all of the provider's headers."""

    async def reply(peer: Peer, received: Received) -> None:
        head = b"HTTP/1.1 %b\r\ncontent-type: %b\r\n%b" % (status, kind, OF_THE_PROVIDER)
        if kind == b"text/event-stream":
            await peer.send(head + b"transfer-encoding: chunked\r\n\r\n" + chunk(body) + chunk(b""))
        else:
            await peer.send(answer(body, head))

    return reply


def check(found: Answer, names: set[str]) -> None:
    assert {name for name, _ in found.headers} == names
    assert len(found.headers) == len(names)
    assert found.header("x-upstream-request-id") == "correlation-1"
    assert (found.header("date") or "").endswith("GMT")
    assert "1970" not in (found.header("date") or "")
    everything = str(found.headers) + found.body.decode()
    assert PROVIDER_KEY not in everything
    assert "provider-cookie" not in everything


KEY_IN_TEXT = f"Hello Bearer {PROVIDER_KEY}, and again: {PROVIDER_KEY}"


async def test_an_answer_comes_back_with_these_headers_and_no_others(stage: Stage) -> None:
    body = completion(KEY_IN_TEXT).partition(b"\r\n\r\n")[2]
    async with stage.upstream(with_headers(b"200 OK", b"application/json", body)):
        found = await ask(stage.url, chat())
    check(found, OURS | {"content-length"})
    assert found.json()["choices"][0]["message"]["content"] == "Hello Bearer ***, and again: ***"


async def test_a_stream_comes_back_with_these_headers_and_no_others(stage: Stage) -> None:
    body = event(KEY_IN_TEXT) + event("", "stop") + DONE
    async with stage.upstream(with_headers(b"200 OK", b"text/event-stream", body)):
        found = await ask(stage.url, chat(stream=True))
    check(found, OURS | {"transfer-encoding", "cache-control", "x-accel-buffering"})
    assert b"Hello Bearer ***, and again: ***" in found.body


@pytest.mark.parametrize(
    "status", [301, 400, 401, 402, 403, 404, 408, 409, 413, 418, 422, 429, 500, 502, 503, 504, 529, 599]
)
@pytest.mark.parametrize("body", [json.dumps({"message": KEY_IN_TEXT, "code": 1}).encode(), KEY_IN_TEXT.encode(), b""])
async def test_an_error_comes_back_with_these_headers_and_no_others(stage: Stage, status: int, body: bytes) -> None:
    async with stage.upstream(with_headers(b"%d Oh" % status, b"application/json", body)):
        found = await ask(stage.url, chat())
    advice = {"retry-after", "retry-after-ms", "x-should-retry"} & {name for name, _ in found.headers}
    check(found, OURS | {"content-length", "cache-control"} | advice)
    assert found.header("x-should-retry") in (None, "true", "false")
    assert found.header("cache-control") == "no-store"
    assert found.error()["upstream"]["status"] == status
    assert found.status not in (200, 301, 422)


@pytest.mark.parametrize(
    "fault", ["", "+status=400", "+status=401", "+status=422", "+status=429", "+status=500", "+words=3"]
)
@pytest.mark.parametrize("stream", [False, True])
async def test_the_simulator_repeats_the_key_and_the_proxy_does_not(proxy: Proxy, fault: str, stream: bool) -> None:
    found = await ask(proxy.url, chat(stream=stream, model=f"{MODEL}+echo_auth{fault}"))
    everything = str(found.headers) + found.body.decode()
    assert PROVIDER_KEY not in everything
    assert TEAM_KEY not in everything


async def test_the_simulator_does_repeat_it(simulator: Simulator) -> None:
    """Or the test above would show nothing."""
    key = "Bearer key-that-comes-back"
    found = await ask(simulator.url, chat(model=f"{MODEL}+echo_auth", headers={"authorization": key}))
    assert key in found.json()["choices"][0]["message"]["content"]
    assert found.header("x-echo-authorization") == key


async def test_what_is_simulated_says_so(tmp_path: Any) -> None:
    program = Program("serve", "--simulate", "--port", "0", env={"XDG_STATE_HOME": str(tmp_path)}, cwd=tmp_path)
    try:
        url = program.url()
        for data in (request(), request(target="/nowhere"), chat()):
            assert (await ask(url, data)).header("x-proxy-simulated") == "true"
        assert any("SIMULATED" in line for line in program.out)
    finally:
        program.stop()
