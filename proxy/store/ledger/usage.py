"""The report behind `mistral-proxy usage`: what calls that have ended have used, by team, model, key and day."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import pairwise
from typing import Final, Literal
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, func, select

from proxy.core.calendar import Calendar
from proxy.core.quota import WINDOWS
from proxy.store.database import Database
from proxy.store.ledger.rows import SUMS
from proxy.store.ledger.spans import Piece, pieces
from proxy.store.tables import QUARTER

Part = Literal["team", "model", "key", "day"]

PARTS: Final[tuple[Part, ...]] = ("team", "model", "key", "day")
"""What a report may be divided by."""

PATIENCE: Final = 30.0
"""Seconds that a query of it may take."""

_COLUMNS: Final[Mapping[Part, str]] = {"team": "team", "model": "model", "key": "key_id"}


@dataclass(frozen=True, slots=True)
class Line:
    """The SUMS of one part; what the report is not divided by is None. `unpriced` are requests without a price: they
    are in no cost. `cached` tokens are part of the `prompt`. `cost` and `saved` (by the cache of answers) are
    nano-USD."""

    team: str | None
    model: str | None
    key: str | None
    day: date | None
    requests: int
    failed: int
    estimated: int
    unpriced: int
    prompt: int
    cached: int
    completion: int
    cost: int
    saved: int


def report(
    database: Database,
    start: int,
    end: int,
    *,
    by: Collection[Part],
    team: str | None = None,
    zone: ZoneInfo | None = None,
) -> list[Line]:
    """The calls that were let in from `start` until before `end` (Unix milliseconds, widened to whole quarter hours),
    in the order of what they are divided by. Days are those of `zone`, UTC if there is none. Raises DatabaseGone and
    DatabaseUnfit."""
    start, end = start // QUARTER * QUARTER, -(-end // QUARTER) * QUARTER
    days = _days(start, end, zone or ZoneInfo("UTC")) if "day" in by else [(None, start, end)]
    with database.read(PATIENCE) as connection:
        lines = [line for day, one, other in days for line in _lines(connection, by, team, day, one, other)]
    return sorted(lines, key=_order)


def _lines(
    connection: Connection, by: Collection[Part], team: str | None, day: date | None, start: int, end: int
) -> Iterator[Line]:
    sums: dict[tuple[str, ...], list[int]] = {}
    for piece in pieces(start, end):
        for group, values in _sums(connection, by, team, piece):
            known = sums.setdefault(group, [0] * len(SUMS))
            sums[group] = [one + piece.sign * value for one, value in zip(known, values, strict=True)]
    parts = [part for part in _COLUMNS if part in by]
    for group, numbers in sums.items():
        named = dict(zip(parts, group, strict=True))
        if numbers[0]:
            yield Line(named.get("team"), named.get("model"), named.get("key"), day, *numbers)


def _sums(
    connection: Connection, by: Collection[Part], team: str | None, piece: Piece
) -> Iterator[tuple[tuple[str, ...], list[int]]]:
    column = piece.table.c
    groups = [column[name] for part, name in _COLUMNS.items() if part in by]
    sums = [func.coalesce(func.sum(column[name]), 0) for name in SUMS]
    query = select(*groups, *sums).where(column.start >= piece.start, column.start < piece.end).group_by(*groups)
    if team is not None:
        query = query.where(column.team == team)
    for row in connection.execute(query):
        yield tuple(row[: len(groups)]), [int(value) for value in row[len(groups) :]]


def _days(start: int, end: int, zone: ZoneInfo) -> list[tuple[date | None, int, int]]:
    """Each day with the part of it that is asked for."""
    calendar, day = Calendar(zone), WINDOWS["day"]
    bounds = [start]
    while bounds[-1] < end:
        bounds.append(min(end, calendar.period(day, bounds[-1]).end))
    return [
        (datetime.fromtimestamp(one / 1000, UTC).astimezone(zone).date(), one, other) for one, other in pairwise(bounds)
    ]


def _order(line: Line) -> tuple[object, ...]:
    return line.team or "", line.model or "", line.key or "", line.day or date.min
