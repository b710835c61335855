"""From figures to the table: medians over rounds, ratios to the first target, and how far to trust them."""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from bench.guard import WHOLE, Samples
from bench.measure import Cores
from bench.rounds import KINDS, Results
from bench.traffic import EVENTS

SATURATED = 0.95
"""A target that used less of its core was waiting for the load: more than the target was measured."""
TAKEN = 0.05
"""More than this share of the target's core used by other programs disturbs caches and clocks."""
SPARE = 0.8
"""Above this share of their core, load and upstream are too close to being the bottleneck."""
MERGED = 0.95
"""With fewer chunks per event than this, the target read several events at once."""

GUARD_GOAL = 10
"""CPU µs that the guard and the checks of the door may add to an ordinary request."""


class Measure(NamedTuple):
    """One row of the table."""

    key: str
    title: str
    digits: int = 0
    goal: float | None = None
    goal_is: Literal["ratio", "value", "none"] = "none"


MEASURES = (
    Measure("json_cpu_us", "CPU per JSON request, µs", goal=1.8, goal_is="ratio"),
    Measure("traced_cpu_us", "the same, each with a trace of its own, µs", goal=1.8, goal_is="ratio"),
    Measure("stream_cpu_us", f"CPU per {EVENTS}-event stream, µs", goal=1.4, goal_is="ratio"),
    Measure("latency_us", "added latency at concurrency 1, p50, µs", goal=300, goal_is="value"),
    Measure("first_event_us", "first event of a stream, added, p50, µs", goal=1000, goal_is="value"),
    Measure("ready_ms", "ready after start, ms", goal=1000, goal_is="value"),
    Measure("ready_cpu_ms", "CPU used until ready, ms"),
    Measure("rss_idle_mb", "RSS idle, MB", digits=1, goal=80, goal_is="value"),
    Measure("rss_stream_kb", "RSS per open stream, kB", digits=1, goal=150, goal_is="value"),
    Measure("streams_identical", "open streams that ended with identical bytes"),
)


class Spread(NamedTuple):
    """A median and the middle half (lower and upper quartile) of what it is the median of."""

    median: float
    low: float
    high: float

    def text(self, digits: int) -> str:
        """`1,234 (1,200–1,300)`, or the median alone where there is no spread to show."""
        if self.low == self.high:
            return f"{self.median:,.{digits}f}"
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f}–{self.high:,.{digits}f})"


class Figure(NamedTuple):
    """One target's figure for one measure, over all rounds."""

    value: Spread
    ratio: Spread
    """Of the rounds' own ratios to the base, so that what drifts between rounds cancels out."""


def spread(values: Sequence[float]) -> Spread:
    """The median and the quartiles of `values`."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return Spread(median, low, high)


def figure(values: list[float], base: list[float]) -> Figure:
    """What `values` come to, by themselves and round by round against `base`."""
    ratios = [value / other if other else float("nan") for value, other in zip(values, base, strict=True)]
    return Figure(spread(values), spread(ratios))


def figures(results: Results, targets: list[str]) -> dict[str, dict[str, Figure]]:
    """Measure → target → figure, in the order of MEASURES; the first target is the base."""
    return {
        measure.key: {
            name: figure(results.samples[measure.key][name], results.samples[measure.key][targets[0]])
            for name in targets
        }
        for measure in MEASURES
        if measure.key in results.samples
    }


def _verdict(measure: Measure, found: Figure) -> str:
    if measure.goal is None:
        return ""
    value, sign = (found.ratio.median, "×") if measure.goal_is == "ratio" else (found.value.median, "")
    return _judged(value, measure.goal, sign)


def _judged(value: float, goal: float, sign: str = "") -> str:
    return f"≤ {goal:,g}{sign} {'met' if value <= goal else 'MISSED'}"


def table(results: Results, targets: list[str]) -> list[list[str]]:
    """The table as cells, its head first; goals are judged on the targets after the base."""
    base, *others = targets
    rows = [["", base, *(cell for name in others for cell in (name, "ratio", "goal"))]]
    found = figures(results, targets)
    for measure in (measure for measure in MEASURES if measure.key in found):
        row = [measure.title, found[measure.key][base].value.text(measure.digits)]
        for name in others:
            mine = found[measure.key][name]
            row += [mine.value.text(measure.digits), mine.ratio.text(2), _verdict(measure, mine)]
        rows.append(row)
    return rows


def guard_table(samples: Samples) -> list[list[str]]:
    """What the door costs, as cells, its head first."""
    rows = [["CPU µs", "plain", "mistral-proxy", "ratio", "added", "goal"]]
    for title, sides in samples.items():
        plain, ours = sides["plain"], sides["ours"]
        found = figure(ours, plain)
        added = spread([mine - other for mine, other in zip(ours, plain, strict=True)])
        goal = _judged(added.median, GUARD_GOAL) if title == WHOLE else ""
        rows.append([title, spread(plain).text(1), found.value.text(1), found.ratio.text(2), added.text(1), goal])
    return rows


class Shares(NamedTuple):
    """Medians over one target's bursts of one kind; shares are of one core."""

    rate: float
    target: float
    waited: float
    others: float
    """Load generator and upstream together: they share the other core."""
    chunks: float


