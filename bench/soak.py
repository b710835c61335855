"""Whether anything grows: good and hostile traffic on both sides of one proxy for some minutes.

    python -m bench.soak [--minutes 3] [--seed 1]

It prints resident memory, open files and tasks of the proxy every few seconds, and at the end their slope over the
second half and what is left when everybody has gone. Exit code 1: a good request got a wrong answer, somebody else's
say, an error was an internal one, or files or tasks were left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import psutil
import uvloop

from bench.measure import Cores, allow_open_files
from bench.mischief import Clients, Upstream
from bench.targets import Place, Target, free_port, proxy, running

SAMPLE = 5.0
AT_ONCE = 24
"""Clients that come one after the other, each with whatever it is up to."""

TIMEOUTS = {"connect": "2s", "first_byte": "2s", "idle": "2s", "total": "10s"}
"""Short, as the upstream often leaves a request without an answer."""

SPARE_FILES, SPARE_TASKS = 40, 5
"""What may be left at the end beyond what was there at the beginning: kept upstream connections, for one."""


def watched() -> None:
    """The proxy's own command line, with the number of its tasks written to $SOAK_TASKS twice a second."""
    loops: list[asyncio.AbstractEventLoop] = []
    make = uvloop.new_event_loop

    def kept() -> uvloop.Loop:
        loop = make()
        loops.append(loop)
        return loop

    def count() -> None:
        while True:
            time.sleep(0.5)
            tasks = sum(len(asyncio.all_tasks(loop)) for loop in loops)
            Path(os.environ["SOAK_TASKS"]).write_text(str(tasks))

    uvloop.new_event_loop = kept
    threading.Thread(target=count, daemon=True).start()
    from proxy.cli import main

    main()


def _watched(target: Target) -> Target:
    config = target.log.with_name("proxy.yaml")
    settings = msgspec.yaml.decode(config.read_bytes())
    settings["providers"]["mistral"]["timeouts"] = TIMEOUTS
    config.write_bytes(msgspec.yaml.encode(settings))
    command = (sys.executable, "-c", "from bench.soak import watched; watched()", *target.command[1:])
    return replace(target, command=command, environment={**target.environment, "SOAK_TASKS": str(_tasks(target))})


def _tasks(target: Target) -> Path:
    return target.log.with_suffix(".tasks")


@dataclass(frozen=True, slots=True)
class Sample:
    """A look at the proxy."""

    second: float
    rss: float
    """MB."""
    files: int
    tasks: int

    def __str__(self) -> str:
        return f"{self.second:6.0f} s  {self.rss:7.1f} MB  {self.files:5} files  {self.tasks:5} tasks"


def look(process: psutil.Process, tasks: Path, start: float) -> Sample:
    """What the proxy holds now."""
    memory, files = process.memory_info().rss / 1e6, process.num_fds()
    return Sample(time.monotonic() - start, memory, files, int(tasks.read_text() or 0))


def slope(samples: list[Sample], of: Callable[[Sample], float]) -> float:
    """Growth per hour of `of(sample)`, by least squares."""
    times = [sample.second / 3600 for sample in samples]
    values = [of(sample) for sample in samples]
    middle, mean = sum(times) / len(times), sum(values) / len(values)
    spread = sum((at - middle) ** 2 for at in times)
    return (
        sum((at - middle) * (value - mean) for at, value in zip(times, values, strict=True)) / spread if spread else 0.0
    )


async def _come_and_go(clients: Clients, end: float) -> None:
    kinds = clients.kinds()
    while time.monotonic() < end:
        try:
            await clients.dice.choice(kinds)()
        except OSError as error:  # a connect that was refused, or a reset before the leaving
            clients.seen[type(error).__name__] += 1


async def soak(minutes: float, seed: int, cores: Cores) -> int:
    """The whole run; returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        server = await asyncio.start_server(Upstream(random.Random(seed)).serve, "127.0.0.1", 0)
        place = Place(free_port(), server.sockets[0].getsockname()[1], Path(name), 1000)
        async with server, running(_watched(proxy(place)), cores.target) as up:
            await asyncio.sleep(1)
            return await _soak(up.target, psutil.Process(up.processes.pids[0]), minutes, seed)


async def _soak(target: Target, process: psutil.Process, minutes: float, seed: int) -> int:
    start, clients, samples = time.monotonic(), Clients(target.route, random.Random(seed)), list[Sample]()
    before = look(process, _tasks(target), start)
    print(before)
    end = start + minutes * 60
    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(_come_and_go(clients, end))
        while time.monotonic() < end:
            await asyncio.sleep(SAMPLE)
            samples.append(look(process, _tasks(target), start))
            print(samples[-1], flush=True)
    await asyncio.sleep(SAMPLE)
    after = look(process, _tasks(target), start)
    return _report(before, samples[len(samples) // 2 : -1] or samples, after, clients, target)


def _report(before: Sample, half: list[Sample], after: Sample, clients: Clients, target: Target) -> int:
    print(f"{after}  when all have gone\n")
    print(", ".join(f"{count:,} {what}" for what, count in sorted(clients.seen.items())))
    print(f"second half: {slope(half, lambda sample: sample.rss):+.1f} MB/h, ", end="")
    print(f"{slope(half, lambda sample: sample.files):+.0f} files/h")
    wrong = list(clients.wrong)
    if after.files > before.files + SPARE_FILES or after.tasks > before.tasks + SPARE_TASKS:
        wrong.append("files or tasks were left behind")
    log = target.log.read_text("utf-8", errors="replace").splitlines()
    wrong += [f"in the log: {line[:500]}" for line in log if "Traceback" in line or '"unexpected"' in line]
    for line in wrong[:20]:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    allow_open_files(4096)
    return uvloop.run(soak(options.minutes, options.seed, Cores.split()))


if __name__ == "__main__":
    sys.exit(main())
