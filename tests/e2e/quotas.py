"""Proxies that limit teams and keep a ledger, and what a test asks of them: an answer, the rows, how counters stand.

Each test has teams of its own, so that many can share the processes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psutil
import psycopg
from psycopg.rows import dict_row

from proxy.core.money import usd
from tests.conftest import PROVIDER_KEY
from tests.e2e.upstream import JSON, STREAM, completion, event, events
from tests.e2e.wire import Answer, ask, chat, request, soon
from tests.programs import COMMAND, PATIENCE, Program, until
from tests.redis_server import RedisServer
from tests.store.redis_parts import Relay
from tests.upstream.scripted import Peer, Received, answer, chunk

INPUT, OUTPUT, EMBEDDED = 150, 600, 100
"""nano-USD of one token: of mistral-small-latest's prompt, its answer, and of mistral-embed."""

WAIT = 0.5
"""Seconds that a request may wait for a store that is gone, as docs/quotas.md promises."""

SLACK = 1.5
"""Seconds that a busy machine may need for everything else."""

CONFIG = """\
server: {{port: 0, workers: {workers}, drain: 5s, time_zone: "{zone}", trusted_proxies: {trusted}, admin_keys: {admin}}}
store: {{url: "{store}", on_outage: {on_outage}}}
ledger: {{url: "${{LEDGER}}"}}
providers:
  mistral:
    base_url: "{upstream}"
    api_keys: ["${{PROVIDER_KEY}}"]
    retry: {{max_attempts: 1}}
    circuit_breaker: {breaker}
    max_connections: 600
    timeouts: {{connect: 30s, first_byte: {first_byte}, idle: 30s}}
cache: {cache}
teams:
{teams}
"""


class Row(NamedTuple):
    """What the tests look at of a row; money in nano-USD."""

    call: str
    request_id: str
    opened: int
    team: str
    key_id: str
    operation: str
    model_asked: str | None
    priced_as: str | None
    expected_prompt: int
    most_tokens: int
    most_cost: int
    status: str
    http_status: int | None
    error: str | None
    attempts: int | None
    prompt: int | None
    completion: int | None
    cost: int | None
    estimated: bool | None
    cache: str | None
    saved: int | None

    @property
    def ended(self) -> bool:
        return self.status != "open"


class Book:
    """The ledger at `url`, read past the proxy."""

    def __init__(self, url: str) -> None:
        self.url = url

    def rows(self, team: str | None = None) -> list[Row]:
        found = [row for row in self._all() if team in (None, row.team)]
        assert len({row.call for row in found}) == len(found)
        return found

    def ended(self, team: str, count: int) -> list[Row]:
        """The team's rows, once there are so many and all have ended."""

        def there() -> list[Row]:
            rows = self.rows(team)
            assert len(rows) <= count, rows
            return rows if len(rows) == count and all(row.ended for row in rows) else []

        rows: list[Row] = until(there, f"{count} rows of {team} have ended") if count else self.rows(team)
        return rows

    def _all(self) -> list[Row]:
        query = f"SELECT {', '.join(Row._fields)} FROM calls ORDER BY opened, call"
        if self.url.startswith("sqlite"):
            with closing(sqlite3.connect(self.url.removeprefix("sqlite:///"), timeout=PATIENCE)) as connection:
                return [Row(*row) for row in connection.execute(query)]
        with psycopg.connect(self.url, row_factory=dict_row) as server:
            return [Row(**row) for row in server.execute(query.encode())]


def key_of(team: str) -> str:
    return f"sk-of-{team}-0123456789abcdef0123456789"


def teams(rules: Mapping[str, str]) -> str:
    """`teams` of the configuration: for each its quotas as YAML, each with one key and a second one, `<team>-2`."""
    lines = []
    for team, quotas in rules.items():
        digests = [hashlib.sha256(key_of(name).encode()).hexdigest() for name in (team, f"{team}-2")]
        keys = ", ".join(f'"sha256:{digest}"' for digest in digests)
        lines.append(f"  {team}: {{keys: [{keys}], quotas: {quotas}}}")
    return "\n".join(lines)


