"""Looking after the cache of a proxy that serves: alone with its memory, and as two workers that share a Redis."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.quotas import Deployment, asking, good, key_of, meets
from tests.e2e.upstream import upstream, url_of
from tests.e2e.wire import Answer, ask, request
from tests.programs import Program
from tests.redis_server import RedisServer

ADMIN, SECOND = "sk-admin-0123456789abcdef0123", "sk-second-admin-0123456789abcdef"
RULES = dict.fromkeys(("red", "blue"), "[]")


@pytest.fixture(params=["memory", "redis"])
def deployment(request: pytest.FixtureRequest, held: socket.socket, tmp_path: Path) -> Iterator[Deployment]:
    server = RedisServer() if request.param == "redis" else None
    secret = tmp_path / "admin"
    secret.write_text(ADMIN)
    digest = hashlib.sha256(SECOND.encode()).hexdigest()
    options: dict[str, Any] = {"admin": f'["file:{secret}", "sha256:{digest}"]', "env": {}}
    options["env"]["MISTRAL_PROXY_ADMIN_KEY"] = ADMIN
    if server:
        options |= {"workers": 2, "store": server.url.reveal()}
    one = Deployment(tmp_path / request.param, url_of(held), RULES, **options).start()
    one.redis = server
    yield one
    one.stop()
    if server:
        server.stop()


async def administer(one: Deployment, method: str, target: str, key: str = ADMIN) -> Answer:
    return await ask(one.url, request(method, target, authorization=f"Bearer {key}"))


async def cache(one: Deployment, *arguments: str) -> Any:
    """What the command says, as JSON."""
    where = [] if one.redis else ["--url", one.url]  # its configuration takes any port
    return json.loads(await asyncio.to_thread(one.run, "cache", *arguments, "--json", *where))


async def fill(one: Deployment) -> None:
    texts = [("red", "one"), ("red", "two"), ("red-2", "three"), ("blue", "one")]
    for team, text in texts:
        assert (await ask(one.url, asking(team, text, temperature=0))).status == 200

    async def kept() -> int:
        entries: int = (await administer(one, "GET", "/admin/cache")).json()["entries"]
        return entries

    await meets(kept, len(texts))


async def test_h9_what_an_admin_sees_and_does_is_true_for_every_worker(
    deployment: Deployment, held: socket.socket
) -> None:
    async with upstream(held, good) as seen:
        await fill(deployment)
        whole = (await administer(deployment, "GET", "/admin/cache", SECOND)).json()
        assert (whole["entries"], whole["evicted"]) == (4, 0)
        assert whole == await cache(deployment, "stats")
        of_red = (await administer(deployment, "GET", "/admin/cache?team=red")).json()
        assert (of_red["entries"], set(of_red)) == (3, {"entries", "bytes"})
        assert of_red == await cache(deployment, "stats", "--team", "red")
        assert (await administer(deployment, "POST", "/admin/cache/verify")).json() == {"right": 4, "wrong": 0}
        assert await cache(deployment, "verify") == {"right": 4, "wrong": 0}

        assert (await administer(deployment, "DELETE", "/admin/cache?team=red")).json() == {"deleted": 3}
        calls = len(seen.requests)
        for team, text, outcome in (("blue", "one", "hit"), ("red", "one", "miss"), ("red-2", "three", "miss")):
            answer = await ask(deployment.url, asking(team, text, temperature=0))
            assert (answer.status, answer.header("x-proxy-cache")) == (200, outcome)
        assert len(seen.requests) == calls + 2
    assert await cache(deployment, "clear", "--team", "blue") == {"deleted": 1}
    await cache(deployment, "clear", "--all")
    assert (await administer(deployment, "GET", "/admin/cache")).json()["entries"] == 0
    digest = hashlib.sha256(ADMIN.encode()).hexdigest()
    lines = deployment.program.logged(endpoint="/admin/cache", method="DELETE")
    assert {(line["team"], line["key_id"]) for line in lines} == {(None, digest[:12])}


async def test_nobody_else_may(deployment: Deployment, held: socket.socket) -> None:
    async with upstream(held, good) as seen:
        await fill(deployment)
        calls = len(seen.requests)
        for method, target in (("GET", "/admin/cache"), ("DELETE", "/admin/cache"), ("POST", "/admin/cache/verify")):
            for key in (key_of("red"), "sk-wrong"):
                answer = await administer(deployment, method, target, key)
                assert (answer.status, answer.error()["code"]) == (401, "invalid_api_key")
        answer = await ask(deployment.url, asking("red").replace(key_of("red").encode(), ADMIN.encode()))
        assert answer.status == 401
        assert len(seen.requests) == calls
    assert (await administer(deployment, "GET", "/admin/cache")).json()["entries"] == 4
    secrets = (ADMIN, SECOND)
    assert not any(secret in deployment.program.everything() for secret in secrets)


async def test_an_admin_key_is_rotated_while_it_serves(deployment: Deployment, tmp_path: Path) -> None:
    (tmp_path / "admin").write_text("sk-another-admin-0123456789")
    await deployment.reloaded(2)
    statuses = [
        (await administer(deployment, "GET", "/admin/cache", key)).status
        for key in (ADMIN, "sk-another-admin-0123456789", SECOND)
    ]
    assert statuses == [401, 200, 200]


async def test_redis_that_is_gone_is_said(deployment: Deployment) -> None:
    if not deployment.redis:
        return
    deployment.redis.kill()
    for method, target in (("GET", "/admin/cache"), ("DELETE", "/admin/cache"), ("POST", "/admin/cache/verify")):
        answer = await administer(deployment, method, target)
        assert (answer.status, answer.error()["code"]) == (503, "store_unavailable")
    program = Program("cache", "stats", "--config", str(deployment.file), env=deployment.env, cwd=deployment.folder)
    assert await asyncio.to_thread(program.ended) == 2
    assert "The Redis of store.url cannot be asked" in program.everything()
    deployment.redis.restart()
