"""What crosses the proxy besides bodies: a few named headers in each direction, and never a key."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from proxy import __version__
from tests.conftest import PROVIDER_KEY, TEAM_KEY, Proxy, Simulator, start_proxy
from tests.e2e.conftest import Stage
from tests.e2e.upstream import DONE, JSON, Reply, completion, event
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
    "tracestate": "client=1", "baggage": "client=1",
}  # fmt: skip

ALWAYS = {
    "accept-encoding": "identity",
    "user-agent": f"mistral-proxy/{__version__}",
    "authorization": f"Bearer {PROVIDER_KEY}",
    "traceparent": "ours",
}

_OURS = re.compile(r"\A00-[0-9a-f]{32}-[0-9a-f]{16}-02\Z")


async def sent(stage: Stage, data: bytes, reply: bytes) -> Received:
    async def script(peer: Peer, received: Received) -> None:
        await peer.send(reply)

    async with stage.upstream(script) as seen:
        assert (await ask(stage.url, data)).status == 200
    [received] = seen.requests
    return received


def headers_of(received: Received) -> list[tuple[str, str]]:
    """In order; of the one header that is another each time there is only its name."""
    found = sorted((name.lower(), value) for name, value in received.headers)
    return [(name, _OURS.sub("ours", value) if name == "traceparent" else value) for name, value in found]


@pytest.mark.parametrize("stream", [False, True])
async def test_c6_a_chat_request_goes_up_with_these_headers_and_no_others(stage: Stage, stream: bool) -> None:
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
    assert headers_of(received) == sorted(expected.items())
    assert TEAM_KEY.encode() not in received.body


@pytest.mark.parametrize(
    ("target", "reply"), [("/v1/models", b'{"data": []}'), ("/v1/models/x", b'{"id": "x", "object": "model"}')]
)
async def test_c6_a_get_goes_up_with_these_headers_and_no_others(stage: Stage, target: str, reply: bytes) -> None:
    received = await sent(stage, request("GET", target + "?key=client", b"", **OF_THE_CLIENT), answer(reply, JSON))
    expected = ALWAYS | {"host": f"127.0.0.1:{stage.held.getsockname()[1]}", "accept": "application/json"}
    assert received.line == f"GET {target} HTTP/1.1"
    assert headers_of(received) == sorted(expected.items())


async def test_what_goes_up_is_written_anew(stage: Stage) -> None:
    says = b'[{"role":"user","content":"\\u0041\\ud83d\\udc4d"}]'
    body = b'{"model":"mistral-small-latest", "messages": %b}' % says
    received = await sent(stage, request("POST", CHAT, body), completion())
    assert json.loads(received.body) == {"model": MODEL, "messages": [{"role": "user", "content": "A👍"}]}


NAMED = (
    "authorization, host, content-length, content-type, x-request-id, accept, user-agent, connection, x-client, close"
)
HOP_BY_HOP = {
    "te": "trailers, gzip", "trailer": "x-client", "keep_alive": "timeout=5, max=1", "proxy_connection": "keep-alive",
    "proxy_authorization": "Basic client", "proxy_authenticate": "Basic", "x_client": "client",
}  # fmt: skip


@pytest.mark.parametrize("connection", [NAMED, "keep-alive, " + NAMED, "AUTHORIZATION", "keep-alive"])
async def test_c15_what_a_client_names_in_connection_takes_nothing_away(stage: Stage, connection: str) -> None:
    data = chat(headers=HOP_BY_HOP | {"connection": connection, "x_request_id": "mine-1"})
    received = await sent(stage, data, completion())
    names = [name.lower() for name, _ in received.headers]
    assert sorted(names) == sorted([*ALWAYS, "host", "accept", "content-type", "content-length"])
    assert received.header("authorization") == f"Bearer {PROVIDER_KEY}"


async def test_c15_what_the_upstream_names_in_connection_takes_nothing_away(stage: Stage) -> None:
    hops = (
        b"connection: content-type, x-request-id, content-length, mistral-correlation-id, x-other\r\n"
        b"keep-alive: timeout=5\r\n"
        b"proxy-authenticate: Basic\r\nproxy-authorization: Basic x\r\nte: trailers\r\ntrailer: x-other\r\n"
        b"proxy-connection: close\r\nx-other: 1\r\nmistral-correlation-id: correlation-1\r\n"
    )
    body = completion().partition(b"\r\n\r\n")[2]

    async def script(peer: Peer, received: Received) -> None:
        await peer.send(answer(body, JSON + hops))

    async with stage.upstream(script):
        found = await ask(stage.url, chat())
    check(found, OURS | {"content-length"})


def lines(*fields: bytes, method: bytes = b"GET", target: bytes = b"/v1/models", body: bytes = b"") -> bytes:
    """A request with these header lines as they are."""
    length = [b"content-type: application/json", b"content-length: %d" % len(body)] if body else []
    head = [b"%b %b HTTP/1.1" % (method, target), b"host: localhost", *length, *fields]
    return b"\r\n".join([*head, b"", b""]) + body


KEY = b"authorization: Bearer " + TEAM_KEY.encode()


@pytest.mark.parametrize(
    "fields",
    [
        [KEY, KEY],
        [KEY, b"Authorization: Bearer wrong"],
        [b"AUTHORIZATION: Bearer wrong", KEY],
        [KEY, b"authorization:"],
        [KEY, b"authorization: Basic eDp5"],
    ],
)
async def test_c7_two_authorizations_are_refused(stage: Stage, fields: list[bytes]) -> None:
    refused = await ask(stage.url, lines(*fields))
    assert (refused.status, refused.error()["code"]) == (400, "bad_framing")


TEAM = TEAM_KEY.encode()
ODD = [
    b"Basic " + TEAM, TEAM, b"Bearer", b"Bearer ", b"", b"Bearer\t" + TEAM, b"Bearer \t" + TEAM, b"Bearer \xe9\xff",
    b"Bearer " + b"x" * 20_000, b"Bearer " + TEAM + b"\xe9", b"Bearer " + TEAM + b" x", b"Bearer Bearer " + TEAM,
    b"Bearer: " + TEAM, b'Bearer "' + TEAM + b'"', b"Bearer " + TEAM.upper(), b"Bearer ' OR 1=1 --", b"Digest x=y",
]  # fmt: skip


async def test_c7_c12_anything_but_a_key_is_one_and_the_same_401(stage: Stage) -> None:
    absent = await ask(stage.url, lines())
    assert (absent.status, absent.error()["code"], absent.header("www-authenticate")) == (
        401,
        "invalid_api_key",
        "Bearer",
    )
    for value in ODD:
        refused = await ask(stage.url, lines(b"authorization: " + value))
        assert (refused.status, refused.body) == (401, absent.body), value[:40]


@pytest.mark.parametrize("value", [b"bearer %b", b"BEARER %b", b"Bearer   %b  ", b"Bearer %b\t", b"\tBearer %b"])
async def test_c7_the_scheme_is_written_in_any_case(stage: Stage, value: bytes) -> None:
    async def script(peer: Peer, received: Received) -> None:
        await peer.send(answer(b'{"data": []}', JSON))

    async with stage.upstream(script):
        assert (await ask(stage.url, lines(b"authorization: " + value % TEAM_KEY.encode()))).status == 200


async def test_c16_headers_with_an_underscore_do_nothing(stage: Stage) -> None:
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "x"}]}).encode()
    odd = [
        b"content_length: 1", b"Content_Type: text/plain", b"x_request_id: mine", b"transfer_encoding: chunked",
        b"content_encoding: gzip", b"x_proxy_translation: neither", b"x_forwarded_for: 203.0.113.9", b"_: _",
    ]  # fmt: skip
    data = lines(KEY, *odd, method=b"POST", target=CHAT.encode(), body=body)

    async def script(peer: Peer, received: Received) -> None:
        await peer.send(completion())

    async with stage.upstream(script) as seen:
        found = await ask(stage.url, data)
    assert (found.status, found.header("x-request-id") == "mine") == (200, False)
    assert not [name for received in seen.requests for name, _ in received.headers if "_" in name]
    assert (
        await ask(stage.url, lines(b"authorization_: x", KEY.replace(b"authorization", b"author_ization")))
    ).status == 401


ODD_VALUES = [
    b"a\x0bset-cookie: x",
    b"caf\xe9",
    b"\xff\xfe",
    b"\x1b[31m",
    b"a b",
    b"x" * 129,
    b"${jndi:ldap://x}",
    b"%s",
    b'"',
    b"a,b",
]


@pytest.mark.parametrize("value", ODD_VALUES)
async def test_c14_no_value_of_the_clients_makes_a_header(stage: Stage, value: bytes) -> None:
    """Of all that a client can say only a request id of a narrow alphabet is repeated, and nothing goes up."""

    async def script(peer: Peer, received: Received) -> None:
        await peer.send(answer(b'{"data": []}', JSON))

    names = (b"x-request-id", b"user-agent", b"traceparent", b"openai-organization")
    async with stage.upstream(script) as seen:
        found = await ask(stage.url, lines(KEY, *(name + b": " + value for name in names)))
    # The decision has quotation marks of its own.
    assert value.decode("latin-1") not in re.sub(r'="([\w/-]+)"', r"=\1", str(found.headers))
    if seen.requests:  # control characters are no HTTP, and refused as that
        assert found.status == 200
        assert re.fullmatch("[0-9a-f]{32}", found.header("x-request-id") or "")
        assert value.decode("latin-1") not in str(seen.requests[0].headers)
    else:
        assert found.status == 400


NAMES = ["a\r\nset-cookie: x=1", "a\nb", "a\0", "caf\xe9", "\u2028", "\U0001f600", "x" * 5000, "a; b", " x "]


@pytest.mark.parametrize("name", NAMES)
async def test_c14_no_name_in_a_body_makes_a_header(stage: Stage, name: str) -> None:
    field: dict[str, Any] = {name: 1}

    async def script(peer: Peer, received: Received) -> None:
        await peer.send(completion())

    async with stage.upstream(script) as seen:
        found = await ask(stage.url, chat(**field))
        refused = await ask(stage.url, chat(model=name))
        strict = await ask(stage.url, chat(headers={"x_proxy_translation": "strict"}, **field))
    assert (found.header("x-proxy-rewrites"), refused.status, strict.status) == ("drop:?", 400, 400)
    for answered in (found, refused, strict):
        assert {key for key, _ in answered.headers} <= OURS | {"content-length", "x-proxy-rewrites", "cache-control"}
    assert len(seen.requests) == 1


async def test_c14_no_value_of_the_upstreams_makes_a_header(stage: Stage) -> None:
    body = completion().partition(b"\r\n\r\n")[2]

    async def script(peer: Peer, received: Received) -> None:
        await peer.send(
            answer(body, JSON + b"mistral-correlation-id: " + received.body[-1:] + b"a\xe9 b\tc" + b"d" * 500 + b"\r\n")
        )

    async with stage.upstream(script):
        found = await ask(stage.url, chat())
    named = found.header("x-upstream-request-id")
    assert named is None or re.fullmatch("[!-~]{1,128}", named)


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

STREAMED = {"date", "content-type", "x-request-id", "x-proxy-upstream", "x-proxy-attempts", "x-proxy-cache"}
STREAMED |= {"x-upstream-request-id", "x-proxy-decision", "server-timing"}
OURS = STREAMED | {"x-proxy-cost-usd"}


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


async def test_c17_an_answer_comes_back_with_these_headers_and_no_others(stage: Stage) -> None:
    body = completion(KEY_IN_TEXT).partition(b"\r\n\r\n")[2]
    async with stage.upstream(with_headers(b"200 OK", b"application/json", body)):
        found = await ask(stage.url, chat())
    check(found, OURS | {"content-length"})
    assert found.json()["choices"][0]["message"]["content"] == "Hello Bearer ***, and again: ***"


async def test_c17_a_stream_comes_back_with_these_headers_and_no_others(stage: Stage) -> None:
    body = event(KEY_IN_TEXT) + event("", "stop") + DONE
    async with stage.upstream(with_headers(b"200 OK", b"text/event-stream", body)):
        found = await ask(stage.url, chat(stream=True))
    check(found, STREAMED | {"transfer-encoding", "cache-control", "x-accel-buffering"})
    assert b"Hello Bearer ***, and again: ***" in found.body


@pytest.mark.parametrize(
    "status", [301, 400, 401, 402, 403, 404, 408, 409, 413, 418, 422, 429, 500, 502, 503, 504, 529, 599]
)
@pytest.mark.parametrize("body", [json.dumps({"message": KEY_IN_TEXT, "code": 1}).encode(), KEY_IN_TEXT.encode(), b""])
async def test_c17_an_error_comes_back_with_these_headers_and_no_others(stage: Stage, status: int, body: bytes) -> None:
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
async def test_c8_the_simulator_repeats_the_key_and_the_proxy_does_not(proxy: Proxy, fault: str, stream: bool) -> None:
    found = await ask(proxy.url, chat(stream=stream, model=f"{MODEL}+echo_auth{fault}"))
    everything = str(found.headers) + found.body.decode()
    assert PROVIDER_KEY not in everything
    assert TEAM_KEY not in everything


async def test_c8_the_simulator_does_repeat_it(simulator: Simulator) -> None:
    """Or the test above would show nothing."""
    key = "Bearer key-that-comes-back"
    found = await ask(simulator.url, chat(model=f"{MODEL}+echo_auth", headers={"authorization": key}))
    assert key in found.json()["choices"][0]["message"]["content"]
    assert found.header("x-echo-authorization") == key


ORIGIN = "https://chat.example.com"
BEHIND = """
server: {{port: 0, cors_origins: ["https://chat.example.com"], trusted_proxies: [127.0.0.0/8, 10.0.0.0/8]}}
providers: {{mistral: {{base_url: "{simulator}", api_keys: ["${{PROVIDER_KEY}}"]}}}}
teams: {{research: {{keys: ["${{TEAM_KEY}}"]}}}}
"""


@pytest.fixture(scope="module")
def behind(simulator: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy that pages of one origin may call, and in front of which another proxy stands."""
    running = start_proxy(tmp_path_factory.mktemp("behind"), simulator.url, config=BEHIND)
    yield running
    running.program.stop()


