"""What quotas and the ledger cost: CPU time of the three stages around an application that only answers.

    python -m bench.quota [ROUNDS] [REDIS_URL]

In one process, without HTTP: the stages `estimate`, `quota` and `ledger` with four rules (requests, tokens, spend,
concurrency), sixteen requests at a time, and the rows written into SQLite by the time a round ends, all threads
counted. With a Redis, its own CPU time is not part of it. Both sides of a row take turns within a round, and so does
the bare forwarder, for a yardstick: what was asked for was asked on a machine on which that takes YARDSTICK.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import uvloop
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bench.measure import Cores, on_cores
from bench.rounds import Results, Rounds, start_all
from bench.targets import QUOTAS, Place, forwarder, free_port, running, upstream
from proxy import data
from proxy.core.calendar import Calendar
from proxy.core.catalogue import Catalogue
from proxy.core.charge import charge
from proxy.core.circuit import Circuits
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

REQUESTS, FORWARDED, AT_ONCE = 4_000, 1_000, 16
GOALS = {"memory": 25, "redis": 200}
"""CPU µs that may be added to a request, on a machine on which the bare forwarder takes YARDSTICK for one."""
YARDSTICK = 119

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
        circuits=Circuits(time.monotonic, _silent),
        next_call=lambda: f"{OWNER}-{next(numbers)}",
    )
    rules = [quota.Quota.model_validate(one).rule(None) for one in QUOTAS]
    return (
        estimate.build(None, CHAT, services),
        quota.build(quota.Config({"bench": rules}), CHAT, services),
        ledger.build("mistral", CHAT, services),
    )


@dataclass(frozen=True, slots=True)
class Round:
    """CPU µs of a request: through the bare forwarder, and in this process without the stages and with them."""

    forwarder: float
    plain: float
    staged: float

    @property
    def added(self) -> float:
        return self.staged - self.plain


@asynccontextmanager
async def _forwarder(folder: Path) -> AsyncIterator[Callable[[], Awaitable[float]]]:
    """CPU µs of a JSON request through the bare forwarder, as scripts/bench measures it."""
    cores, results, numbers = Cores.split(), Results(), itertools.count()
    async with AsyncExitStack() as stack:
        straight = await stack.enter_async_context(running(upstream(free_port(), folder), cores.others))
        target = forwarder(Place(free_port(), straight.target.route.port, folder, AT_ONCE))
        rounds = Rounds(straight, await start_all(stack, [target], cores), results)
        await rounds.warm_up(FORWARDED)

        async def one() -> float:
            with on_cores(cores.others):
                await rounds.bursts(next(numbers), "json", FORWARDED)
            if results.wrong:
                raise RuntimeError("; ".join(results.wrong))
            return results.samples["json_cpu_us"][target.name][-1]

        yield one


async def measure(rounds: int, redis: str | None = None) -> list[Round]:
    async def nothing() -> None:
        pass

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with _forwarder(folder) as forwarded, _staged(folder, redis) as (app, kept):
            await _cpu(app, kept.flush)  # caches are warm, and counters born
            return [
                Round(await forwarded(), await _cpu(_answer, nothing), await _cpu(app, kept.flush))
                for _ in range(rounds)
            ]


def summary(store: str, rounds: list[Round]) -> str:
    """One line."""
    low, median, high = statistics.quantiles([one.added for one in rounds], n=4, method="inclusive")
    yardstick = statistics.median(one.forwarder for one in rounds)
    part, goal = median / yardstick, GOALS[store] / YARDSTICK
    return (
        f"{store}: {median:.1f} ({low:.1f}–{high:.1f}) CPU µs added to a request, {part:.2f} of the bare forwarder's "
        f"{yardstick:.0f}; asked ≤ {goal:.2f} ({GOALS[store]} of {YARDSTICK}): {'met' if part <= goal else 'MISSED'}"
    )


def main(arguments: list[str]) -> None:
    rounds = int(arguments[0]) if arguments else 20
    stores: dict[str, str | None] = {"memory": None}
    if len(arguments) > 1:
        stores["redis"] = arguments[1]
    for name, url in stores.items():
        print(summary(name, uvloop.run(measure(rounds, url))))


if __name__ == "__main__":
    main(sys.argv[1:])
