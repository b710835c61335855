"""What single stages cost: CPU time around an application that only answers, beside the bare forwarder of the same run.

In one process, without HTTP, sixteen requests at a time, all threads counted. Both sides take turns within a round, and
so does the forwarder, for a yardstick: what was asked for was asked on a machine on which that takes YARDSTICK.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bench.measure import Cores, on_cores
from bench.report import spread
from bench.rounds import Results, Rounds, start_all
from bench.targets import Place, forwarder, free_port, running, upstream
from proxy import data
from proxy.core.calendar import Calendar
from proxy.core.catalogue import Catalogue
from proxy.core.charge import charge
from proxy.core.circuit import Circuits
from proxy.core.exchange import Exchange, Team, exchange_of
from proxy.core.head import Head
from proxy.core.metrics.board import Board
from proxy.core.records import Records
from proxy.core.redact import Redactor
from proxy.core.services import Services
from proxy.generation import unix_milliseconds
from proxy.store.memory import MemoryStore

REQUESTS, FORWARDED, AT_ONCE = 4_000, 1_000, 16
YARDSTICK = 119
"""CPU µs of a request through the bare forwarder where the goals were set."""

BODY = {"model": "mistral-small-latest", "messages": [{"role": "user", "content": "Hello! " * 60}], "max_tokens": 200}
USAGE = {"prompt_tokens": 120, "completion_tokens": 80, "total_tokens": 200}
CATALOGUE = Catalogue(data.read("models.yaml"))
TEAM = Team("bench", lambda name: True)


def silent(level: str, event: str, **fields: Any) -> None:
    if level == "error":
        raise RuntimeError(f"{event}: {fields}")


def services(**more: Any) -> Services:
    """As a process has them that keeps no ledger and counts in its memory, and whatever else a benchmark says."""
    given: dict[str, Any] = {
        "monotonic": time.monotonic,
        "log": silent,
        "redact": Redactor(data.read("redaction.yaml")),
        "catalogue": CATALOGUE,
        "quotas": MemoryStore(Calendar(UTC), unix_milliseconds),
        "ledger": None,
        "wall": unix_milliseconds,
        "circuits": Circuits(time.monotonic, silent),
        "next_call": str,
        "part": Board().parts[0],
        "ring": Records().rings[0],
    }
    return Services(**(given | more))


async def nothing() -> None:
    pass


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    exchange = exchange_of(scope)
    exchange.attempts, exchange.status = 1, 200
    exchange.charge = charge(USAGE, CATALOGUE.model("mistral-small-latest"), None)
    await asyncio.sleep(0)


async def _nothing() -> Message:
    raise NotImplementedError


async def _nobody(message: Message) -> None:
    raise NotImplementedError


async def _ask(app: ASGIApp, requests: int) -> None:
    for _ in range(requests):
        exchange = Exchange("0123456789abcdef", "POST", "/v1/chat/completions", Head(()), "127.0.0.1", 0.0)
        exchange.team, exchange.key_id, exchange.body = TEAM, "0123456789ab", BODY
        exchange.model_asked = exchange.model = "mistral-small-latest"
        scope: Scope = {"type": "http"}
        exchange.keep_in(scope)
        await app(scope, _nothing, _nobody)


async def cpu(app: ASGIApp, flush: Callable[[], Awaitable[None]] = nothing) -> float:
    """CPU µs for each request, until what it has put off is done, too."""
    before = time.process_time()
    await asyncio.gather(*(_ask(app, REQUESTS // AT_ONCE) for _ in range(AT_ONCE)))
    await flush()
    return (time.process_time() - before) / REQUESTS * 1e6


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
async def bare_forwarder(folder: Path) -> AsyncIterator[Callable[[], Awaitable[float]]]:
    """CPU µs of a JSON request through the bare forwarder, as scripts/bench measures it."""
    cores, results, numbers = Cores.split(), Results(), itertools.count()
    async with AsyncExitStack() as stack:
        straight = await stack.enter_async_context(running(upstream(free_port(), folder), cores.others))
        target = forwarder(Place(free_port(), straight.target.route.port, folder, AT_ONCE))
        rounds = Rounds(straight, await start_all(stack, [target], cores), results)
        await rounds.warm_up(FORWARDED, ["json"])

        async def one() -> float:
            with on_cores(cores.others):
                await rounds.bursts(next(numbers), "json", FORWARDED)
            if results.wrong:
                raise RuntimeError("; ".join(results.wrong))
            return results.samples["json_cpu_us"][target.name][-1]

        yield one


def summary(what: str, goal: float, rounds: Sequence[Round]) -> str:
    """One line. `goal` is in µs where the forwarder takes YARDSTICK."""
    added = spread([one.added for one in rounds])
    yardstick = statistics.median(one.forwarder for one in rounds)
    part, most = added.median / yardstick, goal / YARDSTICK
    return (
        f"{what}: {added.text(1)} CPU µs added to a request, {part:.2f} of the bare forwarder's "
        f"{yardstick:.0f}; asked ≤ {most:.2f} ({goal:g} of {YARDSTICK}): {'met' if part <= most else 'MISSED'}"
    )
