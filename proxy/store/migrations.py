"""What the database has been through: each migration once, in order, whole or not at all.

Whoever starts first migrates, the others wait and find it done. A migration only adds: the version before must be able
to write to what it leaves, because it still runs while the first process of the new one starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy import Connection, inspect, select, update

from proxy.store.database import Database, DatabaseUnfit
from proxy.store.tables import META

PATIENCE: Final = 60.0
"""Seconds that a statement may take, or wait for another process that migrates."""

_LOCK: Final = 0x6D70_6C65
"""PostgreSQL's advisory lock of those who migrate. SQLite has one writer anyhow."""

_WORDS: Final[Mapping[str, Mapping[str, str]]] = {
    "sqlite": {"bytes": "BLOB", "clustered": "WITHOUT ROWID"},
    # Room in each page for the sums to be updated in place.
    "postgresql": {"bytes": "BYTEA", "clustered": "WITH (fillfactor = 70)"},
}
"""What the two databases call differently."""

_FIRST: Final = (
    """
    CREATE TABLE calls (
        call TEXT NOT NULL PRIMARY KEY, request_id TEXT NOT NULL, opened BIGINT NOT NULL, team TEXT NOT NULL,
        key_id TEXT NOT NULL, operation TEXT NOT NULL, provider TEXT NOT NULL, model_asked TEXT, model TEXT,
        priced_as TEXT, price_version TEXT NOT NULL, stream BOOLEAN NOT NULL, expected_prompt BIGINT NOT NULL,
        most_tokens BIGINT NOT NULL, most_cost BIGINT NOT NULL, closed BIGINT, status TEXT NOT NULL,
        http_status INTEGER, error TEXT, attempts INTEGER, latency BIGINT, first_byte BIGINT, prompt BIGINT,
        cached BIGINT, completion BIGINT, reasoning BIGINT, audio_seconds BIGINT, pages BIGINT, cost BIGINT,
        estimated BOOLEAN, cache TEXT
    )
    """,
    "CREATE INDEX calls_opened ON calls (opened)",
    "CREATE INDEX calls_open ON calls (team, opened) WHERE status = 'open'",
    *(
        statement
        for table in ("usage", "usage_days")
        for statement in (
            f"""
            CREATE TABLE {table} (
                team TEXT NOT NULL, start BIGINT NOT NULL, key_id TEXT NOT NULL, model TEXT NOT NULL,
                operation TEXT NOT NULL, requests BIGINT NOT NULL, failed BIGINT NOT NULL, estimated BIGINT NOT NULL,
                unpriced BIGINT NOT NULL, prompt BIGINT NOT NULL, cached BIGINT NOT NULL, completion BIGINT NOT NULL,
                cost BIGINT NOT NULL, saved BIGINT NOT NULL, PRIMARY KEY (team, start, key_id, model, operation)
            ) {{clustered}}
            """,
            f"CREATE INDEX {table}_start ON {table} (start)",
        )
    ),
    """
    CREATE TABLE keys (
        id TEXT NOT NULL PRIMARY KEY, team TEXT NOT NULL, name TEXT, digest {bytes} NOT NULL UNIQUE,
        created BIGINT NOT NULL, expires BIGINT, revoked BIGINT, last_used BIGINT, successor TEXT
    )
    """,
    "CREATE TABLE keys_version (version BIGINT NOT NULL)",
    "INSERT INTO keys_version VALUES (0)",
)

_SAVED: Final = ("ALTER TABLE calls ADD COLUMN saved BIGINT",)

MIGRATIONS: Final[Sequence[Sequence[str]]] = (_FIRST, _SAVED)
"""The statements of each. What has been released is never edited: a change is a further one."""


def migrate(database: Database, migrations: Sequence[Sequence[str]] = MIGRATIONS) -> None:
    """Bring the database to the last migration. Raises DatabaseUnfit for a newer one, DatabaseGone when it does not
    answer."""
    with database.read() as connection:
        if _version(connection) == len(migrations):
            return
    with database.begin(PATIENCE) as connection:
        if database.dialect == "postgresql":
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        _migrate(connection, database.dialect, migrations)


def _migrate(connection: Connection, dialect: str, migrations: Sequence[Sequence[str]]) -> None:
    version = _version(connection)
    if version > len(migrations):
        raise DatabaseUnfit(
            f"its schema is version {version}, and this mistral-proxy knows {len(migrations)} and older: "
            "start a newer mistral-proxy, or name another database"
        )
    if version == 0:
        connection.exec_driver_sql("CREATE TABLE meta (version INTEGER NOT NULL)")
        connection.execute(META.insert().values(version=0))
    for migration in migrations[version:]:
        for statement in migration:
            connection.exec_driver_sql(statement.format(**_WORDS[dialect]))
    connection.execute(update(META).values(version=len(migrations)))


def _version(connection: Connection) -> int:
    """0: the database is empty."""
    if not inspect(connection).has_table("meta"):
        return 0
    version: int = connection.execute(select(META.c.version)).scalar_one()
    return version
