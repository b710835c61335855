"""What a proxy holds: memory, descriptors, sockets and threads of its processes as the system sees them, tasks and
upstream connections as its own /metrics tell them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import psutil

_LINE: Final = re.compile(r"^([a-zA-Z_:][\w:]*)(\{.*\})? (\S+)", re.MULTILINE)

TOLD: Final = {
    "tasks": ("mistral_proxy_tasks", ""),
    "streams": ("mistral_active_streams", ""),
    "in use": ("mistral_proxy_upstream_connections", 'state="in_use"'),
    "idle": ("mistral_proxy_upstream_connections", 'state="idle"'),
}
"""What is looked for in /metrics: the name, and a label. All series that have them are added up."""


@dataclass(frozen=True, slots=True)
class Ports:
    """By which the two sides of a proxy are told apart."""

    proxy: int
    upstream: int


class Process(NamedTuple):
    """One process at one moment. `rss` in MB. Sockets are of clients, of the upstream, and all others (Redis)."""

    name: str
    rss: float
    files: int
    threads: int
    clients: int
    upstream: int
    others: int


@dataclass(frozen=True, slots=True)
class Sample:
    """A look at the proxy. `told` is what its metrics say, None where they do not; `ledger` has bytes."""

    second: float
    processes: Mapping[int, Process]
    told: Mapping[str, float | None]
    ledger: int

    def total(self, of: str) -> int:
        """Of a field of Process, over all."""
        return int(sum(getattr(process, of) for process in self.processes.values()))


def look(root: int, ports: Ports) -> dict[int, Process]:
    """The process `root` and its children, by their ids. One that ends meanwhile is not in it."""
    found: dict[int, Process] = {}
    with suppress(psutil.Error):
        first = psutil.Process(root)
        children = sorted(first.children(), key=lambda child: child.pid)
        for process in (first, *children):
            name = "worker" if process is not first else "supervisor" if children else "proxy"
            with suppress(psutil.Error):
                found[process.pid] = _process(process, name, ports)
    return found


def _process(process: psutil.Process, name: str, ports: Ports) -> Process:
    clients = upstream = others = 0
    for one in process.net_connections("inet"):
        if one.status == psutil.CONN_LISTEN:
            continue
        if one.laddr and one.laddr.port == ports.proxy:
            clients += 1
        elif one.raddr and one.raddr.port == ports.upstream:
            upstream += 1
        else:
            others += 1
    memory = process.memory_info().rss / 1e6
    return Process(name, memory, process.num_fds(), process.num_threads(), clients, upstream, others)


def told(metrics: str | None) -> dict[str, float | None]:
    """What `TOLD` names, from the text of /metrics."""
    series = [(name, labels or "", float(value)) for name, labels, value in _LINE.findall(metrics or "")]
    found: dict[str, float | None] = {}
    for what, (wanted, label) in TOLD.items():
        values = [value for name, labels, value in series if name == wanted and label in labels]
        found[what] = sum(values) if values else None
    return found


def ledger_size(state: Path) -> int:
    """Bytes of the database of the ledger, and of what SQLite keeps beside it."""
    size = 0
    for file in state.rglob("ledger.db*"):
        with suppress(OSError):
            size += file.stat().st_size
    return size


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Growth per hour by least squares of (second, value); 0 where there are no two moments."""
    if not points:
        return 0.0
    middle = sum(at for at, _ in points) / len(points)
    mean = sum(value for _, value in points) / len(points)
    spread = sum((at - middle) ** 2 for at, _ in points)
    return 3600 * sum((at - middle) * (value - mean) for at, value in points) / spread if spread else 0.0
