"""The order of a proof: start, trial after trial, ask the counters, read the ledger, judge. Nothing is left behind."""

from __future__ import annotations

import asyncio
import time
from collections import Counter as Tally
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Final

from aiohttp import ClientError, ClientSession

from proxy.core.secret import Secret
from proxy.proof.audit import Counters, Unheard, counters
from proxy.proof.clients import session, wave
from proxy.proof.cluster import CannotProve, Process, Replica
from proxy.proof.configuration import Places, configuration
from proxy.proof.plan import Plan, Trial
from proxy.proof.provider import Billed, Provider, StillBusy
from proxy.proof.recount import Evidence, Verdict, verdict
from proxy.proof.rows import Row, forget, read
from proxy.store.database import Database, DatabaseGone, DatabaseUnfit, open_database

QUIET: Final = 30.0
"""Seconds within which nothing is reserved any more and every row has ended: a killed worker's lease lasts fifteen."""

_PAUSE: Final = 0.25


@dataclass(frozen=True, slots=True)
class Proved:
    """What became of each trial; `kills` is how many processes were killed, `errors` what the proxies have
    logged as such, and how often."""

    plan: Plan
    found: Sequence[tuple[Evidence, Verdict]]
    kills: int
    errors: Mapping[str, int]


async def prove(plan: Plan, places: Places, folder: Path) -> Proved:
    """`folder` is an empty one, for the processes' files. Raises CannotProve. However it ends, no process is left."""
    async with AsyncExitStack() as closing:
        proof = Proof(plan, places, folder)
        closing.push_async_callback(proof.clean_up)
        await proof.start()
        evidence = [await proof.trial(trial) for trial in plan.trials]
        if any(one.killed for one in evidence):
            evidence = [replace(one, killed=True) for one in evidence]
        evidence = await proof.rows(await proof.counters(evidence))
        found = [(one, verdict(one, plan.prices)) for one in evidence]
        return Proved(plan, found, proof.kills, proof.errors)


class Proof:
    """One proof under way. Times are monotonic seconds. Raises CannotProve when the ledger's database is none."""

    def __init__(self, plan: Plan, places: Places, folder: Path) -> None:
        self._plan = plan
        self._places = places
        self._folder = folder
        self._random = Random(plan.options.seed)  # noqa: S311 (not a secret: it can be repeated)
        self._processes: list[Process] = []
        self._replicas: list[Replica] = []
        self._session: ClientSession | None = None
        self._provider: Provider
        self._url = ""
        self._database = _open(places.ledger)

    @property
    def kills(self) -> int:
        return sum(replica.kills for replica in self._replicas)

    @property
    def errors(self) -> Mapping[str, int]:
        return sum((replica.errors for replica in self._replicas), Tally())

    async def start(self) -> None:
        """Raises CannotProve."""
        self._session = session()
        environ = {"XDG_STATE_HOME": str(self._folder / "state")} | self._places.environ
        simulator = await Process.start(("simulate", "--port", "0"), environ)
        self._processes.append(simulator)
        self._provider, self._url = Provider(simulator.url, self._session), simulator.url
        text = configuration(self._plan, self._places, simulator.url)
        options = self._plan.options
        for at in range(options.replicas):
            file = self._folder / f"proxy-{at + 1}.yaml"
            await asyncio.to_thread(file.write_text, text)
            self._replicas.append(Replica(file, options.workers, environ))
        await _all(replica.start() for replica in self._replicas)

    async def clean_up(self) -> None:
        await _all(one.stop() for one in self._replicas)
        await _all(one.stop() for one in self._processes)
        if self._session:
            await self._session.close()
        with suppress(DatabaseGone, DatabaseUnfit):
            await asyncio.to_thread(forget, self._database, self._teams)
        await asyncio.to_thread(self._database.close)

    # Trials.

    async def trial(self, trial: Trial) -> Evidence:
        """Without what is known only when all are over."""
        began, kills = time.monotonic(), self.kills
        await self._provider.script(trial.faults)
        try:
            async with asyncio.TaskGroup() as together:
                together.create_task(self._kill(trial.kill))
                seen = [await wave(clients, trial.key, self._replicas) for clients in trial.waves]
        except ExceptionGroup as failed:  # clients would wait for ever for a proxy that does not start again
            raise failed.exceptions[0] from None
        billed = await self._billed()
        return Evidence(trial, seen, billed, (), None, killed=self.kills > kills, seconds=time.monotonic() - began)

    async def _kill(self, after: float | None) -> None:
        """In the midst of it: before the first call is with the provider, a process has nothing to lose."""
        if after is not None:
            with suppress(TimeoutError):
                await self._provider.busy()
            await asyncio.sleep(after)
            await self._random.choice(self._replicas).kill_one(self._random)

    async def _billed(self) -> list[Billed]:
        try:
            return await self._provider.calls()
        except StillBusy as error:
            raise CannotProve(f"The simulated provider is not to be read: {error}.") from None

    # Afterwards.

    async def counters(self, evidence: Sequence[Evidence]) -> list[Evidence]:
        """With what the counters of each team say once nothing is reserved, or have not ceased to say."""
        replica = self._replicas[0]
        await replica.reconfigure(configuration(self._plan, self._places, self._url, audit=True))
        url, end = await replica.url(), time.monotonic() + QUIET
        known: dict[str, Counters | None] = {}
        while waiting := [one.trial for one in evidence if not _is_quiet(known.get(one.trial.team))]:
            for trial in waiting:
                known[trial.team] = await self._ask(trial, url)
            if time.monotonic() > end:
                break
            if not all(map(_is_quiet, known.values())):
                await asyncio.sleep(_PAUSE)
        return [replace(one, counters=known[one.trial.team]) for one in evidence]

    async def _ask(self, trial: Trial, url: str) -> Counters | None:
        assert self._session
        try:
            return await counters(trial, self._session, url)
        except (Unheard, ClientError, TimeoutError):
            return None

    async def rows(self, evidence: Sequence[Evidence]) -> list[Evidence]:
        """With the rows of each team, once every call has one that has ended."""
        end = time.monotonic() + QUIET
        while True:
            rows = await self._read()
            whole = [replace(one, rows=[row for row in rows if row.team == one.trial.team]) for one in evidence]
            if all(map(_is_whole, whole)) or time.monotonic() > end:
                return whole
            await asyncio.sleep(_PAUSE)

    async def _read(self) -> list[Row]:
        try:
            return await asyncio.to_thread(read, self._database, self._teams)
        except (DatabaseGone, DatabaseUnfit) as error:
            raise CannotProve(f"The ledger cannot be read: {error}.") from None

    @property
    def _teams(self) -> list[str]:
        return [trial.team for trial in self._plan.trials]


def _open(url: Secret) -> Database:
    try:
        return open_database(url.reveal())
    except DatabaseUnfit as error:
        raise CannotProve(f"The ledger's database cannot be used: {error}.") from None


def _is_quiet(found: Counters | None) -> bool:
    return found is not None and found.is_quiet


def _is_whole(evidence: Evidence) -> bool:
    ended = {row.mark for row in evidence.rows if not row.is_open}
    called = {one.mark for one in evidence.billed}
    return called <= ended and not any(row.is_open for row in evidence.rows)


async def _all(some: Iterable[Coroutine[Any, Any, None]]) -> None:
    """At the same time, each to its end; then the first error is raised."""
    for result in await asyncio.gather(*some, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
