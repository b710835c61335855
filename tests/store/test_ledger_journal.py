from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.store.ledger import journal as journals
from proxy.store.ledger import segment as segments
from proxy.store.ledger.journal import ABANDONED, KEPT, REMEMBERED, RESERVE, SPARES, Journal, estates, owners
from proxy.store.ledger.segment import SEGMENT, Foreign, Segment
from tests.programs import until

OWNER = "aa"


def at_once() -> int:
    """A time at which nothing is old yet."""
    return 0


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    one = Journal(tmp_path, OWNER, 4)
    until(lambda: len(one._spares) == 2, "spare segments")
    yield one
    one.release(empty=False)


def left(directory: Path) -> list[bytes | None]:
    """What the dead have left, and nobody removes."""
    return [record for estate in estates(directory, at_once) for record in estate.records()]


def fill(journal: Journal, size: int = 60_000) -> int:
    """Append until there is no room; how many there was room for."""
    count = 0
    while journal.append(b"x" * size):
        count += 1
        until(lambda: len(journal._spares) == 2 or journal.segments + len(journal._spares) == 4, "what can be had")
    return count


def test_what_is_appended_is_read_in_order(journal: Journal) -> None:
    assert journal.append(b"one")
    assert journal.append(b"two!")
    assert journal.read(10) == [b"one", b"two!"]
    assert journal.read(10) == []
    assert journal.append(b"three")
    assert journal.read(10) == [b"three"]


def test_no_more_is_read_than_asked_for(journal: Journal) -> None:
    for n in range(5):
        journal.append(b"%d" % n)
    assert [journal.read(2) for _ in range(4)] == [[b"0", b"1"], [b"2", b"3"], [b"4"], []]


@given(st.lists(st.binary(min_size=1, max_size=300_000), max_size=12))
def test_whatever_is_appended_outlives_its_process(
    tmp_path_factory: pytest.TempPathFactory, records: list[bytes]
) -> None:
    directory = tmp_path_factory.mktemp("journal")
    journal = Journal(directory, OWNER, 64)
    kept = [record for record in records if journal.append(record)]
    journal.release(empty=False)  # as the kernel does when a process dies
    assert left(directory) == kept


def test_nobody_reads_what_somebody_holds(journal: Journal, tmp_path: Path) -> None:
    journal.append(b"mine")
    assert left(tmp_path) == []
    assert owners(tmp_path) == {OWNER}


def test_two_cannot_have_the_same_estate(journal: Journal, tmp_path: Path) -> None:
    journal.append(b"mine")
    journal.release(empty=False)
    first = estates(tmp_path, at_once)
    assert list(next(first).records()) == [b"mine"]
    assert left(tmp_path) == []
    first.close()  # type: ignore[attr-defined]
    assert left(tmp_path) == [b"mine"]
    for estate in estates(tmp_path, at_once):
        estate.remove()
    assert owners(tmp_path) == set()


@pytest.mark.parametrize("kept", range(12))
def test_half_a_record_is_none(kept: int, tmp_path: Path) -> None:
    """The length is written last. Whatever else there is of a record, without it nobody sees it."""
    journal = Journal(tmp_path, OWNER, 4)
    journal.append(b"whole")
    segment = journal._current
    at = segment.end
    journal.append(b"half")
    segment.memory[at : at + 4] = bytes(4)
    segment.memory[at + kept : at + 12] = bytes(12 - kept)
    journal.release(empty=False)
    assert left(tmp_path) == [b"whole"]


def test_a_damaged_record_is_told_from_a_whole_one(tmp_path: Path) -> None:
    journal = Journal(tmp_path, OWNER, 4)
    for record in (b"before", b"damaged", b"after"):
        journal.append(record)
    journal._current.memory[16 + 16 + 8] ^= 1
    journal.release(empty=False)
    assert left(tmp_path) == [b"before", None, b"after"]


