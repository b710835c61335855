"""The copy of the issued keys that a worker holds: what it lets in, how soon it learns, and what it does alone."""

from __future__ import annotations

import asyncio
import hmac
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from proxy.core import team_key
from proxy.core.quota import StoreGone
from proxy.core.secret import Secret
from proxy.store.database import Database, DatabaseGone, open_database
from proxy.store.issued import EVERY, USED_EVERY, IssuedKeys
from proxy.store.keys import Keys, NewKey
from proxy.store.migrations import migrate
from tests.asgi import Log

PEPPER = Secret("pepper-of-the-tests-0123456789abcdef")
NOW = 1_800_000_000_000
DAY = 86_400_000


class Clock:
    """The time of day as the test says."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def database(file: Path) -> Iterator[Database]:
    database = open_database(f"sqlite:///{file}")
    migrate(database)
    yield database
    database.close()


@pytest.fixture
def keys(database: Database) -> Keys:
    return Keys(database)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def issued(keys: Keys, clock: Clock, log: Log) -> IssuedKeys:
    return IssuedKeys(keys, PEPPER, clock, log)


def token(new: NewKey) -> bytes:
    return new.secret.reveal().encode()


def test_a_key_leads_to_its_team_and_id(keys: Keys, issued: IssuedKeys) -> None:
    new, other = keys.issue("research", None, None, NOW, PEPPER), keys.issue("support", None, NOW + DAY, NOW, PEPPER)
    issued.refresh()
    assert issued.lookup(token(new)) == ("research", new.row.id)
    assert issued.lookup(token(other)) == ("support", other.row.id)


def test_c12_everything_else_is_nobody(keys: Keys, issued: IssuedKeys, clock: Clock) -> None:
    revoked, expired = (
        keys.issue("research", None, None, NOW, PEPPER),
        keys.issue("research", None, NOW + 1, NOW, PEPPER),
    )
    good = keys.issue("research", None, None, NOW, PEPPER)
    keys.revoke(revoked.row.id, NOW)
    clock.now += 1
    issued.refresh()
    wrong = [
        token(revoked),
        token(expired),
        team_key.mint().reveal().encode(),
        b"",
        b"sk-mp-",
        b"\x00" * 32,
        b"x" * 20_000,
    ]
    wrong += [token(good)[:-1], token(good) + b" ", token(good).upper(), good.row.id.encode(), b"' OR 1=1 --"]
    assert [issued.lookup(one) for one in wrong] == [None] * len(wrong)


def test_c11_c12_one_hmac_and_one_comparison_whatever_is_wrong(
    keys: Keys, issued: IssuedKeys, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, revoked = keys.issue("research", None, None, NOW, PEPPER), keys.issue("research", None, None, NOW, PEPPER)
    expired = keys.issue("research", None, NOW + 1, NOW, PEPPER)
    keys.revoke(revoked.row.id, NOW)
    clock.now += 1
    issued.refresh()
    work: list[str] = []
    for name in ("digest", "compare_digest"):
        monkeypatch.setattr(hmac, name, noted(work, name, getattr(hmac, name)))
    for one in (
        token(good),
        token(revoked),
        token(expired),
        team_key.mint().reveal().encode(),
        b"",
        b"foreign",
        b"sk-mp-x",
    ):
        work.clear()
        issued.lookup(one)
        assert work == ["digest", "compare_digest"]


def noted(work: list[str], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*values: Any) -> Any:
        work.append(name)
        return function(*values)

    return call


async def test_c12_no_look_up_touches_the_database(
    keys: Keys, issued: IssuedKeys, database: Database, file: Path
) -> None:
    """The file may be gone: nobody asks for it. (What blocked the loop here would fail the test as well.)"""
    new = await asyncio.to_thread(keys.issue, "research", None, None, NOW, PEPPER)
    await asyncio.to_thread(issued.refresh)
    database.close()
    os.unlink(file)
    for _ in range(100):
        assert issued.lookup(token(new)) == ("research", new.row.id)
        assert issued.lookup(team_key.mint().reveal().encode()) is None


def test_a_key_expires_at_the_very_millisecond_and_nobody_need_refresh(
    keys: Keys, issued: IssuedKeys, clock: Clock
) -> None:
    new = keys.issue("research", None, NOW + 1000, NOW, PEPPER)
    issued.refresh()
    clock.now = NOW + 999
    assert issued.lookup(token(new)) == ("research", new.row.id)
    clock.now = NOW + 1000
    assert issued.lookup(token(new)) is None


def test_a_revocation_is_seen_by_another_worker_at_its_next_refresh(
    keys: Keys, issued: IssuedKeys, file: Path, clock: Clock, log: Log
) -> None:
    elsewhere = open_database(f"sqlite:///{file}")
    other = IssuedKeys(Keys(elsewhere), PEPPER, clock, log)
    new = keys.issue("research", None, None, NOW, PEPPER)
    for worker in (issued, other):
        worker.refresh()
        assert worker.lookup(token(new))
    keys.revoke(new.row.id, NOW)
    assert other.lookup(token(new))
    other.refresh()
    assert other.lookup(token(new)) is None
    elsewhere.close()
    assert EVERY <= 0.5  # two looks within the second that is promised


def test_both_keys_of_a_rotation_are_let_in_until_the_overlap_is_over(
    keys: Keys, issued: IssuedKeys, clock: Clock
) -> None:
    old = keys.issue("research", None, None, NOW, PEPPER)
    new = keys.rotate(old.row.id, 3_600_000, NOW, PEPPER)
    issued.refresh()
    for now, known in ((NOW, True), (NOW + 3_599_999, True), (NOW + 3_600_000, False)):
        clock.now = now
        assert bool(issued.lookup(token(old))) == known
        assert issued.lookup(token(new)) == ("research", new.row.id)


def test_what_has_not_changed_is_not_read_again(
    keys: Keys, issued: IssuedKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys.issue("research", None, None, NOW, PEPPER)
    asked: list[Any] = []
    changed_since = keys.changed_since

    def spy(version: int | None) -> Any:
        asked.append((version, found := changed_since(version)))
        return found

    monkeypatch.setattr(keys, "changed_since", spy)
    for _ in range(3):
        issued.refresh()
    [(first, found), second, third] = asked
    assert first is None
    assert found
    assert second == third == (found[0], None)


def test_another_pepper_knows_no_key(keys: Keys, clock: Clock, log: Log) -> None:
    new = keys.issue("research", None, None, NOW, PEPPER)
    other = IssuedKeys(keys, Secret("another-pepper-0123456789abcdef"), clock, log)
    other.refresh()
    assert other.lookup(token(new)) is None


def test_before_the_first_reading_nobody_knows_and_what_is_no_key_is_none(keys: Keys, issued: IssuedKeys) -> None:
    """A 401 would say that the key is wrong."""
    new = keys.issue("research", None, None, NOW, PEPPER)
    for unknown in (token(new), team_key.mint().reveal().encode()):
        with pytest.raises(StoreGone):
            issued.lookup(unknown)
    for other in (b"", b"foreign", b"sk-mp-x", token(new)[:-1]):
        assert issued.lookup(other) is None
    issued.refresh()
    assert issued.lookup(token(new))


def break_(keys: Keys, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> pytest.MonkeyPatch:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(keys, "changed_since", fail)
    return monkeypatch


@pytest.mark.parametrize("error", [DatabaseGone("unable to open database file"), ZeroDivisionError("sk-mp-secret")])
async def test_a_database_that_is_gone_changes_nothing_and_is_told_once(
    keys: Keys, issued: IssuedKeys, log: Log, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    new = await asyncio.to_thread(keys.issue, "research", None, None, NOW, PEPPER)
    await issued._look()
    assert log.lines == []
    with monkeypatch.context() as patched:
        break_(keys, patched, error)
        for _ in range(5):
            await issued._look()
            assert issued.lookup(token(new)) == ("research", new.row.id)
    assert [(level, event) for level, event, _ in log.lines] == [("error", "keys_unavailable")]
    assert "sk-mp-" not in str(log.lines)
    await asyncio.to_thread(keys.revoke, new.row.id, NOW)
    for _ in range(3):
        await issued._look()
    assert issued.lookup(token(new)) is None
    assert [event for _, event, _ in log.lines] == ["keys_unavailable", "keys_available"]


async def test_a_database_that_is_really_gone(tmp_path: Path, clock: Clock, log: Log) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    database = await asyncio.to_thread(open_database, f"sqlite:///{folder}/ledger.db")
    await asyncio.to_thread(migrate, database)
    keys = Keys(database)
    new = await asyncio.to_thread(keys.issue, "research", None, None, NOW, PEPPER)
    issued = IssuedKeys(keys, PEPPER, clock, log)
    await issued._look()
    database.close()
    os.rename(folder, tmp_path / "elsewhere")
    await issued._look()
    assert issued.lookup(token(new)) == ("research", new.row.id)
    os.rename(tmp_path / "elsewhere", folder)
    await issued._look()
    assert [event for _, event, _ in log.lines] == ["keys_unavailable", "keys_available"]
    database.close()


async def test_it_follows_until_it_is_cancelled(keys: Keys, issued: IssuedKeys) -> None:
    following = asyncio.create_task(issued.follow(every=0.0))
    try:
        new = await asyncio.to_thread(keys.issue, "research", None, None, NOW, PEPPER)
        async with asyncio.timeout(20):
            await until(lambda: known(issued, token(new)))
            await asyncio.to_thread(keys.revoke, new.row.id, NOW)
            await until(lambda: not known(issued, token(new)))
    finally:
        following.cancel()
        with pytest.raises(asyncio.CancelledError):
            await following


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 (what changes it has no event)
        await asyncio.sleep(0)


def known(issued: IssuedKeys, token: bytes) -> bool:
    with suppress(StoreGone):
        return bool(issued.lookup(token))
    return False


async def last_used(keys: Keys) -> dict[str, int | None]:
    return {row.id: row.last_used for row in await asyncio.to_thread(keys.all)}


async def test_when_a_key_was_used_is_written_down_at_most_once_a_minute(
    keys: Keys, issued: IssuedKeys, clock: Clock
) -> None:
    new, unused = [await asyncio.to_thread(keys.issue, "research", None, None, NOW, PEPPER) for _ in range(2)]
    await issued._look()
    for _ in range(50):
        clock.now += 10
        issued.lookup(token(new))
    used = clock.now
    clock.now = NOW + USED_EVERY - 1
    await issued._look()
    assert await last_used(keys) == {new.row.id: None, unused.row.id: None}
    clock.now += 1
    await issued._look()
    assert await last_used(keys) == {new.row.id: used, unused.row.id: None}
    issued.lookup(token(new))
    await issued._look()
    assert (await last_used(keys))[new.row.id] == used
    await issued.note_used()  # at the end of the process
    assert (await last_used(keys))[new.row.id] == clock.now


async def test_what_was_used_is_not_forgotten_when_it_cannot_be_written(
    keys: Keys, issued: IssuedKeys, clock: Clock, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, other = [await asyncio.to_thread(keys.issue, "research", None, None, NOW, PEPPER) for _ in range(2)]
    await issued._look()
    issued.lookup(token(new))
    issued.lookup(token(other))
    touch = keys.touch

    def fail(used: Any) -> None:
        clock.now += 5
        issued.lookup(token(other))  # while it fails
        raise DatabaseGone("locked")

    monkeypatch.setattr(keys, "touch", fail)
    clock.now += USED_EVERY
    await issued._look()
    assert [event for _, event, _ in log.lines] == ["keys_unavailable"]
    monkeypatch.setattr(keys, "touch", touch)
    clock.now += USED_EVERY
    await issued._look()
    assert await last_used(keys) == {new.row.id: NOW, other.row.id: NOW + USED_EVERY + 5}


async def test_what_was_used_is_not_forgotten_when_the_note_is_cancelled(
    keys: Keys, issued: IssuedKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = await asyncio.to_thread(keys.issue, "research", None, None, NOW, PEPPER)
    await issued._look()
    issued.lookup(token(new))
    entered, leave, touch = threading.Event(), threading.Event(), keys.touch

    def slow(used: Any) -> None:
        entered.set()
        leave.wait(20)

    monkeypatch.setattr(keys, "touch", slow)
    noting = asyncio.create_task(issued.note_used())
    await asyncio.to_thread(entered.wait, 20)
    noting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await noting
    leave.set()
    monkeypatch.setattr(keys, "touch", touch)
    await issued.note_used()
    assert (await last_used(keys))[new.row.id] == NOW


async def test_nothing_is_written_when_nothing_was_used(
    keys: Keys, issued: IssuedKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "touch", lambda used: 1 // 0)
    await issued.note_used()


def test_it_shows_neither_keys_nor_pepper(keys: Keys, issued: IssuedKeys) -> None:
    new = keys.issue("research", None, None, NOW, PEPPER)
    issued.refresh()
    shown = repr(issued) + repr(vars(issued)) + repr(issued._snapshot)
    for secret in (new.secret.reveal(), PEPPER.reveal(), team_key.digest(token(new), PEPPER).hex()):
        assert secret not in shown


def test_keys_of_a_large_house(keys: Keys, issued: IssuedKeys) -> None:
    """Hundreds of keys are one reading, and one look-up finds any."""
    every = [keys.issue(f"team-{n % 50}", None, None, NOW, PEPPER) for n in range(300)]
    issued.refresh()
    assert [issued.lookup(token(new)) for new in every] == [(new.row.team, new.row.id) for new in every]
