"""`GET /metrics`: who may, and what is there when a part of it is not to be had."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from platform import python_version
from typing import Any

import pytest

from proxy import __version__, data
from proxy.core.access import AccessKey
from proxy.core.catalogue import Catalogue
from proxy.core.exchange import exchange_of
from proxy.core.metrics import families
from proxy.core.metrics.board import Board
from proxy.core.metrics.page import CONTENT_TYPE, Sample
from proxy.core.quota import StoreGone
from proxy.pipeline import fold, measuring, outer
from proxy.scrape import ALIVE, Scrape
from proxy.stages import admin
from tests.asgi import Answer, Headers, call, exchange, services
from tests.core.metrics.reading import read, value
from tests.test_pipeline import configs

KEY = b"sk-admin-0123456789abcdef"
ADMIN = AccessKey(hashlib.sha256(KEY).digest())
ASKING: Headers = [(b"host", b"localhost"), (b"authorization", b"Bearer " + KEY)]
HOST: Headers = ASKING[:1]

HERE, THERE = ("127.0.0.1", 4711), ("192.0.2.7", 4711)


async def no_quotas() -> Sequence[Sample]:
    return []


def scraped(board: Board | None = None, quotas: Any = no_quotas, look: Any = lambda: None, **options: Any) -> Scrape:
    given: dict[str, Any] = {"generation": 3, "config": "0123456789ab"} | options
    return Scrape(board or Board(), lambda: 100.7, look, quotas, **given)


async def ask(
    headers: Headers,
    client: Any = HERE,
    *,
    loopback: bool = True,
    public: bool = False,
    keys: Sequence[AccessKey] = (ADMIN,),
) -> Answer:
    """Through all the stages that stand before it."""
    made = services(catalogue=Catalogue(data.read("models.yaml")))
    config = replace(configs(loopback=loopback), public_metrics=public, admin=admin.Config(keys))
    app = fold(outer(config, made), measuring(config, made, scraped()))
    return await call(app, "GET", "/metrics", headers=headers, client=client)


@pytest.mark.parametrize("client", [HERE, ("127.9.9.9", 1), ("::1", 1)], ids=str)
async def test_whoever_is_on_the_machine_needs_no_key(client: Any) -> None:
    answer = await ask(HOST, client)
    assert answer.status == 200
    assert read(answer.body)


@pytest.mark.parametrize("name", [b"x-forwarded-for", b"forwarded", b"via", b"x-real-ip"])
async def test_one_who_comes_through_a_proxy_on_the_machine_does(name: bytes) -> None:
    headers = [*HOST, (name, b"127.0.0.1")]
    assert (await ask(headers)).status == 401
    assert (await ask([*headers, ASKING[1]])).status == 200


async def test_a_page_in_a_browser_on_the_machine_does() -> None:
    """With `cors_origins: ["*"]` it could read what it gets."""
    assert (await ask([*HOST, (b"origin", b"https://pages.example")])).status == 401


@pytest.mark.parametrize("client", [THERE, ("::ffff:192.0.2.7", 1), None, ("", 0), ("unix", 0)], ids=str)
async def test_so_does_one_from_elsewhere(client: Any) -> None:
    assert (await ask(HOST, client)).status == 401
    assert (await ask(ASKING, client)).status == 200


@pytest.mark.parametrize("client", [HERE, THERE])
async def test_a_proxy_for_others_asks_its_own_machine_for_a_key_too(client: Any) -> None:
    assert (await ask(HOST, client, loopback=False)).status == 401
    assert (await ask(ASKING, client, loopback=False)).status == 200


@pytest.mark.parametrize("loopback", [True, False])
async def test_public_is_for_everybody(loopback: bool) -> None:
    assert (await ask(HOST, THERE, loopback=loopback, public=True)).status == 200


@pytest.mark.parametrize("key", [b"sk-admin-0123456789abcdeg", b"sk-team-key", b"", b"\xff"])
async def test_a_wrong_key_is_told_what_none_is(key: bytes) -> None:
    answer = await ask([*HOST, (b"authorization", b"Bearer " + key)], THERE)
    none = await ask(HOST, THERE)
    assert answer.status == none.status == 401
    assert answer.error() == none.error()


async def test_without_a_key_in_the_configuration_nobody_may_from_elsewhere() -> None:
    assert (await ask(ASKING, THERE, keys=())).status == 401


async def scrape(made: Scrape) -> Answer:
    answer = await call(made, "GET", "/metrics", exchange=exchange())
    assert answer.status == 200
    assert answer.header("content-type") == CONTENT_TYPE.decode()
    assert answer.header("content-length") == str(len(answer.body))
    assert answer.header("cache-control") == "no-store"
    return answer


async def test_what_is_always_there() -> None:
    found = read((await scrape(scraped())).body)
    assert value(found, families.BUILD, version=__version__, python=python_version()) == 1
    assert value(found, families.CONFIG, config="0123456789ab", generation="3") == 1
    assert value(found, families.WORKERS) == value(found, families.SERIES_LOST) == 0


async def test_a_configuration_without_a_file_has_no_name() -> None:
    found = read((await scrape(scraped(config=None))).body)
    assert value(found, families.CONFIG, config="", generation="3") == 1


async def test_this_worker_says_how_it_is_before_it_is_asked() -> None:
    board = Board(2)
    beats = iter([(100, 100), (100 - ALIVE, 100 - ALIVE - 1)])

    def look() -> None:
        for part, beat in zip(board.parts, next(beats), strict=True):
            part.beat(beat)
            part.set(families.STREAMS, value=1)

    made = scraped(board, look=look)
    for workers in (2, 1):
        found = read((await scrape(made)).body)
        assert (value(found, families.WORKERS), value(found, families.STREAMS)) == (workers, workers)


async def test_a_store_that_is_gone_takes_nothing_with_it_but_how_teams_stand() -> None:
    async def gone() -> Sequence[Sample]:
        raise StoreGone

    async def there() -> Sequence[Sample]:
        return [(families.QUOTA_LIMIT, ("research", "requests 60/minute"), "60")]

    board = Board()
    board.parts[0].add(families.LOG_LOST)
    with_quotas = read((await scrape(scraped(board, there))).body)
    without = read((await scrape(scraped(board, gone))).body)
    assert set(with_quotas) - set(without) == {families.QUOTA_LIMIT.name}
    assert value(without, families.LOG_LOST) == 1


async def test_series_that_were_lost_are_those_of_all_workers_once() -> None:
    board = Board(2)
    for part, size in zip(board.parts, (1, 2), strict=True):
        part._head[2] = size
    made = scraped(board)
    for _ in range(2):
        assert value(read((await scrape(made)).body), families.SERIES_LOST) == 3


async def test_nothing_of_a_client_is_on_the_page() -> None:
    answer = await ask([*ASKING, (b"user-agent", b"hunter2"), (b"x-request-id", b"hunter2")])
    assert not re.search(rb"hunter2|sk-admin", answer.body)
    assert exchange_of(answer.scope).key_id in (None, ADMIN.id)
