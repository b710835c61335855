"""Where rows are from the moment they are written until the database has them: files in memory, one after another.

A record is copied into a segment whose blocks the disk has already given, so that to write one is no system call and
cannot fail. The kernel has it then: it outlives our process, though not a power failure. Its length is written last,
so half a record is none.

Each process has a folder of its own, named by its `owner`, with a file that it holds a lock on for as long as it
lives. Whoever gets that lock may read what the dead one has left.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from struct import Struct
from typing import Final

SEGMENT: Final = 1 << 20
"""Bytes of a segment: some 4,000 calls. It is in memory before it is needed, so that no request waits for a page."""

SPARES: Final = 2
"""Segments that are ready before they are needed: a disk may be slow for as long as they last."""

RESERVE: Final = 128 << 10
"""Bytes at the end of the last segment that only outcomes may use."""

TROUBLE: Final = 0.5
"""Seconds until the next attempt when the disk has no room."""

ABANDONED: Final = 60.0
"""Seconds after which a folder that was never finished is nobody's any more."""

_MAGIC: Final = b"mpledger\x00\x00\x00\x01"
_UNMADE: Final = bytes(len(_MAGIC))
_DONE: Final = slice(12, 16)
_START: Final = 16
"""A segment: magic with version, up to where the database has it, then the records."""

_HEAD: Final = Struct("<II")
"""Of a record: its length, and its CRC-32, because after a power failure any page may be missing. Padded to 4 bytes."""

_LOCK: Final = "lock"


class Foreign(Exception):
    """A file that another version of ours must have written: it is left alone."""


class Segment:
    """One file. `end` is where the next record goes, `read` where the next one is read."""

    __slots__ = ("end", "memory", "path", "read")

    def __init__(self, path: Path, memory: mmap.mmap) -> None:
        self.path, self.memory = path, memory
        self.read = int.from_bytes(memory[_DONE], "little") or _START
        self.end = _START

    @classmethod
    def create(cls, path: Path) -> Segment:
        """Raises OSError when there is no room for it."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _allocate(descriptor)
            memory = mmap.mmap(descriptor, SEGMENT, flags=mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))
        except BaseException:
            path.unlink()
            raise
        finally:
            os.close(descriptor)
        memory[: len(_MAGIC)] = _MAGIC
        return cls(path, memory)

    @classmethod
    def load(cls, path: Path) -> Segment | None:
        """One that another process has left; None: it died while it was made. Raises Foreign."""
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size != SEGMENT:
                return None
            memory = mmap.mmap(file.fileno(), SEGMENT, access=mmap.ACCESS_COPY)
        magic = memory[: len(_MAGIC)]
        if magic not in (_MAGIC, _UNMADE):
            raise Foreign(path)
        return cls(path, memory) if magic == _MAGIC else None

    def append(self, record: bytes, reserve: int = 0) -> bool:
        """Whether there was room for it, and `reserve` bytes more."""
        at = self.end
        end = at + _HEAD.size + len(record)
        if end + reserve > SEGMENT:
            return False
        memory = self.memory
        memory[at + 4 : end] = zlib.crc32(record).to_bytes(4, "little") + record
        memory[at : at + 4] = len(record).to_bytes(4, "little")
        self.end = end + 3 & ~3
        return True

    def records(self) -> Iterator[bytes | None]:
        """Those that have not been read yet; None for one that is damaged."""
        memory, unpack, head = self.memory, _HEAD.unpack_from, _HEAD.size
        while (at := self.read) + head <= SEGMENT:
            size, crc = unpack(memory, at)
            if not size:
                return
            start = at + head
            end = start + size
            self.read = min(end + 3 & ~3, SEGMENT)
            record = memory[start:end]
            yield record if zlib.crc32(record) == crc else None

    def done(self, until: int) -> None:
        """The database has all records before `until`."""
        self.memory[_DONE] = until.to_bytes(4, "little")

    def remove(self) -> None:
        self.memory.close()
        self.path.unlink(missing_ok=True)


def _allocate(descriptor: int) -> None:
    """Have the disk give all blocks of a segment now. Raises OSError."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, SEGMENT)
        return
    written = 0  # macOS has no such call: there they are given to what is written
    while written < SEGMENT:
        written += os.pwrite(descriptor, bytes(SEGMENT - written), written)


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

    def append(self, record: bytes, *, reserved: bool = False) -> bool:
        """Whether there was room. Never waits; the last bytes are for those with `reserved`."""
        reserve = 0 if reserved or self._spares else RESERVE
        return self._current.append(record, reserve) or (self._turn() and self._current.append(record))

    def read(self, most: int) -> list[bytes | None]:
        """The next records, `most` at most."""
        records: list[bytes | None] = []
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
            self._live.popleft()
            self._wanted.put(True)
            segment.remove()

    def release(self, *, empty: bool) -> None:
        """Give the folder up; if it is `empty` of what the database does not have, it goes. Nothing is appended any
        more. A second time it does nothing. Raises OSError, and has given it up nevertheless."""
        if self._released:
            return
        self._released = True
        self._wanted.put(False)
        self._maker.join()
        self._current.end = SEGMENT
        try:
            while self._spares:
                self._spares.popleft().remove()
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
        self._wanted.put(True)
        return True

    def _is_read(self, segment: Segment) -> bool:
        return segment.read >= segment.end

    def _make(self) -> None:
        """Keep spare segments, and do not give up when there is no room for one."""
        while self._wait():
            self._failure = None
            while len(self._spares) < SPARES and len(self._live) + len(self._spares) < self._most:
                try:
                    self._spares.append(self._create())
                except OSError as error:
                    self._failure = error.strerror or type(error).__name__
                    break

    def _wait(self) -> bool:
        """Until a segment is wanted, or may be had at last; False: never again."""
        with suppress(Empty):
            return self._wanted.get(timeout=TROUBLE if self._failure else None)
        return True

    def _create(self) -> Segment:
        self._count += 1
        return Segment.create(self.folder / f"{self._count:08d}")


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
