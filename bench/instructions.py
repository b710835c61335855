"""How many instructions a request takes: what time hides within its noise, this shows to a hundredth.

    python -m bench.instructions [REQUESTS]

Runs the bare forwarder and the product under valgrind's callgrind, which must be installed, and counts what the thread
of their event loop does for so many requests, sixteen at a time. Neither the kernel's work nor that of other threads is
in it: it tells whether a change made a request cheaper, not what it costs (scripts/bench does).
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
import uvloop

from bench.load import TargetFailedError, burst, connections
from bench.measure import Cores
from bench.rounds import CONCURRENCY
from bench.targets import Place, Running, Target, forwarder, free_port, proxy, running, upstream
from bench.traffic import request_body

WARM_UP = 400
"""Requests before any is counted: Python's interpreter adapts its code to what it is used for."""

PATIENCE = 200.0
"""Seconds until a target must be ready; it is fifty times slower than it is."""

_TOTALS = re.compile(r"^totals: (\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Counted:
    """Instructions of one request."""

    what: str
    instructions: float


def total(profile: str) -> int:
    """All instructions in a file of callgrind's. Raises ValueError."""
    found = _TOTALS.search(profile)
    if found is None:
        raise ValueError("there are no totals in this profile")
    return int(found[1])


def under_callgrind(target: Target, profile: Path) -> Target:
    """The same, counting nothing until it is told to."""
    script, *rest = target.command
    command = (script, *rest) if script == sys.executable else (sys.executable, script, *rest)
    options = ("--tool=callgrind", "--instr-atstart=no", "--separate-threads=yes", f"--callgrind-out-file={profile}")
    return replace(target, command=("valgrind", *options, *command))


def _tell(run: Running, *order: str) -> None:
    command = ["callgrind_control", *order, str(run.processes.pids[0])]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


async def _count(run: Running, profile: Path, body: bytes, count: int) -> float:
    async with connections(run.target.route, CONCURRENCY) as calls:
        request = run.target.route.chat(body)
        await burst(calls, request, WARM_UP)
        _tell(run, "--instr=on")
        seen = await burst(calls, request, count)
        _tell(run, "--instr=off")
        _tell(run, "--dump")
    if seen.failures:
        raise TargetFailedError(f"{run.target.name}: {seen}")
    return total(profile.with_name(f"{profile.name}.1-01").read_text()) / count


async def counted(count: int) -> list[Counted]:
    """Of each kind of request, of so many."""
    body = request_body()
    hit = msgspec.json.encode(msgspec.json.decode(body) | {"temperature": 0})
    bare = partial(proxy, counts=False)
    kinds = (
        ("forwarder", forwarder, body),
        ("JSON, every stage on", proxy, body),
        ("JSON, without quotas and ledger", bare, body),
        ("JSON hit, every stage on", proxy, hit),
        ("JSON hit, without quotas and ledger", bare, hit),
    )
    found = []
    for what, make, asked in kinds:
        with tempfile.TemporaryDirectory() as name:
            folder, cores = Path(name), Cores.split()
            async with running(upstream(free_port(), folder), cores.others) as straight:
                place = Place(free_port(), straight.target.route.port, folder, 100)
                target = under_callgrind(make(place), folder / "profile")
                async with running(target, cores.target | cores.others, PATIENCE) as run:
                    found.append(Counted(what, await _count(run, folder / "profile", asked, count)))
    return found


def main(count: int = 400) -> None:
    """Print the table."""
    found = uvloop.run(counted(count))
    print("| instructions, thousands | one request | ratio |\n| --- | --: | --: |")
    for one in found:
        print(f"| {one.what} | {one.instructions / 1e3:,.0f} | {one.instructions / found[0].instructions:.2f} |")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
