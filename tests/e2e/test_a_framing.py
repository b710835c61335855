"""What comes to the door before it is a request: the framing, the size and the pace of what a client sends."""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

import psutil
import pytest

from proxy.http import descriptors
from proxy.http.framing import Limits
from tests.conftest import CONFIG, OTHER_KEY, TEAM_KEY, Proxy, Simulator, start_proxy
from tests.e2e.conftest import Stage
from tests.e2e.upstream import DONE, STREAM, Seen, completion, event
from tests.e2e.wire import CHAT, Answer, Connection, ask, chat, connect, request
from tests.programs import COMMAND, PATIENCE, Program
from tests.upstream.scripted import Peer, Received, chunk

MODELS = "/v1/models"
SMUGGLED = (
    b"GET /v1/models/smuggled HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer " + TEAM_KEY.encode() + b"\r\n\r\n"
)


@pytest.fixture(scope="module")
def door(simulator: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """One proxy, for what ends before any transport has a part in it."""
    running = start_proxy(tmp_path_factory.mktemp("door"), simulator.url)
    yield running
    running.program.stop()


def head(*lines: str, method: str = "POST", target: str = CHAT, version: str = "HTTP/1.1") -> bytes:
    """The head of a request with the team's key and these lines."""
    fields = ["host: localhost", f"authorization: Bearer {TEAM_KEY}", "content-type: application/json", *lines]
    return "\r\n".join([f"{method} {target} {version}", *fields, "", ""]).encode("latin-1")


@asynccontextmanager
async def models(stage: Stage) -> AsyncIterator[Seen]:
    """An upstream that answers everything."""

    async def script(peer: Peer, received: Received) -> None:
        await peer.send(completion())

    async with stage.upstream(script) as seen:
        yield seen


async def refused(url: str, data: bytes, code: str = "bad_framing", status: int = 400) -> Answer:
    """The answer to `data`, after which the connection ends and nothing else comes."""
    async with connect(url) as client:
        await client.send(data)
        answer = await client.answer()
        assert (answer.status, answer.error()["code"]) == (status, code)
        assert answer.header("connection") == "close"
        assert answer.header("cache-control") == "no-store"
        fault = "proxy" if status == 503 else "caller"
        assert answer.header("x-proxy-decision") == f"auth=none, fault={fault};code={code}"
        assert await client.end() == b""
    return answer


# Where a request ends.


LENGTHS = [
    "content-length: 3\r\ncontent-length: 3", "content-length: 3\r\ncontent-length: 4", "content-length: 3, 3",
    "content-length: 3,4", "content-length: +3", "content-length: -1", "content-length: 0x3", "content-length: 3.0",
    "content-length: 3e1", "content-length: 1_0", "content-length: ", "content-length: " + "9" * 30,
    "content-length: 18446744073709551616", "content-length: 18446744073709551615", "content-length : 3",
    "content-length\t: 3", " content-length: 3", "content-length: 3\x0b", "content-length: \x0b3", "content-length: 3;",
    "content-length: 3 3", "content-length: '3'", "content-length: 3\x00", "content-length: \xb3", "content-length: a",
    "content-length: 3\r\n 4", "content-length: 3\rx: y", "content-length:\r\n 3",
    "content-length: 3\ncontent-length: 5", "content-length: 3 ", "content-length: ٣".encode().decode("latin-1"),
]  # fmt: skip
"""RFC 9112, section 6, and what has been used against other proxies."""


@pytest.mark.parametrize("line", LENGTHS)
async def test_a2_a_length_that_is_not_one_number(door: Proxy, line: str) -> None:
    await refused(door.url, head(line) + b"{}\n" + SMUGGLED)


CODINGS = [
    "gzip, chunked", "gzip,chunked", "xchunked", "chunkedx", "chunked, identity", "chunked, chunked", "identity",
    "identity, chunked", "\x0bchunked", "\x0cchunked", "chunked\x00", "chunked;q=1", '"chunked"', "chunked,",
    ", chunked", "chun\rked", "", "chunked\r\ntransfer-encoding: chunked", "chunked\r\ntransfer-encoding: identity",
    "identity\r\ntransfer-encoding: chunked", "\r\n chunked", "chunked ", "c\xbaunked",
]  # fmt: skip


@pytest.mark.parametrize("coding", CODINGS)
async def test_a3_only_chunked_is_chunked(door: Proxy, coding: str) -> None:
    await refused(door.url, head(f"transfer-encoding: {coding}") + b"2\r\n{}\r\n0\r\n\r\n" + SMUGGLED)


@pytest.mark.parametrize(
    "name", ["transfer-encoding ", "transfer-encoding\t", " transfer-encoding", "transfer\x00encoding"]
)
async def test_a3_not_under_a_name_like_it(door: Proxy, name: str) -> None:
    await refused(door.url, head("content-length: 7", f"{name}: chunked") + b"2\r\n{}\r\n0\r\n\r\n" + SMUGGLED)


@pytest.mark.parametrize("first", ["content-length", "transfer-encoding"])
async def test_a1_two_ways_to_find_the_end(stage: Stage, first: str) -> None:
    lines = ["content-length: 5", "transfer-encoding: chunked"]
    async with models(stage) as seen:
        await refused(
            stage.url, head(*sorted(lines, key=lambda line: not line.startswith(first))) + b"0\r\n\r\n" + SMUGGLED
        )
        await refused(stage.url, head(*lines, "connection: upgrade", "upgrade: h2c") + b"0\r\n\r\n" + SMUGGLED)
    assert not seen.connections


async def test_a4_no_chunks_in_http_1_0(door: Proxy) -> None:
    data = head("transfer-encoding: chunked", "connection: keep-alive", version="HTTP/1.0")
    await refused(door.url, data + b"2\r\n{}\r\n0\r\n\r\n" + SMUGGLED)


CHUNKS = {
    "line feeds": b"2\n{}\n0\n\n",
    "a line feed after the size": b"2\n{}\r\n0\r\n\r\n",
    "a line feed after the data": b"2\r\n{}\n0\r\n\r\n",
    "too much data": b"2\r\n{}x\r\n0\r\n\r\n",
    "too little data": b"3\r\n{}\r\n0\r\n\r\n",
    "0x": b"0x2\r\n{}\r\n0\r\n\r\n",
    "minus": b"-2\r\n{}\r\n0\r\n\r\n",
    "plus": b"+2\r\n{}\r\n0\r\n\r\n",
    "a space before": b" 2\r\n{}\r\n0\r\n\r\n",
    "a space after": b"2 \r\n{}\r\n0\r\n\r\n",
    "no size": b"\r\n{}\r\n0\r\n\r\n",
    "no number": b"z\r\n{}\r\n0\r\n\r\n",
    "overflow": b"10000000000000002\r\n{}\r\n0\r\n\r\n",
    "a line feed in an extension": b"2;\n{}\r\n0\r\n\r\n",
    "NUL in an extension": b"2;a=\x00\r\n{}\r\n0\r\n\r\n",
    "an extension of 70 KB": b"2;a=" + b"x" * 70_000 + b"\r\n{}\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
async def test_a5_chunks_that_are_none(door: Proxy, chunks: bytes) -> None:
    await refused(door.url, head("transfer-encoding: chunked") + chunks + SMUGGLED)


async def test_a5_an_extension_is_no_place_for_data(door: Proxy) -> None:
    chunks = b"2;a=" + b"x" * (Limits().padding + 50) + b"\r\n{}\r\n0\r\n\r\n"
    await refused(door.url, head("transfer-encoding: chunked") + chunks)


async def test_a5_nor_is_it_behind_many_small_chunks(door: Proxy) -> None:
    """Nor is a trailer. The key is right, so it is the body that is refused."""
    small = b"1\r\n \r\n" * 20_000
    for padding in (b"0;a=" + b"x" * 20_000 + b"\r\n\r\n", b"0\r\n" + b"x: y\r\n" * 5000 + b"\r\n"):
        await refused(door.url, head("transfer-encoding: chunked") + small + padding)


async def test_a5_a_long_upload_in_tiny_chunks_is_served(stage: Stage) -> None:
    """As a serializer writes that hands on every token; others are answered meanwhile."""
    body = chat("x" * 300_000).partition(b"\r\n\r\n")[2]
    data = head("transfer-encoding: chunked") + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    async with models(stage) as seen, connect(stage.url) as client:
        client.writer.write(data + request())
        for _ in range(5):
            assert (await ask(stage.url, request())).status == 200
        assert [(await client.answer()).status for _ in range(2)] == [200, 200]
    assert b"x" * 300_000 in seen.requests[0].body


async def test_a5_an_extension_is_allowed_and_says_nothing(stage: Stage) -> None:
    body = chat("x").partition(b"\r\n\r\n")[2]
    async with models(stage) as seen:
        data = head("transfer-encoding: chunked") + b'%x;a=b;c="d"\r\n%b\r\n0\r\n\r\n' % (len(body), body)
        assert (await ask(stage.url, data)).status == 200
    assert b"c=" not in seen.requests[0].body


TRAILERS = {
    "key": f"authorization: Bearer {OTHER_KEY}",
    "host": "host: evil",
    "address": "x-forwarded-for: 192.0.2.1",
    "translation": "x-proxy-translation: strict",
    "id": "x-request-id: from-the-trailer",
}


@pytest.mark.parametrize("trailer", TRAILERS.values(), ids=TRAILERS)
async def test_a6_a_trailer_changes_nothing(stage: Stage, trailer: str) -> None:
    body = chat("x").partition(b"\r\n\r\n")[2]
    data = head("transfer-encoding: chunked") + b"%x\r\n%b\r\n0\r\n%b\r\n\r\n" % (len(body), body, trailer.encode())
    async with models(stage) as seen, connect(stage.url) as client:
        await client.send(data)
        answer = await client.answer()
        assert answer.status == 200
        assert answer.header("x-request-id") != "from-the-trailer"
        await client.send(request(target="/health"))
        assert (await client.answer()).status == 200
    name = trailer.partition(":")[0]
    [received] = seen.requests
    assert [key.lower() for key, _ in received.headers].count(name) == (name in ("host", "authorization"))
    assert "evil" not in str(received.headers)


async def test_a6_a_trailer_brings_no_key(door: Proxy) -> None:
    data = request("POST", CHAT, authorization="", content_type="application/json", transfer_encoding="chunked")
    data += f"2\r\n{{}}\r\n0\r\nauthorization: Bearer {TEAM_KEY}\r\n\r\n".encode()
    assert (await ask(door.url, data)).status == 401


# The form of a head.


NO_HTTP = {
    "garbage": b"garbage\r\n\r\n",
    "bare LF": b"GET /health HTTP/1.1\nhost: localhost\n\n",
    "one bare LF": b"GET /health HTTP/1.1\r\nhost: localhost\nx: y\r\n\r\n",
    "bare CR": b"GET /health HTTP/1.1\r\nhost: localhost\rx: y\r\n\r\n",
    "NUL": b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: a\x00b\r\n\r\n",
    "NUL in a name": b"GET /health HTTP/1.1\r\nhost: localhost\r\nx\x00: b\r\n\r\n",
    "folded": b"GET /health HTTP/1.1\r\nhost: localhost\r\n folded: x\r\n\r\n",
    "no colon": b"GET /health HTTP/1.1\r\nhost: localhost\r\nx\r\n\r\n",
    "no name": b"GET /health HTTP/1.1\r\nhost: localhost\r\n: x\r\n\r\n",
    "a name with a space": b"GET /health HTTP/1.1\r\nhost : localhost\r\n\r\n",
    "a name with a bracket": b"GET /health HTTP/1.1\r\nhost: localhost\r\nx(y): z\r\n\r\n",
    "a name with an umlaut": b"GET /health HTTP/1.1\r\nhost: localhost\r\n\xc3\xa4: z\r\n\r\n",
    "a method in small letters": b"get /health HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "an unknown method": b"BREW /health HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "a tab": b"GET\t/health HTTP/1.1\r\nhost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("data", NO_HTTP.values(), ids=NO_HTTP)
async def test_a7_what_is_no_http(door: Proxy, data: bytes) -> None:
    await refused(door.url, data + SMUGGLED)


VERSIONS = {
    "0.9": b"GET /health\r\n\r\n",
    "0.9, said": b"GET /health HTTP/0.9\r\nhost: localhost\r\n\r\n",
    "1.9": b"GET /health HTTP/1.9\r\nhost: localhost\r\n\r\n",
    "2.0": b"GET /health HTTP/2.0\r\nhost: localhost\r\n\r\n",
    "9.9": b"GET /health HTTP/9.9\r\nhost: localhost\r\n\r\n",
    "http/1.1": b"GET /health http/1.1\r\nhost: localhost\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("data", VERSIONS.values(), ids=VERSIONS)
async def test_a8_versions_that_are_not_spoken(door: Proxy, data: bytes) -> None:
    await refused(door.url, data)


async def test_a8_http_1_0_is(door: Proxy) -> None:
    async with connect(door.url) as client:
        await client.send(request().replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert (await client.answer()).status == 200
        assert await client.end() == b""


async def test_a8_a17_http_1_0_gets_neither_chunks_nor_interim_answers(stage: Stage) -> None:
    """What has no length ends with the connection."""

    async def script(peer: Peer, received: Received) -> None:
        await peer.send(STREAM + chunk(event("Hello")) + chunk(event("", "stop")) + chunk(DONE) + chunk(b""))

    data = chat("x", stream=True, headers={"expect": "100-continue"}).replace(b"HTTP/1.1", b"HTTP/1.0")
    async with stage.upstream(script), connect(stage.url) as client:
        await client.send(data)
        answer = await client.head()
        assert (answer.status, answer.header("transfer-encoding"), answer.header("content-length")) == (200, None, None)
        assert answer.header("connection") == "close"
        assert await client.end() == event("Hello") + event("", "stop") + DONE


HOSTS = [
    [], ["localhost", "localhost"], ["localhost", "evil"], ["local host"], ["a/b"], ["@a"], ["x/admin?a="],
    ["localhost/v1/models?"], ["localhost#"], [""], ["localhost:"], ["localhost:999999"], ["user@localhost"], ["[::1"],
    ["localhost,evil"], ["http://localhost"], ["[fe80::1%25eth0]"],
]  # fmt: skip


@pytest.mark.parametrize("hosts", HOSTS)
async def test_a8_a9_there_is_one_host_and_it_is_a_name(door: Proxy, hosts: list[str]) -> None:
    lines = "".join(f"host: {host}\r\n" for host in hosts)
    await refused(door.url, f"GET /health HTTP/1.1\r\n{lines}\r\n".encode())


TARGETS = [
    "http://169.254.169.254/latest",
    "http://localhost/health",
    "https://localhost/health",
    "health",
    "*",
    "//"[:0],
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("method", ["GET", "OPTIONS", "POST"])
async def test_a10_a_target_is_a_path(door: Proxy, method: str, target: str) -> None:
    await refused(door.url, f"{method} {target} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())


@pytest.mark.parametrize("target", ["localhost:443", "169.254.169.254:80", "/health"])
async def test_a10_connect_is_refused(door: Proxy, target: str) -> None:
    data = f"CONNECT {target} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode() + b"\x16\x03\x01"
    answer = await refused(door.url, data, "method_not_allowed", 405)
    assert answer.header("allow") == ""


# The size of a head.


LARGE = {
    "70 KB of headers": (b"GET /health HTTP/1.1\r\nhost: a\r\n" + b"x: " + b"y" * 70_000 + b"\r\n\r\n", 431),
    "1 MB of headers": (b"GET /health HTTP/1.1\r\nhost: a\r\n" + b"x: " + b"y" * 1_000_000 + b"\r\n\r\n", 431),
    "5,000 headers": (b"GET /health HTTP/1.1\r\nhost: a\r\n" + b"x: y\r\n" * 5000 + b"\r\n", 431),
    "101 headers": (b"GET /health HTTP/1.1\r\nhost: a\r\n" + b"x: y\r\n" * 100 + b"\r\n", 431),
    "a URL of 60 KB": (b"GET /" + b"x" * 60_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", 414),
    "a URL of 1 MB": (b"GET /" + b"x" * 1_000_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", 414),
    "a query of 9 KB": (b"GET /?" + b"x" * 9000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", 414),
    "1 MB without an end": (b"GET /health HTTP/1.1\r\nhost: a\r\n" + b"x" * 1_000_000, 431),
}


@pytest.mark.parametrize(("data", "status"), LARGE.values(), ids=LARGE)
async def test_a11_a_large_head(door: Proxy, data: bytes, status: int) -> None:
    """The client has its answer though it goes on sending."""
    await refused(door.url, data, {414: "uri_too_long", 431: "headers_too_large"}[status], status)


async def test_a11_large_heads_take_no_memory(door: Proxy) -> None:
    """A hundred clients, each with all of a head that is kept before it is refused."""
    process = psutil.Process(door.program.process.pid)
    bounds = Limits()
    data = b"GET /health HTTP/1.1\r\nhost: a\r\nx: " + b"y" * (bounds.request_line + bounds.header_block - 100)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(door.url)) for _ in range(100)]
        assert (await ask(door.url, request())).status == 200
        before = process.memory_info().rss
        for client in clients:
            await client.send(data)
        assert (await ask(door.url, request())).status == 200
        assert process.memory_info().rss - before < 100 * (64 << 10) * 2
        for client in clients:
            await client.send(b"y" * 200)
            assert (await client.answer()).status == 431


# The pace of a head. The deadlines themselves: tests/test_protocol.py.


async def test_a12_five_hundred_who_never_come_to_the_point(door: Proxy) -> None:
    """Some say nothing, some half a line, some a byte of a header at a time; another client is served meanwhile."""
    starts = [b"", b"GET /hea", b"GET /health HTTP/1.1\r\nhost: a\r\nx: "]
    async with AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(connect(door.url)) for _ in range(500)]
        for number, client in enumerate(slow):
            client.writer.write(starts[number % 3])
        for _ in range(20):
            for client in slow[2::3]:
                client.writer.write(b"y")
            assert (await ask(door.url, chat("somebody else"))).status == 200
    assert not [line for line in door.program.logged(event="library") if line["level"] == "error"]


# Several requests on one connection.


async def test_a15_what_comes_behind_a_body_is_a_request_of_its_own(stage: Stage) -> None:
    body = chat("x").partition(b"\r\n\r\n")[2]
    surplus = b"GET /v1/models/x HTTP/1.1\r\nhost: localhost\r\n\r\n"
    async with models(stage) as seen, connect(stage.url) as client:
        await client.send(head(f"content-length: {len(body)}") + body + surplus + b"garbage\r\n\r\n")
        assert [(await client.answer()).status for _ in range(3)] == [200, 401, 400]
        assert await client.end() == b""
    assert len(seen.requests) == 1


async def test_a15_nothing_is_written_into_an_answer_under_way(stage: Stage) -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer, received: Received) -> None:
        await peer.send(STREAM + chunk(event("Hello")))
        await go_on.wait()
        await peer.send(chunk(event("", "stop")) + chunk(b"data: [DONE]\n\n") + chunk(b""))

    async with stage.upstream(script), connect(stage.url) as client:
        await client.send(chat("x", stream=True))
        assert (await client.head()).status == 200
        assert await client.chunk() == event("Hello")
        await client.send(b"garbage\r\n\r\n")
        go_on.set()
        pieces = [piece async for piece in _chunks(client)]
        assert b"".join(pieces).endswith(b"data: [DONE]\n\n")
        assert (await client.answer()).status == 400
        assert await client.end() == b""


async def _chunks(client: Connection) -> AsyncIterator[bytes]:
    while piece := await client.chunk():
        yield piece


async def test_a19_each_request_has_its_own_key(proxy: Proxy) -> None:
    """The other team may not use the model; a request without a key may use nothing, whoever came before it."""
    keys = [TEAM_KEY, OTHER_KEY, "", TEAM_KEY, "wrong"]
    expected = [200, 403, 401, 200, 401]
    data = [chat("x", headers={"authorization": f"Bearer {key}" if key else ""}) for key in keys]
    async with connect(proxy.url) as client:
        await client.send(b"".join(data))
        assert [(await client.answer()).status for _ in data] == expected
        for one, status in zip(data, expected, strict=True):
            await client.send(one)
            assert (await client.answer()).status == status


# Expect: 100-continue.


async def test_a17_a_client_that_asks_first_is_told_to_go_on(stage: Stage) -> None:
    async with models(stage), connect(stage.url) as client:
        asking, _, body = chat("x", headers={"expect": "100-continue"}).partition(b"\r\n\r\n")
        await client.send(asking + b"\r\n\r\n")
        assert (await client.head()).status == 100
        await client.send(body)
        answer = await client.answer()
        assert (answer.status, answer.header("connection")) == (200, None)
        await client.send(request())
        assert (await client.answer()).status == 200


ASKING = {
    "no key": ({"authorization": "", "content_length": "5"}, 401),
    "a wrong key": ({"authorization": "Bearer no", "content_length": "5"}, 401),
    "too large": ({"content_length": str(2 << 20)}, 413),
    "no JSON": ({"content_type": "text/plain", "content_length": "5"}, 415),
    "compressed": ({"content_encoding": "gzip", "content_length": "5"}, 415),
}


@pytest.mark.parametrize(("headers", "status"), ASKING.values(), ids=ASKING)
async def test_a17_or_why_not(door: Proxy, headers: dict[str, str], status: int) -> None:
    """Without 100, and the connection ends: what would come as a body might be taken for a request."""
    async with connect(door.url) as client:
        fields = {"content_type": "application/json", "expect": "100-continue"} | headers
        await client.send(request("POST", CHAT, b"", **fields))
        answer = await client.answer()
        assert (answer.status, answer.header("connection")) == (status, "close")
        assert await client.end() == b""


# Offers to upgrade.


@pytest.mark.parametrize("upgrade", ["h2c", "websocket", "TLS/1.3"])
async def test_a20_an_offer_to_upgrade_is_ignored(stage: Stage, upgrade: str) -> None:
    """As HTTP allows. The HTTP client of Java's own library makes it with every request to an http URL."""
    offer = {"connection": "Upgrade, HTTP2-Settings", "upgrade": upgrade, "http2-settings": "AAEAAEAAAAIAAAAB"}
    async with models(stage) as seen, connect(stage.url) as client:
        for _ in range(2):
            await client.send(chat("x", headers=offer))
            assert (await client.answer()).status == 200
    names = {name.lower() for received in seen.requests for name, _ in received.headers}
    assert not names & {"upgrade", "http2-settings"}


# What is no HTTP at all.


def client_hello() -> bytes:
    out = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost").do_handshake()
    return out.read()


async def test_a21_tls_and_noise(door: Proxy) -> None:
    await refused(door.url, client_hello())
    random = Random(21)
    for _ in range(200):
        async with connect(door.url) as client:
            await client.send(b"\xf0" + random.randbytes(random.randint(1, 500)))
            assert (await client.answer()).status == 400
    assert (await ask(door.url, request())).status == 200


def knock(url: str, count: int) -> None:
    """Connect and leave, every other time by a reset."""
    parts = urlsplit(url)
    for number in range(count):
        with socket.create_connection((parts.hostname, parts.port)) as sock:
            if number % 2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def test_a21_ten_thousand_who_knock_and_run(door: Proxy) -> None:
    await asyncio.to_thread(knock, door.url, 10_000)
    assert (await ask(door.url, request())).status == 200


async def test_a21_the_log_has_one_line_for_each_and_none_of_its_bytes(door: Proxy) -> None:
    canary = "canary-4711"
    answer = await refused(door.url, f"GARBAGE {canary}\r\n\r\n".encode())
    await refused(door.url, f"GET /health HTTP/1.1\r\nhost: {canary}/{canary}\r\n\r\n".encode())
    id = answer.header("x-request-id")
    line = await asyncio.to_thread(door.program.line, request_id=id)
    assert (line["status_code"], line["error_code"], line["client"]) == (400, "bad_framing", "127.0.0.1")
    assert line["fault"] == "caller"
    assert line["level"] == "warning"
    assert len(door.program.logged(request_id=id)) == 1
    assert canary not in door.program.everything()
    assert "Traceback" not in door.program.everything()


# More than there is room for.


@pytest.fixture
def small(simulator: Simulator, tmp_path: Path) -> Iterator[Program]:
    """A proxy that may have 256 files open, and no more."""
    (tmp_path / "proxy.yaml").write_text(CONFIG.format(simulator=simulator.url, transport="http1"))
    program = Program(
        "serve", "--config", str(tmp_path / "proxy.yaml"), cwd=tmp_path,
        env={"PROVIDER_KEY": "p" * 20, "TEAM_KEY": TEAM_KEY, "OTHER_KEY": OTHER_KEY},
        command=("sh", "-c", 'ulimit -n 256 && exec "$0" "$@"', str(COMMAND)),
    )  # fmt: skip
    yield program
    program.stop()


@pytest.mark.parametrize(
    "starts", [b"", b"GET /hea", b"GARBAGE\r\n\r\n", request()], ids=["idle", "half", "bad", "good"]
)
async def test_a22_a_thousand_connections_and_256_files(small: Program, starts: bytes) -> None:
    assert descriptors.raised() > 1100
    url = small.url()
    bounds = descriptors.limits_within(256)
    async with AsyncExitStack() as stack:
        for _ in range(1000):
            client = await stack.enter_async_context(connect(url))
            client.writer.write(starts)
        for _ in range(5):
            assert (await ask(url, request(target="/health/live"))).status == 200
        process = psutil.Process(small.process.pid)
        assert process.num_fds() <= 256
        assert len(process.net_connections("tcp")) <= bounds.most_connections + bounds.connections + 10
    async with asyncio.timeout(PATIENCE):
        while (await ask(url, chat("and all is well"))).status != 200:
            pass
    assert small.process.poll() is None
    assert "Traceback" not in small.everything()


async def test_a22_who_is_idle_makes_room(small: Program) -> None:
    """As many as there are places, none of them with a key: they keep nobody out, and the oldest goes first."""
    url = small.url()
    bounds = descriptors.limits_within(256)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(url)) for _ in range(bounds.connections)]
        for client in clients:
            await client.send(request(authorization=""))
            assert (await client.answer()).status == 200
        async with connect(url) as late:
            await late.send(chat("one more"))
            answer = await late.answer()
            assert (answer.status, answer.header("connection")) == (200, None)
            assert await clients[0].end() == b""
            await clients[1].send(request())
            assert (await clients[1].answer()).status == 200


async def test_a22_who_is_too_many_is_told_so(small: Program) -> None:
    """When all are busy: each has a body still to come."""
    url = small.url()
    bounds = descriptors.limits_within(256)
    whole = chat("one of those who are in")
    async with AsyncExitStack() as stack:
        for _ in range(bounds.connections):
            client = await stack.enter_async_context(connect(url))
            await client.send(whole[:-1])
        answer = await refused(url, chat("one more"), "overloaded", 503)
        assert answer.header("retry-after") == "1"
        assert (await ask(url, request(target="/health/ready"))).status == 200
        await client.send(whole[-1:])
        assert (await client.answer()).status == 200
    line = await asyncio.to_thread(small.line, status_code=503)
    assert (line["level"], line["error_code"]) == ("error", "overloaded")


def test_a22_the_soft_limit_is_raised(small: Program) -> None:
    small.url()
    assert resource.prlimit(small.process.pid, resource.RLIMIT_NOFILE) == (256, 256)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert descriptors.raised() == (descriptors.MOST if hard == resource.RLIM_INFINITY else min(hard, descriptors.MOST))


# Addresses.


@pytest.mark.parametrize(("host", "reached", "seen"), [("::1", "[::1]", "::1"), ("::", "127.0.0.1", "127.0.0.1")])
async def test_a23_ipv6(simulator: Simulator, tmp_path: Path, host: str, reached: str, seen: str) -> None:
    config = CONFIG.replace("port: 0,", f'port: 0, host: "{host}",')
    running = start_proxy(tmp_path, simulator.url, config=config)
    try:
        url = f"http://{reached}:{urlsplit(running.url).port}"
        answer = await ask(url, chat("x", headers={"host": reached}))
        assert answer.status == 200
        line = await asyncio.to_thread(running.program.line, request_id=answer.header("x-request-id"))
        assert line["client"] == seen
        answer = await refused(url, b"garbage\r\n\r\n")
        line = await asyncio.to_thread(running.program.line, request_id=answer.header("x-request-id"))
        assert line["client"] == seen
    finally:
        running.program.stop()
