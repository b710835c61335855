"""Issued keys in a real database: what is kept of them, and how they end."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from proxy.core import team_key
from proxy.core.secret import Secret
from proxy.store.database import Database, DatabaseGone, open_database
from proxy.store.keys import KeyRefused, KeyRow, Keys, NewKey
from proxy.store.migrations import migrate
from proxy.store.tables import KEYS
from tests.postgres_server import PostgresServer

PEPPER = Secret("pepper-of-the-tests-0123456789abcdef")
NOW = 1_800_000_000_000
DAY = 86_400_000


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    server = PostgresServer()
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/ledger.db"
    else:
        url = request.getfixturevalue("postgres").fresh()
    database = open_database(url)
    migrate(database)
    yield database
    database.close()


@pytest.fixture
def keys(database: Database) -> Keys:
    return Keys(database)


def version(keys: Keys) -> int:
    changed = keys.changed_since(None)
    assert changed
    return changed[0]


def in_force(keys: Keys) -> dict[bytes, tuple[str, str, int | None]]:
    changed = keys.changed_since(None)
    assert changed
    return {key.digest: (key.team, key.id, key.expires) for key in changed[1]}


def digest(new: NewKey) -> bytes:
    return team_key.digest(new.secret.reveal().encode(), PEPPER)


def test_a_key_is_issued(keys: Keys) -> None:
    new = keys.issue("research", "ci", NOW + DAY, NOW, PEPPER)
    assert team_key.is_whole(new.secret.reveal().encode())
    assert new.row == KeyRow(new.row.id, "research", "ci", NOW, NOW + DAY)
    assert keys.all() == [new.row]
    assert in_force(keys) == {digest(new): ("research", new.row.id, NOW + DAY)}


def test_a_key_need_not_end_and_needs_no_name(keys: Keys) -> None:
    new = keys.issue("research", None, None, NOW, PEPPER)
    assert (keys.all()[0].name, keys.all()[0].expires) == (None, None)
    assert in_force(keys) == {digest(new): ("research", new.row.id, None)}


def test_all_are_listed_the_oldest_first(keys: Keys) -> None:
    issued = [keys.issue(f"team-{n}", None, None, NOW - n, PEPPER) for n in range(5)]
    assert keys.all() == [new.row for new in reversed(issued)]


def test_every_change_is_a_new_version_and_nothing_else_is(keys: Keys) -> None:
    seen = [version(keys)]
    new = keys.issue("research", None, None, NOW, PEPPER)
    seen.append(version(keys))
    other = keys.rotate(new.row.id, DAY, NOW, PEPPER)
    seen.append(version(keys))
    keys.revoke(new.row.id, NOW)
    seen.append(version(keys))
    assert seen == sorted(set(seen))
    keys.all()
    keys.touch({other.row.id: NOW})
    with pytest.raises(KeyRefused):
        keys.revoke(new.row.id, NOW)
    assert version(keys) == seen[-1]
    assert keys.changed_since(seen[-1]) is None
    assert keys.changed_since(seen[-2]) is not None


def test_a_rotation_overlaps(keys: Keys) -> None:
    old = keys.issue("research", "ci", None, NOW, PEPPER)
    new = keys.rotate(old.row.id, 3_600_000, NOW + DAY, PEPPER)
    assert new.secret != old.secret
    assert (new.row.team, new.row.name, new.row.created, new.row.expires) == ("research", "ci", NOW + DAY, None)
    [before, after] = keys.all()
    assert (before.id, before.successor, before.expires) == (old.row.id, new.row.id, NOW + DAY + 3_600_000)
    assert (after.id, after.successor) == (new.row.id, None)
    assert set(in_force(keys)) == {digest(old), digest(new)}


def test_a_rotation_keeps_the_lifetime_and_lengthens_no_life(keys: Keys) -> None:
    old = keys.issue("research", None, NOW + 90 * DAY, NOW, PEPPER)
    later = NOW + 89 * DAY
    new = keys.rotate(old.row.id, 7 * DAY, later, PEPPER)
    assert new.row.expires == later + 90 * DAY
    assert keys.all()[0].expires == NOW + 90 * DAY


def test_a_rotation_without_overlap_ends_the_old_one_at_once(keys: Keys) -> None:
    old = keys.issue("research", None, None, NOW, PEPPER)
    keys.rotate(old.row.id, 0, NOW + 1, PEPPER)
    assert keys.all()[0].state(NOW + 1) == "expired"


def test_one_key_has_one_successor(keys: Keys) -> None:
    old = keys.issue("research", None, None, NOW, PEPPER)
    new = keys.rotate(old.row.id, DAY, NOW, PEPPER)
    with pytest.raises(KeyRefused, match=f"rotated before: its successor is {new.row.id}"):
        keys.rotate(old.row.id, DAY, NOW + 1, PEPPER)
    assert len(keys.all()) == 2
    assert keys.rotate(new.row.id, DAY, NOW + 2, PEPPER).row.team == "research"


def test_a_revoked_key_is_out_and_stays_on_the_list(keys: Keys) -> None:
    new, other = keys.issue("research", None, None, NOW, PEPPER), keys.issue("support", None, None, NOW, PEPPER)
    assert keys.revoke(new.row.id, NOW + 5) == new.row
    assert set(in_force(keys)) == {digest(other)}
    assert {row.id: row.revoked for row in keys.all()} == {new.row.id: NOW + 5, other.row.id: None}


def test_a_key_can_be_revoked_while_its_rotation_overlaps(keys: Keys) -> None:
    old = keys.issue("research", None, None, NOW, PEPPER)
    new = keys.rotate(old.row.id, DAY, NOW, PEPPER)
    keys.revoke(old.row.id, NOW + 1)
    assert set(in_force(keys)) == {digest(new)}


@pytest.mark.parametrize("what", ["rotate", "revoke"])
def test_what_cannot_be_done_is_said(keys: Keys, what: str) -> None:
    def ask(key_id: str, now: int) -> None:
        if what == "rotate":
            keys.rotate(key_id, DAY, now, PEPPER)
        else:
            keys.revoke(key_id, now)

    revoked, expired = (
        keys.issue("research", None, None, NOW, PEPPER),
        keys.issue("research", None, NOW + 10, NOW, PEPPER),
    )
    keys.revoke(revoked.row.id, NOW)
    before = keys.all()
    with pytest.raises(KeyRefused, match=f"The key {revoked.row.id} was revoked before"):
        ask(revoked.row.id, NOW + 1)
    with pytest.raises(KeyRefused, match=f"The key {expired.row.id} has expired before"):
        ask(expired.row.id, NOW + 10)
    for unknown in ("key_aaaaaaaa", "", "x' OR '1'='1", expired.secret.reveal()):
        with pytest.raises(KeyRefused, match="There is no key with this id") as caught:
            ask(unknown, NOW)
        assert "sk-mp-" not in str(caught.value)
    assert keys.all() == before
    ask(expired.row.id, NOW + 9)


@pytest.mark.parametrize(
    ("changes", "now", "state"),
    [
        ({}, NOW, "active"),
        ({"expires": NOW + 1}, NOW, "active"),
        ({"expires": NOW}, NOW, "expired"),
        ({"expires": NOW + 1, "successor": "key_x"}, NOW, "rotated"),
        ({"expires": NOW, "successor": "key_x"}, NOW, "expired"),
        ({"revoked": NOW}, NOW, "revoked"),
        ({"revoked": NOW, "expires": NOW - 1, "successor": "key_x"}, NOW, "revoked"),
    ],
)
def test_the_state_of_a_key(changes: dict[str, Any], now: int, state: str) -> None:
    fields = {"expires": None} | changes
    assert KeyRow("key_a", "research", None, NOW - DAY, **fields).state(now) == state


def test_when_keys_were_used_only_goes_forward(keys: Keys) -> None:
    """Several processes tell, and not in order."""
    one, other, unused = (keys.issue("research", None, None, NOW, PEPPER) for _ in range(3))
    keys.touch({one.row.id: NOW + 5, other.row.id: NOW + 6})
    keys.touch({one.row.id: NOW + 3, other.row.id: NOW + 9, "key_unknown": NOW})
    used = {row.id: row.last_used for row in keys.all()}
    assert used == {one.row.id: NOW + 5, other.row.id: NOW + 9, unused.row.id: None}


@pytest.mark.parametrize("what", ["rotate", "revoke"])
def test_two_changes_at_once_are_one_after_the_other(keys: Keys, what: str) -> None:
    key_id = keys.issue("research", None, None, NOW, PEPPER).row.id
    start, results = threading.Barrier(4), list[str]()

    def change() -> None:
        start.wait()
        try:
            keys.rotate(key_id, DAY, NOW, PEPPER) if what == "rotate" else keys.revoke(key_id, NOW)
            results.append("done")
        except KeyRefused:
            results.append("refused")

    threads = [threading.Thread(target=change) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["done", "refused", "refused", "refused"]


def test_the_key_and_the_pepper_are_nowhere(keys: Keys, database: Database) -> None:
    new = keys.issue("research", "ci", None, NOW, PEPPER)
    secret = new.secret.reveal()
    with database.read() as connection:
        rows = repr(connection.execute(select(KEYS)).all())
    shown = [rows, repr(new), str(new), repr(keys), repr(keys.all()), repr(keys.changed_since(None))]
    for text in shown:
        assert secret not in text
        assert secret[6:49] not in text
        assert PEPPER.reveal() not in text
    assert digest(new).hex() not in "".join(shown[1:])


def test_no_byte_of_them_is_in_the_file(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/ledger.db")
    migrate(database)
    new = Keys(database).issue("research", "canary-name", None, NOW, PEPPER)
    database.close()
    data = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"canary-name" in data
    for secret in (new.secret.reveal(), new.secret.reveal()[6:49], PEPPER.reveal()):
        assert secret.encode() not in data


def test_an_error_of_the_database_tells_no_secret(keys: Keys, database: Database) -> None:
    with database.begin() as connection:
        connection.exec_driver_sql("DROP TABLE keys")
    with pytest.raises(Exception) as caught:
        keys.issue("research", "ci", None, NOW, PEPPER)
    everything = f"{caught.value!r} {caught.value} {caught.value.__cause__!r}"
    assert "sk-mp-" not in everything
    assert PEPPER.reveal() not in everything


def test_a_change_that_fails_half_way_leaves_nothing(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    old = keys.issue("research", None, None, NOW, PEPPER)
    before = version(keys)
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr("proxy.store.keys._change", lambda *_, **__: 1 // 0)
        keys.rotate(old.row.id, DAY, NOW, PEPPER)
    assert keys.all() == [old.row]
    assert version(keys) == before


def test_a_locked_database_is_gone_for_the_moment(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    database = open_database(f"sqlite:///{file}")
    migrate(database)
    keys = Keys(database)
    new = keys.issue("research", None, None, NOW, PEPPER)
    writer = sqlite3.connect(file, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseGone):
        keys.revoke(new.row.id, NOW)
    assert set(in_force(keys)) == {digest(new)}  # who only reads waits for nobody
    writer.close()
    keys.revoke(new.row.id, NOW)
    database.close()


def test_a_database_that_is_not_there_is_gone(postgres: PostgresServer) -> None:
    database = open_database(postgres.fresh())
    migrate(database)
    keys = Keys(database)
    new = keys.issue("research", None, None, NOW, PEPPER)
    postgres.kill()
    try:
        with pytest.raises(DatabaseGone):
            keys.all()
        with pytest.raises(DatabaseGone):
            keys.changed_since(None)
    finally:
        postgres.start()
    assert keys.all() == [new.row]
    database.close()
