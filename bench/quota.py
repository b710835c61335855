"""What quotas and the ledger cost: CPU time of the three stages around an application that only answers.

    python -m bench.quota [ROUNDS] [REDIS_URL]

In one process, without HTTP: the stages `estimate`, `quota` and `ledger` with four rules (requests, tokens, spend,
concurrency), sixteen requests at a time, and the rows written into SQLite by the time a round ends, all threads
counted. With a Redis, its own CPU time is not part of it. Both sides of a row take turns within a round.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import uvloop
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bench.targets import QUOTAS
from proxy import data
from proxy.core.calendar import Calendar
from proxy.core.catalogue import Catalogue
from proxy.core.charge import charge
from proxy.core.exchange import Exchange, Team
from proxy.core.quota import QuotaStore
from proxy.core.redact import Redactor
from proxy.core.secret import Secret
from proxy.core.services import Services
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

REQUESTS, AT_ONCE = 4_000, 16
GOALS = {"memory": 25, "redis": 200}
"""CPU µs that are added to a request."""

OWNER = "bench"
BODY = {"model": "mistral-small-latest", "messages": [{"role": "user", "content": "Hello! " * 60}], "max_tokens": 200}
USAGE = {"prompt_tokens": 120, "completion_tokens": 80, "total_tokens": 200}


def _silent(level: str, event: str, **fields: Any) -> None:
    if level == "error":
        raise RuntimeError(f"{event}: {fields}")


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    exchange = Exchange.of(scope)
    exchange.attempts, exchange.status = 1, 200
    exchange.charge = charge(USAGE, CATALOGUE.model("mistral-small-latest"), None)
    await asyncio.sleep(0)


CATALOGUE = Catalogue(data.read("models.yaml"))
TEAM = Team("bench", lambda name: True)


async def _nothing() -> Message:
    raise NotImplementedError


async def _nobody(message: Message) -> None:
    raise NotImplementedError


async def _ask(app: ASGIApp, requests: int) -> None:
    for _ in range(requests):
        exchange = Exchange("0123456789abcdef", "POST", "/v1/chat/completions", (), "127.0.0.1", 0.0)
        exchange.team, exchange.key_id, exchange.body = TEAM, "0123456789ab", BODY
        exchange.model_asked = exchange.model = "mistral-small-latest"
        scope: Scope = {"type": "http"}
        exchange.keep_in(scope)
        await app(scope, _nothing, _nobody)


async def _cpu(app: ASGIApp, flush: Callable[[], Any]) -> float:
    """CPU µs for each request."""
    before = time.process_time()
    await asyncio.gather(*(_ask(app, REQUESTS // AT_ONCE) for _ in range(AT_ONCE)))
    await flush()
    return (time.process_time() - before) / REQUESTS * 1e6


@asynccontextmanager
async def _staged(folder: Path, redis: str | None) -> AsyncIterator[tuple[ASGIApp, LedgerStore]]:
    async with AsyncExitStack() as stack:
        database = open_database(f"sqlite:///{folder}/ledger.db")
        stack.callback(database.close)
        migrate(database)
        kept = LedgerStore(database, folder / "journal", OWNER, log=_silent, now=unix_milliseconds)
        await kept.start()
        stack.push_async_callback(kept.close_down)
        history = LedgerHistory(database, kept.flush)
        stack.callback(history.close)
        calendar, store = Calendar(ZoneInfo("UTC")), None
        counters: QuotaStore = MemoryStore(calendar, unix_milliseconds, history)
        if redis:
            store = RedisStore(Secret(redis), calendar, history, owner=OWNER, log=_silent, wall=unix_milliseconds)
            await store.start()
            stack.push_async_callback(store.close)
            counters = store
        yield fold(_stages(counters, kept), _answer), kept


def _stages(counters: QuotaStore, kept: LedgerStore) -> tuple[Any, ...]:
    numbers = itertools.count()
    services = Services(
        monotonic=time.monotonic,
        log=_silent,
        redact=Redactor(data.read("redaction.yaml")),
        catalogue=CATALOGUE,
        quotas=counters,
        ledger=kept,
        wall=unix_milliseconds,
        next_call=lambda: f"{OWNER}-{next(numbers)}",
    )
    rules = [quota.Quota.model_validate(one).rule(None) for one in QUOTAS]
    return (
        estimate.build(None, CHAT, services),
        quota.build(quota.Config({"bench": rules}), CHAT, services),
        ledger.build("mistral", CHAT, services),
    )


async def measure(rounds: int, redis: str | None = None) -> list[tuple[float, float]]:
    """CPU µs of a request, plain and with the stages, for each round."""

    async def nothing() -> None:
        pass

    with tempfile.TemporaryDirectory() as folder:
        async with _staged(Path(folder), redis) as (app, kept):
            await _cpu(app, kept.flush)  # caches are warm, and counters born
            found = [(await _cpu(_answer, nothing), await _cpu(app, kept.flush)) for _ in range(rounds)]
    return found


def main(arguments: list[str]) -> None:
    rounds = int(arguments[0]) if arguments else 20
    stores: dict[str, str | None] = {"memory": None}
    if len(arguments) > 1:
        stores["redis"] = arguments[1]
    for name, url in stores.items():
        found = uvloop.run(measure(rounds, url))
        added = sorted(ours - plain for plain, ours in found)
        low, median, high = statistics.quantiles(added, n=4, method="inclusive")
        print(f"{name}: {median:.1f} ({low:.1f}–{high:.1f}) CPU µs added to a request, asked ≤ {GOALS[name]}")


if __name__ == "__main__":
    main(sys.argv[1:])
