"""What a provider would ask money for: the simulator's own count, to hold a ledger against.

A call that was answered with an error costs nothing. Any other costs its whole prompt and what of the answer was
produced: all of it if it was not streamed, whether or not its client waited for it; of a stream the events that were
written before it ended, however it did.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from msgspec import Struct

from proxy.simulator.calls import Call

_KEPT_LINES = 200_000


class Line(Struct, frozen=True):
    """One call that costs something. `id` is its `x-request-id`, if it had one."""

    n: int
    id: str | None
    model: str
    prompt: int
    completion: int


class Total(Struct):
    calls: int = 0
    prompt: int = 0
    completion: int = 0


class Bill:
    """Totals of all calls by the model's canonical name, and the last 200,000 lines."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin a new one. Calls that run are on it when they end."""
        self._lines: deque[Line] = deque(maxlen=_KEPT_LINES)
        self._totals: dict[str, Total] = {}
        self._free = 0

    def add(self, call: Call) -> None:
        if call.billed_as is None:
            self._free += 1
            return
        total = self._totals.setdefault(call.billed_as, Total())
        total.calls += 1
        total.prompt += call.prompt
        total.completion += call.completion
        self._lines.append(Line(call.n, _id(call), call.billed_as, call.prompt, call.completion))

    def view(self, running: int) -> dict[str, Any]:
        """As `GET /_sim/bill` shows it: `free` calls cost nothing, `running` ones are not on it yet."""
        return {"running": running, "free": self._free, "models": self._totals, "calls": list(self._lines)}


def _id(call: Call) -> str | None:
    found = dict(call.headers).get(b"x-request-id")
    return None if found is None else found.decode("latin-1")
