"""Measures what a proxy costs, beside a bare forwarder, in one run. `scripts/bench --help` lists the options.

docs/benchmarks.md says what is measured, how, and what can bias it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import msgspec
import uvloop

from bench import guard
from bench.load import TargetFailedError
from bench.measure import Cores, allow_open_files, on_cores
from bench.report import render, save
from bench.rounds import KINDS, Results, Rounds, probe, start_all, start_round
from bench.targets import DEFAULT, TARGETS, Place, Target, free_port, running, upstream


class Number(NamedTuple):
    """An option that is a count."""

    name: str
    default: int
    quick: int
    help: str


NUMBERS = (
    Number("rounds", 30, 8, "rounds of bursts and latencies"),
    Number("starts", 3, 1, "fresh starts, for ready time and memory"),
    Number("requests", 2000, 1000, "JSON requests per target and round"),
    Number("streams", 128, 96, "streams per target and round"),
    Number("turns", 100, 50, "latency samples per target and round"),
    Number("open-streams", 1000, 1000, "streams open at once, 0 for none"),
    Number("guard-rounds", 30, 8, "rounds of the door's own cost"),
)


class Settings(msgspec.Struct):
    """What one run does: the targets, the first being the base of all ratios, and NUMBERS."""

    targets: list[str]
    rounds: int
    starts: int
    requests: int
    streams: int
    turns: int
    open_streams: int
    guard_rounds: int


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="What a proxy costs, beside a bare forwarder.")
    choice = f"of {', '.join(TARGETS)}; ratios are to the first ({','.join(DEFAULT)})"
    parser.add_argument("--targets", type=_targets, default=DEFAULT, metavar="A,B", help=choice)
    for name, default, quick, text in NUMBERS:
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"{text} ({default}, quick {quick})")
    parser.add_argument("--quick", action="store_true", help="a look in half a minute")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    parser.add_argument("--out", type=Path, default=Path("bench/results"), help="folder for the JSON (%(default)s)")
    return parser.parse_args(arguments)


def _targets(names: str) -> list[str]:
    chosen = names.split(",")
    if unknown := [name for name in chosen if name not in TARGETS]:
        raise argparse.ArgumentTypeError(f"no such target: {', '.join(unknown)} (there are {', '.join(TARGETS)})")
    return chosen


def _settings(options: argparse.Namespace) -> Settings:
    numbers = {}
    for name, default, quick, _ in NUMBERS:
        key = name.replace("-", "_")
        given: int | None = getattr(options, key)
        numbers[key] = (quick if options.quick else default) if given is None else given
    return Settings(targets=options.targets, **numbers)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _describe(settings: Settings, upstream_port: int, folder: Path) -> list[Target]:
    connections = max(1000, settings.open_streams)
    return [TARGETS[name](Place(free_port(), upstream_port, folder, connections)) for name in settings.targets]


async def measure(settings: Settings, cores: Cores) -> Results:
    """The whole run: fresh starts first, then all targets up side by side."""
    if task := asyncio.current_task():
        # As on Ctrl-C: what was started is stopped, whoever asks us to go.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    results = Results()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        async with running(upstream(free_port(), folder), cores.others) as straight:
            port = straight.target.route.port
            # Also fills the file caches: ready times are those of a second start.
            for target in _describe(settings, port, folder):
                async with running(target, cores.target):
                    await probe(target)
            for number in range(settings.starts):
                _say(f"fresh starts {number + 1} of {settings.starts}")
                for target in _describe(settings, port, folder):
                    await start_round(target, straight.target.route, settings.open_streams, cores, results)
            async with AsyncExitStack() as stack:
                targets = await start_all(stack, _describe(settings, port, folder), cores)
                await _side_by_side(Rounds(straight, targets, results), settings)
    return results


async def _side_by_side(rounds: Rounds, settings: Settings) -> None:
    counts = {name: settings.streams if kind.plan else settings.requests for name, kind in KINDS.items()}
    await rounds.warm_up(min(counts.values()))
    for number in range(settings.rounds):
        _say(f"round {number + 1} of {settings.rounds}")
        for kind, count in counts.items():
            await rounds.bursts(number, kind, count)
        await rounds.latency(number, settings.turns)
        await rounds.first_event(number, max(1, settings.turns // 5))


def main(arguments: list[str] | None = None) -> int:
    """Run, print, save. 0: every answer was right; 1: some were not; 2: a target failed; 143: stopped by SIGTERM."""
    options = _parse(arguments)
    settings, cores = _settings(options), Cores.split()
    allow_open_files(4 * settings.open_streams + 1024)
    os.sched_setaffinity(0, cores.others)
    try:
        results = uvloop.run(measure(settings, cores))
        _say("guard and checks")
        with on_cores(cores.target):
            results.guard = guard.measure(settings.guard_rounds)
    except (TargetFailedError, OSError) as failure:
        _say(str(failure))
        return 2
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM
    path: Path = options.out / time.strftime("%Y-%m-%dT%H-%M-%S.json")
    save(path, results, settings.targets, msgspec.to_builtins(settings), cores)
    print(render(results, settings.targets, cores, options.markdown))
    _say(f"\nfigures of every round: {path}")
    return 1 if results.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
