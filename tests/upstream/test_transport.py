"""What every Transport promises: the request as it was given, the answer as it came, and one error for each cause."""

from __future__ import annotations

import asyncio
import gzip
import socket
from pathlib import Path

import pytest

from proxy.upstream.transport import Transport, TransportError
from tests.upstream.conftest import Open
from tests.upstream.scripted import (
    CHUNKED,
    OK,
    Peer,
    Received,
    Script,
    answer,
    chunk,
    every_request,
    soon,
    upstream,
    whole,
)

HEADERS = [
    ("accept-encoding", "identity"),
    ("content-type", "application/json"),
    ("authorization", "Bearer k"),
    ("user-agent", "mistral-proxy/0"),
]


def recording(seen: list[Received], reply: bytes) -> Script:
    async def script(peer: Peer) -> None:
        while True:
            seen.append(await peer.request())
            await peer.send(reply)

    return script


async def failing(transport: Transport, **request: object) -> str:
    """The kind of the error that one call ends with."""
    with pytest.raises(TransportError) as caught:
        await whole(transport, **request)
    return caught.value.kind


async def watched(transport: Transport, received: asyncio.Event) -> tuple[list[bytes], str]:
    """The chunks of an answer that breaks off, each told to the server, and the kind of its error."""
    chunks = []
    try:
        async with asyncio.timeout(5), transport.call("POST", "/", [], b"{}") as reply:
            async for data in reply.chunks():
                chunks.append(data)
                received.set()
    except TransportError as error:
        return chunks, error.kind
    raise AssertionError("the answer was taken for a whole one")


# the request


@pytest.mark.parametrize("body", [b'{"model":"m"}', b"\0\xff" * 3_000_000], ids=["small", "6 MB"])
async def test_the_request_is_sent_as_it_was_given(open_to: Open, body: bytes):
    seen: list[Received] = []
    path = "/v1/a%2Fb/%C3%A9/../c?x=1%20&y=%2e%2E"
    async with upstream(recording(seen, answer(b"ok"))) as server:
        assert await whole(open_to(server.url), path=path, headers=HEADERS, body=body) == b"ok"
    (request,) = seen
    assert request.line == f"POST {path} HTTP/1.1"
    length = ("content-length", str(len(body)))
    host = ("host", f"localhost:{server.port}")
    assert sorted((name.lower(), value) for name, value in request.headers) == sorted([*HEADERS, host, length])
    assert request.body == body


@pytest.mark.parametrize(("method", "length"), [("GET", None), ("DELETE", None), ("POST", "0")])
async def test_a_request_without_a_body(open_to: Open, method: str, length: str | None):
    seen: list[Received] = []
    async with upstream(recording(seen, answer(b"ok"))) as server:
        assert await whole(open_to(server.url), method=method, body=b"") == b"ok"
    (request,) = seen
    assert request.line == f"{method} / HTTP/1.1"
    assert request.header("content-length") == length


async def test_the_path_of_the_base_url_comes_first(open_to: Open):
    seen: list[Received] = []
    async with upstream(recording(seen, answer(b"ok"))) as server:
        await whole(open_to(server.url + "/team%20a"), path="/v1/models")
    assert seen[0].line == "POST /team%20a/v1/models HTTP/1.1"


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/ HTTP/1.1\r\nx: y\r\n\r\n", []),
        ("/a b", []),
        ("/é", []),
        ("/", [("x", "1\r\ny: 2")]),
        ("/", [("x", "1\ny: 2")]),
        ("/", [("x", "\0")]),
        ("/", [("x: 1\r\ny", "2")]),
    ],
)
async def test_a_request_that_breaks_out_of_its_line_is_not_sent(
    open_to: Open, path: str, headers: list[tuple[str, str]]
):
    seen: list[Received] = []
    async with upstream(recording(seen, answer(b"ok"))) as server:
        transport = open_to(server.url)
        with pytest.raises(ValueError):
            await whole(transport, path=path, headers=headers)
        assert await whole(transport) == b"ok"
    assert len(seen) == 1


