"""How a worker is: looked at once a second, and whenever somebody asks. So nothing that is done for a request pays for
it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import ceil
from typing import Final

from proxy.core.circuit import State
from proxy.core.metrics import families
from proxy.core.metrics.board import UNKNOWN
from proxy.core.metrics.families import Family
from proxy.generation import Process
from proxy.upstream.client import Upstream
from proxy.upstream.transport import Connections

EVERY: Final = 1.0
"""Seconds."""

Told = tuple[Family, *tuple[str, ...]]
"""A family and the values of its labels."""

_STATES: Final = {State.CLOSED: 0, State.HALF_OPEN: 1, State.OPEN: 2}


class Vitals:
    """`upstreams` are those that are called now, by their provider's name; `connections` are those to each, also of
    configurations that requests still run under."""

    def __init__(
        self,
        process: Process,
        upstreams: Callable[[], Mapping[str, Upstream]],
        connections: Callable[[], Mapping[str, Connections]],
    ) -> None:
        self._process = process
        self._part = process.part
        self._upstreams = upstreams
        self._connections = connections
        self._timer: asyncio.TimerHandle | None = None
        self._told: dict[Told, int] = {}
        self._lost: dict[Family, int] = {}

    def start(self) -> None:
        """Begin; `close` must follow."""
        self._part.take()
        self._tick()

    def close(self) -> None:
        """There is nothing to look at any more."""
        if self._timer:
            self._timer.cancel()
        self._part.beat(0)

    def _tick(self) -> None:
        # First: what fails once must not be the last look.
        self._timer = asyncio.get_running_loop().call_later(EVERY, self._tick)
        self.look()

    def look(self) -> None:
        process, part = self._process, self._part
        part.beat(ceil(process.monotonic()))
        now = dict(self._states())
        # What a configuration before this one had is not there any more.
        for told, value in (dict.fromkeys(self._told, UNKNOWN) | now).items():
            part.set(*told, value=value)
        self._told = now
        self._add_lost(families.LOG_LOST, process.log.lost)
        if process.tracer:
            self._add_lost(families.SPANS_LOST, process.tracer.lost)

    def _add_lost(self, family: Family, lost: int) -> None:
        """What this process has lost since its start. The one before it has lost some, too."""
        self._part.add(family, amount=lost - self._lost.get(family, 0))
        self._lost[family] = lost

    def _states(self) -> Iterator[tuple[Told, int]]:
        process = self._process
        yield (families.STREAMS,), process.traffic.streams
        yield (families.IN_FLIGHT,), process.traffic.requests
        yield (families.TASKS,), len(asyncio.all_tasks())
        yield (families.LEDGER,), process.ledger.rows_waiting if process.ledger else 0
        for name, upstream in self._upstreams().items():
            yield (families.CIRCUIT, name), self._worst(name)
            for label, usable in upstream.usable_keys():
                yield (families.KEYS, name, label), usable
        for name, connections in self._connections().items():
            yield (families.UPSTREAM, name, "in_use"), connections.in_use
            yield (families.UPSTREAM, name, "idle"), connections.idle

    def _worst(self, provider: str) -> int:
        """Of all circuits of a provider, those of its models and those of its keys."""
        return max((_STATES[state] for state in _of(provider, self._process.circuits.states())), default=0)


def _of(provider: str, states: Iterable[tuple[str, State]]) -> Iterable[State]:
    return (state for name, state in states if name.startswith((f"{provider}/", f"{provider} ")) or name == provider)
