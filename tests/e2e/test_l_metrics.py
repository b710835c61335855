"""`/metrics` of several workers that share a Redis: every number is what clients did, whichever worker is asked, at any
moment and after any death.

`METRICS_REQUESTS=10000 scripts/test tests/e2e/test_l_metrics.py` is the same with so many for each worker; it takes a
few minutes.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric

from proxy import data
from proxy.core.catalogue import Catalogue
from proxy.core.metrics import families
from proxy.core.metrics.families import FAMILIES, Family
from proxy.core.money import NANO
from tests.core.metrics.reading import read, total, value
from tests.e2e.conftest import Stage
from tests.e2e.quotas import Deployment, asking, embedding, good, is_stream, key_of, meets, teams, text_of
from tests.e2e.upstream import JSON, STREAM, event, upstream, url_of
from tests.e2e.wire import Answer, ask, connect, request
from tests.redis_server import RedisServer
from tests.upstream.scripted import Peer, Received, answer, chunk

CATALOGUE = Catalogue(data.read("models.yaml"))
WORKERS = 4
REQUESTS = WORKERS * int(os.environ.get("METRICS_REQUESTS", "500"))
CLIENTS = 16

CONFIG = """\
server: {{port: 0, workers: {workers}, drain: 5s}}
store: {{url: "{store}"}}
ledger: {{url: "${{LEDGER}}"}}
providers:
  mistral:
    base_url: "{upstream}"
    api_keys: ["${{PROVIDER_KEY}}"]
    retry: {{max_attempts: 2, initial_delay: 1ms, max_delay: 1ms}}
    circuit_breaker: {{failure_threshold: 1000000}}
    max_connections: 600
