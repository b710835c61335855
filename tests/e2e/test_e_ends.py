"""How a stream ends that does not end well: by an error frame and [DONE], never by anything that looks like success."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.core.errors import ProxyError
from proxy.core.sse import KEEP_ALIVE
from proxy.upstream.transport import TransportError
from tests.conftest import PROVIDER_KEY, TEAM_KEY, Proxy, Simulator, start_proxy
from tests.e2e.conftest import Stage
from tests.e2e.test_e_streams import MODEL, sha256, whole
from tests.e2e.upstream import DONE, STREAM, completion, event, events, listener, prompt, url_of
from tests.e2e.wire import ask, chat, connect, soon
from tests.programs import Program
from tests.test_dispatch import asked, streamed
from tests.test_dispatch import chat as dispatched
from tests.upstream.scripted import Peer, Received, chunk


def frame(body: bytes) -> dict[str, Any]:
    """The error in the last frame but [DONE]; nothing before it has a finish_reason."""
    *before, last, done, rest = body.split(b"\n\n")
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
async def test_e9_e11_e13_after_the_first_event_an_error_is_a_frame(stage: Stage, end: bytes, code: str) -> None:
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
        error = frame(answer.body)
        assert (error["code"], error["type"]) == (code, "server_error")
        assert "prompt" not in error["message"]
        await client.send(chat())  # the connection is as good as before
        assert (await client.answer()).status == 200
    line = await asyncio.to_thread(stage.proxy.program.line, request_id=mark)
    assert (line["error_code"], line["status_code"], line["level"]) == (code, 200, "error")


@pytest.mark.parametrize("reset", ["", "+reset"])
@pytest.mark.parametrize("sent", [1, 3])
async def test_e8_a_connection_that_is_cut(proxy: Proxy, sent: int, reset: str) -> None:
    answer = await ask(proxy.url, chat(stream=True, model=f"{MODEL}+events=9+delay=0.02+cut_events={sent}{reset}"))
    assert frame(answer.body)["code"] == "upstream_error"
    assert answer.body.count(b'"content"') == sent


async def test_e10_a_stream_that_stands_still(simulator: Simulator, tmp_path: Any) -> None:
    config = """