def shares(results: Results, kind: str, name: str) -> Shares | None:
    """Who was busy during these bursts; None if there were none."""
    rows = [
        (burst.rate, burst.target_share, burst.waited_share, burst.load_share + burst.upstream_share, burst.chunks)
        for burst in results.bursts
        if (burst.kind, burst.target) == (kind, name)
    ]
    return Shares(*map(statistics.median, zip(*rows, strict=True))) if rows else None


def headroom(results: Results, targets: list[str]) -> list[list[str]]:
    """The proof that upstream and load generator were not what was measured, as cells, its head first."""
    rows = [["burst", "rate /s", "direct / this", "target's core", "taken by others", "load + upstream", "chunks"]]
    for kind in KINDS:
        direct = shares(results, kind, "direct")
        for name in ("direct", *targets):
            seen = shares(results, kind, name)
            if direct and seen:
                of_core = [f"{share:.0%}" for share in (seen.target, seen.waited, seen.others)]
                faster = f"{direct.rate / seen.rate:.1f}"
                rows.append([f"{kind} {name}", f"{seen.rate:,.0f}", faster, *of_core, f"{seen.chunks:.1f}"])
    return rows


def warnings(results: Results, targets: list[str]) -> Iterator[str]:
    """What weakens the figures, one sentence each."""
    for kind in KINDS:
        for name in targets:
            if seen := shares(results, kind, name):
                yield from (f"{name}, {kind} bursts: {doubt}" for doubt in _doubts(kind, seen))


def _doubts(kind: str, seen: Shares) -> Iterator[str]:
    if kind != "stream" and seen.target + seen.waited < SATURATED:
        yield f"the target was not saturated (it used {seen.target:.0%} of its core)"
    if kind == "stream" and seen.chunks < EVENTS * MERGED:
        yield f"events were read together ({seen.chunks:.1f} chunks for {EVENTS}), which makes them look cheaper"
    if seen.waited > TAKEN:
        yield f"other programs took the target's core for {seen.waited:.0%} of the time"
    if seen.others > SPARE:
        yield f"load and upstream used {seen.others:.0%} of their core: they may be the bottleneck"


def text(rows: list[list[str]]) -> str:
    """Cells as aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def markdown(rows: list[list[str]]) -> str:
    """Cells as a Markdown table."""
    head, *rest = rows
    rule = ["---", *("--:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rest))


def machine(cores: Cores) -> dict[str, object]:
    """Where and with what the run was made."""
    packages = ("uvicorn", "uvloop", "httptools", "starlette", "aiohttp", "msgspec", "mistral-proxy")
    return {
        "processor": _processor(),
        "cores": {"target": sorted(cores.target), "others": sorted(cores.others)},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _plain(found: Figure) -> dict[str, object]:
    return {"value": found.value._asdict(), "ratio": found.ratio._asdict()}


def save(path: Path, results: Results, targets: list[str], settings: dict[str, object], cores: Cores) -> None:
    """Write everything a run found, raw figures included, as JSON."""
    found = {
        key: {name: _plain(value) for name, value in row.items()} for key, row in figures(results, targets).items()
    }
    report = {
        "caption": caption(results, cores),
        "settings": settings,
        "machine": machine(cores),
        "targets": targets,
        "figures": found,
        "samples": results.samples,
        "bursts": results.bursts,
        "guard": results.guard,
        "warnings": list(warnings(results, targets)),
        "wrong": results.wrong,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")


def caption(results: Results, cores: Cores) -> str:
    """When, where and how often was measured."""
    rounds = 1 + max((burst.round for burst in results.bursts), default=-1)
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("uvicorn", "starlette", "aiohttp"))
    here = f"{len(cores.target | cores.others)} cores, {_processor()}, Python {platform.python_version()}, {packages}"
    return f"{time.strftime('%Y-%m-%d')}, {here}. Medians of {rounds} rounds (middle half in brackets)."


def render(results: Results, targets: list[str], cores: Cores, as_markdown: bool) -> str:
    """Caption, the tables, then warnings and errors."""
    layout = markdown if as_markdown else text
    parts: Iterable[str] = (
        caption(results, cores),
        layout(table(results, targets)),
        layout(headroom(results, targets)),
        *([layout(guard_table(results.guard))] if results.guard else []),
        *(f"Warning: {line}" for line in warnings(results, targets)),
        *(f"WRONG: {line}" for line in results.wrong),
    )
    return "\n\n".join(parts)
