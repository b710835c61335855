"""How a worker is: looked at once a second, and whenever somebody asks. So nothing that is done for a request pays for
it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from math import ceil
from typing import Final

from proxy.core.circuit import State
from proxy.core.metrics import families
from proxy.core.metrics.families import Family
from proxy.generation import Process
from proxy.upstream.client import Upstream
from proxy.upstream.transport import Connections

EVERY: Final = 1.0
"""Seconds."""

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
        self._lost: dict[str, int] = {}

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
        self.look()
        self._timer = asyncio.get_running_loop().call_later(EVERY, self._tick)

    def look(self) -> None:
        process, part = self._process, self._part
        part.beat(ceil(process.monotonic()))
        part.set(families.STREAMS, value=process.traffic.streams)
        part.set(families.IN_FLIGHT, value=process.traffic.requests)
        part.set(families.TASKS, value=len(asyncio.all_tasks()))
        part.set(families.LEDGER, value=process.ledger.rows_waiting if process.ledger else 0)
        for name, upstream in self._upstreams().items():
            part.set(families.CIRCUIT, name, value=self._worst(name))
            for label, usable in upstream.usable_keys():
                part.set(families.KEYS, name, label, value=usable)
        for name, connections in self._connections().items():
            part.set(families.UPSTREAM, name, "in_use", value=connections.in_use)
            part.set(families.UPSTREAM, name, "idle", value=connections.idle)
        self._add_lost(families.LOG_LOST, process.log.lost)
        self._add_lost(families.SERIES_LOST, part.lost)

    def _worst(self, provider: str) -> int:
        """Of all circuits of a provider, those of its models and those of its keys."""
        return max((_STATES[state] for state in _of(provider, self._process.circuits.states())), default=0)

    def _add_lost(self, family: Family, lost: int) -> None:
        """What this process has lost by now. The one before it has lost some, too."""
        self._part.add(family, amount=lost - self._lost.get(family.name, 0))
        self._lost[family.name] = lost


def _of(provider: str, states: Iterable[tuple[str, State]]) -> Iterable[State]:
    return (state for name, state in states if name.startswith((f"{provider}/", f"{provider} ")) or name == provider)
