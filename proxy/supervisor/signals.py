"""Signals of both kinds of processes: the supervisor reads them from a socket, a worker leaves most of them to it."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from contextlib import suppress
from types import FrameType, TracebackType

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
"""What the supervisor acts on."""

_OF_A_WORKER = (signal.SIG_DFL, signal.SIG_IGN, signal.SIG_IGN, signal.SIG_DFL)
"""A terminal's Ctrl-C and hang-up reach every process."""

_PR_SET_PDEATHSIG = 1


def of_a_worker(supervisor: int) -> None:
    """What a signal does to the new process. Linux sends SIGTERM when the `supervisor` (its pid) is gone: the end of
    the channel says the same, but only to a worker that has come as far as to listen."""
    signal.set_wakeup_fd(-1)
    for number, action in zip(NUMBERS, _OF_A_WORKER, strict=True):
        signal.signal(number, action)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, NUMBERS)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != supervisor:
            raise SystemExit


class Signals:
    """While this is open, signals are kept until they are asked for, and a socket can be waited on for them: none is
    missed and none interrupts."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._arrived: list[int] = []

    def __enter__(self) -> Signals:
        self._before = [(number, signal.signal(number, self._arrive)) for number in NUMBERS]
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._before:
            signal.signal(number, handler)
        self.close()

    def close(self) -> None:
        self._reader.close()
        self._writer.close()

    def fileno(self) -> int:
        return self._reader.fileno()

    def _arrive(self, number: int, frame: FrameType | None) -> None:
        # The socket, which is there to wake us, has no room for what comes behind a storm of others.
        if number not in self._arrived or number in (signal.SIGTERM, signal.SIGINT):
            self._arrived.append(number)

    def received(self) -> list[int]:
        """The numbers that have come since the last call; SIGHUP and SIGCHLD only once."""
        with suppress(BlockingIOError):
            self._reader.recv(1 << 16)
        arrived, self._arrived = self._arrived, []
        return arrived