class Deployment:
    """A proxy, what it keeps, and its starts: `kill` and `start` as often as a test likes."""

    def __init__(
        self,
        folder: Path,
        upstream: str,
        rules: Mapping[str, str],
        *,
        ledger: str | None = None,
        env: Mapping[str, str] | None = None,
        command: Sequence[str] = (str(COMMAND),),
        **options: Any,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.file, self.state = folder, folder / "proxy.yaml", folder / "state"
        self.command = command
        self.redis: RedisServer | None = None
        self.book = Book(ledger or f"sqlite:///{folder}/ledger.db")
        self.env = {"PROVIDER_KEY": PROVIDER_KEY, "LEDGER": self.book.url, "XDG_STATE_HOME": str(self.state)}
        self.env |= env or {}
        self.options: dict[str, Any] = {
            "workers": 1,
            "zone": "UTC",
            "store": "memory://",
            "on_outage": "local",
            "first_byte": "30s",
            "breaker": "{failure_threshold: 1000000}",
            "trusted": "[]",
            "admin": "[]",
            "cache": "{}",
        }
        self.options |= options | {"upstream": upstream}
        self.write(rules)
        self.program: Program

    def write(self, rules: Mapping[str, str], **options: Any) -> None:
        """Another configuration, whole at every moment."""
        self.options |= options
        aside = self.folder / "aside"
        aside.write_text(CONFIG.format(teams=teams(rules), **self.options))
        aside.replace(self.file)

    def start(self) -> Deployment:
        self.launch()
        self.url = self.program.url()
        return self

    def launch(self) -> None:
        """Begin to start: several can do so at once."""
        self.program = Program("serve", "--config", str(self.file), env=self.env, cwd=self.folder, command=self.command)

    def kill(self) -> None:
        """With all its workers, at once."""
        for pid in [self.program.process.pid, *self.pids()]:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()
        self.program.ended()

    def stop(self) -> None:
        self.program.stop()

    def run(self, *arguments: str) -> str:
        """What another command of ours prints, with the same configuration."""
        program = Program(*arguments, "--config", str(self.file), env=self.env, cwd=self.folder)
        assert program.ended() == 0, program.everything()
        return "".join(program.out).strip()

    def pids(self) -> list[int]:
        """Of its workers, if there are several."""
        return [child.pid for child in psutil.Process(self.program.process.pid).children()]

    def owner(self, pid: int) -> str:
        """What the ids of this worker's calls begin with: the name of the journal that it holds."""
        locks = [Path(file.path) for file in psutil.Process(pid).open_files() if file.path.endswith("/lock")]
        return locks[0].parent.name

    async def reloaded(self, generation: int) -> None:
        """The configuration that was written is in force, on every worker."""
        self.program.signal(signal.SIGHUP)
        done = "reloaded" if self.options["workers"] == 1 else "reloaded_everywhere"
        await asyncio.to_thread(until, lambda: self.program.logged(done, generation=generation), f"{done} {generation}")

    async def standing(self, team: str) -> Standing:
        """How the counters of a team are that has LIMITS, by a request that cannot be let in and so changes nothing."""
        refused = await ask(self.url, asking(team, n=MOST_CHOICES, max_tokens=MOST_TOKENS))
        assert refused.status == 429, refused.body
        error = refused.error()
        left = [int(refused.header(f"x-ratelimit-remaining-{unit}") or -1) for unit in ("requests", "tokens")]
        return Standing(error["used"], error["reserved"], REQUESTS - left[0], TOKENS - left[1])

    async def settled(self, team: str, rows: Sequence[Row]) -> None:
        """The counters of a team that has LIMITS are what its rows say, and nothing is reserved."""
        cost = sum(row.cost or 0 for row in rows)
        tokens = sum((row.prompt or 0) + (row.completion or 0) for row in rows)
        expected = Standing(usd(cost), usd(0), len(rows), tokens)
        await meets(lambda: self.standing(team), expected)


Deploy = Callable[..., Deployment]
"""A fixture: starts one of its own for a test, which ends with it."""

MOST_CHOICES, MOST_TOKENS = 64, 100_000
REQUESTS, TOKENS, SLOTS = 1000, 100_000_000, 2
LIMITS = f"[requests: {REQUESTS}/day, tokens: {TOKENS}/day, spend: 1 USD/day, concurrency: {SLOTS}]"
"""One of each. `standing` asks for more money than there is, of everything else for less."""


class Standing(NamedTuple):
    """Money as a client reads it; requests and tokens that are used or reserved."""

    used: str
    reserved: str
    requests: int
    tokens: int


async def meets(value: Callable[[], Awaitable[Any]], expected: Any) -> None:
    """What is settled behind a client's back is so soon: wait for it, and show what was last seen if it never is."""
    end = time.monotonic() + PATIENCE
    while (seen := await value()) != expected:
        assert time.monotonic() < end, f"{seen} instead of {expected}"
        await asyncio.sleep(0.01)


async def rows_of(book: Book, team: str, count: int) -> list[Row]:
    return await asyncio.to_thread(book.ended, team, count)


def asking(team: str, text: str = "Hello there", *, mark: str = "", **fields: Any) -> bytes:
    """A chat request of a team, or of its second key (`<team>-2`)."""
    headers = {"authorization": f"Bearer {key_of(team)}", "x_request_id": mark}
    return chat(text, headers=headers, **({"max_tokens": 16} | fields))


def embedding(team: str, text: str = "Hello there", **fields: Any) -> bytes:
    body = {"model": "mistral-embed", "input": text} | fields
    return request("POST", "/v1/embeddings", json.dumps(body).encode(), authorization=f"Bearer {key_of(team)}")


async def timed(url: str, data: bytes) -> tuple[Answer, float]:
    """An answer and how many seconds it took."""
    began = time.monotonic()
    found = await ask(url, data)
    return found, time.monotonic() - began


async def statuses(url: str, requests: Sequence[bytes]) -> list[int]:
    """Of answers to requests that are all sent at once."""
    return [found.status for found in await asyncio.gather(*(ask(url, data) for data in requests))]


class Link:
    """A relay in front of a server, in a thread of its own: the proxies outlive the loop of a test."""

    def __init__(self, port: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.relay = self._run(Relay(port).__aenter__())

    def close(self) -> None:
        self._run(self.relay.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)


# The upstream's part.


def text_of(received: Received) -> str:
    """What was said, or is to be embedded."""
    body = json.loads(received.body)
    text = body["messages"][-1]["content"] if "messages" in body else body["input"]
    return str(text[0] if isinstance(text, list) else text)


def is_stream(received: Received) -> bool:
    return bool(json.loads(received.body).get("stream"))


def vectors() -> bytes:
    """An answer to a request for an embedding of three tokens."""
    body = {
        "id": "embd-1", "object": "list", "model": "mistral-embed",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.5]}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3},
    }  # fmt: skip
    return answer(json.dumps(body).encode(), JSON)