logging: {{level: error}}
teams:
{teams}
"""

RULES = {
    "red": "[requests: 1000000/day, spend: 1000 USD/day]",
    "blue": "[]",
    "poor": "[requests: 0/minute, {requests: 1/day, mode: shadow}]",
}


class Watched(Deployment):
    def write(self, rules: Any, **options: Any) -> None:
        self.options |= options
        self.file.write_text(CONFIG.format(teams=teams(rules), **self.options))


@pytest.fixture
def deployment(held: socket.socket, tmp_path: Path) -> Iterator[Watched]:
    server = RedisServer()
    one = Watched(tmp_path, url_of(held), RULES, workers=WORKERS, store=server.url.reveal())
    one.start()
    yield one
    one.stop()
    server.stop()


async def playing(peer: Peer, received: Received) -> None:
    """`fails` fails, `hold` never ends (a stream has begun then), the rest is answered."""
    if "/models" in received.line:
        await peer.send(answer(b'{"object":"list","data":[]}', JSON))
        return
    text = text_of(received)
    if text.startswith("fails"):
        await peer.send(answer(b'{"object":"error","message":"no"}', JSON.replace(b"200 OK", b"503 No")))
    elif text.startswith("hold"):
        if is_stream(received):
            await peer.send(STREAM + chunk(event("Hello ")))
        await peer.gone()
    else:
        await good(peer, received)


# What clients do.


@dataclass
class Told:
    """What all clients together have done and been told, as they see it."""

    answered: int = 0
    methods: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By operation and status class, of those who have heard all of it."""
    left: Counter[tuple[str, str]] = field(default_factory=Counter)
    """The same of those who did not wait."""
    cache: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By team and outcome."""
    codes: Counter[str] = field(default_factory=Counter)
    retried: int = 0
    cancelled: int = 0

    def heard(self, operation: str, team: str, found: Answer) -> None:
        """One answer, to its last byte."""
        self.answered += 1
        self.methods[operation, f"{found.status // 100}xx"] += 1
        if outcome := found.header("x-proxy-cache"):
            self.cache[team, outcome] += 1
        self.retried += max(int(found.header("x-proxy-attempts") or 1) - 1, 0)
        if found.status >= 400:
            self.codes[found.error()["code"]] += 1


CHAT, STREAMED, VECTORS = "chat.create", "chat.create_stream", "embeddings.create"


class Client:
    """One that does this and that, chosen by its own dice. `told` is shared with all others."""

    def __init__(self, url: str, number: int, told: Told) -> None:
        self._url, self._number, self._told = url, number, told
        self._dice = random.Random(number)
        self.count = 0

    async def run(self, count: int) -> None:
        """On a connection of its own for as long as that lives."""
        kinds = [*[self.whole] * 4, *[self.stream] * 3, self.vectors, self.again, self.wrong, self.fails]
        while self.count < count:
            async with connect(self._url) as connection:
                for _ in range(20):
                    self.count += 1
                    if self.count % 17 == 0:
                        await (self.leaves_whole if self._dice.random() < 0.5 else self.leaves_stream)()
                    else:
                        operation, team, data = self._dice.choice(kinds)()
                        await connection.send(data)
                        self._told.heard(operation, team, await connection.answer())
                    if self.count >= count:
                        return

    @property
    def _team(self) -> str:
        return self._dice.choice(("red", "blue"))

    def _text(self) -> str:
        return f"said by {self._number} as number {self.count}"

    def whole(self) -> tuple[str, str, bytes]:
        team = self._team
        fields: dict[str, Any] = self._dice.choice(({}, {"temperature": 0}))
        return CHAT, team, asking(team, self._text(), **fields)

    def stream(self) -> tuple[str, str, bytes]:
        team = self._team
        return STREAMED, team, asking(team, self._text(), stream=True)

    def vectors(self) -> tuple[str, str, bytes]:
        team = self._team
        return VECTORS, team, embedding(team, self._text())

    def again(self) -> tuple[str, str, bytes]:
        """What somebody has asked before, or is asking at this moment."""
        text, team = f"again {self._dice.randrange(20)}", self._team
        if self._dice.random() < 0.5:
            return VECTORS, team, embedding(team, text)
        return STREAMED, team, asking(team, text, stream=True, temperature=0)

    def wrong(self) -> tuple[str, str, bytes]:
        made_up = f"made-up-{self._dice.random()}"
        return self._dice.choice(
            (
                lambda: (CHAT, "", asking("nobody", self._text())),
                lambda: (CHAT, "red", asking("red", self._text(), model=made_up)),
                lambda: (CHAT, "red", asking("red", self._text(), model=f"{made_up}/x")),
                lambda: (CHAT, "red", asking("red", self._text(), temperature="hot")),
                lambda: (CHAT, "poor", asking("poor", self._text())),
                lambda: ("other", "", request("GET", f"/{made_up}")),
                lambda: ("models.list", "", request("GET", "/v1/models", authorization=f"Bearer {key_of('red')}")),
                lambda: ("health", "", request("GET", "/health")),
            )
        )()

    def fails(self) -> tuple[str, str, bytes]:
        return CHAT, "red", asking("red", f"fails {self._text()}")

    async def leaves_whole(self) -> None:
        """Before there is an answer."""
        async with connect(self._url) as connection:
            await connection.send(asking("blue", f"hold {self._text()}"))
            await asyncio.sleep(0.05)  # so that there is a call to end, mostly
            connection.leave("rst")
        self._told.left[CHAT, "4xx"] += 1
        self._told.cache["blue", "bypass"] += 1

    async def leaves_stream(self) -> None:
        """In the middle of it."""
        async with connect(self._url) as connection:
            await connection.send(asking("blue", f"hold {self._text()}", stream=True))
            assert (await connection.head()).status == 200
            await connection.chunk()
            connection.leave("rst")
        self._told.left[STREAMED, "2xx"] += 1
        self._told.cache["blue", "bypass"] += 1
        self._told.cancelled += 1


async def crowd(url: str, told: Told, requests: int = REQUESTS) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(Client(url, number, told).run(requests // CLIENTS))


# What Prometheus does.


async def scrape(url: str) -> dict[str, Metric]:
    """By whichever worker accepts it."""
    found = await ask(url, request("GET", "/metrics", authorization=""))
    assert found.status == 200, found.body
    return read(found.body)


@dataclass
class Watch:
    """Scrapes all the time, and looks whether anything goes back."""

    url: str
    told: Told
    scrapes: int = 0
    _before: dict[Any, float] = field(default_factory=dict)

    async def look(self) -> dict[str, Metric]:
        answered = self.told.answered
        found = await scrape(self.url)
        self.scrapes += 1
        # Whoever has an answer finds it here.
        assert requests_of(found) >= answered
        now = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for metric in found.values()
            if metric.type != "gauge"
            for sample in metric.samples
        }
        assert [(name, was, now.get(name)) for name, was in self._before.items() if now.get(name, -1) < was] == []
        self._before = now
        return found

    async def run(self) -> None:
        while True:
            with suppress(OSError, EOFError):  # it may be a worker that dies
                await self.look()
            await asyncio.sleep(0.02)


@asynccontextmanager
async def watching(url: str, told: Told) -> AsyncIterator[Watch]:
    watch = Watch(url, told)
    task = asyncio.create_task(watch.run())
    try:
        yield watch
        assert not task.done() or task.result() is None
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def requests_of(found: dict[str, Metric]) -> int:
    """All but the scrapes themselves."""
    return int(total(found, families.REQUESTS) - total(found, families.REQUESTS, method="metrics"))


def by(found: dict[str, Metric], family: Family, *names: str, suffix: str = "") -> Counter[Any]:
    """Sums by these labels, where there is any; without the scrapes."""
    sums: Any = Counter()
    for sample in found[family.name].samples if family.name in found else ():
        if sample.name == family.name + suffix and sample.labels.get("method") != "metrics" and sample.value:
            labels = tuple(sample.labels[name] for name in names)
            sums[labels if len(names) > 1 else labels[0]] += sample.value
    return sums


def nano(found: dict[str, Metric], family: Family) -> dict[str, int]:
    return {team: round(usd * NANO) for team, usd in by(found, family, "team").items()}


async def exact(deployment: Watched, watch: Watch, told: Told) -> None:
    """A scrape says what clients did, and what the ledger has."""

    async def all_there() -> int:
        return requests_of(await watch.look())

    async def waiting() -> float:
        return value(await watch.look(), families.LEDGER)

    methods = told.methods + told.left
    everything = methods.total()
    await meets(all_there, everything)  # whoever left is noticed a moment later
    await meets(waiting, 0)
    usage: list[dict[str, Any]] = json.loads(await asyncio.to_thread(deployment.run, "usage", "--json", "--by", "team"))
    for _ in range(3 * WORKERS):  # connections go to any worker
        found = await watch.look()
        assert by(found, families.REQUESTS, "method", "status") == methods
        assert by(found, families.DURATION, "method", "status", suffix="_count") == methods
        assert by(found, families.TEAM_REQUESTS, "status").total() - requests_in(found) == everything
        assert by(found, families.CACHE, "team", "outcome") == told.cache
        assert by(found, families.ERRORS, "error_type") == told.codes
        assert total(found, families.RETRIES) == told.retried
        assert told.cancelled <= total(found, families.CANCELS) <= told.cancelled + told.left[CHAT, "4xx"]
        ledger = {line["team"]: line for line in usage}
        for family, name in ((families.COST, "cost_nano_usd"), (families.SAVED, "saved_nano_usd")):
            assert nano(found, family) == {team: line[name] for team, line in ledger.items() if line[name]}
        tokens = {name: sum(line[f"{name}_tokens"] for line in usage) for name in ("prompt", "completion")}
        assert by(found, families.TOKENS, "direction") == {"input": tokens["prompt"], "output": tokens["completion"]}
        assert value(found, families.STREAMS) == value(found, families.IN_FLIGHT) == 0


def requests_in(found: dict[str, Metric]) -> int:
    return int(total(found, families.TEAM_REQUESTS, endpoint="/metrics"))


async def test_l3_every_scrape_says_what_clients_did(deployment: Watched, held: socket.socket) -> None:
    told = Told()
    async with upstream(held, playing):
        async with watching(deployment.url, told) as watch:
            await crowd(deployment.url, told)
            assert watch.scrapes > 10
        await exact(deployment, watch, told)
        found = await watch.look()
    names = {sample.labels["model"] for sample in found[families.REQUESTS.name].samples}
    assert names == {"", "other", CATALOGUE.model("mistral-small-latest").id, CATALOGUE.model("mistral-embed").id}
    assert value(found, families.WORKERS) == WORKERS
    missing = {family.name for family in FAMILIES} - set(found)
    assert missing == {families.SPANS_LOST.name}


async def test_l3_what_is_refused_at_the_door_is_counted(stage: Stage) -> None:
    before = by(await scrape(stage.url), families.ERRORS, "error_type")
    told = []
    for sent in (b"GET / HTTP/1.1\r\n\r\n", b"no\r\n\r\n", request(target="/" + "a" * 100_000)):
        told.append((await ask(stage.url, sent)).error()["code"])
        assert by(await scrape(stage.url), families.ERRORS, "error_type") == before + Counter(told)
    assert told == ["bad_framing", "bad_framing", "uri_too_long"]


async def test_l3_a_worker_that_is_killed_takes_no_count_with_it(deployment: Watched, held: socket.socket) -> None:
    """All of them, one after the other: whatever is on the board then is of workers that have died."""
    told, each = Told(), 120

    async def until_it_is_done(number: int) -> None:
        """Whoever talks to a worker that is killed begins again."""
        client = Client(deployment.url, number, told)
        while client.count < each:
            with suppress(OSError, EOFError):
                await client.run(each)

    async def workers() -> float:
        with suppress(OSError, EOFError):
            return value(await scrape(deployment.url), families.WORKERS)
        return 0.0

    async def answered() -> bool:
        return told.answered >= enough

    async with upstream(held, playing):
        async with watching(deployment.url, told) as watch:
            async with asyncio.TaskGroup() as group:
                for number in range(CLIENTS):
                    group.create_task(until_it_is_done(number))
                for died, pid in enumerate(deployment.pids(), 1):
                    enough = CLIENTS * each * died // (WORKERS + 1)
                    await meets(answered, True)
                    os.kill(pid, signal.SIGKILL)
            await meets(workers, WORKERS)
        assert len(deployment.program.logged("worker_died")) == WORKERS
        counted = by(await watch.look(), families.REQUESTS, "method", "status")
    assert [one for one, count in told.methods.items() if counted[one] < count] == []
