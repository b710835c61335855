"""Real proofs: with real proxies, a real Redis, kills; and of a proxy that does not keep to its limits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psycopg
import pytest

from proxy.core.quota import Unit
from proxy.core.secret import Secret
from proxy.proof import run
from proxy.proof.cluster import CannotProve, Process
from proxy.proof.configuration import Places, configuration, zone
from proxy.proof.plan import Options, Plan, plan
from proxy.proof.report import problems
from tests.postgres_server import PostgresServer
from tests.programs import COMMAND, Program, until
from tests.proof.evidence import PRICES
from tests.redis_server import RedisServer

LONG = 180
"""Seconds after which a proof counts as one that never ends."""


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def object(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found

    def kind(self, name: str) -> dict[str, Any]:
        return next(one for one in self.object["kinds"] if one["kind"] == name)


def prove(
    folder: Path,
    *arguments: str,
    store: str = "memory://",
    ledger: str = "",
    environ: Mapping[str, str] = MappingProxyType({}),
) -> Result:
    lines = [f'store: {{url: "{store}"}}', *([f'ledger: {{url: "{ledger}"}}'] if ledger else [])]
    (folder / "proxy.yaml").write_text("\n".join(lines))
    always = {"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder), "LANG": "C.UTF-8"}
    done = subprocess.run(
        [str(COMMAND), "prove-quota", *arguments],
        cwd=folder,
        env=always | dict(environ),
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert not list(folder.glob("mistral-proxy-proof-*")), "something is left of its files"
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    server = PostgresServer()
    yield server
    server.remove()


def assert_exact(result: Result) -> None:
    assert (result.code, result.object["problems"]) == (0, []), result.object["logged"]
    for kind in result.object["kinds"]:
        wrong = ("overshoot", "shortfall", "difference_nano_usd", "rows_without_end")
        assert [kind[name] for name in wrong] == [0, 0, 0, 0]


def test_a_store_in_memory_and_a_proxy_that_is_killed(tmp_path: Path) -> None:
    result = prove(tmp_path, "--clients", "60", "--trials", "2", "--seed", "1", "--json")
    assert_exact(result)
    assert (result.object["replicas"], result.object["workers"], result.object["killed"]) == (1, 1, 2)
    assert result.kind("requests")["admitted"] == 1 + 7
    money = result.kind("spend")
    assert money["ledger_nano_usd"] == money["recount_nano_usd"] > 0
    assert money["estimated_rows"] > 0
    assert money["charged_nano_usd"] > money["billed_nano_usd"]


def test_redis_two_replicas_of_two_workers_and_kills(tmp_path: Path, redis: RedisServer) -> None:
    options = ("--clients", "100", "--trials", "2", "--seed", "2", "--spend", "10", "--json")
    result = prove(tmp_path, *options, store=redis.url.reveal())
    assert_exact(result)
    assert (result.object["replicas"], result.object["workers"], result.object["killed"]) == (2, 2, 2)
    money = result.kind("spend")
    assert money["limits"] == [10 * 10**9] * 2
    assert money["ledger_nano_usd"] + money["charged_nano_usd"] <= 2 * 10 * 10**9
    assert money["estimated_rows"] > 0


def test_single_processes_that_are_killed_and_started_again(tmp_path: Path, redis: RedisServer) -> None:
    options = ("--clients", "40", "--trials", "1", "--only", "spend", "--workers", "1", "--seed", "3", "--json")
    result = prove(tmp_path, *options, store=redis.url.reveal())
    assert_exact(result)
    assert (result.object["workers"], result.object["killed"]) == (1, 1)


def test_exactly_as_many_as_are_allowed_in_every_trial(tmp_path: Path, redis: RedisServer) -> None:
    """The admission of 1, 7 and 100 requests an hour, with up to 500 at once; for 200 trials say so."""
    trials = 50
    options = ("--clients", "500", "--trials", str(trials), "--only", "requests", "--no-kills", "--seed", "4", "--json")
    result = prove(tmp_path, *options, store=redis.url.reveal())
    assert_exact(result)
    found = result.kind("requests")
    assert (found["trials"], set(found["limits"])) == (trials, {1, 7, 100})
    assert found["admitted"] == sum(found["limits"])
    assert found["clients"] > 400


def test_a_ledger_in_postgresql_forgets_the_proof(tmp_path: Path, postgres: PostgresServer) -> None:
    """A password is not written into a file."""
    url = postgres.fresh()
    options = ("--clients", "30", "--trials", "1", "--no-kills", "--only", "spend,concurrency", "--json")
    result = prove(tmp_path, *options, ledger="${LEDGER_URL}", environ={"LEDGER_URL": url})
    assert_exact(result)
    assert result.kind("spend")["ledger_nano_usd"] > 0
    with psycopg.connect(url) as connection:
        for table in ("calls", "usage", "usage_days"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table


# What must be found.


def in_memory(folder: Path) -> Places:
    return Places(Secret("memory://"), Secret(f"sqlite:///{folder}/ledger.db"), "closed", zone(datetime.now(UTC)))


@pytest.mark.parametrize("kind", [Unit.REQUESTS, Unit.SPEND])
async def test_a_proxy_that_lets_more_in(kind: Unit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(Options(clients=30, trials=1, limit=7, kills=False, kinds=frozenset({kind})), PRICES, "0bad")

    def generous(of: Plan, *rest: Any, audit: bool = False) -> str:
        trials = [replace(trial, limit=trial.limit + trial.limit // 2) for trial in of.trials]
        return configuration(replace(of, trials=trials), *rest, audit=audit)

    monkeypatch.setattr(run, "configuration", generous)
    proved = await run.prove(made, in_memory(tmp_path), tmp_path)
    [(_, found)] = proved.found
    assert found.overshoot > 0
    assert any("over the limit" in problem for problem in problems(proved))


# Starting and ending.


def test_a_redis_that_is_not_there(tmp_path: Path) -> None:
    result = prove(tmp_path, store="redis://127.0.0.1:1/0")
    assert (result.code, result.out) == (2, "")
    assert result.err == "mistral-proxy: The store redis://127.0.0.1:1/0 does not answer: ConnectionError.\n"


@pytest.mark.parametrize("url", ["postgresql://user:secret-word@host:port/name", "postgresql://user@host/name"])
async def test_a_ledger_that_is_no_database(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or one for which a driver is wanting. It is no traceback: that would look like limits that do not hold."""
    monkeypatch.delitem(sys.modules, "proxy.store.postgres", raising=False)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    made = plan(Options(clients=2, trials=1), PRICES, "0bad")
    places = replace(in_memory(tmp_path), ledger=Secret(url))
    with pytest.raises(CannotProve, match=r"^The ledger's database cannot be used: ") as caught:
        await run.prove(made, places, tmp_path)
    assert "secret-word" not in str(caught.value)