async def good(peer: Peer, received: Received) -> None:
    """Three tokens of a prompt, and five of an answer if there is one."""
    if "embeddings" in received.line:
        await peer.send(vectors())
    elif is_stream(received):
        await peer.send(STREAM + b"".join(chunk(one) for one in events(4)) + chunk(b""))
    else:
        await peer.send(completion())


@contextmanager
def deployed(kind: str, folder: Path, upstream: str, rules: Mapping[str, str]) -> Iterator[Deployment]:
    """`memory`: a process by itself; `redis`: two workers, and a Redis of their own that they share."""
    server = RedisServer() if kind == "redis" else None
    shared: dict[str, Any] = {"workers": 2, "store": server.url.reveal()} if server else {}
    one = Deployment(folder, upstream, rules, **shared).start()
    yield one
    one.stop()
    if server:
        server.stop()


class Holding:
    """An upstream that answers well, but `hold` only when it is released: a stream has begun then."""

    def __init__(self) -> None:
        self.held = 0
        self.more = asyncio.Condition()
        self.released = asyncio.Event()

    async def __call__(self, peer: Peer, received: Received) -> None:
        if not text_of(received).startswith("hold"):
            await good(peer, received)
            return
        if is_stream(received):
            await peer.send(STREAM + chunk(event("Hello ")))
        async with self.more:
            self.held += 1
            self.more.notify_all()
        await self.released.wait()
        if is_stream(received):
            await peer.send(b"".join(chunk(one) for one in events(1)) + chunk(b""))
        else:
            await good(peer, received)

    async def holds(self, count: int) -> None:
        async with self.more:
            await soon(self.more.wait_for(lambda: self.held == count))


async def together(url: str, upstream: Holding, requests: Sequence[bytes]) -> list[int]:
    """The statuses of requests that are all under way at the same moment."""
    before = upstream.held
    tasks = [asyncio.create_task(ask(url, data)) for data in requests]
    await upstream.holds(before + len(requests))
    upstream.released.set()
    return [(await task).status for task in tasks]


def port_of(url: str) -> int:
    return urlsplit(url).port or 0
