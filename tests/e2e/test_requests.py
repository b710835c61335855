"""One request at the door: its key, its body, its framing; what is wrong with it is told in one shape."""

from __future__ import annotations

import json

import pytest

from tests.conftest import OTHER_KEY, TEAM_KEY, Proxy
from tests.e2e.conftest import Stage
from tests.e2e.upstream import completion
from tests.e2e.wire import CHAT, ask, chat, connect, request
from tests.upstream.scripted import Peer, Received

MODELS = "/v1/models"

# Keys.


@pytest.mark.parametrize(
    "authorization",
    [
        "", "Bearer", "Bearer ", "Bearer x", f"Basic {TEAM_KEY}", TEAM_KEY, f"Bearer {TEAM_KEY}x",
        f"Bearer {TEAM_KEY[:-1]}", f"Bearer {TEAM_KEY.upper()}", f"Bearer {TEAM_KEY}, Bearer {TEAM_KEY}",
        f"Bearer {TEAM_KEY} x", f"Bearer: {TEAM_KEY}", "Bearer \xe9\xff", "Bearer " + "x" * 5000,
    ],
)  # fmt: skip
async def test_every_wrong_key_gets_the_same_answer(proxy: Proxy, authorization: str) -> None:
    expected = await ask(proxy.url, request(target=MODELS, authorization="", x_request_id="same"))
    refused = await ask(proxy.url, request(target=MODELS, authorization=authorization, x_request_id="same"))
    assert (refused.status, refused.error()["code"]) == (401, "invalid_api_key")
    assert refused.header("www-authenticate") == "Bearer"
    assert refused.body == expected.body
    assert [name for name, _ in refused.headers] == [name for name, _ in expected.headers]


async def test_a_key_anywhere_else_is_no_key(proxy: Proxy) -> None:
    for data in (
        request(target=f"{MODELS}?api_key={TEAM_KEY}", authorization=""),
        request(target=f"{MODELS}?key={TEAM_KEY}", authorization=""),
        request(target=MODELS, authorization="", x_api_key=TEAM_KEY),
        request(target=MODELS, authorization="", api_key=TEAM_KEY),
        request(target=MODELS, authorization="", cookie=f"key={TEAM_KEY}"),
        request(target=MODELS, authorization="", proxy_authorization=f"Bearer {TEAM_KEY}"),
    ):
        assert (await ask(proxy.url, data)).status == 401


async def test_two_keys_are_none(proxy: Proxy) -> None:
    line = f"authorization: Bearer {OTHER_KEY}\r\n\r\n".encode()
    assert (await ask(proxy.url, request(target=MODELS)[:-2] + line)).status == 401


async def test_a_trailer_brings_no_key(proxy: Proxy) -> None:
    body = json.dumps({"model": "mistral-small-latest", "messages": [{"role": "user", "content": "x"}]}).encode()
    head = request("POST", CHAT, authorization="", content_type="application/json", transfer_encoding="chunked")
    trailer = f"0\r\nauthorization: Bearer {TEAM_KEY}\r\n\r\n".encode()
    async with connect(proxy.url) as client:
        await client.send(head + b"%x\r\n%b\r\n" % (len(body), body) + trailer)
        assert (await client.answer()).status == 401


async def test_the_scheme_is_read_as_http_says(proxy: Proxy) -> None:
    for authorization in (f"bearer {TEAM_KEY}", f"BEARER {TEAM_KEY}", f"Bearer   {TEAM_KEY}"):
        assert (await ask(proxy.url, request(target=MODELS, authorization=authorization))).status == 200


async def test_a_wrong_key_uploads_nothing(proxy: Proxy) -> None:
    """It is refused while its body is still to come."""
    async with connect(proxy.url) as client:
        await client.send(
            request("POST", CHAT, authorization="Bearer no", content_type="application/json", content_length="900000")
        )
        assert (await client.answer()).status == 401


# Bodies.


async def test_a_body_that_says_it_is_too_large_is_not_waited_for(proxy: Proxy) -> None:
    async with connect(proxy.url) as client:
        await client.send(request("POST", CHAT, content_type="application/json", content_length=str((1 << 20) + 1)))
        refused = await client.answer()
        assert (refused.status, refused.error()["code"]) == (413, "body_too_large")
        assert refused.header("connection") == "close"
        assert await client.end() == b""