@given(st.binary(max_size=4_000))
def test_any_bytes_can_be_read(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    """After a power failure a page of a segment may be anything."""
    directory = tmp_path_factory.mktemp("journal")
    segment = Segment.create(directory / "1")
    segment.memory[16 : 16 + len(junk)] = junk
    loaded = Segment.load(directory / "1")
    assert loaded
    assert len(list(loaded.records())) < SEGMENT / 8


def test_what_the_database_has_is_not_read_again(journal: Journal, tmp_path: Path) -> None:
    journal.append(b"one")
    journal.read(10)
    journal.committed()
    journal.append(b"two")
    journal.read(10)
    journal.release(empty=False)
    assert left(tmp_path) == [b"two"]


def test_a_segment_that_the_database_has_all_of_is_used_again(journal: Journal, tmp_path: Path) -> None:
    """Under another name, and without anything of what it had: what is left is read in the order of the names."""
    made = {id(segment) for segment in (journal._current, *journal._spares)}
    for n in range(200):
        assert journal.append(record := b"%d" % n * 20_000)
        assert journal.read(10) == [record]
        journal.committed()
        assert journal.segments == 1
        until(lambda: len(journal._spares) == SPARES, "spares")
        made.add(id(journal._current))
    assert len(made) <= 1 + SPARES + KEPT
    assert len(list(journal.folder.iterdir())) <= 1 + SPARES + KEPT + len(["lock"])
    journal.append(b"last")
    journal.release(empty=False)
    assert left(tmp_path) == [b"last"]


STEPS = st.one_of(
    st.tuples(st.just("append"), st.binary(min_size=1, max_size=700)),
    st.tuples(st.just("say"), st.binary(min_size=1, max_size=700)),
    st.tuples(st.just("read"), st.integers(1, 20)),
    st.tuples(st.just("commit"), st.none()),
)


@pytest.mark.parametrize("died", [False, True], ids=["between steps", "while a segment is renewed"])
@given(st.lists(STEPS, max_size=150))
def test_whatever_happens_what_the_database_does_not_have_is_read_once_and_left(
    tmp_path_factory: pytest.TempPathFactory, died: bool, steps: list[tuple[str, Any]]
) -> None:
    directory = tmp_path_factory.mktemp("journal")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "SEGMENT", 2_048)
        patch.setattr(journals, "RESERVE", 0)
        journal = Journal(directory, OWNER, 5)
        appended: list[bytes] = []
        read = committed = 0
        for step, what in steps:
            if step in ("append", "say"):
                until(lambda: journal._spares or journal.segments == 5, "what can be had")
                appended += [what] * journal.append(what, [what] if step == "say" else None)
            elif step == "read":
                found = [one[0] if isinstance(one, list) else one for one in journal.read(what)]
                assert found == appended[read : read + what]
                read += len(found)
            else:
                journal.committed()
                committed = read
        if died and journal._spares:
            patch.setattr(os, "rename", lambda *_: sys.exit())
            with pytest.raises(SystemExit):
                journal._spares[0].begin_anew(directory / "new")
        journal.release(empty=False)
        assert left(directory) == appended[committed:]


