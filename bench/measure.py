"""Clocks, memory and cores: what is read from the operating system about a process."""

from __future__ import annotations

import ctypes
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil


def clock_id(pid: int) -> int:
    """The id of the CPU clock of process `pid` (POSIX clock_getcpuclockid); OSError if there is no such process."""
    found = ctypes.c_int()
    error = ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(found))
    if error:
        raise OSError(error, os.strerror(error), f"process {pid}")
    return found.value


def _waited(pid: int) -> float:
    """Seconds the main thread was ready to run while its core was taken by others; 0 where Linux does not say."""
    try:
        with open(f"/proc/{pid}/schedstat") as file:
            return int(file.read().split()[1]) / 1e9
    except OSError:
        return 0.0


@dataclass(frozen=True, slots=True)
class Processes:
    """A process and the children it had when this was made (a supervisor and its workers, say), measured as one."""

    clocks: tuple[int, ...]
    pids: tuple[int, ...]

    @classmethod
    def of(cls, pid: int) -> Processes:
        """The tree that `pid` is the root of."""
        pids = (pid, *(child.pid for child in psutil.Process(pid).children(recursive=True)))
        return cls(tuple(map(clock_id, pids)), pids)

    def cpu(self) -> float:
        """CPU seconds used so far, user + system, all threads, with the resolution of nanoseconds."""
        return sum(map(time.clock_gettime, self.clocks))

    def waited(self) -> float:
        """Seconds spent waiting for a core so far."""
        return sum(map(_waited, self.pids))

    def rss(self) -> int:
        """Resident memory, bytes."""
        return sum(psutil.Process(pid).memory_info().rss for pid in self.pids)


@dataclass(frozen=True, slots=True)
class Cores:
    """Which cores a target may use, and which everything else."""

    target: frozenset[int]
    others: frozenset[int]

    @classmethod
    def split(cls) -> Cores:
        """The first usable core for the target, the rest for the others; no split where there is only one."""
        usable = sorted(os.sched_getaffinity(0))
        return cls(frozenset(usable[:1]), frozenset(usable[1:] or usable))


@contextmanager
def on_cores(cores: frozenset[int]) -> Iterator[None]:
    """Move this process to `cores` for the length of the block: what is started meanwhile inherits them."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def allow_open_files(count: int) -> None:
    """Raise the limit of open files of this process and its children to `count`, or to what the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
