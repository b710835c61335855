"""`GET /admin/explain/{id}` and `x-proxy-decision`: why a request got its answer, whichever worker is asked."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.quotas import Deployment, asking, good
from tests.e2e.upstream import upstream, url_of
from tests.e2e.wire import Answer, ask, request
from tests.redis_server import RedisServer

ADMIN = "sk-admin-0123456789abcdef0123"
RULES = {"red": "[{requests: 3/day}, {tokens: 1000000/day}]", "blue": "[]", "busy": "[]"}


@pytest.fixture
def workers(held: socket.socket, tmp_path: Path) -> Iterator[Deployment]:
    """Two, and a Redis of their own."""
    secret, server = tmp_path / "admin", RedisServer()
    secret.write_text(ADMIN)
    options: dict[str, Any] = {"admin": f'["file:{secret}"]', "workers": 2, "store": server.url.reveal()}
    one = Deployment(tmp_path / "workers", url_of(held), RULES, **options).start()
    yield one
    one.stop()
    server.stop()


async def explained(one: Deployment, request_id: str, key: str = ADMIN) -> Answer:
    return await ask(one.url, request("GET", f"/admin/explain/{request_id}", authorization=f"Bearer {key}"))


def id_of(answer: Answer) -> str:
    found = answer.header("x-request-id")
    assert found
    return found


def decided(answer: Answer) -> dict[str, str]:
    """The parts of the header, by name."""
    header = answer.header("x-proxy-decision")
    assert header
    parts = (part.partition("=") for part in header.split(", "))
    return {name: rest for name, _, rest in parts}


async def test_any_worker_tells_what_became_of_a_request(workers: Deployment, held: socket.socket) -> None:
    async with upstream(held, good):
        answers = [await ask(workers.url, asking("red", f"text {number}", temperature=0)) for number in range(4)]
        assert [answer.status for answer in answers] == [200, 200, 200, 429]
        for answer in answers:
            for _ in range(8):  # each on a connection of its own: both workers are asked
                record = (await explained(workers, id_of(answer))).json()
                assert record["decision"] == answer.header("x-proxy-decision")
                assert record["status_code"] == answer.status
                assert record["team"] == "red"
                whole = ["admit", "answer", "cache", "door", "understand"]
                assert sorted(record["stages_us"]) == (whole if answer.status == 200 else [*whole[:1], *whole[2:]])
                assert all(0 <= took < 10_000_000 for took in record["stages_us"].values())
                assert "took" not in record
        let_in, refused = decided(answers[0]), decided(answers[3])
        assert let_in["quota"] == '"requests 3/day";used=0;reserved=1;limit=3'
        assert let_in["cache"] == "miss"
        assert let_in["route"] == '"mistral/mistral-small-latest";attempts=1'
        assert refused["quota"] == '"requests 3/day";used=3;reserved=0;limit=3'
        assert refused["fault"] == "policy;code=rate_limit_exceeded"
        assert "route" not in refused


async def test_a_dead_workers_requests_are_remembered(workers: Deployment, held: socket.socket) -> None:
    async with upstream(held, good):
        answers = [await ask(workers.url, asking("blue", f"text {number}")) for number in range(8)]
        for child in psutil.Process(workers.program.process.pid).children():
            os.kill(child.pid, signal.SIGKILL)

        async def told() -> list[int]:
            return [(await explained(workers, id_of(answer))).status for answer in answers]

        async with asyncio.timeout(30):
            while True:
                try:
                    if await told() == [200] * 8:
                        return
                except (OSError, AssertionError):
                    await asyncio.sleep(0.05)


async def test_only_an_admin_is_told_and_only_what_there_is(workers: Deployment, held: socket.socket) -> None:
    async with upstream(held, good):
        answer = await ask(workers.url, asking("blue", "mine"))
        request_id = id_of(answer)
        assert (await explained(workers, request_id, "sk-other")).status == 401
        unknown = await explained(workers, "never-seen")
        assert (unknown.status, unknown.error()["code"]) == (404, "unknown_request")
        assert (await explained(workers, f"{request_id}?team=blue")).status == 400
        assert "mine" not in (await explained(workers, request_id)).body.decode()
