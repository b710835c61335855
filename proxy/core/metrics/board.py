"""Memory in which all workers count: each in a part of its own, and whoever is asked adds the parts up.

It is there before the first worker is, so that it outlives each of them: whoever takes a dead worker's place counts on
in its part. Nothing is locked: one process writes a part, and a number is written at once.

    a part    head    a few numbers: see below
              names   one after the other: a family's number, the length of its labels, the labels
              cells   64-bit numbers; each series has those of its family, in the order of the names
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from mmap import mmap
from struct import Struct
from typing import Final

from proxy.core.metrics.families import FAMILIES, Family, Kind

_HEAD, _NAMES, _CELLS = 64, 1 << 20, 1 << 20
"""Bytes. What is not used takes up none of the machine's."""

_PART: Final = _HEAD + _NAMES + _CELLS
_BEAT, _USED, _LOST = 0, 1, 2
"""Numbers of the head: when its worker was last seen alive, bytes of names, series for which there was no room."""

_ROW: Final = Struct("<HH")
_BETWEEN: Final = "\x1f"
_NUMBER: Final = {family.name: number for number, family in enumerate(FAMILIES)}
UNKNOWN: Final = -(1 << 63)
"""The value of a gauge of which nothing is known any more: it is not told."""

_SPARE: Final = max(family.cells for family in FAMILIES)
"""The first cells of a part are no series': what there is no room for is counted there."""

Labels = tuple[str, ...]
Series = tuple[Family, Labels, int]
"""A family, the values of its labels, and its first cell."""


class Part:
    """What one worker counts. `cells` are its numbers: whoever counts often adds to them itself."""

    def __init__(self, memory: memoryview) -> None:
        self._head = memory[:_HEAD].cast("q")
        self._names = memory[_HEAD : _HEAD + _NAMES]
        self.cells = memory[_HEAD + _NAMES : _PART].cast("q")
        self._at: dict[tuple[str, Labels], int] = {}
        self._series: list[Series] = []
        self._read, self._free = 0, _SPARE

    def take(self) -> None:
        """A worker begins: it counts on where the one before stopped. How things are is not known any more."""
        for family, _, at in self.series():
            if family.kind is Kind.GAUGE:
                self.cells[at] = UNKNOWN

    def at(self, family: Family, *labels: str) -> int:
        """The first cell of a series."""
        found = self._at.get((family.name, labels))
        return self._new(family, labels) if found is None else found

    def add(self, family: Family, *labels: str, amount: int = 1) -> None:
        self.cells[self.at(family, *labels)] += amount

    def set(self, family: Family, *labels: str, value: int) -> None:
        self.cells[self.at(family, *labels)] = value

    def beat(self, now: int) -> None:
        """Its worker is alive, at this monotonic second; 0: it has ended."""
        self._head[_BEAT] = now

    @property
    def last_beat(self) -> int:
        return self._head[_BEAT]

    @property
    def lost(self) -> int:
        return self._head[_LOST]

    def series(self) -> Sequence[Series]:
        """All there are by now, another process's too."""
        used = self._head[_USED]
        while self._read < used:
            number, length = _ROW.unpack_from(self._names, self._read)
            start = self._read + _ROW.size
            family, text = FAMILIES[number], bytes(self._names[start : start + length]).decode()
            self._know(family, tuple(text.split(_BETWEEN)) if family.labels else (), start + length)
        return self._series

    def _know(self, family: Family, labels: Labels, end: int) -> int:
        at = self._free
        self._at[family.name, labels] = at
        self._series.append((family, labels, at))
        self._read, self._free = end, at + family.cells
        return at

    def _new(self, family: Family, labels: Labels) -> int:
        self.series()  # whoever was here before may have it
        if (family.name, labels) in self._at:
            return self._at[family.name, labels]
        text = _BETWEEN.join(labels).encode()
        end = self._read + _ROW.size + len(text)
        if end > _NAMES or self._free + family.cells > len(self.cells):
            self._head[_LOST] += 1
            self._at[family.name, labels] = 0
            return 0
        _ROW.pack_into(self._names, self._read, _NUMBER[family.name], len(text))
        self._names[end - len(text) : end] = text
        at = self._know(family, labels, end)
        self._head[_USED] = end  # last: from now on others read it
        return at


class Board:
    """The parts of so many workers."""

    def __init__(self, workers: int = 1) -> None:
        memory = memoryview(mmap(-1, workers * _PART))
        self.parts = tuple(Part(memory[at * _PART : (at + 1) * _PART]) for at in range(workers))

    def alive(self, since: int) -> Iterator[Part]:
        """Those whose worker was alive after this monotonic second."""
        return (part for part in self.parts if part.last_beat >= since and part.last_beat)
