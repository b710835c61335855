"""What the response cache costs, and what it saves, beside the bare forwarder of the same run.

    python -m bench.cache [ROUNDS] [REQUESTS]

A hit: the product as a user starts it, every stage on, and once more without quotas and ledger, asked the same over and
over; the upstream counts along. A miss: the three stages of the cache around an application that only answers, as
bench.stages measures stages, each request another one; what it takes to write the request down and hash it is measured
by itself.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from operator import sub, truediv
from pathlib import Path

import msgspec
import uvloop
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bench.load import burst, connections
from bench.measure import Cores, on_cores
from bench.report import spread
from bench.rounds import CONCURRENCY, SETTLE, upstream_counts
from bench.stages import AT_ONCE, BODY, CATALOGUE, REQUESTS, TEAM, USAGE, YARDSTICK, services
from bench.targets import Place, Running, forwarder, free_port, proxy, running, upstream
from bench.traffic import request_body
from proxy.core.cache import Answers
from proxy.core.cache_key import Keys
from proxy.core.charge import charge
from proxy.core.exchange import Exchange, exchange_of
from proxy.core.head import Head
from proxy.core.table import Context
from proxy.generation import unix_milliseconds
from proxy.pipeline import fold
from proxy.player import Player
from proxy.providers.mistral.chat import CHAT
from proxy.stages import cache, recall, replay
from proxy.store.cache.memory import MemoryCache

HIT, MISS = 0.5, 12
"""What was asked: a part of the forwarder, and µs where that takes YARDSTICK."""

KINDS = (
    ("JSON, every stage on", None, True),
    ("JSON, without quotas and ledger", None, False),
    ("50-event stream, every stage on", "paced", True),
)

ANSWER = b"x" * 700


# A hit.


@asynccontextmanager
async def _targets(folder: Path, *, counts: bool) -> AsyncIterator[tuple[Running, list[Running]]]:
    cores = Cores.split()
    async with AsyncExitStack() as stack:
        straight = await stack.enter_async_context(running(upstream(free_port(), folder), cores.others))
        found = [
            await stack.enter_async_context(
                running(make(Place(free_port(), straight.target.route.port, folder, 100)), cores.target)
            )
            for make in (forwarder, partial(proxy, counts=counts))
        ]
        with on_cores(cores.others):
            yield straight, found


async def _cpu(run: Running, body: bytes, count: int) -> float:
    """CPU µs of one answer, of so many."""
    async with connections(run.target.route, CONCURRENCY) as calls:
        request = run.target.route.chat(body)
        await burst(calls, request, CONCURRENCY)
        before = run.processes.cpu()
        seen = await burst(calls, request, count)
        await asyncio.sleep(SETTLE)
        if seen.failures or seen.answers != count or len(seen.sizes) != 1:
            raise RuntimeError(f"{run.target.name}: {seen}")
        return (run.processes.cpu() - before) / count * 1e6


async def hits(rounds: int, count: int, plan: str | None, *, counts: bool) -> list[tuple[float, float]]:
    """CPU µs of the forwarder and of a hit, for each round of `count` requests. `counts`: with quotas and ledger."""
    body = request_body(plan)
    fixed = msgspec.json.encode(msgspec.json.decode(body) | {"temperature": 0})
    with tempfile.TemporaryDirectory() as folder:
        async with _targets(Path(folder), counts=counts) as (straight, (bare, product)):
            await _cpu(bare, body, count)
            await _cpu(product, fixed, count)
            found = []
            for _ in range(rounds):
                forwarded = await _cpu(bare, body, count)
                before = await upstream_counts(straight.target.route)
                found.append((forwarded, await _cpu(product, fixed, count)))
                if await upstream_counts(straight.target.route) != before:
                    raise RuntimeError("the upstream was asked for a hit")
            return found


# A miss.


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """As dispatch does when all goes well."""
    exchange = exchange_of(scope)
    exchange.attempts, exchange.usage = 1, USAGE
    exchange.charge = charge(USAGE, CATALOGUE.model("mistral-small-latest"), None)
    await asyncio.sleep(0)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": ANSWER})


def _staged() -> ASGIApp:
    config = cache.Config.model_validate({"max_bytes": "1GB"})
    answers = Answers(MemoryCache(config.bounds, unix_milliseconds), b"secret")
    made = services(answers=answers)
    place = cache.Place(("mistral", "https://api.mistral.ai"), 600.0)
    sources = cache.Sources(config, lambda row: {"mistral": row}, {"mistral": place})
    policy, player = config.policy(unix_milliseconds), Player("immediate", set(), unix_milliseconds, time.monotonic)
    stages = (
        recall.build(policy, player, CHAT, made, answer, on=True),
        cache.build(sources, policy, player, CHAT, made),
        replay.build(CHAT, made, on=True),
    )
    return fold(stages, answer)


async def _receive() -> Message:
    raise NotImplementedError


async def _send(message: Message) -> None:
    pass


@dataclass(slots=True)
class Asked:
    """Requests none of which has been made before."""

    numbers: itertools.count[int]

    def exchange(self) -> Exchange:
        exchange = Exchange("0123456789abcdef", "POST", "/v1/chat/completions", Head(()), "127.0.0.1", 0.0)
        exchange.team, exchange.key_id = TEAM, "0123456789ab"
        exchange.model = exchange.sent_as = "mistral-small-latest"
        exchange.sending = BODY | {"temperature": 0, "random_seed": next(self.numbers)}
        exchange.raw = msgspec.json.encode(exchange.sending)
        exchange.context = Context(CATALOGUE.model("mistral-small-latest"), {}, notes={"model": "m", "defaults": {}})
        return exchange

    async def one_by_one(self, app: ASGIApp, requests: int) -> None:
        for _ in range(requests):
            scope: Scope = {"type": "http"}
            self.exchange().keep_in(scope)
            await app(scope, _receive, _send)

    async def cpu(self, app: ASGIApp) -> float:
        """CPU µs for each request."""
        before = time.process_time()
        await asyncio.gather(*(self.one_by_one(app, REQUESTS // AT_ONCE) for _ in range(AT_ONCE)))
        return (time.process_time() - before) / REQUESTS * 1e6

    def hashing(self) -> float:
        """CPU µs to hash one request by its letters, and to write it down and hash that."""
        keys = Keys(b"secret", "chat", ("mistral", "https://api.mistral.ai"), CHAT.inert)
        made = [self.exchange() for _ in range(REQUESTS)]
        before = time.process_time()
        for one in made:
            assert one.sending
            assert one.context
            recall.letters(one, one.raw or b"")
            keys.key("bench", one.sending, one.context)
        return (time.process_time() - before) / REQUESTS * 1e6


async def misses(rounds: int) -> list[tuple[float, float]]:
    """What a miss adds, and how much of it is the hashing, for each round; CPU µs."""
    app, asked = _staged(), Asked(itertools.count())
    await asked.cpu(app)
    found = []
    for _ in range(rounds):
        plain, staged = await asked.cpu(answer), await asked.cpu(app)
        found.append((staged - plain, asked.hashing()))
    return found


def main(arguments: list[str]) -> None:
    rounds, count = [*map(int, arguments), *(20, 2_000)[len(arguments) :]][:2]
    yardstick = 0.0
    for name, plan, counts in KINDS:
        forwarded, hit = zip(*uvloop.run(hits(rounds, count, plan, counts=counts)), strict=True)
        bare = statistics.median(forwarded)
        yardstick = yardstick or bare
        part = statistics.median(map(truediv, hit, forwarded))
        print(
            f"hit, {name}: {spread(hit).text(1)} CPU µs, {part:.2f} of the bare forwarder's {bare:.0f}; "
            f"asked ≤ {HIT}: {'met' if part <= HIT else 'MISSED'}; the upstream was not asked"
        )
    added, hashing = zip(*uvloop.run(misses(rounds)), strict=True)
    part = statistics.median(map(sub, added, hashing)) / yardstick
    print(
        f"miss: {spread(added).text(1)} CPU µs added, {spread(hashing).text(1)} of them to write down and hash the "
        f"request; without them {part:.2f} of the bare forwarder, asked ≤ {MISS / YARDSTICK:.2f} ({MISS} of "
        f"{YARDSTICK}): {'met' if part <= MISS / YARDSTICK else 'MISSED'}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