def of_cors(answered: Answer) -> set[str]:
    return {name for name, _ in answered.headers if name.startswith("access-control-") or name == "vary"}


async def preflight(proxy: Proxy, origin: str) -> Answer:
    names = "authorization,content-type,x-stainless-os"
    asked: dict[str, Any] = {"access_control_request_method": "POST", "access_control_request_headers": names}
    return await ask(proxy.url, request("OPTIONS", CHAT, origin=origin, authorization="", **asked))


async def test_c18_by_default_there_is_not_a_word_of_cors(proxy: Proxy) -> None:
    for origin in (ORIGIN, "null", "http://127.0.0.1"):
        refused = await preflight(proxy, origin)
        assert (refused.status, of_cors(refused)) == (405, set())
        answered = await ask(proxy.url, chat(headers={"origin": origin}))
        assert (answered.status, of_cors(answered)) == (200, set())


async def test_c18_a_listed_page_gets_its_answers(behind: Proxy) -> None:
    allowed = await preflight(behind, ORIGIN)
    assert (allowed.status, allowed.body, allowed.header("access-control-allow-origin")) == (204, b"", ORIGIN)
    assert allowed.header("access-control-allow-headers") == "authorization,content-type,x-stainless-os"
    assert allowed.header("x-request-id")
    for data, status in (
        (chat(headers={"origin": ORIGIN}), 200),
        (chat(headers={"origin": ORIGIN}, stream=True), 200),
        (chat(headers={"origin": ORIGIN, "authorization": "Bearer wrong"}), 401),
        (chat(headers={"origin": ORIGIN}, model="no such"), 400),
        (request("POST", CHAT, b"{", origin=ORIGIN), 400),
        (request(target="/nowhere", origin=ORIGIN), 404),
        (request("OPTIONS", CHAT, origin=ORIGIN), 405),
        (request(host="evil.example", origin=ORIGIN), 421),
    ):
        answered = await ask(behind.url, data)
        assert (answered.status, answered.header("access-control-allow-origin")) == (status, ORIGIN)
        assert answered.header("vary") == "origin"
        assert "x-request-id" in (answered.header("access-control-expose-headers") or "")


