"""What a stream is on the wire: the upstream's bytes, each event at once, and never an end that looks like success."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import pytest

from tests.conftest import Proxy, Simulator, start_proxy
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
async def test_the_bytes_are_those_that_the_simulator_sent(stage: Stage, simulator: Simulator, fault: str) -> None:
    """The test stands between the proxy and the simulator and keeps what goes by."""
    passed: list[Answer] = []

    async def tap(peer: Peer, received: Received) -> None:
        fields = "".join(f"{name}: {value}\r\n" for name, value in received.headers)
        async with connect(simulator.url) as behind:
            await behind.send(f"{received.line}\r\n{fields}\r\n".encode() + received.body)
            answer = await behind.head()
            await peer.send(STREAM)
            while piece := await behind.chunk():
                answer.chunks.append(piece)
                await peer.send(chunk(piece))
            await peer.send(chunk(b""))
        passed.append(answer)

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


async def test_it_is_the_same_stream_wherever_it_is_cut(stage: Stage) -> None:
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


async def test_many_events_in_one_segment(stage: Stage) -> None:
    async with stage.upstream(whole(b"".join(PIECES))):
        answer = await ask(stage.url, chat(stream=True, stream_options={"include_usage": True}))
    assert answer.body == b"".join(TRANSLATED)


# Heads.


async def test_the_headers_of_a_stream(stage: Stage) -> None:
    async with stage.upstream(whole(b"".join(events(1)))):
        answer = await ask(stage.url, chat(stream=True, headers={"x_request_id": "mine-1"}, seed=3))
    assert sorted(name for name, _ in answer.headers) == [
        "cache-control", "content-type", "date", "transfer-encoding", "x-accel-buffering", "x-proxy-attempts",
        "x-proxy-rewrites", "x-proxy-upstream", "x-request-id",
    ]  # fmt: skip
    assert answer.header("content-type") == "text/event-stream; charset=utf-8"
    assert answer.header("cache-control") == "no-cache"
    assert answer.header("x-accel-buffering") == "no"
    assert answer.header("x-request-id") == "mine-1"
    assert answer.header("x-proxy-upstream") == f"mistral/{MODEL}"
    assert answer.header("x-proxy-attempts") == "1"
    assert answer.header("x-proxy-rewrites") == "rename:seed>random_seed"


# Ends.


def frame(answer: Answer) -> dict[str, Any]:
    """The error in the last frame but [DONE]; nothing before it has a finish_reason."""
    *before, last, done, rest = answer.body.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    assert b'"finish_reason":"' not in b"".join(before)
    error: dict[str, Any] = json.loads(last.removeprefix(b"data: "))["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    return error


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (chunk(b""), "upstream_error"),  # an end in peace, but too early
        (chunk(DONE) + chunk(b""), "upstream_error"),
        (b"zz\r\n", "upstream_error"),  # no chunk
        (chunk(b"<html>Bad gateway</html>\n\n"), "upstream_error"),
        (chunk(b"data: {\n\n"), "upstream_error"),
        (chunk(b'data: {"object":"error","message":"Hello, prompt","code":"3000"}\n\n'), "upstream_error"),
        (chunk(b"data: " + b"x" * (1 << 20) + b"\n\n"), "upstream_error"),
    ],
    ids=["early end", "early DONE", "no chunk", "html", "half JSON", "error", "too long"],
)
async def test_after_the_first_event_an_error_is_a_frame(stage: Stage, end: bytes, code: str) -> None:
    begun = asyncio.Event()

    async def script(peer: Peer, received: Received) -> None:
        if b'"stream":true' in received.body:
            await peer.send(STREAM + chunk(event("Hello")))
            await soon(begun.wait())
            await peer.send(end)
        else:
            await peer.send(completion())

    mark = f"frame-{sha256(end)[:8]}"
    async with stage.upstream(script), connect(stage.url) as client:
        await client.send(chat(stream=True, headers={"x_request_id": mark}))
        answer = await client.head()
        assert answer.status == 200
        assert await client.chunk() == event("Hello")
        begun.set()
        while piece := await client.chunk():
            answer.chunks.append(piece)
        error = frame(answer)
        assert (error["code"], error["type"]) == (code, "server_error")
        assert "prompt" not in error["message"]
        await client.send(chat())  # the connection is as good as before
        assert (await client.answer()).status == 200
    line = await asyncio.to_thread(stage.proxy.program.line, request_id=mark)
    assert (line["error_code"], line["status_code"], line["level"]) == (code, 200, "error")


@pytest.mark.parametrize("reset", ["", "+reset"])
@pytest.mark.parametrize("sent", [1, 3])
async def test_a_connection_that_is_cut(proxy: Proxy, sent: int, reset: str) -> None:
    answer = await ask(proxy.url, chat(stream=True, model=f"{MODEL}+events=9+delay=0.02+cut_events={sent}{reset}"))
    assert frame(answer)["code"] == "upstream_error"
    assert answer.body.count(b'"content"') == sent


async def test_a_stream_that_stands_still(simulator: Simulator, tmp_path: Any) -> None:
    config = """
server: {{port: 0}}
providers:
  mistral:
    base_url: {simulator}
    api_keys: ["${{PROVIDER_KEY}}"]
    timeouts: {{idle: 200ms, total: 700ms}}
teams: {{research: {{keys: ["${{TEAM_KEY}}"]}}}}
"""
    proxy = start_proxy(tmp_path, simulator.url, config=config)
    try:
        stalled = await ask(proxy.url, chat(stream=True, model=f"{MODEL}+events=9+stall_events=4"))
        slow = await ask(proxy.url, chat(stream=True, model=f"{MODEL}+events=90+delay=0.05"))
    finally:
        proxy.program.stop()
    for answer, phase in ((stalled, "idle"), (slow, "total")):
        error = frame(answer)
        assert (error["code"], error["timeout"]) == ("upstream_timeout", phase)
    assert stalled.body.count(b'"content"') == 4


@pytest.mark.parametrize(
    ("reply", "status", "code"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 2\r\n\r\nhi", 502, "upstream_error"),
        (STREAM + chunk(b""), 502, "upstream_error"),
        (STREAM + chunk(DONE) + chunk(b""), 502, "upstream_error"),
        (STREAM + chunk(b"<html>\n\n"), 502, "upstream_error"),
        (b"HTTP/1.1 503 Down\r\ncontent-length: 0\r\n\r\n", 503, "upstream_error"),
        (b"HTTP/1.1 429 Slow\r\ncontent-length: 0\r\n\r\n", 429, "rate_limit_exceeded"),
        (b"SSH-2.0-OpenSSH_9.9\r\n\r\n", 502, "upstream_error"),
    ],
)
async def test_before_the_first_event_an_error_is_an_ordinary_answer(
    stage: Stage, reply: bytes, status: int, code: str
) -> None:
    async def script(peer: Peer, received: Received) -> None:
        await peer.send(reply)

    async with stage.upstream(script):
        answer = await ask(stage.url, chat(stream=True))
    assert answer.status == status
    assert answer.error()["code"] == code
    assert answer.header("content-length")


async def test_a_comment_begins_the_answer_too(stage: Stage) -> None:
    """It leaves at once, as every event does; so what fails after it is a frame."""
    async with stage.upstream(whole(b": hello\n\n")):
        answer = await ask(stage.url, chat(stream=True))
    assert answer.status == 200
    assert answer.body.startswith(b": hello\n\n")
    assert frame(answer)["code"] == "upstream_error"
