"""Keys that are issued, rotated and revoked while two workers serve."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.conftest import PROVIDER_KEY
from tests.e2e.quotas import SLACK, Deployment, Holding, key_of, meets
from tests.e2e.upstream import upstream, url_of
from tests.e2e.wire import Answer, ask, chat, connect
from tests.redis_server import RedisServer

AT_ONCE = 20
"""Connections, so that both workers have some."""

ADDRESSES = cycle(range(1, 255))

PROMISED = 1.0
"""Seconds until every worker knows."""


@pytest.fixture(scope="module")
def deployment(held: socket.socket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    server = RedisServer()
    rules = {"red": "[concurrency: 1000]", "canary": "[spend: 1 USD/day]"}
    folder = tmp_path_factory.mktemp("keys")
    options: dict[str, Any] = {"workers": 2, "store": server.url.reveal(), "trusted": "[127.0.0.1]"}
    one = Deployment(folder, url_of(held), rules, **options).start()
    one.redis = server
    yield one
    one.stop()
    server.stop()


def with_key(key: str, text: str = "Hello", stream: bool = False, **headers: str) -> bytes:
    return chat(text, headers={"authorization": f"Bearer {key}"} | headers, stream=stream, max_tokens=16)


async def soon_everywhere(one: Deployment, key: str, status: int) -> Answer:
    """Each of the two workers answers so within a second, and goes on to."""
    began, mark = time.monotonic(), uuid4().hex

    async def many() -> list[Answer]:
        # From many addresses: one that has sent so many wrong keys would be told to wait.
        data = [with_key(key, x_request_id=mark, x_forwarded_for=f"10.0.0.{next(ADDRESSES)}") for _ in range(AT_ONCE)]
        return await asyncio.gather(*(ask(one.url, one_of_them) for one_of_them in data))

    async def latest() -> set[tuple[int, int]]:
        await many()
        return set({line["worker"]: line["status_code"] for line in one.program.logged(request_id=mark)}.items())

    await meets(latest, {(1, status), (2, status)})
    assert time.monotonic() - began < PROMISED + SLACK
    found = await many()
    assert {answer.status for answer in found} == {status}
    return found[0]


async def keys(one: Deployment, *arguments: str) -> str:
    return await asyncio.to_thread(one.run, "keys", *arguments)


def the_id(listed: str, name: str) -> str:
    (line,) = [line for line in listed.splitlines() if name in line.split()]
    return line.split()[0]


async def test_g12_a_key_is_good_and_bad_again_on_every_worker_within_a_second(
    deployment: Deployment, held: socket.socket
) -> None:
    async with upstream(held, slots := Holding()):
        key = await keys(deployment, "new", "red", "--name", "first")
        assert re.fullmatch(r"sk-mp-\w{49}", key)
        await soon_everywhere(deployment, key, 200)
        old = the_id(await keys(deployment, "list"), "first")
        new = await keys(deployment, "rotate", old, "--overlap", "24h")
        await soon_everywhere(deployment, new, 200)
        await soon_everywhere(deployment, key, 200)
        async with connect(deployment.url) as client:
            await client.send(with_key(key, "hold", stream=True))
            await slots.holds(1)
            await keys(deployment, "revoke", old)
            refused = await soon_everywhere(deployment, key, 401)
            slots.released.set()
            assert (await client.answer()).body.endswith(b"data: [DONE]\n\n")
        await soon_everywhere(deployment, new, 200)
    unknown = await ask(deployment.url, with_key("sk-nobody-has-this-one-0123456789"))
    assert (refused.status, refused.body, named(refused)) == (unknown.status, unknown.body, named(unknown))


def named(answer: Answer) -> tuple[tuple[str, str], ...]:
    """Its headers, but for those that no two answers share."""
    return tuple((name, value) for name, value in answer.headers if name not in ("x-request-id", "date"))


async def test_c10_no_secret_is_in_any_file_of_it(deployment: Deployment, held: socket.socket) -> None:
    """The key that was issued, the pepper, the key of the configuration and the provider's: not a byte of them is in
    the database, its log, the journals, Redis, or the log of the proxy."""
    assert deployment.redis
    issued = await keys(deployment, "new", "canary", "--name", "canary")
    async with upstream(held, slots := Holding()):
        await soon_everywhere(deployment, issued, 200)
        async with connect(deployment.url) as client:
            await client.send(with_key(issued, "hold"))
            await slots.holds(1)
            pepper = (deployment.state / "mistral-proxy/pepper").read_text().strip()
            deployment.redis.command("SAVE")
            folder = Path(deployment.redis.command("CONFIG", "GET", "dir")["dir"])
            places = [*files(deployment.folder), *files(folder)]
            slots.released.set()
            assert (await client.answer()).status == 200
    assert {"ledger.db", "ledger.db-wal", "dump.rdb", "00000001"} <= {place.name for place, _ in places}
    places.append((Path("log"), deployment.program.everything().encode()))
    for secret in (issued, pepper, key_of("canary"), PROVIDER_KEY):
        for place, content in places:
            if place.name != "pepper":
                assert secret.encode() not in content, place
                assert secret.removeprefix("sk-mp-")[:20].encode() not in content, place


def files(folder: Path) -> list[tuple[Path, bytes]]:
    return [(path, path.read_bytes()) for path in folder.rglob("*") if path.is_file()]
