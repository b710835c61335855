"""The measurements: what is done to each target in one round, and what is kept of it.

Everything is done to every target in turn, round after round, in an order that rotates: what drifts (temperature,
neighbours on the machine) hits all alike, and a ratio of two figures of one round is not touched by it.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from bench.guard import Samples
from bench.load import Burst, Route, TargetFailedError, Timing, burst, connections, once, open_streams, take_turns
from bench.measure import Cores
from bench.targets import Running, Target, running
from bench.traffic import ANSWER, HALF, STREAM, request_body
from bench.upstream import Counts

CONCURRENCY = 16
SETTLE = 0.1
"""Seconds after a burst in which the target may finish work it put off (a buffered log, say): it is counted too."""


class Kind(NamedTuple):
    """What a burst asks for: by the `plan` in bench/traffic.py if it is a stream, and with or without a trace."""

    plan: str | None = None
    traced: bool = False


KINDS = {"json": Kind(), "traced": Kind(traced=True), "stream": Kind("paced")}
"""By the name of the figure."""


class BurstRecord(msgspec.Struct):
    """One burst at concurrency 16. Shares are of one core, over the burst's wall time."""

    target: str
    kind: str
    round: int
    rate: float
    """Answers per second."""
    cpu_us: float
    """CPU µs of the target per answer; 0 for the straight way."""
    target_share: float
    waited_share: float
    """The target was ready to run, but somebody else had its core."""
    load_share: float
    upstream_share: float
    chunks: float
    """Pieces in which one answer arrived."""