async def test_a_body_that_turns_out_too_large(proxy: Proxy) -> None:
    async with connect(proxy.url) as client:
        await client.send(request("POST", CHAT, content_type="application/json", transfer_encoding="chunked"))
        for _ in range(17):
            await client.send(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        refused = await client.answer()
        assert (refused.status, refused.error()["code"]) == (413, "body_too_large")
        assert refused.header("connection") == "close"


async def test_a_body_of_exactly_the_limit_is_read(proxy: Proxy) -> None:
    padding = (1 << 20) - len(json.dumps({"model": "mistral-small-latest", "messages": "", "x": ""}))
    body = json.dumps({"model": "mistral-small-latest", "messages": "", "x": "x" * padding}).encode()
    assert len(body) == 1 << 20
    answered = await ask(proxy.url, request("POST", CHAT, body))
    assert (answered.status, answered.error()["param"]) == (400, "messages")


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"", {"content_type": "application/json", "content_length": "0"}, 400, "invalid_json"),
        (b"{", {}, 400, "invalid_json"),
        (b"[]", {}, 400, "invalid_json"),
        (b"\xff\xfe{}", {}, 400, "invalid_json"),
        (b'{"a": NaN}', {}, 400, "invalid_json"),
        (b"[" * 100_000, {}, 400, "invalid_json"),
        (b'{"a":' * 100_000, {}, 400, "invalid_json"),
        (b"{}", {"content-type": "text/plain"}, 415, "unsupported_media_type"),
        (b"{}", {"content-type": "multipart/form-data; boundary=x"}, 415, "unsupported_media_type"),
        (b"{}", {"content-type": "application/json; charset=utf-16"}, 415, "unsupported_media_type"),
        (b"{}", {"content-type": ""}, 415, "unsupported_media_type"),
        (b"{}", {"content-encoding": "gzip"}, 415, "unsupported_media_type"),
        (b"{}", {}, 400, "missing_required_parameter"),
    ],
)  # fmt: skip
async def test_bodies_that_are_none(proxy: Proxy, body: bytes, headers: dict[str, str], status: int, code: str) -> None:
    refused = await ask(proxy.url, request("POST", CHAT, body, **headers))
    assert (refused.status, refused.error()["code"]) == (status, code)


# HTTP itself.


NO_HTTP = {
    "garbage": b"garbage\r\n\r\n",
    "version": b"GET / HTTP/9.9\r\n\r\n",
    "name with a space": b"GET /health HTTP/1.1\r\nhost : localhost\r\n\r\n",
    "folded": b"GET /health HTTP/1.1\r\nhost: localhost\r\n folded: x\r\n\r\n",
    "no path": b"GET health HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "bare LF": b"GET /health HTTP/1.1\nhost: localhost\n\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00",
    "two framings": b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\n",
    "negative length": b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
}


@pytest.mark.parametrize("data", NO_HTTP.values(), ids=NO_HTTP)
async def test_what_is_no_http_is_told_so_in_the_same_shape(proxy: Proxy, data: bytes) -> None:
    async with connect(proxy.url) as client:
        await client.send(data)
        refused = await client.answer()
        assert (refused.status, refused.error()["type"]) == (400, "invalid_request_error")
        assert refused.header("connection") == "close"
        assert await client.end() == b""


async def test_an_offer_to_upgrade_is_ignored(stage: Stage) -> None:
    """As HTTP allows. The HTTP client of Java's own library makes it with every request to an http URL."""

    async def script(peer: Peer, received: Received) -> None:
        await peer.send(completion())

    offer = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAEAAEAAAAIAAAAB"}
    async with stage.upstream(script), connect(stage.url) as client:
        for _ in range(2):
            await client.send(chat("x", headers=offer))
            assert (await client.answer()).status == 200


async def test_a_client_that_asks_first_is_told_to_go_on(stage: Stage) -> None:
    """Expect: 100-continue, as curl sends it with a large body; a wrong key is refused without one."""

    async def script(peer: Peer, received: Received) -> None:
        await peer.send(completion())

    async with stage.upstream(script), connect(stage.url) as client:
        head, _, body = chat("x", headers={"expect": "100-continue"}).partition(b"\r\n\r\n")
        await client.send(head + b"\r\n\r\n")
        assert (await client.head()).status == 100
        await client.send(body)
        assert (await client.answer()).status == 200
    refused = request("POST", CHAT, authorization="", expect="100-continue", content_length="5")
    assert (await ask(stage.url, refused)).status == 401


# Request ids.


async def test_a_good_request_id_is_kept_and_a_bad_one_replaced(proxy: Proxy) -> None:
    assert (await ask(proxy.url, request(x_request_id="my.id-1_2"))).header("x-request-id") == "my.id-1_2"
    for bad in ("a b", "x" * 129, "<script>", "a,b", "é"):
        answered = await ask(proxy.url, request(x_request_id=bad))
        assert (answered.header("x-request-id") or "").isalnum()
        assert len(answered.header("x-request-id") or "") == 32


async def test_a_connection_serves_many_requests(proxy: Proxy) -> None:
    data = [request(), chat("x"), chat("x", stream=True), request(target="/nowhere"), chat("x", model=""), request()]
    async with connect(proxy.url) as client:
        for at, one in enumerate(data):
            await client.send(one.replace(b"\r\n", b"\r\nx-request-id: %d\r\n" % at, 1))
            answered = await client.answer()
            assert answered.header("x-request-id") == str(at)
            assert answered.header("connection") is None