def test_several_workers_need_a_store_that_they_share(tmp_path: Path) -> None:
    result = prove(tmp_path, "--workers", "2")
    assert result.code == 2
    assert "set store.url to a redis://" in result.err


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_who_ends_it_leaves_nothing_behind(name: str, code: int, tmp_path: Path) -> None:
    program = Program("prove-quota", "--trials", "40", env={"TMPDIR": str(tmp_path)}, cwd=tmp_path)
    try:
        serves = "mistral-proxy-proof-*/state/mistral-proxy/journal"
        [folder] = until(lambda: list(tmp_path.glob(serves)), "a proxy of it serves")
        children = _of_group(program.process.pid)
        assert len(children) >= 2
        program.signal(signal.Signals[name])
        assert program.ended() == code
    finally:
        program.stop()
    assert not folder.exists()
    assert not any(map(_is_alive, children))


async def test_a_proxy_that_does_not_start_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clients do not wait for ever."""
    made = plan(Options(clients=10, trials=1, kinds=frozenset({Unit.SPEND})), PRICES, "0bad")
    kill = Process.kill

    async def without_a_configuration(process: Process) -> None:
        (tmp_path / "proxy-1.yaml").unlink(missing_ok=True)
        await kill(process)

    monkeypatch.setattr(Process, "kill", without_a_configuration)
    with pytest.raises(CannotProve, match="No such file"):
        await run.prove(made, in_memory(tmp_path), tmp_path)


def _of_group(pid: int) -> list[int]:
    if sys.platform != "linux":
        pytest.skip("the children of a process are listed by Linux only")
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