server: {{port: 0}}
providers:
  mistral:
    base_url: {simulator}
    api_keys: ["${{PROVIDER_KEY}}"]
    retry: {{max_attempts: 1}}
    circuit_breaker: {{failure_threshold: 1000000}}
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
        error = frame(answer.body)
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
async def test_e9_before_the_first_event_an_error_is_an_ordinary_answer(
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
    assert frame(answer.body)["code"] == "upstream_error"


# The client has a part of it.

FIRST, BODY = len(event("word 0 ")), b"".join(events(1))
FINISHED = len(BODY) - len(DONE)
"""From here on every choice has its finish_reason, and nothing is missing but the end mark."""


def whole_events(at: int) -> bytes:
    """What of the first so many bytes is events."""
    return BODY[: BODY.rfind(b"\n\n", 0, at) + 2]


@pytest.mark.parametrize("end", [[], [TransportError("closed", "cut")]], ids=["end", "cut"])
async def test_e8_e9_an_end_after_any_byte(end: list[Any]) -> None:
    for at in range(len(BODY)):
        setting = dispatched(streamed(BODY[:at], *end))
        if at < FIRST:
            with pytest.raises(ProxyError) as caught:
                await setting.ask(asked(stream=True))
            assert caught.value.code == "upstream_error"
            continue
        answer = await setting.ask(asked(stream=True))
        assert len(setting.network.sent) == 1  # the client has a part: nobody may ask again
        if at < FINISHED:
            assert frame(answer.body)["code"] == "upstream_error"
            assert answer.body.startswith(whole_events(at) + b'data: {"error"')
        else:
            assert answer.body == BODY


@pytest.mark.parametrize("cut", [True, False])
async def test_e8_e9_an_end_after_some_bytes(stage: Stage, cut: bool) -> None:
    begun = asyncio.Event()

    async def script(peer: Peer, received: Received) -> None:
        await peer.send(STREAM + chunk(BODY[:FIRST]))
        await soon(begun.wait())
        if at > FIRST:
            await peer.send(chunk(BODY[FIRST:at]))
        await (peer.cut() if cut else peer.send(chunk(b"")))

    async with stage.upstream(script) as seen:
        for count, at in enumerate(range(FIRST, FINISHED, 19), 1):
            begun.clear()
            async with connect(stage.url) as client:
                await client.send(chat(stream=True))
                await client.head()
                received = await client.chunk()
                begun.set()
                while piece := await client.chunk():
                    received += piece
            assert frame(received)["code"] == "upstream_error"
            assert whole_events(at).startswith(received[: received.index(b'data: {"error"')])
            assert len(seen.requests) == count


async def test_e13_what_comes_behind_broken_json_is_not_passed(stage: Stage) -> None:
    for broken in (
        event("lost")[:40] + b"\n\n",
        b"data: {}}\n\n",
        b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n',
    ):
        async with stage.upstream(whole(event("Hello") + broken + b"".join(events(2)))):
            answer = await ask(stage.url, chat(stream=True))
        assert frame(answer.body)["code"] == "upstream_error"
        assert answer.body.startswith(event("Hello") + b'data: {"error"')


async def test_e11_an_error_of_the_upstream_in_the_stream(stage: Stage) -> None:
    """In our words: its own may quote the prompt or a key. Its status and code are told."""
    inner = {
        "object": "error",
        "message": f"bad key {PROVIDER_KEY}, prompt: Hello",
        "code": 3000,
        "raw_status_code": 500,
    }
    for body in (inner, {"error": inner, "raw_status_code": 500}):
        error = b"event: error\ndata: " + json.dumps(body).encode() + b"\n\n"
        async with stage.upstream(whole(event("Hello") + error + b"".join(events(2)))):
            answer = await ask(stage.url, chat(stream=True))
        assert frame(answer.body)["upstream"] == {"provider": "mistral", "status": 500, "code": "3000"}
        assert b"prompt" not in answer.body
        assert PROVIDER_KEY.encode() not in answer.body


@pytest.mark.parametrize("key", [PROVIDER_KEY, "\\u0070" + PROVIDER_KEY[1:], PROVIDER_KEY.replace("-", "\\u002D")])
async def test_e11_a_key_in_an_event_is_masked(stage: Stage, key: str) -> None:
    body = event("Hello") + event("the key is KEY.").replace(b"KEY", key.encode()) + b"".join(events(1))
    async with stage.upstream(whole(body)):
        answer = await ask(stage.url, chat(stream=True))
    said = [json.loads(one[6:])["choices"][0]["delta"]["content"] for one in answer.body.split(b"\n\n")[:-2]]
    assert said == ["Hello", "the key is ***.", "word 0 ", ""]


# Silence.


IMPATIENT = "import proxy.guard; proxy.guard.SILENCE = 0.1; from proxy.cli import main; main()"
"""A proxy for which a tenth of a second is a long silence."""


@pytest.fixture(params=["http1", "httpx"])
def impatient(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    config = f"""
server: {{port: 0}}
providers:
  mistral:
    base_url: BASE_URL
    api_keys: ["${{PROVIDER_KEY}}"]
    retry: {{max_attempts: 1}}
    circuit_breaker: {{failure_threshold: 1000000}}
    transport: {request.param}
    timeouts: {{idle: 1s}}
teams: {{research: {{keys: ["${{TEAM_KEY}}"]}}}}
"""
    file = tmp_path / "proxy.yaml"
    with listener() as held:
        file.write_text(config.replace("BASE_URL", url_of(held)))
        keys, command = {"PROVIDER_KEY": PROVIDER_KEY, "TEAM_KEY": TEAM_KEY}, [sys.executable, "-c", IMPATIENT]
        program = Program("serve", "--config", str(file), env=keys, cwd=tmp_path, command=command)
        yield Stage(Proxy(program.url(), program), held)
        program.stop()


async def test_e10_while_the_upstream_is_silent_the_client_is_told_to_wait(impatient: Stage) -> None:
    """From its first event on, and never inside one. At timeouts.idle it is told that it waits in vain."""
    heard, closed = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer, received: Received) -> None:
        await peer.send(STREAM + chunk(event("Hello")) + chunk(event("world")[:20]))
        await soon(heard.wait())
        await peer.send(chunk(event("world")[20:]) + chunk(b"data: {"))
        await peer.gone()
        closed.set()

    async with impatient.upstream(script), connect(impatient.url) as client:
        await client.send(chat(stream=True))
        await client.head()
        assert await client.chunk() == event("Hello")
        assert await client.chunk() == KEEP_ALIVE
        assert await client.chunk() == KEEP_ALIVE
        heard.set()
        rest = b""
        while piece := await client.chunk():
            rest += piece
        await soon(closed.wait())
    before, after = rest.split(event("world"))
    assert set(before.split(KEEP_ALIVE)) == {b""}
    assert after.startswith(KEEP_ALIVE)
    error = frame(after.replace(KEEP_ALIVE, b""))
    assert (error["code"], error["timeout"]) == ("upstream_timeout", "idle")


async def test_e10_before_the_first_event_there_is_no_sign(impatient: Stage) -> None:
    """The answer has not begun, and may still become an error with its own status. Comments in another stream tell how
    long it has been silent."""
    long_enough = asyncio.Event()

    async def script(peer: Peer, received: Received) -> None:
        await peer.send(STREAM)
        if prompt(received) == "the clock":
            await peer.send(chunk(event("Hello")))
            await asyncio.Event().wait()
        await soon(long_enough.wait())
        await peer.send(b"zz\r\n")

    async with impatient.upstream(script), connect(impatient.url) as silent, connect(impatient.url) as clock:
        await silent.send(chat(stream=True))
        await clock.send(chat("the clock", stream=True))
        await clock.head()
        for expected in (event("Hello"), KEEP_ALIVE, KEEP_ALIVE):
            assert await clock.chunk() == expected
        long_enough.set()
        answer = await silent.answer()
    assert answer.status == 502
    assert answer.error()["code"] == "upstream_error"
