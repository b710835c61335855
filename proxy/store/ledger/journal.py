"""Where rows are from the moment they are written until the database has them: files in memory, one after another
(segment.py).

Each process has a folder of its own, named by its `owner`, with a file that it holds a lock on for as long as it
lives. Whoever gets that lock may read what the dead one has left.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final

from proxy.store.ledger.segment import Segment

SPARES: Final = 2
"""Segments that are ready before they are needed: a disk may be slow for as long as they last."""

KEPT: Final = 1
"""Segments that wait to be spares again: under steady load none has to be made."""

RESERVE: Final = 128 << 10
"""Bytes at the end of the last segment that only outcomes may use."""

REMEMBERED: Final = 2
"""Segments of which it is remembered what the records say: 4 MB, while the database is slow."""

TROUBLE: Final = 0.5
"""Seconds until the next attempt when the disk has no room."""

ABANDONED: Final = 60.0
"""Seconds after which a folder that was never finished is nobody's any more."""

_LOCK: Final = "lock"


class Journal:
    """Written by the event loop, read by one other thread, and given segments by a third: its own.

    `append` is the loop's; `read`, `committed` and `release` are the reader's.
    """

    def __init__(self, directory: Path, owner: str, most: int) -> None:
        """`most` segments may wait for the database. Raises OSError."""
        self.folder = directory / owner
        self._most = most
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = _own_folder(directory, owner)
        self._count = 0
        self._live: deque[Segment] = deque()
        """Those with records that the database does not have yet; the loop writes to the last one."""
        self._spares: deque[Segment] = deque()
        self._worn: deque[Segment] = deque()
        """Those that the database has all of: they become spares again."""
        self._wanted: SimpleQueue[bool] = SimpleQueue()
        self._failure: str | None = None
        self._released = False
        self._current = self._create()
        self._live.append(self._current)
        self._maker = threading.Thread(target=self._make, name="ledger-segments", daemon=True)
        self._maker.start()
        self._wanted.put(True)

    @property
    def segments(self) -> int:
        """How many wait for the database, the one that is written to included."""
        return len(self._live)

    @property
    def shortage(self) -> str:
        """Why there is no room, if there is none."""
        if self._failure:
            return self._failure
        return "the database is too far behind" if self.segments >= self._most else "the disk is too slow"

    def waits(self) -> bool:
        """Whether there is anything to read."""
        return self._current.read < self._current.end or len(self._live) > 1

    def append(self, record: bytes, said: Any = None, *, reserved: bool = False) -> bool:
        """Whether there was room. `said` is what the record says, for `read`. Never waits; the last bytes are for those
        with `reserved`."""
        reserve = 0 if reserved or self._spares else RESERVE
        return self._current.append(record, said, reserve) or (self._turn() and self._current.append(record, said))

    def read(self, most: int) -> list[Any]:
        """The next records, `most` at most: what was said of each, if it is remembered, or its bytes; None for one that
        is damaged."""
        records: list[Any] = []
        for segment in list(self._live):
            for record in segment.records():
                records.append(record)
                if len(records) == most:
                    return records
        return records

    def committed(self) -> None:
        """The database has all that was read."""
        for segment in list(self._live):
            segment.done(segment.read)
            if segment is self._current or not self._is_read(segment):
                return
            self._worn.append(self._live.popleft())
            self._wanted.put(True)

    def release(self, *, empty: bool) -> None:
        """Give the folder up; if it is `empty` of what the database does not have, it goes. Nothing is appended any
        more. A second time it does nothing. Raises OSError, and has given it up nevertheless."""
        if self._released:
            return
        self._released = True
        self._wanted.put(False)
        self._maker.join()
        self._current.seal()
        try:
            for segments in (self._spares, self._worn):
                while segments:
                    segments.popleft().remove()
            if empty:
                for segment in self._live:
                    segment.remove()
                _remove(self.folder)
        finally:
            os.close(self._lock)

    def _turn(self) -> bool:
        """Go on in the next segment, if one is ready."""
        if not self._spares:
            self._wanted.put(True)
            return False
        self._current = self._spares.popleft()
        self._live.append(self._current)
        for segment in list(self._live)[:-REMEMBERED]:  # the reader may take some of them away meanwhile
            segment.forget()
        self._wanted.put(True)
        return True

    def _is_read(self, segment: Segment) -> bool:
        return segment.read >= segment.end

    def _make(self) -> None:
        """Keep spare segments, and do not give up when there is no room for one."""
        while self._wait():
            self._failure = None
            try:
                while len(self._spares) < SPARES and len(self._live) + len(self._spares) < self._most:
                    self._spares.append(self._renewed(self._worn.popleft()) if self._worn else self._create())
            except OSError as error:
                self._failure = error.strerror or type(error).__name__
            while len(self._worn) > KEPT:
                self._worn.popleft().remove()

    def _wait(self) -> bool:
        """Until a segment is wanted, or may be had at last; False: never again."""
        with suppress(Empty):
            return self._wanted.get(timeout=TROUBLE if self._failure else None)
        return True

    def _create(self) -> Segment:
        return Segment.create(self._next_path())

    def _renewed(self, segment: Segment) -> Segment:
        segment.begin_anew(self._next_path())
        return segment

    def _next_path(self) -> Path:
        """By their names they are in their order."""
        self._count += 1
        return self.folder / f"{self._count:08d}"


