"""Notices that files have changed: by looking at them now and then, which works on every kind of file system.

A file that somebody is still writing must not be read, so a change counts once two looks in a row find the same: the
file is at rest. That is also why no change can hide behind the coarse clock of a file system. What a look sees is where
the name leads to in the end, so a file that is renamed into place and the symbolic links that Kubernetes swaps are
changes as any other.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from proxy.core.services import Log
from proxy.settings.load import Sources

INTERVAL = 0.25
"""Seconds between two looks: a change is noticed after two, and takes effect within a second."""

Look = tuple[tuple[int, ...] | None, ...]


class Watch:
    """Call `changed()` every INTERVAL. It says yes at first: between the reading of the files and the first look they
    may have changed, and only whoever reads them again knows.
    """

    def __init__(self, files: Iterable[str]) -> None:
        self.files = tuple(files)
        self._acted_on: Look | None = None
        self._last: Look | None = None

    def changed(self) -> bool:
        """Whether the files are at rest, and not what they were when this last said yes. Blocks for as long as the file
        system takes to answer."""
        look = tuple(map(_look, self.files))
        at_rest, self._last = look == self._last, look
        if not at_rest or look == self._acted_on:
            return False
        self._acted_on = look
        return True


def _look(file: str) -> tuple[int, ...] | None:
    """Differs from an earlier one when the content may differ; None: there is none to be had."""
    try:
        found = os.stat(file)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(found.st_mode):
        return (found.st_dev, found.st_ino)  # the times of a pipe change with every use
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class LastTried:
    """The `sources` that were looked at last, beside those in force, and what follows from another look."""

    def __init__(self, running: Sources, log: Log) -> None:
        self.sources = running
        """Of a broken configuration too, so that its mending is noticed."""
        self._log = log
        self._failed = False

    def found(self, sources: Sources, running: Sources, generation: int, *, asked: bool) -> bool:
        """Whether `sources` are to be tried: they are not in force, and new unless somebody has `asked`."""
        before, self.sources = self.sources, sources
        if sources != running:
            return asked or sources != before
        if asked or self._failed:
            self._log("info", "reload_unchanged", generation=generation)
        self._failed = False
        return False

    def ended(self, *, well: bool) -> None:
        """What was tried is in force now, or it is broken."""
        self._failed = not well