@pytest.mark.parametrize("origin", ["null", "https://evil.example", ORIGIN + ".evil.example", ORIGIN + ":443", "*"])
async def test_c18_another_page_gets_none(behind: Proxy, origin: str) -> None:
    refused = await preflight(behind, origin)
    assert (refused.status, of_cors(refused)) == (405, {"vary"})
    assert of_cors(await ask(behind.url, chat(headers={"origin": origin}))) == {"vary"}


async def client_of(proxy: Proxy, said: str) -> object:
    answered = await ask(proxy.url, request(target="/nowhere", x_forwarded_for=said))
    line = await asyncio.to_thread(proxy.program.line, request_id=answered.header("x-request-id"))
    return line["client"]


async def test_a24_behind_a_trusted_proxy_the_client_is_the_one_it_names(behind: Proxy) -> None:
    assert await client_of(behind, "198.51.100.1, 203.0.113.9, 10.0.0.7") == "203.0.113.9"
    assert await client_of(behind, "") == "127.0.0.1"
    assert await client_of(behind, "203.0.113.9, nonsense") == "127.0.0.1"


async def test_a24_nobody_else_may_say_who_the_client_is(proxy: Proxy) -> None:
    assert await client_of(proxy, "203.0.113.9") == "127.0.0.1"


async def test_what_is_simulated_says_so(tmp_path: Any) -> None:
    program = Program("serve", "--simulate", "--port", "0", env={"XDG_STATE_HOME": str(tmp_path)}, cwd=tmp_path)
    try:
        url = program.url()
        for data in (request(), request(target="/nowhere"), chat()):
            assert (await ask(url, data)).header("x-proxy-simulated") == "true"
        assert any("SIMULATED" in line for line in program.out)
    finally:
        program.stop()
