"""However a request ends: nothing stays reserved, no slot is held, and the ledger has one row of it that has ended."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from proxy.store.redis import PREFIX
from tests.e2e.quotas import (
    EMBEDDED,
    INPUT,
    LIMITS,
    OUTPUT,
    SLOTS,
    Deployment,
    Holding,
    Row,
    asking,
    embedding,
    good,
    is_stream,
    rows_of,
    text_of,
    together,
)
from tests.e2e.upstream import JSON, STREAM, event, upstream, url_of
from tests.e2e.wire import Connection, connect, soon
from tests.programs import until
from tests.redis_server import RedisServer
from tests.upstream.scripted import Peer, Received, answer, chunk

KINDS = ("chat", "stream", "embeddings")
FAULTS = ("ok", "4xx", "5xx", "timeout", "before", "after")

RECORDED = Path(__file__).parents[1] / "golden/stream/plain.in.sse"
BLOCKS = [block + b"\n\n" for block in RECORDED.read_bytes().split(b"\n\n") if block]
"""Who speaks, `Grüße`, a comment, ` 🍋, `, `x` with the usage, the end."""

PIECES = [0, 0, 1, 1, 2, 3, 3]
"""Pieces of text in so many blocks."""

FULL = 21 * INPUT + 9 * OUTPUT
"""What the whole of it costs, by the usage in it."""

PROMPT = "Say hello to the people of the south."
"""Our estimate of it is less than the recorded 21 tokens: a cut stream must not cost more than the whole one."""

TEAMS = [f"{fault}-{kind}" for fault in FAULTS for kind in KINDS]
HELD = 12


@pytest.fixture(scope="module", params=["memory", "redis"])
def deployment(request: pytest.FixtureRequest, held: socket.socket, tmp_path_factory) -> Iterator[Deployment]:
    """One process that counts in its memory, and two that share a Redis."""
    options: dict[str, Any] = {}
    server = None
    if request.param == "redis":
        server = RedisServer()
        options = {"workers": 2, "store": server.url.reveal()}
    rules = dict.fromkeys([*TEAMS, "cut-by-upstream", "cut-by-client"], LIMITS)
    rules["kill"] = LIMITS.replace(f"concurrency: {SLOTS}", f"concurrency: {HELD}")
    folder = tmp_path_factory.mktemp(request.param)
    one = Deployment(folder, url_of(held), rules, first_byte="1s", **options).start()
    one.redis = server
    yield one
    one.stop()
    if server:
        server.stop()


def asked(team: str, kind: str, text: str) -> bytes:
    if kind == "embeddings":
        return embedding(team, text)
    return asking(team, text, stream=kind == "stream")


class Faulty:
    """An upstream that does what the prompt says. `arrived` is set when it has done the half of it."""

    def __init__(self) -> None:
        self.arrived = {kind: asyncio.Event() for kind in KINDS}

    async def __call__(self, peer: Peer, received: Received) -> None:
        fault, _, kind = text_of(received).partition(" ")
        if fault == "4xx":
            await peer.send(refusal(b"400 Bad Request"))
        elif fault == "5xx":
            await peer.send(refusal(b"503 Service Unavailable"))
        elif fault in ("timeout", "before", "after"):
            if fault == "after":
                await peer.send(STREAM + chunk(event("Hello")) if is_stream(received) else half())
            self.arrived[kind].set()
            await peer.gone()
        else:
            await good(peer, received)


def refusal(status: bytes) -> bytes:
    body = b'{"object":"error","message":"no","type":"invalid_request_error","param":null,"code":"3051"}'
    return answer(body, b"HTTP/1.1 %s\r\ncontent-type: application/json\r\n" % status)


def half() -> bytes:
    return JSON + b'content-length: 1000\r\n\r\n{"id": "cmpl-1"'


async def end(url: str, fault: str, kind: str, script: Faulty) -> None:
    """One request of this kind ends like this."""
    data = asked(f"{fault}-{kind}", kind, f"{fault} {kind}")
    async with connect(url) as client:
        await client.send(data)
        if fault in ("before", "after"):
            await soon(script.arrived[kind].wait())
            if fault == "after" and kind == "stream":
                await client.head()
                await client.chunk()
            client.leave("fin")
        else:
            assert (await client.answer()).status == {"4xx": 400, "5xx": 503, "timeout": 504}.get(fault, 200)


def charged(row: Row, fault: str, kind: str) -> int:
    """What docs/quotas.md says that it costs."""
    if fault == "ok":
        return 3 * EMBEDDED if kind == "embeddings" else 3 * INPUT + 5 * OUTPUT
    if fault in ("4xx", "5xx"):
        return 0
    if kind != "stream":
        return row.most_cost
    return row.expected_prompt * INPUT + (OUTPUT if fault == "after" else 0)


STATUSES = {
    "ok": ("settled", 200, None),
    "4xx": ("failed", 400, "invalid_value"),
    "5xx": ("failed", 503, "upstream_error"),
    "timeout": ("failed", 504, "upstream_timeout"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_g8_nothing_stays_reserved_however_a_request_ends(
    deployment: Deployment, held: socket.socket, fault: str
) -> None:
    script = Faulty()
    async with upstream(held, script):
        await asyncio.gather(*(end(deployment.url, fault, kind, script) for kind in KINDS))
        for kind in KINDS:
            (row,) = await rows_of(deployment.book, f"{fault}-{kind}", 1)
            assert row.cost == charged(row, fault, kind)
            assert bool(row.estimated) == (fault in ("timeout", "before", "after"))
            if fault in STATUSES:
                assert (row.status, row.http_status, row.error) == STATUSES[fault]
            else:
                assert (row.status, row.error) == ("cancelled", "client_gone")
            await deployment.settled(f"{fault}-{kind}", [row])
    async with upstream(held, slots := Holding()):
        for kind in KINDS:
            slots.released.clear()
            team = f"{fault}-{kind}"
            assert await together(deployment.url, slots, [asking(team, "hold")] * SLOTS) == [200] * SLOTS


@pytest.mark.parametrize("who", ["upstream", "client"])
async def test_g3_g8_a_stream_that_is_cut_at_any_event_costs_what_was_delivered(
    deployment: Deployment, held: socket.socket, who: str
) -> None:
    """Never nothing after a token, never more than the whole stream."""
    team = f"cut-by-{who}"
    sent = {at: asyncio.Event() for at in range(len(BLOCKS) + 1)}

    async def some(peer: Peer, received: Received) -> None:
        at = int(text_of(received).removeprefix(PROMPT))
        await peer.send(STREAM + chunk(b"".join(BLOCKS[:at])) if at else STREAM)
        sent[at].set()
        await (peer.cut() if who == "upstream" else peer.gone())

    async def cut(at: int) -> None:
        async with connect(deployment.url) as client:
            await client.send(asking(team, f"{PROMPT}{at}", mark=f"{who}-{at}", stream=True))
            await soon(sent[at].wait())
            if who == "upstream":
                await client.answer()
            else:
                await read(client, b"".join(BLOCKS[:at]))
                client.leave("rst")

    async with upstream(held, some):
        for at in sent:
            await cut(at)
    rows = await rows_of(deployment.book, team, len(sent))
    for at, row in enumerate(sorted(rows, key=lambda row: row.request_id)):
        assert row.request_id == f"{who}-{at}"
        complete = at >= len(BLOCKS) - 1
        if complete:
            assert (row.cost, row.prompt, row.completion, row.estimated) == (FULL, 21, 9, False)
        else:
            assert (row.status, row.estimated) == ("failed" if who == "upstream" else "cancelled", True)
            assert row.completion == PIECES[at]
            assert row.cost == row.expected_prompt * INPUT + PIECES[at] * OUTPUT
        assert 0 < (row.cost or 0) <= min(FULL, row.most_cost)
    await deployment.settled(team, rows)


async def read(client: Connection, expected: bytes) -> None:
    """That much of a stream, if there is any."""
    received = b""
    if expected:
        await client.head()
    while len(received) < len(expected):
        received += await client.chunk()
    assert received == expected


async def test_g8_j1_j8_calls_of_a_process_that_is_killed(deployment: Deployment, held: socket.socket) -> None:
    """They end as cancelled, with all that they may have cost: at the next start, or by a neighbour within seconds."""
    async with upstream(held, slots := Holding()), AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(deployment.url)) for _ in range(HELD)]
        for at, client in enumerate(clients):
            await client.send(asked("kill", KINDS[at % 3], f"hold {at}"))
            await slots.holds(at + 1)
        dead = await asyncio.to_thread(kill, deployment)
        slots.released.set()
        answered = [await whole(client) for client in clients]
    rows = await rows_of(deployment.book, "kill", HELD)
    assert sum(answered) == len([row for row in rows if not row.call.startswith(dead)])
    for row in rows:
        if row.call.startswith(dead):
            assert (row.status, row.cost, row.estimated) == ("cancelled", row.most_cost, True)
        else:
            assert (row.status, row.estimated) == ("settled", False)
    await deployment.settled("kill", rows)
    async with upstream(held, slots := Holding()):
        assert await together(deployment.url, slots, [asking("kill", "hold")] * HELD) == [200] * HELD


def kill(deployment: Deployment) -> str:
    """What the ids of the killed calls begin with. A worker's lease in Redis is let end at once."""
    if deployment.redis is None:
        deployment.kill()
        deployment.start()
        return ""
    pids = {deployment.owner(pid): pid for pid in deployment.pids()}
    calls = until(lambda: len(rows := deployment.book.rows("kill")) == HELD and rows, "all calls are in the ledger")
    owner = Counter(row.call.partition("-")[0] for row in calls).most_common(1)[0][0]
    os.kill(pids[owner], signal.SIGKILL)
    lease = f"{PREFIX}lease:{owner}"
    assert 0 < deployment.redis.command("PTTL", lease) <= 15_000
    deployment.redis.command("PEXPIRE", lease, 1)
    return owner


async def whole(client: Connection) -> bool:
    """Whether an answer came to its end."""
    try:
        return (await client.answer()).status == 200
    except (asyncio.IncompleteReadError, ConnectionError):
        return False
