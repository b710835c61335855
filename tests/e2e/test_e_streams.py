"""What a stream is on the wire: the upstream's bytes, each event at once, up to its end and no further."""

from __future__ import annotations

import asyncio
import hashlib
import json

import pytest
from openai._streaming import SSEDecoder

from tests.conftest import Simulator
from tests.e2e.conftest import Stage
from tests.e2e.upstream import DONE, STREAM, Reply, completion, event, events
from tests.e2e.wire import Answer, ask, chat, connect, soon, turns
from tests.upstream.scripted import Peer, Received, chunk

MODEL = "mistral-small-latest"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def whole(body: bytes) -> Reply:
    """The stream in one piece."""

    async def reply(peer: Peer, received: Received) -> None:
        await peer.send(STREAM + chunk(body) + chunk(b""))

    return reply


# Bytes.


@pytest.mark.parametrize(
    "fault",
    ["", "+events=50", "+large=20000", "+fragment=1", "+fragment=7", "+coalesce", "+crlf", "+comments+fragment=3"],
)
async def test_e12_the_bytes_are_those_that_the_simulator_sent(stage: Stage, simulator: Simulator, fault: str) -> None:
    """The test stands between the proxy and the simulator and keeps what goes by."""
    passed: list[Answer] = []

    async def tap(peer: Peer, received: Received) -> None:
        fields = "".join(f"{name}: {value}\r\n" for name, value in received.headers)
        async with connect(simulator.url) as behind:
            await behind.send(f"{received.line}\r\n{fields}\r\n".encode() + received.body)
            answer = await behind.head()
            passed.append(answer)
            await peer.send(STREAM)
            while piece := await behind.chunk():
                answer.chunks.append(piece)
                await peer.send(chunk(piece))
            await peer.send(chunk(b""))

    async with stage.upstream(tap):
        answer = await ask(stage.url, chat("Grüße aus Zürich, 東京 🗼", stream=True, model=MODEL + fault))
    [sent] = passed
    assert len(sent.body) > 1000
    assert answer.body.rstrip().endswith(b"data: [DONE]")
    assert sha256(answer.body) == sha256(sent.body)


async def test_each_event_leaves_before_the_next_one_is_sent(stage: Stage) -> None:
    received_by_client = asyncio.Event()
    expected = events(20)

    async def script(peer: Peer, received: Received) -> None:
        await peer.send(STREAM)
        for one in expected:
            await peer.send(chunk(one))
            await soon(received_by_client.wait())
            received_by_client.clear()
        await peer.send(chunk(b""))

    async with stage.upstream(script), connect(stage.url) as client:
        await client.send(chat(stream=True))
        await client.head()
        for one in expected:
            assert await client.chunk() == one
            received_by_client.set()
        assert await client.chunk() == b""


async def test_an_event_that_comes_with_the_headers_does_not_wait_for_more(stage: Stage) -> None:
    release = asyncio.Event()

    async def script(peer: Peer, received: Received) -> None:
        await peer.send(STREAM + chunk(event("Hello")))
        await soon(release.wait())
        await peer.send(chunk(event("", "stop") + DONE) + chunk(b""))

    async with stage.upstream(script), connect(stage.url) as client:
        await client.send(chat(stream=True))
        await client.head()
        assert await client.chunk() == event("Hello")
        release.set()
        assert (await client.chunk(), await client.chunk()) == (event("", "stop") + DONE, b"")


async def test_the_answer_is_over_with_its_last_event_even_if_the_upstream_is_not(stage: Stage) -> None:
    release, prompts = asyncio.Event(), []

    async def script(peer: Peer, received: Received) -> None:
        prompts.append(received.body)
        if len(prompts) == 1:
            await peer.send(STREAM + chunk(b"".join(events(2))))
            await soon(release.wait())
            await peer.send(chunk(b""))
        else:
            await peer.send(completion())

    async with stage.upstream(script), connect(stage.url) as client:
        await client.send(chat(stream=True))
        assert (await client.answer()).body == b"".join(events(2))
        release.set()
        await client.send(chat())
        assert (await client.answer()).status == 200


def written(chunk: str) -> bytes:
    """A chunk whose white space and key order no serialiser would make: what is untouched stays so."""
    return f'{{"object" : "chat.completion.chunk",{chunk}}}'.encode()