def _own_folder(directory: Path, owner: str) -> int:
    """A new folder with a lock that we hold. It gets its name last: nobody can take it for a dead one's."""
    unnamed = directory / f".{owner}"
    unnamed.mkdir(mode=0o700)
    lock = os.open(unnamed / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unnamed.rename(directory / owner)
    except BaseException:
        os.close(lock)
        raise
    return lock


# What dead processes have left.


class Estate:
    """The journal of a process that is dead, and ours until it is left."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.owner = folder.name

    def records(self) -> Iterator[bytes | None]:
        for path in sorted(self._folder.iterdir()):
            segment = Segment.load(path) if path.name != _LOCK and path.is_file() else None
            if segment is not None:
                with segment.memory:
                    yield from segment.records()

    def remove(self) -> None:
        """All of it is in the database."""
        _remove(self._folder)


def estates(directory: Path, now: Callable[[], int]) -> Iterator[Estate]:
    """The journals of dead processes, each locked until the next one is asked for. `now` gives Unix milliseconds."""
    for folder in sorted(directory.iterdir()):
        unfinished = folder.name.startswith(".")
        if unfinished and not _is_abandoned(folder, now):  # its owner is about to take the lock, and must find it free
            continue
        lock = _lock_of_the_dead(folder)
        if lock is None:
            continue
        try:
            if unfinished:
                _remove(folder)
            else:
                yield Estate(folder)
        finally:
            os.close(lock)


def _is_abandoned(folder: Path, now: Callable[[], int]) -> bool:
    try:
        return now() / 1000 - folder.stat().st_mtime > ABANDONED
    except FileNotFoundError:  # it has its name now
        return False


def _remove(folder: Path) -> None:
    """The lock goes last: a folder without one has nothing of ours. Folders in it are somebody else's, and stay."""
    for path in folder.iterdir():
        if path.name != _LOCK and not path.is_dir():
            path.unlink()
    (folder / _LOCK).unlink()
    with suppress(OSError):
        folder.rmdir()


def owners(directory: Path) -> set[str]:
    """Those whose journals are here, living or dead."""
    return {folder.name.lstrip(".") for folder in directory.iterdir()}


def _lock_of_the_dead(folder: Path) -> int | None:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # gone meanwhile, or nearly
        with suppress(OSError):
            if not folder.name.startswith("."):
                folder.rmdir()
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.stat(folder / _LOCK)  # whoever had the lock may have removed it all
    except OSError:
        os.close(lock)
        return None
    return lock
