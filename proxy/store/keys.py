"""The keys that were issued, in the database. A key itself is in no row: only what it is recognised by.

Everything here blocks, and raises DatabaseGone when the database does not answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

from sqlalchemy import Connection, bindparam, or_, select, update

from proxy.core import team_key
from proxy.core.secret import Secret
from proxy.store.database import Database
from proxy.store.tables import KEYS, KEYS_VERSION


class KeyRefused(Exception):
    """What was asked for cannot be done with this key; the text is a sentence that says why."""


@dataclass(frozen=True, slots=True)
class KeyRow:
    """What is known of a key. Times are Unix milliseconds."""

    id: str
    team: str
    name: str | None
    created: int
    expires: int | None
    revoked: int | None = None
    last_used: int | None = None
    successor: str | None = None

    def state(self, now: int) -> str:
        """One of active, rotated (in force until it expires), expired, revoked."""
        if self.revoked is not None:
            return "revoked"
        if self.expires is not None and self.expires <= now:
            return "expired"
        return "rotated" if self.successor else "active"


@dataclass(frozen=True, slots=True)
class NewKey:
    """`secret` is here and with whoever it is shown to, nowhere else."""

    row: KeyRow
    secret: Secret


@dataclass(frozen=True, slots=True, repr=False)
class InForce:
    """A key that was not revoked, as it is looked up."""

    digest: bytes
    team: str
    id: str
    expires: int | None


class Keys:
    """Who changes a key counts the version up in the same transaction: everybody who holds a copy looks at it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def issue(self, team: str, name: str | None, expires: int | None, now: int, pepper: Secret) -> NewKey:
        with self._changing() as connection:
            return _insert(connection, KeyRow(team_key.new_id(), team, name, now, expires), pepper)

    def rotate(self, key_id: str, overlap: int, now: int, pepper: Secret) -> NewKey:
        """A new key of the same team, name and lifetime; the old one is in force for `overlap` milliseconds more, if it
        did not expire before anyhow. Raises KeyRefused."""
        with self._changing() as connection:
            old = _in_force(connection, key_id, now)
            if old.successor:
                raise KeyRefused(f"The key {key_id} was rotated before: its successor is {old.successor}.")
            expires = None if old.expires is None else now + (old.expires - old.created)
            new = _insert(connection, KeyRow(team_key.new_id(), old.team, old.name, now, expires), pepper)
            ends = now + overlap if old.expires is None else min(old.expires, now + overlap)
            _change(connection, key_id, expires=ends, successor=new.row.id)
            return new

    def revoke(self, key_id: str, now: int) -> KeyRow:
        """End a key at once. Raises KeyRefused."""
        with self._changing() as connection:
            row = _in_force(connection, key_id, now)
            _change(connection, key_id, revoked=now)
            return row

    def all(self) -> list[KeyRow]:
        """Every key there ever was, the oldest first."""
        query = select(*_COLUMNS).order_by(KEYS.c.created, KEYS.c.id)
        with self._database.read() as connection:
            return [KeyRow(*row) for row in connection.execute(query)]

    def changed_since(self, version: int | None) -> tuple[int, list[InForce]] | None:
        """The version, and all keys that were not revoked; None when it is this `version` still."""
        query = select(KEYS.c.digest, KEYS.c.team, KEYS.c.id, KEYS.c.expires).where(KEYS.c.revoked.is_(None))
        with self._database.read() as connection:
            # Before the keys: what is changed between the two is read again next time, and not missed.
            current: int = connection.execute(select(KEYS_VERSION.c.version)).scalar_one()
            if current == version:
                return None
            return current, [InForce(*row) for row in connection.execute(query)]

    def touch(self, used: Mapping[str, int]) -> None:
        """When these keys were used last, by their ids. It makes no new version: nobody is let in by it."""
        later = or_(KEYS.c.last_used.is_(None), KEYS.c.last_used < bindparam("at"))
        statement = update(KEYS).where(KEYS.c.id == bindparam("key"), later).values(last_used=bindparam("at"))
        with self._database.begin() as connection:
            connection.execute(statement, [{"key": key_id, "at": at} for key_id, at in sorted(used.items())])

    @contextmanager
    def _changing(self) -> Iterator[Connection]:
        with self._database.begin() as connection:
            # First: the row is locked by it, so that two changes are one after the other.
            connection.execute(update(KEYS_VERSION).values(version=KEYS_VERSION.c.version + 1))
            yield connection


_COLUMNS = [KEYS.c[field.name] for field in fields(KeyRow)]


def _insert(connection: Connection, row: KeyRow, pepper: Secret) -> NewKey:
    secret = team_key.mint()
    digest = team_key.digest(secret.reveal().encode(), pepper)
    connection.execute(KEYS.insert().values(**asdict(row), digest=digest))
    return NewKey(row, secret)


def _in_force(connection: Connection, key_id: str, now: int) -> KeyRow:
    found = connection.execute(select(*_COLUMNS).where(KEYS.c.id == key_id)).one_or_none()
    if found is None:
        raise KeyRefused(
            "There is no key with this id: `mistral-proxy keys list` shows them."
        )  # it may be a key itself
    row = KeyRow(*found)
    state = row.state(now)
    if state in ("revoked", "expired"):
        raise KeyRefused(f"The key {key_id} {'was revoked' if state == 'revoked' else 'has expired'} before.")
    return row


def _change(connection: Connection, key_id: str, **values: Any) -> None:
    connection.execute(update(KEYS).where(KEYS.c.id == key_id).values(**values))
