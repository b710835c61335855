"""The birth of a worker, and its end of the channel.

A worker is forked before any event loop, thread or client exists, so it shares nothing with the others but the
listening socket, the standard streams and memory that nobody writes to.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import NoReturn

from proxy.core.errors import place_of
from proxy.supervisor import signals
from proxy.supervisor.channel import LENGTH, Failed, Order, Report, order, packed

Work = Callable[["Worker"], None]
"""What a worker does. It returns when the worker is to end."""

FAILED = 2


class CannotServe(Exception):
    """For `Work` to raise: the text is a sentence of ours, fit to be seen."""


class Worker:
    """A worker's own view: who it is, what it is told, and whom it tells."""

    def __init__(self, number: int, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.number = number
        self._sock = sock

    def tell(self, report: Report) -> None:
        """A report is small, and the supervisor reads; if it does not, or is gone, there is nobody to tell."""
        with suppress(OSError):
            self._sock.send(packed(report))

    async def orders(self) -> AsyncIterator[Order]:
        """Each order as it comes; ends when the supervisor is gone."""
        reader, writer = await asyncio.open_unix_connection(sock=self._sock.dup())
        try:
            while True:
                size = await reader.readexactly(LENGTH)
                yield order(await reader.readexactly(int.from_bytes(size, "big")))
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


def fork(number: int, work: Work, forget: Callable[[], None]) -> tuple[int, socket.socket]:
    """Start a worker; its pid and the supervisor's end of the channel. Raises OSError.

    `forget` is called in the new process, to close what is the supervisor's alone.
    """
    ours, theirs = socket.socketpair()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()  # what is still in the buffer would be written by both
    supervisor = os.getpid()
    # A signal that comes before the new process has its own handlers would be taken for one to the supervisor.
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, signals.NUMBERS)
    try:
        pid = os.fork()
        if pid == 0:
            ours.close()
            _live(Worker(number, theirs), work, forget, supervisor)
    except OSError:
        ours.close()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        theirs.close()
    return pid, ours


def _live(worker: Worker, work: Work, forget: Callable[[], None], supervisor: int) -> NoReturn:
    """Never returns into the supervisor's code, whatever happens."""
    code = FAILED
    try:
        forget()
        signals.of_a_worker(supervisor)
        work(worker)
        code = 0
    except CannotServe as reason:
        worker.tell(Failed(str(reason)))
    except BaseException as error:
        worker.tell(Failed(f"{type(error).__name__} at {place_of(error)}"))
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
        os._exit(code)
