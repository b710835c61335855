"""What the ledger costs: CPU time of a call, and how long its questions take when it holds five million.

    python -m bench.ledger [DATABASE_URL] [CALLS]

The database must be empty; without a URL it is a SQLite file in a folder of its own. A month of calls is made at once,
as rows of both tables, then what a proxy and its operator ask is asked five times.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from zoneinfo import ZoneInfo

from proxy.core.ledger import Intent, Outcome
from proxy.core.quota import WINDOWS, Counter, Unit
from proxy.store.database import Database, open_database
from proxy.store.ledger.history import LedgerHistory
from proxy.store.ledger.retention import Retention
from proxy.store.ledger.rows import Row, ended, usage
from proxy.store.ledger.statements import END, add
from proxy.store.ledger.store import LedgerStore
from proxy.store.ledger.usage import Part, report
from proxy.store.migrations import migrate
from proxy.store.tables import DAY, QUARTER

NOW = 1_795_000_500_000 // QUARTER * QUARTER
CALLS = 5_000_000
MONTH = 30 * DAY
TEAMS, KEYS, MODELS, OPERATIONS = 12, 4, 6, 2
"""Each key is of one team: 576 sums a quarter hour, if all of them are in use all the time."""

OWNER = "c" * 16

_AT_ONCE = 50_000
_ROUND = 1_000
_PATIENCE = 600.0


def call(n: int, owner: str, opened: int, dice: random.Random) -> tuple[Intent, Outcome]:
    """One of a busy month."""
    team, key, model = dice.randrange(TEAMS), dice.randrange(KEYS), f"model-{dice.randrange(MODELS)}"
    prompt, completion = dice.randrange(4_000), dice.randrange(900)
    begun = Intent(
        f"{owner}-{n}", f"req_{dice.getrandbits(64):016x}", opened, f"team-{team}", f"key-{team}-{key}",
        ("chat", "embeddings")[dice.randrange(OPERATIONS)], "mistral", f"{model}-latest", f"{model}-latest",
        f"{model}-2506", "2026-11-01", True, prompt, prompt + 1_000, prompt * 100 + 300_000,
    )  # fmt: skip
    outcome = Outcome(
        begun.call, opened + 2_000, "settled", 200, None, 1, 2_000_000, 300_000, prompt, 0, completion, 0, 0, 0,
        prompt * 100 + completion * 300, False,
    )  # fmt: skip
    return begun, outcome


def fill(database: Database, count: int, end: int) -> None:
    """A month of calls until `end`, in the order in which they began."""
    dice = random.Random(5)
    start = end - MONTH
    for at in range(0, count, _AT_ONCE):
        numbers = range(at, min(count, at + _AT_ONCE))
        rows: list[Row] = [ended(*call(n, "b" * 16, start + n * MONTH // count, dice)) for n in numbers]
        with database.begin(_PATIENCE) as connection:
            END[database.dialect](connection, rows)
            add(connection, database.mark, usage(rows))
    if database.dialect == "postgresql":
        with database.begin(_PATIENCE) as connection:
            connection.exec_driver_sql("ANALYZE")


def show(what: str, times: Sequence[float]) -> None:
    print(f"{what:<58} {statistics.median(times) * 1000:>10.1f} ms, at most {max(times) * 1000:.1f}", flush=True)


def timed(what: str, do: Callable[[], object], times: int = 5) -> None:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        do()
        taken.append(time.perf_counter() - start)
    show(what, taken)


async def cost(store: LedgerStore, apart: bool, turn: int) -> tuple[float, float]:
    """CPU microseconds of a call, of the whole process and of the event loop; `apart`: it does not begin and end in the
    same transaction."""
    dice = random.Random(turn)
    calls = [call(n + _ROUND * turn, OWNER, NOW - QUARTER + n, dice) for n in range(_ROUND)]
    cpu, loop = time.process_time(), time.thread_time()
    for intent, _ in calls:
        store.open(intent)
    loop -= time.thread_time()
    if apart:
        await store.flush(_PATIENCE)
    loop += time.thread_time()
    for _, outcome in calls:
        store.close(outcome)
    loop -= time.thread_time()
    await store.flush(_PATIENCE)
    return (time.process_time() - cpu) / _ROUND * 1e6, -loop / _ROUND * 1e6


async def serve(database: Database, directory: Path) -> None:
    """What a proxy does with it."""
    store = LedgerStore(database, directory, OWNER, log=lambda *_, **__: None, now=lambda: NOW)
    await store.start()
    await store.flush(_PATIENCE)
    for apart in (False, True):
        samples = [await cost(store, apart, turn + 10 * apart) for turn in range(10)]
        whole, loop = (statistics.median(column) for column in zip(*samples, strict=True))
        what = f"a call, written in {'two transactions' if apart else 'one transaction'}"
        print(f"{what:<58} {whole:>10.1f} us CPU, of it {loop:.1f} in the event loop", flush=True)
    await ask(LedgerHistory(database, store.flush))
    await store.close_down()


async def ask(history: LedgerHistory) -> None:
    """What counters that are made anew want to know."""
    month = WINDOWS["month"]
    for name, counter in (
        ("a team's spend of the month", Counter("team-3", Unit.SPEND, month)),
        ("a key's tokens of the month", Counter("team-3", Unit.TOKENS, month, "key-3-1")),
        ("a team's requests of one model", Counter("team-3", Unit.REQUESTS, month, None, "model-2-2506")),
    ):
        taken = []
        for _ in range(5):
            start = time.perf_counter()
            await history.used(counter, NOW - MONTH, NOW + QUARTER)
            taken.append(time.perf_counter() - start)
        show(f"history: {name}", taken)
    start = time.perf_counter()
    await history.recent(NOW - 3_600_000)
    show("history: the last hour by second", [time.perf_counter() - start])
    history.close()


def main(url: str, count: int, directory: Path) -> None:
    database = open_database(url)
    migrate(database)
    start = time.perf_counter()
    fill(database, count, NOW)
    print(f"{count:,} calls were made in {time.perf_counter() - start:.0f} s", flush=True)
    asyncio.run(serve(database, directory))
    divisions: tuple[tuple[Part, ...], ...] = (
        (),
        ("team",),
        ("day",),
        ("team", "model"),
        ("team", "model", "key", "day"),
    )
    for by in divisions:
        timed(f"report: 30 days by {', '.join(by) or 'nothing'}", partial(report, database, NOW - MONTH, NOW, by=by))
    paris = partial(report, database, NOW - MONTH, NOW, by=["day"], zone=ZoneInfo("Europe/Paris"))
    timed("report: 30 days by day of Paris", paris)
    timed("report: 30 days of a team by day", lambda: report(database, NOW - MONTH, NOW, by=["day"], team="team-3"))
    retention = Retention(database, 20 * DAY, lambda: NOW)
    timed("retention: 5,000 calls", retention.step)
    start, steps = time.perf_counter(), 0
    while retention.step():
        steps += 1
    print(
        f"retention: the rest of ten days, {steps * 5_000:,} calls, in {time.perf_counter() - start:.0f} s", flush=True
    )
    database.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        place = sys.argv[1] if len(sys.argv) > 1 else f"sqlite:///{folder}/ledger.db"
        main(place, int(sys.argv[2]) if len(sys.argv) > 2 else CALLS, Path(folder) / "journal")
