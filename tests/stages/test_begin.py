from __future__ import annotations

import re
from collections.abc import Awaitable
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from proxy import data
from proxy.core.exchange import exchange_of
from proxy.core.model import is_id
from proxy.core.redact import Redactor
from proxy.core.secret import Secret
from proxy.core.sent import SENT
from proxy.stages import begin
from tests.asgi import call, ok, services

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def stage(app=ok, trusted=(), sample=0.0, **options):
    return begin.build(trusted, services(**options), sample=sample)(app)


@pytest.mark.parametrize("valid", [b"abc", b"A-1_b.c", b"x" * 128])
async def test_l5_a_valid_request_id_is_kept(valid: bytes) -> None:
    answer = await call(stage(), headers=[(b"x-request-id", valid)])
    assert answer.header("x-request-id") == valid.decode()
    assert is_id(valid.decode())  # whoever has it can ask what became of it


@pytest.mark.parametrize(
    "invalid", [b"", b"x" * 129, b"a b", b"a\r\nset-cookie: x", b"caf\xe9", b'"', b"a/b", b"..", b"a..b", b"-"]
)
async def test_l5_any_other_request_id_is_replaced(invalid: bytes) -> None:
    first = await call(stage(), headers=[(b"x-request-id", invalid)])
    second = await call(stage(), headers=[(b"x-request-id", invalid)])
    assert re.fullmatch(r"[0-9a-f]{32}", first.header("x-request-id") or "")
    assert first.header("x-request-id") != second.header("x-request-id")


async def test_the_trace_of_the_client_goes_on() -> None:
    headers = [(b"traceparent", f"00-{TRACE}-{SPAN}-01".encode())]
    first, second = [(await call(stage(), headers=headers)).exchange for _ in range(2)]
    assert (first.trace_id, first.parent_id, first.sampled) == (TRACE, SPAN, True)
    assert first.span_id not in (SPAN, second.span_id)
    assert first.traceparent() == f"00-{TRACE}-{first.span_id}-01"


@pytest.mark.parametrize(
    "values",
    [
        [],
        [b"nonsense"],
        [f"00-{TRACE}-{SPAN}-01".encode()] * 2,
        [f"00-{TRACE}-{SPAN}-01".encode(), b"nonsense"],
        [f"00-{'0' * 32}-{SPAN}-01".encode()],
    ],
)
async def test_any_other_request_begins_a_trace(values: list[bytes]) -> None:
    headers = [(b"traceparent", value) for value in values]
    first, second = [(await call(stage(), headers=headers)).exchange for _ in range(2)]
    assert first.parent_id is None
    assert re.fullmatch(r"[0-9a-f]{32}", first.trace_id)
    assert re.fullmatch(r"[0-9a-f]{16}", first.span_id)
    assert len({TRACE, first.trace_id, second.trace_id, first.request_id}) == 4
    assert first.traceparent() == f"00-{first.trace_id}-{first.span_id}-02"  # at random, and kept by nobody


@pytest.mark.parametrize("known", [{"secrets": [Secret(TRACE)]}, {"digests": [Secret(TRACE).digest()]}])
async def test_a_key_is_no_trace(known: dict[str, Any]) -> None:
    redact = Redactor(data.read("redaction.yaml"), **known)
    app = begin.build((), replace(services(), redact=redact))(ok)
    found = (await call(app, headers=[(b"traceparent", f"00-{TRACE}-{SPAN}-01".encode())])).exchange
    assert found.trace_id != TRACE
    assert found.parent_id is None


@pytest.mark.parametrize(("sample", "least", "most"), [(0.0, 0, 0), (1.0, 400, 400), (0.25, 50, 150)])
async def test_a_part_of_the_traces_is_sampled(sample: float, least: int, most: int) -> None:
    one = stage(sample=sample)
    sampled = sum([(await call(one)).exchange.sampled for _ in range(400)])
    assert least <= sampled <= most


