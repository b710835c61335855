"""The ledger's rows of the teams of a proof, as they are in the database."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from sqlalchemy import delete, select

from proxy.store.database import Database
from proxy.store.tables import CALLS, OPEN, USAGE, USAGE_DAYS

_PATIENCE: Final = 30.0


@dataclass(frozen=True, slots=True)
class Row:
    """A row, of what it has only that which is compared. `mark` is the x-request-id that its client gave it."""

    call: str
    mark: str
    team: str
    operation: str
    stream: bool
    status: str
    error: str | None
    expected_prompt: int
    most_cost: int
    prompt: int | None
    completion: int | None
    cost: int | None
    estimated: bool | None

    @property
    def is_open(self) -> bool:
        return self.status == OPEN


_COLUMNS: Final = (
    CALLS.c.call, CALLS.c.request_id, CALLS.c.team, CALLS.c.operation, CALLS.c.stream, CALLS.c.status, CALLS.c.error,
    CALLS.c.expected_prompt, CALLS.c.most_cost, CALLS.c.prompt, CALLS.c.completion, CALLS.c.cost, CALLS.c.estimated,
)  # fmt: skip


def read(database: Database, teams: Collection[str]) -> list[Row]:
    """Raises DatabaseGone and DatabaseUnfit."""
    query = select(*_COLUMNS).where(CALLS.c.team.in_(teams))
    with database.read(_PATIENCE) as connection:
        return [Row(*values) for values in map(tuple, connection.execute(query))]


def forget(database: Database, teams: Collection[str]) -> None:
    """As if they had never been: a ledger that others have too is for real teams. Raises DatabaseGone."""
    with database.begin(_PATIENCE) as connection:
        for table in (CALLS, USAGE, USAGE_DAYS):
            connection.execute(delete(table).where(table.c.team.in_(teams)))