USAGE = '"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}'
HEAD = '"object":"chat.completion.chunk"'
PIECES = [
    b": keep-alive\n\n",
    b"event: x\r\ndata: " + written('"choices":[{"delta": {"content":"ü"},"index":0}]') + b"\r\n\r\n",
    b"data: " + written('"choices":[{"index":0,"delta":{"content":[{"type":"text","text":"🗼"}]}}]') + b"\n\n",
    b"data: " + written('"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],' + USAGE) + b"\n\n",
    DONE,
]
TRANSLATED = [
    *PIECES[:2],
    f'data: {{{HEAD},"choices":[{{"index":0,"delta":{{"content":"🗼"}}}}]}}\n\n'.encode(),
    f'data: {{{HEAD},"choices":[{{"index":0,"delta":{{}},"finish_reason":"stop"}}],"usage":null}}\n\n'.encode(),
    f'data: {{{HEAD},"choices":[],{USAGE}}}\n\n'.encode(),
    DONE,
]


async def test_e12_it_is_the_same_stream_wherever_it_is_cut(stage: Stage) -> None:
    """At every byte: inside UTF-8, inside CRLF, inside a word, with an event that is rewritten before and after."""
    body, at = b"".join(PIECES), 0
    begun, cut = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer, received: Received) -> None:
        await peer.send(STREAM + (chunk(body[:at]) if at else b""))
        begun.set()
        await soon(cut.wait())
        await peer.send(chunk(body[at:]) + chunk(b""))

    asked = chat(stream=True, stream_options={"include_usage": True})
    async with stage.upstream(script), connect(stage.url) as client:
        for at in range(len(body)):
            begun.clear()
            cut.clear()
            await client.send(asked)
            await soon(begun.wait())
            await turns(stage.url, 2)  # what is before the cut has been read, alone
            cut.set()
            assert (await client.answer()).body == b"".join(TRANSLATED), at


async def test_e12_many_events_in_one_segment(stage: Stage) -> None:
    async with stage.upstream(whole(b"".join(PIECES))):
        answer = await ask(stage.url, chat(stream=True, stream_options={"include_usage": True}))
    assert answer.body == b"".join(TRANSLATED)


# Heads.


async def test_e17_the_headers_of_a_stream(stage: Stage) -> None:
    async with stage.upstream(whole(b"".join(events(1)))):
        answer = await ask(stage.url, chat(stream=True, headers={"x_request_id": "mine-1"}, seed=3))
    assert sorted(name for name, _ in answer.headers) == [
        "cache-control", "content-type", "date", "server-timing", "transfer-encoding", "x-accel-buffering",
        "x-proxy-attempts", "x-proxy-cache", "x-proxy-decision", "x-proxy-rewrites", "x-proxy-upstream", "x-request-id",
    ]  # fmt: skip
    assert answer.header("content-type") == "text/event-stream; charset=utf-8"
    assert answer.header("cache-control") == "no-cache, no-transform"
    assert answer.header("x-accel-buffering") == "no"
    assert answer.header("x-request-id") == "mine-1"
    assert answer.header("x-proxy-upstream") == f"mistral/{MODEL}"
    assert answer.header("x-proxy-attempts") == "1"
    assert answer.header("x-proxy-rewrites") == "rename:seed>random_seed"


async def test_e17_nothing_is_compressed_and_nobody_may(stage: Stage) -> None:
    """Compression would hold events back; so would a cache in between, or a proxy that collects."""
    async with stage.upstream(whole(b"".join(events(1)))) as seen:
        answer = await ask(stage.url, chat(stream=True, headers={"accept_encoding": "gzip, br, zstd"}))
    assert answer.header("content-encoding") is None
    assert answer.header("cache-control") == "no-cache, no-transform"
    assert answer.header("x-accel-buffering") == "no"
    assert answer.body == b"".join(events(1))
    assert seen.requests[0].header("accept-encoding") == "identity"


# Shapes.

