"""Five thousand requests that hide another one, each broken in its own way: the other one never runs.

The same requests make uvicorn's other parser (h11) serve what is hidden in some twenty of them.
"""

from __future__ import annotations

import asyncio
from itertools import islice

import pytest

from tests.conftest import TEAM_KEY
from tests.e2e.conftest import Stage
from tests.e2e.upstream import completion
from tests.e2e.wire import Connection, chat, connect, soon
from tests.fuzz.requests import HIDDEN, attacks
from tests.upstream.scripted import Peer, Received

COUNT = 5000
"""Half of them over each transport."""

SEEDS = {"http1": 1, "httpx": 2}

AT_ONCE = 20
"""Attacks on as many connections, so that they can wait together."""

TRIPS = 3
"""Whole calls of another client after which an attack that still has no answer is one that waits for the rest of it."""


async def answering(peer: Peer, received: Received) -> None:
    await peer.send(completion())


async def attack(url: str, segments: list[bytes], enough: asyncio.Event) -> int:
    """How often the proxy serves these bytes, and some more that end the connection, until it closes or `enough`."""
    async with connect(url) as client:
        for segment in [*segments, b"\r\n\r\nthe end\r\n\r\n"]:
            client.writer.write(segment)
            await asyncio.sleep(0)
        received, waited = asyncio.create_task(client.end()), asyncio.create_task(enough.wait())
        await asyncio.wait({received, waited}, return_when=asyncio.FIRST_COMPLETED)
        waited.cancel()
        if not received.done():
            client.writer.write_eof()
        return (await soon(received)).count(b"HTTP/1.1 200 OK")


async def attack_together(url: str, some: list[list[bytes]], other: Connection) -> list[int]:
    enough = asyncio.Event()
    attacking = asyncio.gather(*(attack(url, segments, enough) for segments in some))
    for _ in range(TRIPS):
        await other.send(chat("somebody else"))
        assert (await other.answer()).status == 200
    enough.set()
    return await attacking


async def test_a1_a2_a3_no_mutated_request_runs_a_second_one(stage: Stage, request: pytest.FixtureRequest) -> None:
    seed, served = SEEDS[request.node.callspec.params["stage"]], 0
    waiting = attacks(seed, COUNT // 2, "127.0.0.1", TEAM_KEY)
    async with stage.upstream(answering) as seen, connect(stage.url) as other:
        while some := list(islice(waiting, AT_ONCE)):
            counts = await attack_together(stage.url, some, other)
            assert max(counts) <= 1, some[counts.index(max(counts))]
            served += sum(counts)
    assert not [received.line for received in seen.requests if HIDDEN in received.line]
    assert served > COUNT // 20, "hardly one of them was a request at all"
