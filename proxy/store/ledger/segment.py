"""One file of a journal: records in mapped memory.

A record is copied into blocks that the disk has already given, so that to write one is no system call and cannot fail.
The kernel has it then: it outlives our process, though not a power failure. Its length is written last, so half a
record is none; and behind it there is a length of 0, because the file may have had other records before.
"""

from __future__ import annotations

import mmap
import os
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import Any, Final

SEGMENT: Final = 1 << 20
"""Bytes of a segment: some 4,000 calls. It is in memory before it is needed, so that no request waits for a page."""

_MAGIC: Final = b"mpledger\x00\x00\x00\x01"
_UNMADE: Final = bytes(len(_MAGIC))
_DONE: Final = slice(12, 16)
_START: Final = 16
"""A segment: magic with version, up to where the database has it, then the records."""

_HEAD: Final = Struct("<II")
"""Of a record: its length, and its CRC-32, because after a power failure any page may be missing."""

_SIZE: Final = Struct("<I")
_NONE: Final = bytes(4)
"""The length of no record."""

_BEHIND: Final = tuple(bytes(-size % 4) + _NONE for size in range(4))
"""What comes behind a record, by its length: it is padded to 4 bytes."""


class Foreign(Exception):
    """A file that another version of ours must have written: it is left alone."""


class Segment:
    """`end` is where the next record goes, `read` where the next one is read. `said` is what the latest records say, as
    whoever wrote them had it, with the place and the end of each: to read them anew would cost more than all else."""

    __slots__ = ("end", "memory", "path", "read", "said")

    def __init__(self, path: Path, memory: mmap.mmap) -> None:
        self.path, self.memory = path, memory
        self.read = int.from_bytes(memory[_DONE], "little") or _START
        self.end = _START
        self.said: deque[tuple[int, int, Any]] = deque()

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

    def append(self, record: bytes, said: Any, reserve: int = 0) -> bool:
        """Whether there was room for it, and `reserve` bytes more."""
        at, size = self.end, len(record)
        behind = _BEHIND[size & 3]
        end = at + _HEAD.size + size + len(behind)
        if end + reserve > SEGMENT:
            return False
        memory = self.memory
        memory[at + 4 : end] = b"%b%b%b" % (zlib.crc32(record).to_bytes(4, "little"), record, behind)
        _SIZE.pack_into(memory, at, size)
        self.end = end = end - 4
        if said is not None:
            self.said.append((at, end, said))
        return True

    def records(self) -> Iterator[Any]:
        """Those that have not been read yet: what was said, or the bytes; None for one that is damaged."""
        said, memory = self.said, self.memory
        while (at := self.read) + _HEAD.size <= SEGMENT:
            while said and said[0][0] < at:  # it was read before its writer could say it
                said.popleft()
            if said and said[0][0] == at:
                _, self.read, what = said.popleft()
                yield what
                continue
            size, crc = _HEAD.unpack_from(memory, at)
            if not size:
                return
            start = at + _HEAD.size
            end = start + size
            self.read = min(end + 3 & ~3, SEGMENT)
            record = memory[start:end]
            yield record if zlib.crc32(record) == crc else None

    def forget(self) -> None:
        """What its records say must be read from them."""
        self.said = deque()

    def done(self, until: int) -> None:
        """The database has all records before `until`."""
        self.memory[_DONE] = until.to_bytes(4, "little")

    def seal(self) -> None:
        """There is no room any more."""
        self.end = SEGMENT

    def begin_anew(self, path: Path) -> None:
        """Without a record, under another name: to make a new one costs as much as a thousand calls. Raises OSError."""
        # Whoever reads it after our death finds nothing, wherever we were.
        self.memory[_START : _START + 4] = _NONE
        self.done(0)
        os.rename(self.path, path)
        self.path = path
        self.read = self.end = _START
        self.forget()

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
