"""The supervisor's loop: signals, the workers' reports, and time. One thread, no event loop, nothing that can hang."""

from __future__ import annotations

import gc
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from proxy.core.errors import place_of
from proxy.core.services import Log
from proxy.supervisor.backoff import FIRST, Backoff
from proxy.supervisor.channel import Applied, Channel, Drain, End, Failed, Order, Ready, Refused, Reload, Report
from proxy.supervisor.signals import Signals
from proxy.supervisor.worker import Work, fork


class NoWorkerStarts(Exception):
    """Not one worker has ever been ready. The text says why the last one was not."""


class Configuration(Protocol):
    """What the workers are to serve: `changes` to what they began with, as bytes, the `generation`, and the `drain`
    that is asked for, in seconds.

    A worker that is forked has this object as it is then.
    """

    @property
    def changes(self) -> bytes: ...

    @property
    def generation(self) -> int: ...

    @property
    def drain(self) -> float: ...

    def look(self, *, asked: bool) -> bool:
        """Whether there is a new valid one, which the properties show from now on. `asked`: by SIGHUP, not by time."""
        ...


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. `look`: between two looks for changed files; `ready`: that a worker may take to be ready; `again`:
    before one that failed is replaced; `wait`: that a new connection is left to wait for a worker when there is none;
    `last`: that workers get to end, when the drain is over."""

    look: float = 0.25
    ready: float = 60.0
    again: float = FIRST
    wait: float = 1.0
    last: float = 10.0


@dataclass
class Slot:
    """A worker's place: who has it now, or when the next one gets it (`due`)."""

    number: int
    due: float
    backoff: Backoff
    pid: int | None = None
    channel: Channel | None = None
    started: float = 0.0
    ready: float | None = None
    applied: int = 0
    reason: str | None = None

    def tell(self, order: Order) -> None:
        if self.channel:
            self.channel.send(order)


