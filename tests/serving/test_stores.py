"""What a process keeps outside of itself: opened whole or not at all, and closed in order."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.core.ledger import Intent
from proxy.core.quota import WINDOWS, Claim, Counter, StoreGone, Unit
from proxy.core.secret import Secret
from proxy.core.team_key import mint
from proxy.serving.plan import CannotStart
from proxy.serving.stores import Opener, Stores
from proxy.settings.model import Settings
from tests.asgi import Log
from tests.redis_server import RedisServer

NOW = 1_790_000_000_000


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> None:
    """In place of the one for all tests: a start may block, since nobody is served yet."""


@asynccontextmanager
async def opened(folder: Path, owner: str = "first", now: int = NOW, **sections: Any) -> AsyncIterator[Stores]:
    settings = Settings.model_validate(sections)
    async with AsyncExitStack() as closing:
        environ = {"XDG_STATE_HOME": str(folder)}
        yield await Opener(settings, environ, owner, Log(), lambda: now, time.monotonic, closing).open()


def limited(*quotas: dict[str, Any]) -> dict[str, Any]:
    return {"teams": {"red": {"quotas": list(quotas)}}}


def counter(unit: Unit, window: str, **more: Any) -> Counter:
    return Counter("red", unit, WINDOWS[window], **more)


async def used(stores: Stores, *counters: Counter) -> list[int]:
    verdict = await stores.quotas.reserve("look", [Claim(one, 10**15, 0) for one in counters])
    return [standing.used + standing.reserved for standing in verdict.standings]


def intent(call: str, opened: int, model: str = "mistral-small-2603", key: str = "k1") -> Intent:
    return Intent(
        call=call, request_id="r", opened=opened, team="red", key_id=key, operation="chat.create", provider="mistral",
        model_asked=model, model=model, priced_as=model, price_version="v", stream=False, prompt=1, tokens=100, cost=7,
    )  # fmt: skip


async def test_what_the_ledger_knows_counts_after_a_restart(tmp_path: Path) -> None:
    rules = limited(
        {"requests": "9/minute"}, {"requests": "9/hour"}, {"tokens": "999/hour", "per": "key"}, {"spend": "9 USD/day"},
        {"requests": "99/hour", "model": "mistral-embed"},
    )  # fmt: skip
    async with opened(tmp_path, **rules) as stores:
        assert stores.ledger
        for at, (model, key) in enumerate([("mistral-small-2603", "k1"), ("mistral-embed-2312", "k2")]):
            stores.ledger.open(intent(f"first-{at}", NOW - 120_000, model, key))
        stores.ledger.open(intent("first-2", NOW - 10_000))
    async with opened(tmp_path, "second", **rules) as stores:
        assert await used(
            stores,
            counter(Unit.REQUESTS, "minute"),
            counter(Unit.REQUESTS, "hour"),
            counter(Unit.TOKENS, "hour", key="k1"),
            counter(Unit.TOKENS, "hour", key="k2"),
            counter(Unit.SPEND, "day"),
            counter(Unit.REQUESTS, "hour", model="mistral-embed-2312"),
        ) == [1, 3, 200, 100, 21, 1]


async def test_without_a_ledger_nothing_is_written_anywhere(tmp_path: Path) -> None:
    async with opened(tmp_path, ledger={"url": "off"}, **limited({"requests": "9/minute"})) as stores:
        assert (stores.ledger, stores.issued) == (None, None)
        assert await used(stores, counter(Unit.REQUESTS, "minute")) == [0]
    assert not os.listdir(tmp_path)


async def test_the_state_is_for_nobody_else(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    folder = tmp_path / "mistral-proxy"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "pepper").stat().st_mode & 0o777 == 0o600
    assert {path.name for path in folder.iterdir()} >= {"ledger.db", "pepper", "journal"}


async def test_a_database_that_is_none(tmp_path: Path) -> None:
    wrong = tmp_path / "file.db"
    wrong.write_text("this is a text, and a long one, which no database begins with " * 20)
    with pytest.raises(CannotStart, match=r"database \(.+\) cannot be used"):
        async with opened(tmp_path, ledger={"url": f"sqlite:///{wrong}"}):
            pass


NOBODY = "postgresql://u@127.0.0.1:1/d"


async def test_without_its_database_one_process_cannot_count(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match=r"database \(.+\) cannot be used"):
        async with opened(tmp_path, ledger={"url": NOBODY}):
            pass


async def test_with_a_shared_store_what_it_has_can_be_counted(tmp_path: Path) -> None:
    server = RedisServer()
    try:
        async with opened(tmp_path, ledger={"url": NOBODY}, store={"url": server.url}) as stores:
            assert stores.ledger
            stores.ledger.open(intent("first-0", NOW))
            assert await used(stores, counter(Unit.REQUESTS, "minute")) == [0]
            with pytest.raises(StoreGone):
                await used(stores, counter(Unit.SPEND, "month"))
            assert await used(stores, counter(Unit.REQUESTS, "minute")) == [0]  # the store itself is well
            assert stores.issued
            assert stores.issued.lookup(b"sk-another") is None
            with pytest.raises(StoreGone):
                stores.issued.lookup(mint().reveal().encode())
    finally:
        server.stop()


async def test_a_database_of_a_newer_version(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    with sqlite3.connect(tmp_path / "mistral-proxy" / "ledger.db") as connection:
        connection.execute("UPDATE meta SET version = 999")
    connection.close()
    with pytest.raises(CannotStart, match=r"database \(.+\) cannot be used"):
        async with opened(tmp_path, "second"):
            pass


async def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "mistral-proxy").write_text("no folder")
    with pytest.raises(CannotStart, match="cannot be"):
        async with opened(tmp_path):
            pass


async def test_a_redis_that_evicts_is_not_started_with(tmp_path: Path) -> None:
    server = RedisServer(**{"maxmemory-policy": "allkeys-lru"})
    try:
        with pytest.raises(CannotStart, match="noeviction"):
            async with opened(tmp_path, store={"url": server.url}, **limited({"requests": "9/minute"})):
                pass
    finally:
        server.stop()


async def test_two_processes_share_a_redis(tmp_path: Path) -> None:
    server = RedisServer()
    try:
        rules = limited({"requests": "3/minute"})
        async with (
            opened(tmp_path, store={"url": server.url}, **rules) as one,
            opened(tmp_path, "second", store={"url": server.url}, **rules) as other,
        ):
            claim = Claim(counter(Unit.REQUESTS, "minute"), 3, 1)
            granted = [
                (await stores.quotas.reserve(f"{at}", [claim])).granted for at, stores in enumerate((one, other) * 3)
            ]
            assert granted == [True, True, True, False, False, False]
    finally:
        server.stop()


@pytest.mark.parametrize("password", ["one", "two"])
def test_a_database_has_its_journals_whatever_its_password_is(tmp_path: Path, password: str) -> None:
    def folder(url: str) -> Path:
        opener = Opener(
            Settings(), {"XDG_STATE_HOME": str(tmp_path)}, "o", Log(), lambda: 0, lambda: 0.0, AsyncExitStack()
        )
        return opener._journals(url)

    assert folder(f"postgresql://u:{password}@h/d") == folder("postgresql://u@h/d")
    assert folder("postgresql://u@h/d") != folder("postgresql://u@h/other")
    assert password not in str(folder(f"postgresql://u:{password}@h/d"))


def test_the_url_of_a_store_is_a_secret() -> None:
    made = Settings.model_validate({"store": {"url": Secret("redis://:hunter2@h")}})
    assert "hunter2" not in repr(made)