async def test_the_client_decides_whether_its_trace_is_sampled() -> None:
    for sample, flags in ((1.0, "00"), (0.0, "01")):
        headers = [(b"traceparent", f"00-{TRACE}-{SPAN}-{flags}".encode())]
        assert (await call(stage(sample=sample), headers=headers)).exchange.sampled is (flags == "01")


@pytest.mark.parametrize(
    ("sample", "least"), [(1.0, "0" * 14), (0.5, "8" + "0" * 13), (0.0, "g"), (1e-17, "1" + "0" * 14)]
)
def test_where_sampling_begins(sample: float, least: str) -> None:
    assert begin._least(sample) == least


async def test_headers_are_a_snapshot_that_a_trailer_cannot_add_to() -> None:
    headers = [(b"host", b"a")]

    async def with_trailer(scope: Scope, receive: Receive, send: Send) -> None:
        headers.append((b"authorization", b"Bearer evil"))  # as uvicorn does, to the list that it has given
        assert exchange_of(scope).head.header(b"authorization") is None
        await ok(scope, receive, send)

    assert (await call(stage(with_trailer), headers=headers)).status == 200


async def test_what_later_stages_found_out_is_on_the_answer() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        exchange.upstream, exchange.attempts = "mistral/m", 2
        exchange.rewrites.update({"drop:user": None, "rename:seed>random_seed": None})
        exchange.answer_headers = [(b"x-upstream-request-id", b"u-1")]
        await ok(scope, receive, send)

    answer = await call(stage(app))
    assert answer.header("x-proxy-upstream") == "mistral/m"
    assert answer.header("x-proxy-attempts") == "2"
    assert answer.header("x-proxy-rewrites") == "drop:user, rename:seed>random_seed"
    assert answer.header("x-upstream-request-id") == "u-1"
    assert answer.header("content-type") == "text/plain"


async def test_what_is_not_known_is_not_on_the_answer() -> None:
    answer = await call(stage())
    always = {b"x-request-id", b"x-proxy-decision", b"server-timing"}
    assert {name for name, _ in answer.headers} == {b"content-type"} | always


async def test_simulated_answers_say_so() -> None:
    assert (await call(stage(simulated=True))).header("x-proxy-simulated") == "true"


async def test_status_times_and_size_are_recorded() -> None:
    exchange = (await call(stage())).exchange
    assert (exchange.status, exchange.bytes_out) == (200, 2)
    assert (exchange.started, exchange.begun, exchange.first_byte, exchange.last_byte) == (1, 2, 3, 4)


async def test_so_they_are_where_the_server_sends_at_once() -> None:
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "client": ("192.0.2.7", 4711)}
    sent: list[Message] = []

    def send(message: Message) -> Awaitable[None]:
        sent.append(message)
        return SENT

    async def receive() -> Message:
        return {"type": "http.request"}

    await stage()(scope, receive, send)
    exchange = exchange_of(scope)
    assert [message["type"] for message in sent] == ["http.response.start", *["http.response.body"] * 2]
    assert (exchange.status, exchange.bytes_out) == (200, 2)
    assert (exchange.started, exchange.begun, exchange.first_byte, exchange.last_byte) == (1, 2, 3, 4)


async def test_c16_a_header_with_an_underscore_does_not_exist() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert exchange_of(scope).head.headers == scope["headers"] == ((b"host", b"a"),)
        await ok(scope, receive, send)

    odd = [
        (b"x_request_id", b"mine"),
        (b"content_length", b"9"),
        (b"_", b""),
        (b"host", b"a"),
        (b"x_forwarded_for", b"1"),
    ]
    answer = await call(stage(app, trusted=["192.0.2.7"]), headers=odd)
    assert answer.status == 200
    assert answer.header("x-request-id") != "mine"
    assert answer.exchange.client == "192.0.2.7"


BEHIND = ["192.0.2.7", "10.0.0.0/8", "2001:db8:1::/48"]