TEXTS = [event("Grüße "), event("🗼"), event("", "stop"), DONE]
SHAPES = {
    "lf": b"".join(TEXTS),
    "crlf": b"".join(TEXTS).replace(b"\n", b"\r\n"),
    "cr": b"".join(TEXTS).replace(b"\n", b"\r"),
    "bom": b"\xef\xbb\xbf" + b"".join(TEXTS),
    "comments": b": hello\n\n" + b":\n\n".join(TEXTS),
    "fields": b"event: message\nid: 7\nretry: 10\n" + b": hello\n\nid: 8\n".join(TEXTS),
    "fields alone": b"event: ping\n\nid: 7\n\nretry: 10\n\n" + b"".join(TEXTS),
    "many lines": b"".join(TEXTS).replace(b',"choices"', b',\ndata: "choices"'),
    "no space": b"".join(TEXTS).replace(b"data: ", b"data:"),
    "empty data": b"data:\n\n" + b"data\n\n".join(TEXTS),
    "no last empty line": b"".join(TEXTS)[:-1],
    "no end mark": b"".join(TEXTS[:-1]),
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_e12_every_shape_byte_by_byte(stage: Stage, shape: str) -> None:
    """The same bytes leave as for the stream in one piece, and OpenAI's SDK reads the same answer from all shapes."""
    source, mark = SHAPES[shape], f"shape-{shape.replace(' ', '-')}"

    async def bytewise(peer: Peer, received: Received) -> None:
        await peer.send(STREAM)
        for at in range(len(source)):
            await peer.send(chunk(source[at : at + 1]))
            await asyncio.sleep(0)
        await peer.send(chunk(b""))

    async with stage.upstream(whole(source)):
        expected = await ask(stage.url, chat(stream=True))
    async with stage.upstream(bytewise):
        answer = await ask(stage.url, chat(stream=True, headers={"x_request_id": mark}))
    assert answer.body == expected.body
    *chunks, done = [found.data for found in SSEDecoder().iter_bytes(iter([answer.body]))]
    assert done == "[DONE]"
    assert [json.loads(one)["choices"][0]["delta"]["content"] for one in chunks] == ["Grüße ", "🗼", ""]
    line = await asyncio.to_thread(stage.proxy.program.line, request_id=mark)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (3, 5)


# Behind the end.


@pytest.mark.parametrize("more", [DONE, event("late"), b'data: {"choices":[],"usage":{"total_tokens":9}}\n\n', b"x"])
@pytest.mark.parametrize("apart", [False, True])
async def test_e14_the_stream_ends_at_the_first_end_mark(stage: Stage, more: bytes, apart: bool) -> None:
    """What comes behind it is not passed on, and not waited for; the connection has proved to be none to use again."""
    body, release = b"".join(events(2)), asyncio.Event()

    async def script(peer: Peer, received: Received) -> None:
        if b'"stream":true' not in received.body:
            await peer.send(completion())
        elif apart:
            await peer.send(STREAM + chunk(body))
            await soon(release.wait())
            await peer.send(chunk(more) + chunk(b""))
        else:
            await peer.send(STREAM + chunk(body + more) + chunk(b""))

    async with stage.upstream(script) as seen, connect(stage.url) as client:
        await client.send(chat(stream=True))
        assert (await client.answer()).body == body
        release.set()
        await turns(stage.url)
        await client.send(chat())
        assert (await client.answer()).status == 200
    assert (len(seen.requests), seen.connections) == (2, 2)


async def test_e14_an_upstream_that_never_stops(stage: Stage) -> None:
    body, closed = b"".join(events(2)), asyncio.Event()

    async def script(peer: Peer, received: Received) -> None:
        await peer.send(STREAM + chunk(body))
        try:
            while True:
                await peer.send(chunk(event("late") * 100))
        finally:
            closed.set()

    async with stage.upstream(script):
        assert (await ask(stage.url, chat(stream=True))).body == body
        await soon(closed.wait())


async def test_e15_a_stream_without_usage(stage: Stage) -> None:
    """Nothing is made up: the client gets what there is, and the log says nothing of tokens."""
    body = (
        event("Hello") + event("", "length").replace(b',"usage":{"prompt_tokens":3', b',"x":{"prompt_tokens":3') + DONE
    )
    async with stage.upstream(whole(body)):
        asked = chat(stream=True, stream_options={"include_usage": True}, headers={"x_request_id": "no-usage"})
        answer = await ask(stage.url, asked)
    assert answer.body == body
    line = await asyncio.to_thread(stage.proxy.program.line, request_id="no-usage")
    assert "prompt_tokens" not in line
    assert line["status_code"] == 200
