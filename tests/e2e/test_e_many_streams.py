"""A thousand streams in one worker, all open at the same time."""

from __future__ import annotations

import asyncio
import hashlib
import resource
from pathlib import Path

import pytest

from proxy.core.sse import KEEP_ALIVE
from tests.conftest import PROVIDER_KEY, start_proxy
from tests.e2e.upstream import STREAM, events, listener, upstream, url_of
from tests.e2e.wire import ask, chat, soon
from tests.upstream.scripted import Peer, Received, chunk

STREAMS = 1000


def _room_for(files: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(files, hard), hard))


@pytest.mark.parametrize("transport", ["http1", "httpx"])
async def test_e16_a_thousand_streams_at_once(tmp_path: Path, transport: str) -> None:
    """All are open before the first one may end; then each ends with every byte it was sent."""
    _room_for(8192)
    body = events(20)
    everyone = asyncio.Barrier(STREAMS)

    async def script(peer: Peer, received: Received) -> None:
        await peer.send(STREAM + chunk(body[0]))
        await everyone.wait()
        for one in body[1:]:
            await peer.send(chunk(one))
            await asyncio.sleep(0)
        await peer.send(chunk(b""))

    async def one() -> str:
        answer = await ask(proxy.url, chat(stream=True))
        # Whoever waits long for the last one to come gets comments, as it should.
        return hashlib.sha256(answer.body.replace(KEEP_ALIVE, b"")).hexdigest()

    with listener() as held:
        config = """
server: {{port: 0}}
providers:
  mistral: {{base_url: "{simulator}", api_keys: ["${{PROVIDER_KEY}}"], transport: {transport}, max_connections: 1000}}
teams: {{research: {{keys: ["${{TEAM_KEY}}"]}}}}
"""
        proxy = start_proxy(tmp_path, url_of(held), transport, config)
        try:
            async with upstream(held, script) as seen:
                digests = await soon(asyncio.gather(*(one() for _ in range(STREAMS))))
        finally:
            proxy.program.stop()
    assert digests == [hashlib.sha256(b"".join(body)).hexdigest()] * STREAMS
    assert len(seen.requests) == STREAMS
    assert {received.header("authorization") for received in seen.requests} == {f"Bearer {PROVIDER_KEY}"}
    lines = proxy.program.logged()
    assert len(lines) == STREAMS
    assert {line["status_code"] for line in lines} == {200}
    assert not proxy.program.err