async def test_the_environment_decides_nothing(open_to: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine localhost login someone password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:1")
    seen: list[Received] = []
    async with upstream(recording(seen, answer(b"ok"))) as server:
        assert await whole(open_to(server.url)) == b"ok"
    assert seen[0].header("authorization") is None


async def test_cookies_are_not_kept(open_to: Open):
    seen: list[Received] = []
    reply = answer(b"ok", OK + b"set-cookie: session=1; Path=/\r\n")
    async with upstream(recording(seen, reply)) as server:
        transport = open_to(server.url)
        await whole(transport)
        await whole(transport)
    assert [request.header("cookie") for request in seen] == [None, None]


# the answer


async def test_chunks_arrive_while_the_answer_is_still_being_written(open_to: Open):
    received = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        for data in (b"data: 1\n\n", b"data: 2", b"\n\n"):
            await peer.send(chunk(data))
            await soon(received.wait())
            received.clear()
        await peer.send(chunk(b""))
        await peer.gone()

    chunks = []
    async with (
        asyncio.timeout(5),
        upstream(script) as server,
        open_to(server.url).call("POST", "/", [], b"{}") as reply,
    ):
        async for data in reply.chunks():
            chunks.append(data)
            received.set()
    assert chunks == [b"data: 1\n\n", b"data: 2", b"\n\n"]


async def test_the_headers_arrive_before_the_body(open_to: Open):
    entered = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK + b"content-length: 2\r\n\r\n")
        await soon(entered.wait())
        await peer.send(b"ok")
        await peer.gone()

    async with (
        asyncio.timeout(5),
        upstream(script) as server,
        open_to(server.url).call("POST", "/", [], b"{}") as reply,
    ):
        entered.set()
        assert [data async for data in reply.chunks()] == [b"ok"]


async def test_a_header_is_found_by_its_lower_case_name(open_to: Open):
    head = OK + b"X-Id: 1\r\nx-id: 2\r\nx-name: caf\xe9 \xc3\xa9\r\nx-empty:\r\n"
    async with (
        asyncio.timeout(5),
        upstream(every_request(answer(b"", head))) as server,
        open_to(server.url).call("POST", "/", [], b"{}") as reply,
    ):
        names = ("x-id", "x-name", "x-empty", "x-missing")
        assert [reply.header(name) for name in names] == ["1", "café Ã©", "", None]


@pytest.mark.parametrize("status", [200, 302, 307, 404, 500])
async def test_a_status_is_handed_over_and_a_redirect_not_followed(open_to: Open, status: int):
    seen: list[Received] = []
    reply = answer(b"body", b"HTTP/1.1 %d Whatever\r\nlocation: /elsewhere\r\n" % status)
    async with (
        asyncio.timeout(5),
        upstream(recording(seen, reply)) as server,
        open_to(server.url).call("GET", "/", [], b"") as given,
    ):
        assert given.status == status
        assert [data async for data in given.chunks()] == [b"body"]
    assert len(seen) == 1


async def test_an_answer_without_a_body_ends_at_once(open_to: Open):
    async with upstream(every_request(b"HTTP/1.1 204 No Content\r\n\r\n")) as server:
        transport = open_to(server.url)
        assert [await whole(transport), await whole(transport)] == [b"", b""]


async def test_an_answer_without_a_length_ends_with_its_connection(open_to: Open):
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK + b"\r\nuntil the end")

    async with upstream(script) as server:
        assert await whole(open_to(server.url)) == b"until the end"


async def test_a_compressed_body_is_not_touched(open_to: Open):
    packed = gzip.compress(b"hello")
    async with upstream(every_request(answer(packed, OK + b"content-encoding: gzip\r\n"))) as server:
        assert await whole(open_to(server.url)) == packed


async def test_interim_answers_are_skipped(open_to: Open):
    hints = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
    async with upstream(every_request(b"HTTP/1.1 100 Continue\r\n\r\n" + hints * 3 + answer(b"ok"))) as server:
        transport = open_to(server.url)
        assert [await whole(transport), await whole(transport)] == [b"ok", b"ok"]


# the errors


