"""What the records of a journal become: rows of `calls`, and what each adds to `usage`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from proxy.core.ledger import Intent, Outcome
from proxy.store.tables import CALLS, DAY, OPEN, QUARTER

Row = tuple[Any, ...]
"""The values of a row of `calls`, in the order of COLUMNS or of BEGUN."""

COLUMNS: Final = tuple(column.name for column in CALLS.columns)
INTENT: Final = COLUMNS[: len(Intent.__struct_fields__)]
OUTCOME: Final = COLUMNS[len(INTENT) :]
BEGUN: Final = (*INTENT, "status")
"""What the row of a call that has not ended has; the rest is null."""

KEY: Final = ("team", "start", "key_id", "model", "operation")
SUMS: Final = ("requests", "failed", "estimated", "unpriced", "prompt", "cached", "completion", "cost", "saved")
Usage = dict[tuple[Any, ...], list[int]]
"""Values of SUMS by values of KEY."""

MOST_NUMBER: Final = 10**15
"""What an absurd number becomes: a million USD, more tokens than there are. Sums of it still fit into 64 bits."""

MOST_TEXT: Final = 256
"""Characters of a name that a client may make up."""

PROCESS_DIED: Final = "process_died"
"""The error of a call that nobody has ended."""

_AT: Final[Mapping[str, int]] = {name: index for index, name in enumerate(COLUMNS)}
_TEAM, _OPENED, _KEY_ID, _OPERATION = _AT["team"], _AT["opened"], _AT["key_id"], _AT["operation"]
_MODEL, _PRICED_AS, _STATUS = _AT["model"], _AT["priced_as"], _AT["status"]
_PROMPT, _CACHED, _COMPLETION = _AT["prompt"], _AT["cached"], _AT["completion"]
_COST, _ESTIMATED, _SAVED = _AT["cost"], _AT["estimated"], _AT["saved"]


def opened(intent: Intent) -> Row:
    """The row of a call that has not ended, no longer than BEGUN."""
    return (*msgspec.structs.astuple(intent), OPEN)


def ended(intent: Intent, outcome: Outcome) -> Row:
    """The row of one that has."""
    return msgspec.structs.astuple(intent) + msgspec.structs.astuple(outcome)[1:]


def has_ended(row: Row) -> bool:
    return len(row) == len(COLUMNS)


def died(intent: Intent, now: int) -> Outcome:
    """How a call ends whose process is dead: nobody knows what it used, so it is charged the most that it can have."""
    return Outcome(
        call=intent.call,
        closed=now,
        status="cancelled",
        http_status=None,
        error=PROCESS_DIED,
        attempts=0,
        latency=max(0, now - intent.opened) * 1000,
        first_byte=None,
        prompt=intent.prompt,
        cached=0,
        completion=max(0, intent.tokens - intent.prompt),
        reasoning=0,
        audio_seconds=0,
        pages=0,
        cost=intent.cost,
        estimated=True,
    )


def usage(rows: Iterable[Row]) -> Usage:
    """What these calls, which have ended, add to the sums."""
    sums: Usage = {}
    for row in rows:
        start = row[_OPENED] - row[_OPENED] % QUARTER
        key = (row[_TEAM], start, row[_KEY_ID], row[_PRICED_AS] or row[_MODEL] or "", row[_OPERATION])
        sum = sums.get(key)
        if sum is None:
            sum = sums[key] = [0] * len(SUMS)
        cost = row[_COST]
        sum[0] += 1
        sum[1] += row[_STATUS] == "failed"
        sum[2] += row[_ESTIMATED]
        sum[3] += cost is None
        sum[4] += row[_PROMPT]
        sum[5] += row[_CACHED]
        sum[6] += row[_COMPLETION]
        sum[7] += cost or 0
        sum[8] += row[_SAVED] or 0
    return sums


def by_day(sums: Usage) -> Usage:
    """The same by days of UTC."""
    days: Usage = {}
    for (team, start, *rest), values in sums.items():
        key = (team, start - start % DAY, *rest)
        known = days.get(key)
        days[key] = values if known is None else [one + other for one, other in zip(known, values, strict=True)]
    return days


# What no database takes: numbers beyond 64 bits, and text that is none.


def fit(row: Row) -> Row:
    """The row with what a database may refuse made into something that none does."""
    return tuple(_fit(value) for value in row)


def fit_intent(intent: Intent) -> Intent:
    return Intent(*(_fit(value) for value in msgspec.structs.astuple(intent)))


def fit_outcome(outcome: Outcome) -> Outcome:
    return Outcome(*(_fit(value) for value in msgspec.structs.astuple(outcome)))


def _fit(value: Any) -> Any:
    if isinstance(value, str):
        return value[:MOST_TEXT].encode(errors="replace").decode().replace("\x00", "?")
    if isinstance(value, int) and not isinstance(value, bool):
        return max(-MOST_NUMBER, min(value, MOST_NUMBER))
    return value
