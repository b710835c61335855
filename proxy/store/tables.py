"""The tables of the database, as SQLAlchemy's queries name them. migrations.py makes them.

Times are Unix milliseconds, money is nano-USD.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, LargeBinary, MetaData, Table, Text

METADATA = MetaData()

QUARTER: Final = 900_000
"""Milliseconds of a quarter hour. No zone's day begins between two of them: offsets are multiples of 15 minutes."""

DAY: Final = 86_400_000
"""Milliseconds of a day of UTC."""

OPEN: Final = "open"
"""The status of a call that has not ended."""

CALLS = Table(
    "calls",
    METADATA,
    # core/ledger.py, Intent
    Column("call", Text, primary_key=True),
    Column("request_id", Text, nullable=False),
    Column("opened", BigInteger, nullable=False),
    Column("team", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("operation", Text, nullable=False),
    Column("provider", Text, nullable=False),
    Column("model_asked", Text),
    Column("model", Text),
    Column("priced_as", Text),
    Column("price_version", Text, nullable=False),
    Column("stream", Boolean, nullable=False),
    Column("expected_prompt", BigInteger, nullable=False),
    Column("most_tokens", BigInteger, nullable=False),
    Column("most_cost", BigInteger, nullable=False),
    # core/ledger.py, Outcome
    Column("closed", BigInteger),
    Column("status", Text, nullable=False),
    Column("http_status", Integer),
    Column("error", Text),
    Column("attempts", Integer),
    Column("latency", BigInteger),
    Column("first_byte", BigInteger),
    Column("prompt", BigInteger),
    Column("cached", BigInteger),
    Column("completion", BigInteger),
    Column("reasoning", BigInteger),
    Column("audio_seconds", BigInteger),
    Column("pages", BigInteger),
    Column("cost", BigInteger),
    Column("estimated", Boolean),
    Column("cache", Text),
    Column("saved", BigInteger),
    Index("calls_opened", "opened"),
)
"""One row per call that was let in. Until it ends, `status` is OPEN and what an Outcome tells is null."""

Index(
    "calls_open",
    CALLS.c.team,
    CALLS.c.opened,
    sqlite_where=CALLS.c.status == OPEN,
    postgresql_where=CALLS.c.status == OPEN,
)


def _sums(name: str) -> Table:
    return Table(
        name,
        METADATA,
        Column("team", Text, primary_key=True),
        Column("start", BigInteger, primary_key=True),
        Column("key_id", Text, primary_key=True),
        Column("model", Text, primary_key=True),
        Column("operation", Text, primary_key=True),
        Column("requests", BigInteger, nullable=False),
        Column("failed", BigInteger, nullable=False),
        Column("estimated", BigInteger, nullable=False),
        Column("unpriced", BigInteger, nullable=False),
        Column("prompt", BigInteger, nullable=False),
        Column("cached", BigInteger, nullable=False),
        Column("completion", BigInteger, nullable=False),
        Column("cost", BigInteger, nullable=False),
        Column("saved", BigInteger, nullable=False),
        Index(f"{name}_start", "start"),
        sqlite_with_rowid=False,
    )


USAGE = _sums("usage")
"""Sums of the calls that have ended, by the quarter hour in which they were let in (`start`). `model` is the
catalogue's id, or the name that was sent where the catalogue has none, or empty. Whatever makes a call's row terminal
adds it here in the same transaction, so that the sums of a month need not be made out of its calls."""

USAGE_DAYS = _sums("usage_days")
"""The same by days of UTC: what is in between the first and the last quarter hours of a month."""

KEYS = Table(
    "keys",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("team", Text, nullable=False),
    Column("name", Text),
    Column("digest", LargeBinary(32), nullable=False, unique=True),
    Column("created", BigInteger, nullable=False),
    Column("expires", BigInteger),
    Column("revoked", BigInteger),
    Column("last_used", BigInteger),
    Column("successor", Text),
)
"""Keys of teams, by a digest of each. `successor` is the id of the one that a rotation put in its place."""

KEYS_VERSION = Table("keys_version", METADATA, Column("version", BigInteger, nullable=False))
"""One row. Whoever changes KEYS adds one to it in the same transaction: to ask whether anything changed is cheap."""

META = Table("meta", METADATA, Column("version", Integer, nullable=False))
"""One row: the number of the last migration."""
