"""What Prometheus is told: the sums of all parts of the board, in its text format 0.0.4."""

from __future__ import annotations

from asyncio import sleep
from collections.abc import Iterable, Iterator
from typing import Final

from proxy.core.metrics.board import UNKNOWN, Board, Labels
from proxy.core.metrics.families import FAMILIES, Family, Kind, Over
from proxy.core.money import NANO, decimal

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"

AT_ONCE: Final = 256
"""Series after which others get their turn: a page may have thousands."""

Sample = tuple[Family, Labels, str]
"""Something that is known when it is asked for, and need not be counted: a series with one value."""

_Sums = dict[Labels, list[int]]

_ESCAPED: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


async def page(board: Board, since: int, known: Iterable[Sample] = ()) -> bytes:
    """`since` is the monotonic second after which a worker has to have been seen alive for its gauges to count."""
    sums = await _added(board, since)
    told: dict[str, list[tuple[Labels, str]]] = {}
    for family, labels, value in known:
        told.setdefault(family.name, []).append((labels, value))
    lines: list[str] = []
    written = 0
    for family in FAMILIES:
        series, ready = sums.get(family.name, {}), told.get(family.name, ())
        if series or ready:
            lines += f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind.value}"
        lines += [f"{family.name}{_braces(family.labels, labels)} {value}" for labels, value in ready]
        for labels, cells in series.items():
            lines += _histogram(family, labels, cells) if family.bounds else _plain(family, labels, cells)
            written += 1
            if written % AT_ONCE == 0:
                await sleep(0)
    return ("\n".join(lines) + "\n").encode()


async def _added(board: Board, since: int) -> dict[str, _Sums]:
    sums: dict[str, _Sums] = {}
    alive = set(map(id, board.alive(since)))
    for part in board.parts:
        for number, (family, labels, at) in enumerate(part.series(), 1):
            if number % AT_ONCE == 0:
                await sleep(0)
            if family.kind is Kind.GAUGE and id(part) not in alive:
                continue
            cells = list(part.cells[at : at + family.cells])
            if cells[0] == UNKNOWN:
                continue
            known = sums.setdefault(family.name, {})
            before = known.get(labels)
            known[labels] = cells if before is None else _together(family, before, cells)
        await sleep(0)
    return sums


def _together(family: Family, one: list[int], other: list[int]) -> list[int]:
    if family.over is Over.SUM:
        return [a + b for a, b in zip(one, other, strict=True)]
    return [max(*one, *other) if family.over is Over.MOST else min(*one, *other)]


def _plain(family: Family, labels: Labels, cells: list[int]) -> Iterator[str]:
    yield f"{family.name}{_braces(family.labels, labels)} {_number(family, cells[0])}"


def _histogram(family: Family, labels: Labels, cells: list[int]) -> Iterator[str]:
    total, names = 0, (*family.labels, "le")
    ends = [*(f"{bound:.10f}".rstrip("0").rstrip(".") for bound in family.bounds), "+Inf"]
    for end, count in zip(ends, cells[1:], strict=True):
        total += count
        yield f"{family.name}_bucket{_braces(names, (*labels, end))} {total}"
    braces = _braces(family.labels, labels)
    yield f"{family.name}_sum{braces} {_number(family, cells[0])}"
    yield f"{family.name}_count{braces} {total}"


def _number(family: Family, value: int) -> str:
    return decimal(value) if family.unit == NANO else str(value)


def _braces(names: Iterable[str], values: Labels) -> str:
    inside = ",".join(f'{name}="{value.translate(_ESCAPED)}"' for name, value in zip(names, values, strict=True))
    return f"{{{inside}}}" if inside else ""
