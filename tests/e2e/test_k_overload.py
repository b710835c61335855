from __future__ import annotations

import asyncio
from pathlib import Path

from tests.conftest import start_proxy
from tests.e2e.upstream import completion, listener, upstream, url_of
from tests.e2e.wire import ask, chat, request
from tests.programs import until
from tests.upstream.scripted import Peer, Received

NARROW = """
server: {{port: 0, max_requests: 3}}
providers: {{mistral: {{base_url: "{simulator}", api_keys: ["${{PROVIDER_KEY}}"], transport: {transport}}}}}
teams:
  research: {{keys: ["${{TEAM_KEY}}", "${{OTHER_KEY}}"]}}
"""


async def test_k14_more_than_it_serves_are_told_so_and_health_answers(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def slow(peer: Peer, _: Received) -> None:
        await go_on.wait()
        await peer.send(completion())

    with listener() as held:
        proxy = start_proxy(tmp_path, url_of(held), "http1", NARROW)
        async with upstream(held, slow) as seen:
            busy = [asyncio.create_task(ask(proxy.url, chat())) for _ in range(3)]
            await asyncio.to_thread(until, lambda: len(seen.requests) == 3, "all places are taken")
            crowd = await asyncio.gather(*(ask(proxy.url, chat()) for _ in range(50)))
            assert {(told.status, told.error()["code"], told.header("retry-after")) for told in crowd} == {
                (503, "overloaded", "1")
            }
            for path in ("/health/live", "/health/ready"):
                assert (await ask(proxy.url, request(target=path))).status == 200
            go_on.set()
            assert [told.status for told in await asyncio.gather(*busy)] == [200] * 3
            assert (await ask(proxy.url, chat())).status == 200
            assert len(seen.requests) == 4
        proxy.program.stop()
