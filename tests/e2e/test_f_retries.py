"""What is asked for again, over real sockets: the upstream counts who has come."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai import OpenAI

from tests.conftest import TEAM_KEY, start_proxy
from tests.e2e.conftest import Stage
from tests.e2e.sdk import Counted
from tests.e2e.upstream import JSON, STREAM, completion, events, listener, upstream, url_of
from tests.e2e.wire import ask, chat, soon
from tests.upstream.scripted import Peer, Received, answer, chunk

PERSISTENT = """
server: {{port: 0, drain: 60s}}
providers:
  mistral:
    base_url: {simulator}
    api_keys: ["${{PROVIDER_KEY}}"]
    transport: {transport}
    timeouts: {{connect: 30s, first_byte: 30s, idle: 30s}}
    retry: {{initial_delay: 100ms}}
    circuit_breaker: {{failure_threshold: 1000000}}
teams:
  research: {{keys: ["${{TEAM_KEY}}", "${{OTHER_KEY}}"]}}
"""


@pytest.fixture
def persistent(transport: str, tmp_path: Path) -> Iterator[Stage]:
    """A new one for each test: of what came before, a budget would know."""
    with listener() as held:
        proxy = start_proxy(tmp_path, url_of(held), transport, PERSISTENT)
        yield Stage(proxy, held)
        proxy.program.stop()


def refusal(status: bytes, **headers: str) -> bytes:
    head = b"HTTP/1.1 " + status + b" No\r\ncontent-type: application/json\r\n"
    head += b"".join(f"{name.replace('_', '-')}: {value}\r\n".encode() for name, value in headers.items())
    return answer(b'{"message": "no"}', head)


def whole_stream() -> bytes:
    return STREAM + b"".join(map(chunk, events(20))) + b"0\r\n\r\n"


@pytest.mark.parametrize("stream", [False, True])
async def test_f1_third_time_lucky(persistent: Stage, stream: bool) -> None:
    async def reply(peer: Peer, _: Received) -> None:
        if len(seen.requests) < 3:
            await peer.send(refusal(b"503" if len(seen.requests) == 1 else b"429"))
        else:
            await peer.send(whole_stream() if stream else completion())

    async with persistent.upstream(reply) as seen:
        found = await ask(persistent.url, chat(stream=stream))
    assert (found.status, found.header("x-proxy-attempts")) == (200, "3")
    assert len({received.body for received in seen.requests}) == 1
    assert len(seen.requests) == 3
    assert [line["attempts"] for line in persistent.proxy.program.logged("retry")] == [1, 2]


async def test_f1_the_provider_says_when(persistent: Stage) -> None:
    async def reply(peer: Peer, _: Received) -> None:
        await peer.send(refusal(b"429", retry_after="1") if len(seen.requests) == 1 else completion())

    async with persistent.upstream(reply) as seen:
        assert (await ask(persistent.url, chat())).status == 200
    [line] = persistent.proxy.program.logged("retry")
    assert line["wait_s"] == 1.0


async def test_f1_an_upstream_that_comes_back(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as held:  # bound and not listening
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        patient = PERSISTENT.replace("100ms", "1s")
        proxy = start_proxy(tmp_path, url_of(held), "http1", patient)
        asking = asyncio.create_task(ask(proxy.url, chat()))
        await asyncio.to_thread(proxy.program.line, event="retry")
        held.listen()
        held.setblocking(False)

        async def reply(peer: Peer, _: Received) -> None:
            await peer.send(completion())

        async with upstream(held, reply) as seen:
            found = await asking
        assert (found.status, found.header("x-proxy-attempts"), len(seen.requests)) == (200, "2", 1)
        proxy.program.stop()


def sdk_call(url: str) -> tuple[int, int]:
    """The status that OpenAI's SDK ends with, and how often it has asked for it."""
    with Counted(trust_env=False) as client:
        sdk = OpenAI(base_url=f"{url}/v1", api_key=TEAM_KEY, http_client=client, max_retries=2)
        try:
            sdk.chat.completions.create(model="mistral-small-latest", messages=[{"role": "user", "content": "Hello"}])
        except openai.APIStatusError as error:
            return error.status_code, client.times
    return 200, client.times


@pytest.mark.parametrize("trouble", ["503", "closed", "refused"])
async def test_f2_f3_a_hundred_sdks_in_front_of_a_dead_upstream(persistent: Stage, trouble: str) -> None:
    """Left alone they would come nine times each."""

    async def reply(peer: Peer, _: Received) -> None:
        await (peer.cut() if trouble == "closed" else peer.send(refusal(b"503")))

    async def everybody() -> list[tuple[int, int]]:
        return await asyncio.gather(*(asyncio.to_thread(sdk_call, persistent.url) for _ in range(100)))

    if trouble == "refused":
        persistent.held.close()
        found = await everybody()
        attempts = [line["attempts"] for line in persistent.proxy.program.logged("request")]
        assert 100 <= sum(attempts) <= 110
    else:
        async with persistent.upstream(reply) as seen:
            found = await everybody()
        assert 100 <= len(seen.requests) <= (110 if trouble == "503" else 100)
    assert found == [(502 if trouble != "503" else 503, 1)] * 100


async def test_f4_what_has_begun_to_arrive_is_not_asked_for_again(persistent: Stage, transport: str) -> None:
    """2,000 streams, each cut somewhere behind its first byte; with the slower transport fewer of them."""
    dice, stream, each = random.Random(4), whole_stream(), 100 if transport == "http1" else 10

    async def reply(peer: Peer, _: Received) -> None:
        await peer.send(stream[: dice.randrange(len(STREAM) + 1, len(stream) - 30)])
        await peer.cut()

    async def some() -> None:
        for _ in range(each):
            found = await ask(persistent.url, chat(stream=True))
            assert (found.status, found.header("x-proxy-attempts")) in ((200, "1"), (502, "1"))
            assert b'"error"' in found.body

    async with persistent.upstream(reply) as seen:
        await asyncio.gather(*(some() for _ in range(20)))
    assert len(seen.requests) == 20 * each


@pytest.mark.parametrize("stream", [False, True])
async def test_f5_what_may_have_been_done_is_not_asked_for_again(persistent: Stage, stream: bool) -> None:
    async def reply(peer: Peer, received: Received) -> None:
        if b"half" in received.body:
            await peer.send(JSON + b"content-length: 100\r\n\r\n{")
        elif b"504" in received.body:
            await peer.send(refusal(b"504"))
            return
        await peer.cut()

    async with persistent.upstream(reply) as seen:
        for text in ("reset", "half", "504"):
            found = await soon(ask(persistent.url, chat(text, stream=stream)))
            assert found.status == (504 if text == "504" else 502)
            assert (found.header("x-proxy-attempts"), found.header("x-should-retry")) == ("1", "false")
    assert len(seen.requests) == 3
