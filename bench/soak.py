"""Whether anything grows or is left behind: clients and an upstream of every kind around one proxy for some minutes.

    scripts/soak [MINUTES] [--every 10] [--workers 2] [--reload 60] [--kill 0] [--seed 1]

It prints what the proxy holds every few seconds, and tables at the end. Exit code 1: an answer was not as expected, or
a good one was somebody else's; something was not given back 10 s after the load had ended; or, in a run of 20 minutes
or more, the memory of a process grew by more than 20 MB an hour in the second half.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import uvloop

from bench.crowd import KINDS, Crowd
from bench.measure import Cores, allow_open_files
from bench.report import text as aligned
from bench.settling import PATIENCE, Patience, sample, settle
from bench.soaked import COMMAND, Soaked, soaked
from bench.watch import TOLD, Sample, slope

AT_ONCE: Final = 32
"""Clients that come one after the other."""

PAUSE: Final = 0.05
"""Seconds between one's leaving and the next one's coming, on average."""

FIRST_MINUTES: Final = 180.0
"""Seconds in which the memory of any process grows: caches fill, code is used for the first time."""

LAST_KILL: Final = 30.0
"""Seconds before the end: what a worker leaves behind that was killed is found by the others after a while."""

MOST_GROWTH: Final = 20.0
"""MB an hour."""

LONG_ENOUGH: Final = 20.0
"""Minutes of a run from which on growth can be told."""

SIDES: Final = ("clients", "upstream", "others", "files", "threads")
MOST_SHOWN: Final = 20


@dataclass(frozen=True)
class Plan:
    """How long, and what happens meanwhile. `every`, `reload` and `kill` are in seconds; the last two 0: never."""

    minutes: float = 30.0
    every: float = 10.0
    workers: int = 2
    reload: float = 60.0
    kill: float = 0.0
    seed: int = 1
    patience: Patience = PATIENCE
    command: Sequence[str] = COMMAND


@dataclass(slots=True)
class Found:
    """What a run has seen: a look before the load, those meanwhile, one after it; what was left, and what was wrong."""

    before: Sample
    during: list[Sample] = field(default_factory=list)
    after: Sample | None = None
    wrong: list[str] = field(default_factory=list)

    def since(self, second: float) -> list[Sample]:
        """The looks from then on."""
        return [one for one in self.during if one.second >= second]

    def second_half(self) -> list[Sample]:
        return self.since(self.during[-1].second / 2 if self.during else 0.0)


def growth(pid: int, samples: Sequence[Sample]) -> float | None:
    """MB an hour of a process; None if it was not there all the time."""
    points = [(one.second, one.processes[pid].rss) for one in samples if pid in one.processes]
    return slope(points) if len(points) == len(samples) > 1 else None


def grown(found: Found) -> list[str]:
    """The processes whose memory has grown too much in the second half."""
    half = found.second_half()
    pids = half[-1].processes if half else {}
    rates = {pid: growth(pid, half) for pid in pids}
    return [
        f"{pids[pid].name} {pid} grew by {rate:.1f} MB an hour in the second half"
        for pid, rate in rates.items()
        if rate is not None and rate > MOST_GROWTH
    ]


async def soak(plan: Plan, say: Callable[[str], None] = print) -> int:
    """The whole run; returns the exit code."""
    cores, dice = Cores.split(), random.Random(plan.seed)
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as name:
        async with soaked(Path(name), plan.workers, dice, cores.target, plan.command) as proxy:
            crowd = Crowd(proxy.routes, dice)
            found = await _soak(proxy, crowd, plan, say)
        found.wrong += [*crowd.told(), *proxy.log.wrong]
    for part in (answers(crowd), processes(found), totals(found)):
        say("\n" + aligned(part))
    say(f"\nupstream calls {proxy.upstream.calls:,}, reloads {proxy.reloads}, workers killed {proxy.kills}")
    say(f"log lines {proxy.log.events.total():,}, lost {proxy.log.lost}")
    say(", ".join(f"{count:,} {event}" for event, count in proxy.log.events.most_common()))
    for wrong in found.wrong[:MOST_SHOWN]:
        say(f"WRONG: {wrong}")
    return 1 if found.wrong else 0


async def _soak(proxy: Soaked, crowd: Crowd, plan: Plan, say: Callable[[str], None]) -> Found:
    await asyncio.gather(*map(crowd.one, KINDS))
    crowd.leave()
    await asyncio.sleep(1)
    found = Found(await sample(proxy, time.monotonic()))
    say(line(found.before, crowd, proxy))
    start = time.monotonic()
    end = start + plan.minutes * 60

    async def look() -> None:
        found.during.append(await sample(proxy, start))
        say(line(found.during[-1], crowd, proxy))

    async def kill() -> None:
        if proxy.kill():
            crowd.killed()

    async def reload() -> None:
        proxy.reload()

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(crowd.come_and_go(end, PAUSE))
        for seconds, last, work in (
            (plan.every, end, look),
            (plan.reload, end, reload),
            (plan.kill, end - LAST_KILL, kill),
        ):
            if seconds:
                group.create_task(_repeat(seconds, last, work))
    crowd.leave()
    try:
        found.after, left = await settle(proxy, found.before, plan.patience, start)
    except OSError as error:
        found.after, left = found.before, []
        found.wrong.append(f"the proxy does not answer any more ({error}), its exit code is {proxy.process.returncode}")
    say(f"{line(found.after, crowd, proxy)}  when all have gone")
    found.wrong += [f"left behind: {one}" for one in left]
    if plan.minutes >= LONG_ENOUGH:
        found.wrong += grown(found)
    return found


async def _repeat(seconds: float, end: float, work: Callable[[], Awaitable[None]]) -> None:
    """Every so many seconds, until `end`."""
    at = time.monotonic() + seconds
    while at < end:
        await asyncio.sleep(at - time.monotonic())
        await work()
        at = max(at + seconds, time.monotonic())


# What is printed.


def line(one: Sample, crowd: Crowd, proxy: Soaked) -> str:
    """A look, on one line."""
    rss = "+".join(f"{process.rss:.1f}" for process in one.processes.values())
    parts = [f"{one.second:6.0f} s", f"{crowd.seen.total():,} answers, {crowd.wrong.total():,} wrong", f"rss {rss} MB"]
    parts += [f"{what} {one.total(what)}" for what in SIDES]
    parts += [f"{what} {_figure(one.told[what])}" for what in TOLD]
    return "  ".join([*parts, f"ledger {one.ledger / 1e6:.1f} MB", f"lost {proxy.log.lost}"])


def answers(crowd: Crowd) -> list[list[str]]:
    """By kind and status."""
    statuses = sorted({status for _, status in crowd.seen}, key=str)
    rows = [["answers", *map(str, statuses)]]
    for kind in KINDS:
        counts = (crowd.seen[kind.name, status] for status in statuses)
        rows.append([kind.name, *(f"{count:,}" if count else "" for count in counts)])
    return rows


def processes(found: Found) -> list[list[str]]:
    """What each process has, and how its memory grows."""
    half, later = found.second_half(), found.since(FIRST_MINUTES)
    rows = [["process", "MB before", "MB after", "MB/h, second half", "MB/h, from 3 min on", "files", "threads"]]
    for pid, now in (found.after.processes if found.after else {}).items():
        was = found.before.processes.get(pid)
        rates = [_figure(growth(pid, samples), 1) for samples in (half, later)]
        before = _figure(was.rss if was else None, 1)
        rows.append([f"{now.name} {pid}", before, f"{now.rss:.1f}", *rates, str(now.files), str(now.threads)])
    return rows


def totals(found: Found) -> list[list[str]]:
    """What all processes have together: before the load, at most meanwhile, and after it."""
    assert found.after
    rows = [["all processes", "before", "most", "after"]]
    for what in SIDES:
        most = max((one.total(what) for one in found.during), default=0)
        rows.append([what, str(found.before.total(what)), str(most), str(found.after.total(what))])
    for what in TOLD:
        values = [value for one in found.during if (value := one.told[what]) is not None]
        ends = (_figure(one.told[what]) for one in (found.before, found.after))
        rows.append([what, next(ends), _figure(max(values, default=None)), next(ends)])
    sizes = [one.ledger / 1e6 for one in (found.before, *found.during[-1:], found.after)]
    return [*rows, ["ledger, MB", f"{sizes[0]:.1f}", f"{max(sizes):.1f}", f"{sizes[-1]:.1f}"]]


def _figure(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _options(arguments: Sequence[str] | None) -> Plan:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("minutes", nargs="?", type=float, default=Plan.minutes)
    parser.add_argument("--every", type=float, default=Plan.every, metavar="SECONDS")
    parser.add_argument("--workers", type=int, default=Plan.workers)
    parser.add_argument("--reload", type=float, default=Plan.reload, metavar="SECONDS", help="0: never")
    parser.add_argument("--kill", type=float, default=Plan.kill, metavar="SECONDS", help="kill a worker; 0: never")
    parser.add_argument("--seed", type=int, default=Plan.seed)
    return Plan(**vars(parser.parse_args(arguments)))


def main(arguments: Iterable[str] | None = None) -> int:
    """Run and print."""
    plan = _options(list(arguments) if arguments is not None else None)
    allow_open_files(4096)
    return uvloop.run(soak(plan, lambda said: print(said, flush=True)))


if __name__ == "__main__":
    sys.exit(main())
