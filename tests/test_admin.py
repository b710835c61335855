"""What an admin may do, and that nobody else may: through the whole application, without a socket."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from proxy.app import Application
from proxy.core.cache import Answers, Bounds, CacheGone, Stats, Verified
from proxy.core.cache_key import EVERYBODY
from proxy.core.entry import Entry
from proxy.core.flight import Flight
from proxy.core.secret import Secret
from proxy.generation import Process, unix_milliseconds
from proxy.logs import Writer
from proxy.settings.model import Settings
from proxy.store.cache.memory import MemoryCache
from tests.asgi import Answer, call
from tests.test_app import Lines

TEAM, ADMIN, OTHER = (f"sk-{name}-0123456789abcdef" for name in ("team", "admin", "other-admin"))
TEAMS = ("red", "red", "red:0123456789ab", "redder", "re", EVERYBODY)
"""Whose the entries are."""

PATHS = [("GET", "/admin/cache"), ("DELETE", "/admin/cache"), ("POST", "/admin/cache/verify")]


def settings(admins: tuple[str, ...] = (ADMIN, OTHER), mode: str = "deterministic") -> Settings:
    provider = {"base_url": "http://127.0.0.1:9", "api_keys": [Secret("mistral-key-0123456789")]}
    return Settings.model_validate(
        {
            "server": {"admin_keys": [Secret(key) for key in admins], "trusted_proxies": []},
            "providers": {"mistral": provider},
            "teams": {"red": {"keys": [Secret(TEAM)]}},
            "cache": {"mode": mode},
        }
    )


async def filled() -> MemoryCache:
    backend = MemoryCache(Bounds(3_600_000, 1 << 28, 1 << 20), unix_milliseconds)
    for number, scope in enumerate(TEAMS):
        entry = Entry(unix_milliseconds(), False, b"x" * 1000, 1, 2, 3)
        backend.keep(f"{scope}/{number:064x}", entry, Flight(0, lambda: 0.0), lambda *_: None)
    return backend


@dataclass
class Running:
    app: Application
    lines: Lines
    backend: Any

    async def ask(self, method: str, path: str, key: str | None = ADMIN, query: str = "", **options: Any) -> Answer:
        headers = [(b"host", b"localhost")]
        if key is not None:
            headers.append((b"authorization", b"Bearer " + key.encode()))
        given: dict[str, Any] = {"headers": headers, "query_string": query.encode(), "root_path": ""} | options
        return await call(self.app, method, path, **given)

    async def entries(self) -> int:
        found: Stats = await self.backend.stats(None)
        return found.entries

    def requests(self) -> list[dict[str, Any]]:
        self.app.process.log.flush()
        return self.lines.events("request")


@asynccontextmanager
async def running(of: Settings | None = None, backend: Any = None) -> AsyncIterator[Running]:
    lines = Lines()
    backend = backend or await filled()
    process = Process(Writer(lines, level="debug"), answers=Answers(backend, bytes(32)))
    app = Application(of or settings(), None, process)
    try:
        yield Running(app, lines, backend)
    finally:
        await app.close()


# What it does.


async def test_how_much_is_kept() -> None:
    async with running() as one:
        answer = await one.ask("GET", "/admin/cache")
        assert answer.status == 200
        assert (answer.header("content-type"), answer.header("cache-control")) == ("application/json", "no-store")
        assert answer.header("x-request-id")
        found = json.loads(answer.body)
        assert found == {"entries": 6, "bytes": (await one.backend.stats(None)).bytes, "evicted": 0}
        of_red = json.loads((await one.ask("GET", "/admin/cache", query="team=red")).body)
        assert (set(of_red), of_red["entries"]) == ({"entries", "bytes"}, 3)
        assert 3000 < of_red["bytes"] < found["bytes"]
        for empty in ("nobody", "RED", "red.0123456789ab"):
            assert json.loads((await one.ask("GET", "/admin/cache", query=f"team={empty}")).body)["entries"] == 0


async def test_head_is_get() -> None:
    async with running() as one:
        assert (await one.ask("HEAD", "/admin/cache")).status == 200
        assert await one.entries() == 6


@pytest.mark.parametrize("query", ["team=red", "team=r%65d", "team=red&"])
async def test_what_is_kept_of_a_team_is_forgotten_and_nothing_else(query: str) -> None:
    async with running() as one:
        for deleted in (3, 0):
            answer = await one.ask("DELETE", "/admin/cache", query=query)
            assert (answer.status, json.loads(answer.body)) == (200, {"deleted": deleted})
            assert await one.entries() == 3


async def test_a_team_that_is_not_configured_any_more_can_be_forgotten() -> None:
    async with running() as one:
        assert json.loads((await one.ask("DELETE", "/admin/cache", query="team=redder")).body) == {"deleted": 1}


@pytest.mark.parametrize("header", [(b"content-length", b"14"), (b"transfer-encoding", b"chunked")])
async def test_what_a_body_says_is_not_ignored(header: tuple[bytes, bytes]) -> None:
    """It may have been meant as the team."""
    async with running() as one:
        headers = [(b"host", b"localhost"), (b"authorization", b"Bearer " + ADMIN.encode()), header]
        answer = await one.ask("DELETE", "/admin/cache", headers=headers)
        assert answer.status == 400
        assert b"?team=NAME" in answer.body
        assert await one.entries() == 6
        headers[-1] = (b"content-length", b"0")
        assert (await one.ask("DELETE", "/admin/cache", headers=headers)).status == 200


async def test_everything_is_forgotten() -> None:
    async with running() as one:
        assert json.loads((await one.ask("DELETE", "/admin/cache")).body) == {"deleted": 6}
        assert await one.entries() == 0


async def test_what_is_not_what_it_was_is_gone() -> None:
    async with running() as one:
        for wrong, right in ((0, 6), (1, 5), (0, 5)):
            if wrong:
                next(iter(one.backend._kept.values())).digest = bytes(16)
            answer = await one.ask("POST", "/admin/cache/verify")
            assert (answer.status, json.loads(answer.body)) == (200, {"right": right, "wrong": wrong})
            assert await one.entries() == right


# What it refuses.


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        ("teams=red", "teams", "unknown_parameter"),
        ("Team=red", "Team", "unknown_parameter"),
        ("team=red&x=1&y", "x", "unknown_parameter"),
        ("%00=1", "\x00", "unknown_parameter"),
        ("x" * 1000, "x" * 256, "unknown_parameter"),
        ("team=red&team=red", "team", "invalid_value"),
        ("team=", "team", "invalid_value"),
        ("team", "team", "invalid_value"),
        ("team=*", "team", "invalid_value"),
        ("team=red:0123456789ab", "team", "invalid_value"),
        ("team=red%0a", "team", "invalid_value"),
        ("team=%ff", "team", "invalid_value"),
        ("team=" + "x" * 65, "team", "invalid_value"),
    ],
)
async def test_a_query_that_is_not_understood_changes_nothing(
    method: str, path: str, query: str, param: str, code: str
) -> None:
    async with running() as one:
        answer = await one.ask(method, path, query=query)
        error = answer.error()
        assert (answer.status, error["type"]) == (400, "invalid_request_error")
        if path == "/admin/cache":
            assert (error["param"], error["code"]) == (param, code)
        assert len(answer.body) < 1000
        assert await one.entries() == 6


async def test_every_unknown_parameter_is_named() -> None:
    async with running() as one:
        message = (await one.ask("GET", "/admin/cache", query="a=1&team=red&b")).error()["message"]
        assert message == "Unknown query parameters: a, b; the only one is team."
        message = (await one.ask("POST", "/admin/cache/verify", query="team=red")).error()["message"]
        assert message == "Unknown query parameters: team; there are none here."


class Gone:
    """A backend that nobody reaches."""

    near = False

    async def stats(self, team: str | None) -> Stats:
        raise CacheGone("ConnectionError")

    async def delete(self, team: str | None) -> int:
        raise CacheGone("ConnectionError")

    async def verify(self) -> Verified:
        raise CacheGone("ConnectionError")

    def become(self, bounds: Bounds) -> None:
        pass


@pytest.mark.parametrize(("method", "path"), PATHS)
async def test_a_cache_that_does_not_answer_is_503(method: str, path: str) -> None:
    async with running(backend=Gone()) as one:
        answer = await one.ask(method, path)
        assert (answer.status, answer.error()["code"]) == (503, "store_unavailable")
        assert answer.header("retry-after") == "1"


@pytest.mark.parametrize(("method", "path"), PATHS)
async def test_what_was_kept_can_be_looked_after_when_nothing_is_any_more(method: str, path: str) -> None:
    async with running(settings(mode="off")) as one:
        assert (await one.ask(method, path)).status == 200
        assert (await one.ask(method, path, TEAM)).status == 401


# Who is let in.


@pytest.mark.parametrize("key", [None, TEAM, ADMIN])
async def test_without_admin_keys_there_is_nothing_there(key: str | None) -> None:
    async with running(settings(admins=())) as one:
        elsewhere = (await one.ask("GET", "/nothing", key)).body
        for method, path in PATHS:
            answer = await one.ask(method, path, key)
            assert (answer.status, answer.body) == (404, elsewhere)
        assert await one.entries() == 6


@pytest.mark.parametrize("path", ["/admin", "/admin/", "/admin/cache/", "/admin//cache", "/Admin/cache", "/admin/keys"])
async def test_a_path_has_one_spelling(path: str) -> None:
    async with running() as one:
        assert (await one.ask("GET", path)).error()["code"] == "unknown_url"
        encoded = await one.ask("GET", "/admin/cache", raw_path=b"/admin%2fcache")
        assert (encoded.status, encoded.error()["code"]) == (404, "unknown_url")


async def test_other_methods() -> None:
    async with running() as one:
        for method, path, allowed in (
            ("POST", "/admin/cache", "DELETE, GET, HEAD"),
            ("PUT", "/admin/cache", "DELETE, GET, HEAD"),
            ("GET", "/admin/cache/verify", "POST"),
        ):
            answer = await one.ask(method, path)
            assert (answer.status, answer.header("allow")) == (405, allowed)
        assert await one.entries() == 6


async def test_each_admin_key_opens_it_and_nothing_else_does() -> None:
    digest = hashlib.sha256(ADMIN.encode()).hexdigest()
    async with running() as one:
        for method, path in PATHS:
            refused = [await one.ask(method, path, key) for key in (None, "", TEAM, ADMIN[:-1], f"sha256:{digest}")]
            assert {answer.status for answer in refused} == {401}
            assert len({answer.body for answer in refused}) == 1
            error = refused[0].error()
            assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
            assert refused[0].header("www-authenticate") == "Bearer"
        assert await one.entries() == 6
        for key in (ADMIN, OTHER):
            assert (await one.ask("GET", "/admin/cache", key)).status == 200


async def test_an_admin_key_opens_nothing_else() -> None:
    async with running() as one:
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("POST", "/v1/embeddings")):
            assert (await one.ask(method, path)).status == 401


async def test_two_keys_are_a_quarrel_of_two_readers() -> None:
    async with running() as one:
        headers = [(b"host", b"localhost"), *[(b"authorization", b"Bearer " + ADMIN.encode())] * 2]
        answer = await one.ask("DELETE", "/admin/cache", headers=headers)
        assert (answer.status, answer.error()["code"]) == (400, "bad_framing")
        assert await one.entries() == 6


async def test_wrong_keys_count_at_both_doors_and_hold_up_nobody_who_has_one() -> None:
    async with running() as one:
        statuses = []
        for n in range(12):
            statuses.append((await one.ask("GET", "/admin/cache", f"wrong-{n}")).status)
            statuses.append((await one.ask("GET", "/v1/models", f"wrong-{n}")).status)
        assert statuses == [401] * 20 + [429] * 4
        held = await one.ask("DELETE", "/admin/cache", "wrong")
        assert held.error()["code"] == "too_many_auth_failures"
        assert (await one.ask("GET", "/admin/cache")).status == 200


async def test_a_rotation() -> None:
    async with running(settings((ADMIN,))) as one:
        for number, (keys, good) in enumerate([((ADMIN, OTHER), (200, 200)), ((OTHER,), (401, 200)), ((), (404, 404))]):
            await one.app.replace(settings(keys), None, number + 2)
            assert tuple([(await one.ask("GET", "/admin/cache", key)).status for key in (ADMIN, OTHER)]) == good


async def test_the_gate_is_before_it() -> None:
    full = settings().model_copy(update={"server": settings().server.model_copy(update={"max_requests": 1})})
    async with running(full) as one:
        one.app.process.traffic.requests = 1
        assert (await one.ask("GET", "/admin/cache")).error()["code"] == "overloaded"


# What is known of it.


async def test_the_log_has_the_id_of_the_key_and_no_team() -> None:
    async with running() as one:
        await one.ask("DELETE", "/admin/cache", query="team=red")
        await one.ask("GET", "/admin/cache", TEAM)
        [done, refused] = one.requests()
    digest = hashlib.sha256(ADMIN.encode()).hexdigest()
    assert (done["team"], done["key_id"], done["endpoint"]) == (None, digest[:12], "/admin/cache")
    assert (done["method"], done["status_code"]) == ("DELETE", 200)
    assert (refused["team"], refused["key_id"], refused["status_code"]) == (None, None, 401)
    assert ADMIN.encode() not in one.lines.getvalue()


async def test_a_key_in_a_query_is_masked_in_the_log() -> None:
    async with running() as one:
        await one.ask("GET", "/admin/cache", query=f"{OTHER}=1")
        [line] = one.requests()
    assert (line["error_param"], line["error_code"]) == ("***", "unknown_parameter")


def test_the_page_names_every_path() -> None:
    page = (Path(__file__).parents[1] / "docs" / "operations.md").read_text("utf-8")
    rows = re.findall(r"^\| `(GET|DELETE|POST) (/admin/[a-z/]+)` \|", page, re.MULTILINE)
    assert sorted(rows) == sorted([*PATHS, ("POST", "/admin/explain")])
