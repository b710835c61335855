"""Two replicas are replaced one after the other, behind a balancer: no stream is cut, and no request is lost."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

from tests.conftest import Proxy, start_proxy
from tests.e2e.balancer import balanced
from tests.e2e.upstream import DONE, STREAM, completion, event, listener, upstream, url_of
from tests.e2e.wire import Connection, ask, chat, connect, soon
from tests.programs import until
from tests.upstream.scripted import Peer, Received, chunk

STREAMS = 200
CONFIG = """
server: {{port: 0, drain: 60s}}
providers:
  mistral: {{base_url: "{simulator}", api_keys: ["${{PROVIDER_KEY}}"], transport: {transport}}}
teams: {{research: {{keys: ["${{TEAM_KEY}}"]}}}}
"""


class Script:
    """Streams go on until `end`, with an event for each `beat`; whatever else is asked is answered at once."""

    def __init__(self) -> None:
        self.end, self.beats = asyncio.Event(), 0

    async def __call__(self, peer: Peer, received: Received) -> None:
        if not json.loads(received.body).get("stream"):
            await peer.send(completion())
            return
        await peer.send(STREAM + chunk(event("Hello")))
        while not self.end.is_set():
            await asyncio.sleep(0.2)
            await peer.send(chunk(event(" again")))
        await peer.send(chunk(event("", "stop")) + chunk(DONE) + chunk(b""))


async def to_the_end(client: Connection) -> bytes:
    """The whole of an answer that has begun."""
    received = b""
    while piece := await soon(client.chunk()):
        received += piece
    return received


async def test_k5_two_replicas_are_replaced_one_after_the_other(tmp_path: Path, ends: ExitStack) -> None:
    script = Script()
    held = ends.enter_context(listener())

    def begin(name: str) -> Proxy:
        (tmp_path / name).mkdir()
        proxy = start_proxy(tmp_path / name, url_of(held), config=CONFIG)
        ends.callback(proxy.program.stop)
        return proxy

    replicas = [await asyncio.to_thread(begin, name) for name in ("one", "two")]
    async with (
        upstream(held, script),
        balanced(*(one.url for one in replicas)) as balancer,
        AsyncExitStack() as stack,
    ):
        stop, statuses = asyncio.Event(), Counter[int]()

        async def load() -> None:
            while not stop.is_set():
                statuses[(await ask(balancer.url, chat())).status] += 1

        loads = [asyncio.create_task(load()) for _ in range(8)]
        streams = [await begun(stack, balancer.url) for _ in range(STREAMS)]
        reading = [asyncio.create_task(to_the_end(client)) for client in streams]
        for at, old in enumerate(replicas):
            before = statuses.total()
            old.program.process.terminate()
            await soon_true(lambda: old.url not in balancer.ready)  # noqa: B023
            new = await asyncio.to_thread(begin, f"new-{at}")
            balancer.replicas[at] = new.url
            await soon_true(lambda: new.url in balancer.ready)  # noqa: B023
            assert old.program.process.poll() is None  # its streams are still there
            assert not any(one.done() for one in reading)
            await soon_true(lambda: statuses.total() > before + 200)  # noqa: B023
        script.end.set()
        whole = [await soon(one) for one in reading]
        for old in replicas:
            assert await asyncio.to_thread(old.program.process.wait, 20) == -15
        stop.set()
        await asyncio.gather(*loads)
    assert Counter(data.count(DONE) for data in whole) == {1: STREAMS}
    assert all(b"error" not in data for data in whole)
    assert set(statuses) == {200}


async def soon_true(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(until, condition, "the balancer and its replicas agree")


async def begun(stack: AsyncExitStack, url: str) -> Connection:
    """A stream that has begun."""
    client = await stack.enter_async_context(connect(url))
    await client.send(chat(stream=True))
    assert (await client.head()).status == 200
    assert await client.chunk() == event("Hello")
    return client