@dataclass(slots=True)
class Results:
    """All that a run has found."""

    samples: dict[str, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    """Measure → target → one figure per round."""
    bursts: list[BurstRecord] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """What makes the run worthless: failed or changed answers, calls the upstream never saw."""
    guard: Samples = field(default_factory=dict)
    """What the door costs (bench/guard.py)."""

    def add(self, measure: str, target: str, value: float) -> None:
        """Keep one figure."""
        self.samples[measure][target].append(value)

    def check(self, right: bool, complaint: str) -> None:
        """Keep `complaint` unless `right`."""
        if not right:
            self.wrong.append(complaint)


async def upstream_counts(upstream: Route, path: str = "/counts") -> Counts:
    """What the upstream says it has done; with path="/release", after letting the held streams go on."""
    reply = await once(upstream, upstream.request(path))
    return msgspec.json.decode(reply.body or b"", type=Counts)


async def probe(target: Target) -> None:
    """Ask for one answer and one stream; TargetFailedError if what arrives is not what the upstream sent."""
    reply = await once(target.route, target.route.chat(request_body()))
    text = msgspec.json.decode(ANSWER)["choices"][0]["message"]["content"]
    answer = msgspec.json.decode(reply.body) if reply.status == 200 and reply.body else None
    right = answer is not None and answer["choices"][0]["message"]["content"] == text
    if not right:
        raise TargetFailedError(f"{target.name}: the answer is not the upstream's: {reply.brief()}")
    reply = await once(target.route, target.route.chat(request_body("paced")))
    if reply.status != 200 or reply.body != STREAM:
        raise TargetFailedError(f"{target.name}: the stream is not the upstream's: {reply.brief()}")


async def start_round(target: Target, upstream: Route, streams: int, cores: Cores, results: Results) -> None:
    """A fresh process: ready time, idle memory, then `streams` open streams and their memory and bytes."""
    async with running(target, cores.target) as run:
        results.add("ready_cpu_ms", target.name, run.processes.cpu() * 1e3)
        await asyncio.sleep(0.5)
        idle = run.processes.rss()
        results.add("ready_ms", target.name, run.ready * 1e3)
        results.add("rss_idle_mb", target.name, idle / 1e6)
        if streams:
            await _hold(run, upstream, streams, idle, results)


async def _hold(run: Running, upstream: Route, count: int, idle: int, results: Results) -> None:
    name, route = run.target.name, run.target.route
    async with open_streams(route, route.chat(request_body("held")), count) as held:
        await held.received(HALF)
        waiting = (await upstream_counts(upstream)).held
        results.check(waiting == count, f"{name}: {waiting} of {count} streams stood open at the upstream")
        await asyncio.sleep(SETTLE)
        results.add("rss_stream_kb", name, (run.processes.rss() - idle) / count / 1e3)
        await upstream_counts(upstream, "/release")
        identical = await held.identical(STREAM)
    results.add("streams_identical", name, identical)
    results.check(identical == count, f"{name}: {identical} of {count} open streams ended with identical bytes")


def _whole(timing: Timing) -> float:
    return timing.whole


def _first(timing: Timing) -> float:
    return timing.first


@dataclass(slots=True)
class Rounds:
    """Repeated measurements of targets that are up, side by side."""

    upstream: Running
    targets: list[Running]
    results: Results

    def order(self, number: int) -> Iterator[Running]:
        """The straight way, then the targets, each round beginning with the next one."""
        shift = number % len(self.targets)
        yield self.upstream
        yield from self.targets[shift:] + self.targets[:shift]

    async def warm_up(self, count: int, kinds: Iterable[str] = KINDS) -> None:
        """Let every target allocate, compile and cache what it will."""
        for run in self.targets:
            async with connections(run.target.route, CONCURRENCY) as calls:
                for kind in kinds:
                    await burst(calls, run.target.route.chat(request_body(KINDS[kind].plan)), count)

    async def bursts(self, number: int, kind: str, count: int) -> None:
        """CPU per answer of each target: `count` answers at concurrency 16."""
        for run in self.order(number):
            await self._burst(run, number, kind, count)

    async def _burst(self, run: Running, number: int, kind: str, count: int) -> None:
        route, upstream = run.target.route, self.upstream.target.route
        before = await upstream_counts(upstream)
        async with connections(route, CONCURRENCY) as calls:
            # The first answer on each connection pays for opening it, here and upstream: not what is asked.
            body = request_body(KINDS[kind].plan)
            request = route.traced(body) if KINDS[kind].traced else route.chat(body)
            await burst(calls, request, CONCURRENCY)
            clocks = self._clocks(run)
            seen = await burst(calls, request, count)
            spent = [after - start for after, start in zip(self._clocks(run), clocks, strict=True)]
            if run is not self.upstream:
                await asyncio.sleep(SETTLE)
            cpu = run.processes.cpu() - clocks[0]
        self._check(run, kind, count, seen, before, await upstream_counts(upstream))
        self._record(run, number, kind, seen, spent, cpu)

    def _clocks(self, run: Running) -> tuple[float, float, float, float]:
        return run.processes.cpu(), run.processes.waited(), time.process_time(), self.upstream.processes.cpu()

    def _check(self, run: Running, kind: str, count: int, seen: Burst, before: Counts, after: Counts) -> None:
        name = f"{run.target.name}, {kind} burst"
        arrived = after.streams - before.streams if KINDS[kind].plan else after.json - before.json
        expected = CONCURRENCY + count
        self.results.check(arrived == expected, f"{name}: the upstream saw {arrived} of {expected} requests")
        failed = seen.failures or seen.answers != count or len(seen.sizes) != 1
        self.results.check(not failed, f"{name}: {seen}")

    def _record(self, run: Running, number: int, kind: str, seen: Burst, spent: list[float], cpu: float) -> None:
        busy, waited, load, upstream = (value / seen.seconds for value in spent)
        straight = run is self.upstream
        record = BurstRecord(
            target=run.target.name,
            kind=kind,
            round=number,
            rate=seen.answers / seen.seconds,
            cpu_us=0.0 if straight else cpu / seen.answers * 1e6,
            target_share=0.0 if straight else busy,
            waited_share=0.0 if straight else waited,
            load_share=load,
            upstream_share=upstream,
            chunks=seen.chunks / seen.answers,
        )
        self.results.bursts.append(record)
        if not straight:
            self.results.add(f"{kind}_cpu_us", record.target, record.cpu_us)

    async def latency(self, number: int, turns: int) -> None:
        """p50 at concurrency 1 through each target minus p50 of the straight way, request by request in turn."""
        await self._added(number, turns, None, _whole, "latency_us")

    async def first_event(self, number: int, turns: int) -> None:
        """The same for the time to a stream's first event."""
        await self._added(number, turns, "first", _first, "first_event_us")

    async def _added(
        self, number: int, turns: int, plan: str | None, part: Callable[[Timing], float], measure: str
    ) -> None:
        body = request_body(plan)
        routes = {run.target.name: (run.target.route, run.target.route.chat(body)) for run in self.order(number)}
        times = await take_turns(routes, turns)
        medians = {name: statistics.median(map(part, taken)) for name, taken in times.items()}
        straight = medians.pop(self.upstream.target.name)
        for name, median in medians.items():
            self.results.add(measure, name, (median - straight) * 1e6)


async def start_all(stack: AsyncExitStack, targets: list[Target], cores: Cores) -> list[Running]:
    """All targets up at once on the same core; only one of them works at a time."""
    return [await stack.enter_async_context(running(target, cores.target)) for target in targets]