@pytest.mark.parametrize(
    ("said", "client"),
    [
        ([], "192.0.2.7"),
        (["203.0.113.9"], "203.0.113.9"),
        (["198.51.100.1, 203.0.113.9"], "203.0.113.9"),  # what stands before is hearsay
        (["203.0.113.9, 10.1.2.3"], "203.0.113.9"),
        (["198.51.100.1", "203.0.113.9 ,10.1.2.3\t", "2001:db8:1::5"], "203.0.113.9"),
        (["10.1.2.3, 10.4.5.6"], "10.1.2.3"),  # all of them are ours: the first one spoke
        (["2001:DB8:0::9"], "2001:db8::9"),
        (["::ffff:203.0.113.9, ::ffff:10.1.2.3"], "203.0.113.9"),
        (["203.0.113.9:4711, [2001:db8:1::5]:80, [2001:db8:1::6]"], "203.0.113.9"),
        (["203.0.113.9, unknown, 10.1.2.3"], "10.1.2.3"),  # nothing before what is no address is believed
        (["203.0.113.9, "], "192.0.2.7"),
        (["203.0.113.9,,10.1.2.3"], "10.1.2.3"),
        (["203.0.113.999"], "192.0.2.7"),
        (["010.0.0.1"], "192.0.2.7"),
        (["fe80::1%\x1b[31m"], "192.0.2.7"),
        (["caf\xe9"], "192.0.2.7"),
        (["203.0.113.9\x00"], "192.0.2.7"),
        (["203.0.113.9," + "10.0.0.1," * 5000 + "10.0.0.2"], "10.0.0.1"),
    ],
)
async def test_a24_the_client_is_the_last_address_that_is_no_proxy_of_ours(said: list[str], client: str) -> None:
    headers = [(b"x-forwarded-for", one.encode("latin-1")) for one in said]
    assert (await call(stage(trusted=BEHIND), headers=headers)).exchange.client == client


@pytest.mark.parametrize("trusted", [[], ["198.51.100.0/24"], ["2001:db8::/32"]])
async def test_a24_a_stranger_is_not_believed(trusted: list[str]) -> None:
    headers = [(name, b"203.0.113.9") for name in (b"x-forwarded-for", b"x-real-ip", b"forwarded")]
    assert (await call(stage(trusted=trusted), headers=headers)).exchange.client == "192.0.2.7"


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("::ffff:192.0.2.7", "203.0.113.9"),  # a socket for both protocols
        ("2001:db8:1::7", "203.0.113.9"),
        ("::ffff:192.0.2.8", "192.0.2.8"),
        ("fe80::1%eth0", "fe80::1"),
        ("", ""),  # a Unix socket
        ("testclient", "testclient"),
    ],
)
async def test_a24_the_peer_is_an_address_however_the_server_writes_it(peer: str, client: str) -> None:
    headers = [(b"x-forwarded-for", b"203.0.113.9")]
    answer = await call(stage(trusted=BEHIND), headers=headers, client=(peer, 1) if peer else None)
    assert answer.exchange.client == client


@given(said=st.lists(st.binary(max_size=60), max_size=4))
async def test_a24_whatever_is_said_the_client_is_an_address(said: list[bytes]) -> None:
    headers = [(b"x-forwarded-for", one) for one in said]
    ip_address((await call(stage(trusted=BEHIND), headers=headers)).exchange.client)


async def test_c14_no_value_makes_a_header_of_its_own() -> None:
    for bad in (b"a\r\nset-cookie: x=1", b"a\nb", b"a\x00", b"caf\xe9", b"\x1b[31m", b"x" * 129):
        answer = await call(stage(), headers=[(b"x-request-id", bad)])
        assert all(value.isascii() and value.decode().isprintable() for _, value in answer.headers)
        assert bad not in [value for _, value in answer.headers]


async def test_a_stream_that_had_to_begin_twice_is_one_stream() -> None:
    made = services()
    seen: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        exchange_of(scope).streamed = True
        with pytest.raises(OSError):
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await ok(scope, receive, send)

    async def taking(message: Message) -> None:
        seen.append(made.traffic.streams)
        if len(seen) == 1:
            raise OSError

    await call(begin.build((), made)(app), taking=taking)
    assert seen == [1] * 4
    assert made.traffic.streams == 0
