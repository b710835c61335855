"""What quotas and the ledger cost: the stages `estimate`, `quota` and `ledger`, as bench.stages measures them.

    python -m bench.quota [ROUNDS] [REDIS_URL]

With four rules (requests, tokens, spend, concurrency), and the rows written into SQLite by the time a round ends. With
a Redis, its own CPU time is not part of it.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import uvloop
from starlette.types import ASGIApp

from bench.stages import Round, answer, bare_forwarder, cpu, services, silent, summary
from bench.targets import QUOTAS
from proxy.core.calendar import Calendar
from proxy.core.quota import QuotaStore
from proxy.core.secret import Secret
from proxy.generation import unix_milliseconds
from proxy.pipeline import fold
from proxy.providers.mistral.chat import CHAT
from proxy.stages import estimate, ledger, quota
from proxy.store.database import open_database
from proxy.store.ledger.history import LedgerHistory
from proxy.store.ledger.store import LedgerStore
from proxy.store.memory import MemoryStore
from proxy.store.migrations import migrate
from proxy.store.redis import RedisStore

GOALS = {"memory": 25, "redis": 200}
OWNER = "bench"

PATIENCE = 30.0
"""Seconds that the rows of a round are waited for."""


@asynccontextmanager
async def _staged(folder: Path, redis: str | None) -> AsyncIterator[tuple[ASGIApp, LedgerStore]]:
    async with AsyncExitStack() as stack:
        database = open_database(f"sqlite:///{folder}/ledger.db")
        stack.callback(database.close)
        migrate(database)
        kept = LedgerStore(database, folder / "journal", OWNER, log=silent, now=unix_milliseconds)
        await kept.start()
        stack.push_async_callback(kept.close_down)
        history = LedgerHistory(database, kept.flush)
        stack.callback(history.close)
        calendar, store = Calendar(ZoneInfo("UTC")), None
        counters: QuotaStore = MemoryStore(calendar, unix_milliseconds, history)
        if redis:
            store = RedisStore(Secret(redis), calendar, history, owner=OWNER, log=silent, wall=unix_milliseconds)
            await store.start()
            stack.push_async_callback(store.close)
            counters = store
        yield fold(_stages(counters, kept), answer), kept


def _stages(counters: QuotaStore, kept: LedgerStore) -> tuple[Any, ...]:
    numbers = itertools.count()
    made = services(quotas=counters, ledger=kept, next_call=lambda: f"{OWNER}-{next(numbers)}")
    rules = [quota.Quota.model_validate(one).rule(None) for one in QUOTAS]
    return (
        estimate.build(None, CHAT, made),
        quota.build(quota.Config({"bench": rules}), CHAT, made),
        ledger.build(CHAT, made),
    )


async def measure(rounds: int, redis: str | None = None) -> list[Round]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with bare_forwarder(folder) as forwarded, _staged(folder, redis) as (app, kept):
            written = partial(kept.flush, PATIENCE)
            await cpu(app, written)  # caches are warm, and counters born
            return [Round(await forwarded(), await cpu(answer), await cpu(app, written)) for _ in range(rounds)]


def main(arguments: list[str]) -> None:
    rounds = int(arguments[0]) if arguments else 20
    stores: dict[str, str | None] = {"memory": None}
    if len(arguments) > 1:
        stores["redis"] = arguments[1]
    for name, url in stores.items():
        print(summary(name, GOALS[name], uvloop.run(measure(rounds, url))))


if __name__ == "__main__":
    main(sys.argv[1:])