class Supervisor:
    """`run()` keeps `count` workers at `work` until a signal ends them; `announce` is called once all are ready. `away`
    makes what whoever connects, from this address, is answered while there is no worker and none is about to come."""

    def __init__(
        self,
        count: int,
        work: Work,
        configuration: Configuration,
        listener: socket.socket,
        log: Log,
        announce: Callable[[], None],
        *,
        away: Callable[[str], bytes],
        timing: Timing | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._work = work
        self._configuration = configuration
        self._listener = listener
        self._log = log
        self._announce = announce
        self._away = away
        self._timing = timing or Timing()
        self._now = clock
        self._slots = [Slot(number, clock(), Backoff(self._timing.again)) for number in range(1, count + 1)]
        self._selector = selectors.PollSelector()  # epoll would be one object that workers share
        self._next_look = clock() + self._timing.look
        self._ever_ready = self._announced = False
        self._settled = configuration.generation
        self._alone = False
        self._stopped_by: int | None = None
        self._patience_ends: float | None = None

    def run(self) -> int:
        """The number of the first signal, once no worker is left. Raises NoWorkerStarts."""
        gc.freeze()  # a collection in a worker would write to memory that all share, and so copy it
        with Signals() as self._signals:
            self._selector.register(self._signals, selectors.EVENT_READ)
            try:
                while self._stopped_by is None or any(self._alive()):
                    self._turn()
            finally:
                self._selector.close()
            return self._stopped_by

    def _turn(self) -> None:
        self._start_those_due()
        for key, events in self._selector.select(self._wait()):
            if isinstance(key.fileobj, Channel) and events & selectors.EVENT_WRITE:
                key.fileobj.flush()
        for number in self._signals.received():
            self._signalled(number)
        for slot in list(self._alive()):
            self._listen(slot)
            self._bury_if_dead(slot)
        self._look_now_and_then()
        self._end_patience()
        self._watch_channels()
        self._turn_away()

    def _alive(self) -> Iterator[Slot]:
        return (slot for slot in self._slots if slot.pid)

    # Starting and dying.

    def _start_those_due(self) -> None:
        for slot in self._to_start():
            if slot.due <= self._now():
                self._start(slot)

    def _to_start(self) -> list[Slot]:
        """Until one worker has been ready, nobody gets a second chance: what cannot start is to say so and end."""
        if self._stopped_by is not None:
            return []
        return [slot for slot in self._slots if not slot.pid and (self._ever_ready or not slot.backoff.failures)]

    def _start(self, slot: Slot) -> None:
        slot.started, slot.ready, slot.reason = self._now(), None, None
        slot.applied = self._configuration.generation
        try:
            slot.pid, sock = fork(slot.number, self._work, self._forget)
        except OSError as error:
            slot.reason = f"no process to be had: {error.strerror}"
            self._died(slot, None)
            return
        slot.channel = Channel(sock)
        self._selector.register(slot.channel, selectors.EVENT_READ)

    def _forget(self) -> None:
        """In a new worker: close what is the supervisor's."""
        self._selector.close()
        self._signals.close()
        for slot in self._alive():
            if slot.channel:
                slot.channel.close()

    def _listen(self, slot: Slot) -> None:
        if slot.channel:
            for report in slot.channel.receive():
                self._reported(slot, report)

    def _reported(self, slot: Slot, report: Report) -> None:
        match report:
            case Ready(generation):
                slot.ready, slot.applied, self._ever_ready = self._now(), generation, True
            case Applied(generation):
                slot.applied = generation
            case Refused(generation) if self._stopped_by is None:
                # Settings are the same on every worker or there are none: the next one begins with the new ones.
                self._log("error", "worker_refused", worker=slot.number, pid=slot.pid, generation=generation)
                slot.tell(Drain())
            case Failed(reason):
                slot.reason = reason
        self._all_agree()

    def _all_agree(self) -> None:
        """Say so when every worker is ready, and when every one serves a new generation."""
        generation = self._configuration.generation
        if not all(slot.ready is not None and slot.applied == generation for slot in self._slots):
            return
        if not self._announced:
            self._announced = True
            self._announce()
        if self._settled != generation:
            self._settled = generation
            self._log("info", "reloaded_everywhere", generation=generation, workers=len(self._slots))

    def _bury_if_dead(self, slot: Slot) -> None:
        assert slot.pid
        pid, status = os.waitpid(slot.pid, os.WNOHANG)
        if pid:
            self._listen(slot)  # its last words
            self._died(slot, os.waitstatus_to_exitcode(status))

    def _died(self, slot: Slot, code: int | None) -> None:
        """`code` as in subprocess: negative for a signal."""
        now, pid, slot.pid = self._now(), slot.pid, None
        self._close(slot)
        if self._stopped_by is not None:
            if code:
                self._report_death(slot, pid, code, None)
            return
        wait = slot.backoff.after(None if slot.ready is None else now - slot.ready)
        slot.due, slot.ready = now + wait, None
        self._report_death(slot, pid, code, wait)
        if not any(self._alive()) and not self._to_start():
            raise NoWorkerStarts(slot.reason or f"a worker ended with {code} before it was ready")

    def _report_death(self, slot: Slot, pid: int | None, code: int | None, wait: float | None) -> None:
        self._log(
            "error" if code != 0 else "warning",
            "worker_died",
            worker=slot.number,
            pid=pid,
            signal=signal.Signals(-code).name if code and code < 0 else None,
            exit_code=code if code is not None and code >= 0 else None,
            reason=slot.reason,
            next_in_s=wait if wait is None else round(wait, 3),
            crash_loop=slot.backoff.looping,
        )

    def _turn_away(self) -> None:
        """Answer whoever connects while nobody serves and the next worker is not due yet, instead of leaving them to
        wait."""
        waits = [slot.due - self._now() for slot in self._to_start()]
        alone = len(waits) == len(self._slots) and min(waits) > self._timing.wait
        if alone is not self._alone:
            self._alone = alone
            if alone:
                self._selector.register(self._listener, selectors.EVENT_READ)
            else:
                self._selector.unregister(self._listener)
        if alone:
            self._listener.setblocking(False)
            with suppress(OSError):
                while True:
                    self._answer(*self._listener.accept())

    def _answer(self, client: socket.socket, address: tuple[str, int]) -> None:
        with client, suppress(OSError):
            client.setblocking(False)
            client.send(self._away(address[0]))
            client.shutdown(socket.SHUT_WR)
            client.recv(1 << 16)  # what is left unread would make the system take the answer back

    def _close(self, slot: Slot) -> None:
        if slot.channel:
            self._selector.unregister(slot.channel)
            slot.channel.close()
            slot.channel = None

    # Orders from outside.

    def _signalled(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._look(asked=True)
        elif number in (signal.SIGTERM, signal.SIGINT):
            self._stop(number)

    def _stop(self, number: int) -> None:
        """The first time as a drain, the second time at once."""
        first = self._stopped_by is None
        if first:
            self._stopped_by = number
            self._turn_away()
            self._listener.close()  # workers close theirs; as long as one is open, connections would be taken
        patience = self._configuration.drain + self._timing.last if first else self._timing.last
        self._patience_ends = min(self._patience_ends or float("inf"), self._now() + patience)
        for slot in self._alive():
            slot.tell(Drain() if first else End())

    def _look_now_and_then(self) -> None:
        if self._now() >= self._next_look:
            self._next_look = self._now() + self._timing.look
            self._look(asked=False)

    def _look(self, *, asked: bool) -> None:
        if self._stopped_by is not None:
            if asked:
                self._log("info", "reload_ignored", what="the proxy is shutting down")
            return
        try:
            new = self._configuration.look(asked=asked)
        except Exception as error:  # a fault here must not end what serves
            self._log("error", "unexpected", kind=type(error).__name__, place=place_of(error))
            return
        if new:
            for slot in self._alive():
                slot.tell(Reload(self._configuration.generation, self._configuration.changes))

    # Time.

    def _wait(self) -> float:
        """Seconds until something is due."""
        if self._patience_ends is not None:
            return max(0.0, self._patience_ends - self._now())
        times = [self._next_look, *(slot.due for slot in self._to_start())]
        return max(0.0, min(times) - self._now())

    def _end_patience(self) -> None:
        now = self._now()
        over = self._patience_ends is not None and now >= self._patience_ends
        for slot in self._alive():
            if over or (slot.ready is None and now >= slot.started + self._timing.ready):
                assert slot.pid
                slot.reason = "it did not end in time" if over else "it was not ready in time"
                os.kill(slot.pid, signal.SIGKILL)

    def _watch_channels(self) -> None:
        """A worker that has closed its end has no more to say; one with a full socket is written to when it reads."""
        for slot in self._alive():
            if slot.channel and slot.channel.ended:
                self._close(slot)
            elif slot.channel:
                write = selectors.EVENT_WRITE if slot.channel.pending else 0
                self._selector.modify(slot.channel, selectors.EVENT_READ | write)