@pytest.mark.parametrize("dies", ["done", "rename"])
def test_a_segment_that_is_begun_anew_has_nothing_whenever_its_process_dies(
    dies: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = Segment.create(tmp_path / "1")
    for n in range(20):
        assert segment.append(b"record %d" % n, n)
    assert list(segment.records()) == list(range(20))
    segment.done(segment.read)
    if dies == "done":
        monkeypatch.setattr(Segment, "done", lambda *_: sys.exit())
    else:
        monkeypatch.setattr(os, "rename", lambda *_: sys.exit())
    with pytest.raises(SystemExit):
        segment.begin_anew(tmp_path / "2")
    found = Segment.load(tmp_path / "1")
    assert found
    assert list(found.records()) == []


def test_what_was_read_before_its_writer_could_say_it_is_not_read_again(tmp_path: Path) -> None:
    segment = Segment.create(tmp_path / "1")
    assert segment.append(b"one", None)
    end = segment.end
    assert list(segment.records()) == [b"one"]
    segment.said.append((16, end, "one"))
    assert segment.append(b"two", "two")
    assert list(segment.records()) == ["two"]
    assert not segment.said


def test_what_was_said_is_remembered_of_the_latest_only(tmp_path: Path) -> None:
    """The rest is read from its bytes: a database that is away does not cost its backlog once more in objects."""
    journal, count = Journal(tmp_path, OWNER, 9), 0
    while journal.segments < REMEMBERED + 2:
        until(lambda: len(journal._spares) == SPARES, "spares")
        assert journal.append(b"x" * 60_000, count)
        count += 1
    remembered = [len(segment.said) for segment in journal._live]
    assert remembered[:2] == [0, 0]
    found = journal.read(1_000)
    assert found == [b"x" * 60_000] * (count - sum(remembered)) + list(range(count))[-sum(remembered) :]
    journal.release(empty=False)


def test_one_that_was_read_but_not_written_stays(journal: Journal) -> None:
    first = journal._current.path
    while journal._current.path == first:
        journal.append(b"x" * 60_000)
    journal.read(1)
    journal.committed()
    assert first.exists()


def test_when_it_is_full_there_is_room_for_outcomes_and_then_none(journal: Journal) -> None:
    count = fill(journal)
    assert journal.segments == 4
    assert journal.shortage == "the database is too far behind"
    assert count == 4 * (SEGMENT // 60_008) - (RESERVE // 60_008)
    assert journal.append(b"x" * 60_000, reserved=True)
    while journal.append(b"x" * 60_000, reserved=True):
        pass
    assert not journal.append(b"x" * 60_000)
    journal.read(10_000)
    journal.committed()
    until(lambda: journal.append(b"x" * 60_000), "room again")


def test_a_full_disk_is_no_room_until_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = True

    def allocate(descriptor: int, start: int, size: int) -> None:
        if full and owners(tmp_path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor, start, size)

    real = os.posix_fallocate
    monkeypatch.setattr(os, "posix_fallocate", allocate)
    full = False
    journal = Journal(tmp_path, OWNER, 9)
    until(lambda: len(journal._spares) == 2, "spares")
    full = True
    monkeypatch.setattr(journals, "TROUBLE", 0.01)
    while journal.append(b"x" * 60_000):
        pass
    until(lambda: journal.shortage == "No space left on device", "it is known why")
    kept = {"lock", "00000001", "00000002", "00000003"}
    until(lambda: {path.name for path in journal.folder.iterdir()} == kept, "nothing is left of an attempt")
    full = False
    until(lambda: journal.append(b"x" * 60_000), "room again")
    assert journal.shortage == "the disk is too slow"
    journal.release(empty=True)


def test_where_nothing_allocates_zeros_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS; a disk may take less than it is given."""
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: real(descriptor, data[:100_000], at))
    monkeypatch.delattr(os, "posix_fallocate")
    segment = Segment.create(tmp_path / "1")
    assert (tmp_path / "1").stat().st_blocks * 512 >= SEGMENT
    assert segment.append(b"one", None)
    loaded = Segment.load(tmp_path / "1")
    assert loaded
    assert list(loaded.records()) == [b"one"]


def test_of_an_empty_journal_nothing_is_left(journal: Journal, tmp_path: Path) -> None:
    journal.release(empty=True)
    assert list(tmp_path.iterdir()) == []
    assert not journal.append(b"too late", reserved=True)


def test_what_another_version_wrote_is_left_alone(journal: Journal, tmp_path: Path) -> None:
    journal._current.memory[11] = 2
    journal.release(empty=False)
    with pytest.raises(Foreign):
        left(tmp_path)
    assert owners(tmp_path) == {OWNER}


@pytest.mark.parametrize("content", [b"", b"short", bytes(SEGMENT)])
def test_a_segment_that_was_never_finished(content: bytes, journal: Journal, tmp_path: Path) -> None:
    journal.append(b"whole")
    journal.release(empty=False)
    (journal.folder / "00000009").write_bytes(content)
    assert left(tmp_path) == [b"whole"]


def test_a_folder_that_was_never_finished_goes_after_a_while(tmp_path: Path) -> None:
    (tmp_path / ".bb").mkdir()
    (tmp_path / ".bb/lock").touch()
    born = (tmp_path / ".bb").stat().st_mtime
    assert list(estates(tmp_path, lambda: round((born + ABANDONED - 1) * 1000))) == []
    assert owners(tmp_path) == {"bb"}
    assert list(estates(tmp_path, lambda: round((born + ABANDONED + 1) * 1000))) == []
    assert owners(tmp_path) == set()


def test_a_new_folder_is_not_locked_by_who_looks_for_the_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner is about to do so, and would find it taken."""
    real, looked = fcntl.flock, 0

    def look_first(descriptor: int, operation: int) -> None:
        """At the moment at which the owner takes it; and whoever else does so holds it at that moment."""
        nonlocal looked
        looked += 1
        if looked == 1:
            assert list(estates(tmp_path, at_once)) == []
        assert looked == 1, "somebody else takes it"
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", look_first)
    journal = Journal(tmp_path, OWNER, 4)
    assert looked == 1
    journal.release(empty=True)


def test_a_folder_of_somebody_else_within_one_of_ours(journal: Journal, tmp_path: Path) -> None:
    journal.append(b"mine")
    journal.release(empty=False)
    (journal.folder / "notes").mkdir()
    assert left(tmp_path) == [b"mine"]
    for estate in estates(tmp_path, at_once):
        estate.remove()
    assert [path.name for path in journal.folder.iterdir()] == ["notes"]
    assert left(tmp_path) == []


def test_a_folder_that_was_nearly_removed_goes(tmp_path: Path) -> None:
    (tmp_path / "bb").mkdir()
    assert list(estates(tmp_path, at_once)) == []
    assert owners(tmp_path) == set()
