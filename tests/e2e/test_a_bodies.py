"""Rows A13, A14, A16 and A18: a body that does not come, or not as it was said."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import psutil
import pytest
import uvicorn
from uvicorn.server import ServerState

from proxy.core.services import Services
from proxy.http.protocol import Protocol
from proxy.pipeline import fold
from proxy.providers.mistral.chat import CHAT as ENDPOINT
from proxy.stages import begin, body, rescue
from proxy.stages.body import Pace
from tests.asgi import ok, services
from tests.conftest import Proxy
from tests.e2e.conftest import Stage
from tests.e2e.upstream import completion
from tests.e2e.wire import CHAT, Connection, ask, chat, connect, request
from tests.upstream.scripted import Peer, Received


def head(**headers: str) -> bytes:
    """The head of a chat request, whose body is still to come."""
    return request("POST", CHAT, b"", content_type="application/json", **headers)


async def echo(peer: Peer, received: Received) -> None:
    await peer.send(completion())


# Too slow.


@asynccontextmanager
async def door(pace: Pace, around: Services) -> AsyncIterator[str]:
    """The stages that a body meets, behind a real socket, with a pace that a test need not wait for."""
    stages = (begin.build((), around), rescue.build(around), body.build(1 << 20, ENDPOINT, around, pace))
    config = uvicorn.Config(fold(stages, ok), lifespan="off", log_config=None, server_header=False)
    config.load()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Protocol(config, ServerState(), {}), "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("start", [b"", b'{"model": "m"'])
async def test_a13_a_body_that_stops_coming(start: bytes) -> None:
    async with door(Pace(idle=0.05, tick=0.01), services()) as url, connect(url) as client:
        await client.send(head(content_length="100") + start)
        refused = await client.answer()
        assert (refused.status, refused.error()["code"]) == (408, "request_timeout")
        assert refused.header("connection") == "close"
        assert await client.end() == b""


async def test_a13_a_body_that_drips() -> None:
    """It is never silent, and never in time."""
    async with door(Pace(idle=0.1, rate=1e12, tick=0.01), services()) as url, connect(url) as client:
        await client.send(head(transfer_encoding="chunked"))

        async def drip() -> None:
            while True:
                await client.send(b"1\r\n \r\n")
                await asyncio.sleep(0)  # the server runs in this loop, too

        dripping = asyncio.create_task(drip())
        refused = await client.answer()
        assert (refused.status, refused.error()["code"]) == (408, "request_timeout")
        await client.end()
        dripping.cancel()
        with pytest.raises((asyncio.CancelledError, ConnectionError)):
            await dripping


async def test_a13_a_body_in_pieces_is_served() -> None:
    async with door(Pace(tick=0.001), services()) as url, connect(url) as client:
        for piece in (head(content_length="8"), b'{"a"', b": 1", b"}"):
            await client.send(piece)
            await asyncio.sleep(0)
        assert (await client.head()).status == 200


async def test_a13_a_body_on_its_way_hears_of_the_drain() -> None:
    around = services()
    async with door(Pace(), around) as url, connect(url) as client:
        await client.send(head(content_length="100", expect="100-continue"))
        assert (await client.head()).status == 100  # it is waited for
        [waiting] = around.drainables
        waiting.drain()
        refused = await client.answer()
        assert (refused.status, refused.error()["code"]) == (503, "draining")
        assert refused.header("connection") == "close"


# Too short.


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_a14_a_body_that_is_cut(stage: Stage, how: str) -> None:
    name = f"a14-{how}-{id(stage)}"
    whole = chat("x", headers={"x_request_id": name})
    async with stage.upstream(echo) as seen:
        async with connect(stage.url) as client:
            await client.send(whole[:-5])
            client.leave(how)
        line = await asyncio.to_thread(lambda: stage.proxy.program.line(request_id=name))
        assert (line["status_code"], line["client_gone"]) == (499, True)
    assert not seen.requests


# Too long.


async def test_a16_a_body_that_says_it_is_too_large_is_not_waited_for(proxy: Proxy) -> None:
    for length in ((1 << 20) + 1, 1 << 40):
        async with connect(proxy.url) as client:
            await client.send(head(content_length=str(length)))
            refused = await client.answer()
            assert (refused.status, refused.error()["code"]) == (413, "body_too_large")
            assert refused.header("connection") == "close"
            assert await client.end() == b""


async def test_a16_a_body_that_turns_out_too_large(proxy: Proxy) -> None:
    """At its first byte over the limit, without waiting for another."""
    async with connect(proxy.url) as client:
        await client.send(head(transfer_encoding="chunked"))
        for _ in range(16):
            await client.send(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        await client.send(b"1\r\n \r\n")
        refused = await client.answer()
        assert (refused.status, refused.error()["code"]) == (413, "body_too_large")
        assert refused.header("connection") == "close"


async def test_a16_a_body_of_exactly_the_limit_is_read(proxy: Proxy) -> None:
    text = b'{"model": "mistral-small-latest", "messages": "'
    answered = await ask(proxy.url, request("POST", CHAT, text + b"x" * ((1 << 20) - len(text) - 2) + b'"}'))
    assert (answered.status, answered.error()["param"]) == (400, "messages")


async def pour(client: Connection, start: bytes, piece: bytes) -> None:
    """A gigabyte in such pieces, for as long as anybody takes it."""
    with suppress(ConnectionError):
        await client.send(start)
        for _ in range((1 << 30) // len(piece)):
            await client.send(piece)


async def test_a16_a_gigabyte_takes_no_memory(proxy: Proxy) -> None:
    process = psutil.Process(proxy.program.process.pid)
    piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    chunked = head(transfer_encoding="chunked")
    declared = head(content_length=str(1 << 30))
    lying = head(content_length="10")
    for warm in (True, False):
        before = process.memory_info().rss
        for start in (chunked, declared, lying):
            async with connect(proxy.url) as client:
                await pour(client, start, piece)
        if not warm:
            assert process.memory_info().rss - before < 8 << 20
    assert (await ask(proxy.url, request())).status == 200


# Packed.


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "deflate", "GZip", "identity, gzip", "x-unknown"])
async def test_a18_nothing_is_unpacked(stage: Stage, coding: str) -> None:
    bomb = gzip.compress(b" " * (64 << 20), 9)
    process = psutil.Process(stage.proxy.program.process.pid)
    before = process.memory_info().rss
    async with stage.upstream(echo) as seen:
        refused = await ask(stage.url, request("POST", CHAT, bomb, content_encoding=coding))
        assert (refused.status, refused.error()["code"]) == (415, "unsupported_media_type")
        assert refused.header("connection") == "close"
    assert not seen.requests
    assert process.memory_info().rss - before < 32 << 20