async def test_refused(open_to: Open):
    with socket.socket() as taken:  # bound and not listening
        taken.bind(("127.0.0.1", 0))
        transport = open_to(f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(TransportError, match="cannot connect to the upstream: ") as caught:
            await whole(transport)
    assert caught.value.kind == "connect"


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"HTTP/1.1 2",
        CHUNKED,
        CHUNKED + chunk(b"data: 1\n\n"),
        CHUNKED + b"9\r\nda",
        OK + b"content-length: 9\r\n\r\nda",
    ],
    ids=["nothing", "half a head", "head", "chunk", "half a chunk", "half a body"],
)
async def test_closed_too_early(open_to: Open, sent: bytes, reset: bool):
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(sent)
        if reset:
            await peer.cut()

    async with upstream(script) as server:
        assert await failing(open_to(server.url)) == "closed"
    assert server.connections == 1


async def test_what_came_before_the_cut_is_handed_over(open_to: Open):
    received = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + chunk(b"data: 1\n\n"))
        await soon(received.wait())

    async with upstream(script) as server:
        assert await watched(open_to(server.url), received) == ([b"data: 1\n\n"], "closed")


def line(start: bytes) -> bytes:
    """An answer of two bytes with this status line."""
    return answer(b"ok", start + b"\r\n")


NONSENSE = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "HTTP/0.9": b'{"choices": []}\r\n\r\n',
    "status 099": line(b"HTTP/1.1 099 What"),
    "status 99": line(b"HTTP/1.1 99 What"),
    "status 1000": line(b"HTTP/1.1 1000 What"),
    "status abc": line(b"HTTP/1.1 abc What"),
    "switching": b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
    "header": OK + b"no colon here\r\n\r\n",
    "NUL in a header": answer(b"ok", OK + b"x: a\0b\r\n"),
    "length": OK + b"content-length: many\r\n\r\n",
    "negative length": OK + b"content-length: -2\r\n\r\nok",
    "signed length": OK + b"content-length: +2\r\n\r\nok",
    "two lengths": OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\nok!",
    "length and chunks": OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "chunks and length": OK + b"transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "chunk size": CHUNKED + b"zz\r\n",
    "negative chunk": CHUNKED + b"-2\r\nok\r\n",
    "hex chunk": CHUNKED + b"0x2\r\nok\r\n",
    "chunk without end": CHUNKED + b"2\r\nokXX0\r\n\r\n",
}
TOO_MUCH = {
    "huge header": OK + b"x: " + b"a" * 200_000 + b"\r\n\r\n",
    "huge reason": line(b"HTTP/1.1 200 " + b"a" * 200_000),
    "many headers": answer(b"ok", OK + b"".join(b"x%d: a\r\n" % number for number in range(1_000))),
}


async def refuses(open_to: Open, sent: bytes) -> None:
    """The answer is an error, and its connection is closed."""
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(sent)
        await peer.gone()
        gone.set()

    async with upstream(script) as server:
        assert await failing(open_to(server.url)) == "protocol"
        await soon(gone.wait())


@pytest.mark.parametrize("sent", NONSENSE.values(), ids=NONSENSE)
async def test_d11_nonsense(open_to: Open, sent: bytes):
    await refuses(open_to, sent)


@pytest.mark.parametrize("sent", TOO_MUCH.values(), ids=TOO_MUCH)
async def test_d12_a_head_without_measure(open_to: Open, sent: bytes):
    await refuses(open_to, sent)


async def test_d11_interim_answers_without_end(open_reusing: Open):
    """httpx2 skips them all; there the first-byte deadline is the end."""
    await refuses(open_reusing, b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000 + answer(b"ok"))


async def test_nonsense_in_the_middle_of_a_body(open_to: Open):
    received = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + chunk(b"data: 1\n\n"))
        await soon(received.wait())
        await peer.send(b"zz\r\n")
        await peer.gone()

    async with upstream(script) as server:
        assert await watched(open_to(server.url), received) == ([b"data: 1\n\n"], "protocol")


async def test_an_error_says_nothing_of_what_was_exchanged(open_to: Open):
    async with upstream(every_request(b"HTTP/1.1 200 OK\r\nsecret-in-the-answer\r\n\r\n")) as server:
        with pytest.raises(TransportError) as caught:
            await whole(open_to(server.url), path="/?secret=1", headers=[("authorization", "secret")], body=b"secret")
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
