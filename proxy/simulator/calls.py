"""The record of the calls a simulator received, for tests that count and inspect them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from proxy.simulator.reply import Header

Ending = Literal["complete", "client_gone", "cut"]

_KEPT_CALLS = 10_000
_KEPT_BODY = 64 * 1024


@dataclass(slots=True)
class Call:
    """One call. `status` is what was sent (None: nothing), `ended` None while it runs; times are monotonic seconds.

    `billed_as` is the canonical name of the model that `prompt` and `completion` tokens are billed for (bill.py); None:
    nothing is.
    """

    n: int
    method: str
    path: str
    headers: list[Header]
    started: float
    body: bytes | None = None
    model: str | None = None
    status: int | None = None
    events_sent: int = 0
    billed_as: str | None = None
    prompt: int = 0
    completion: int = 0
    ended: Ending | None = None
    ended_at: float | None = None

    def view(self) -> dict[str, Any]:
        """As `GET /_sim/calls` shows it."""
        return {
            "n": self.n,
            "method": self.method,
            "path": self.path,
            "headers": [[key.decode("latin-1"), value.decode("latin-1")] for key, value in self.headers],
            "body": _readable(self.body),
            "model": self.model,
            "status": self.status,
            "events_sent": self.events_sent,
            "billed_as": self.billed_as,
            "prompt": self.prompt,
            "completion": self.completion,
            "ended": self.ended,
            "started": self.started,
            "ended_at": self.ended_at,
        }


class Calls:
    """The last 10,000 calls, bodies above 64 KB left out, and the script of faults for the calls to come."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._count = 0
        self._calls: deque[Call] = deque(maxlen=_KEPT_CALLS)
        self._script: deque[str] = deque()

    def begin(self, method: str, path: str, headers: Iterable[Header]) -> Call:
        self._count += 1
        call = Call(self._count, method, path, list(headers), self._monotonic())
        self._calls.append(call)
        return call

    def keep_body(self, call: Call, body: bytes) -> None:
        call.body = body if len(body) <= _KEPT_BODY else None

    def end(self, call: Call, ending: Ending) -> None:
        call.ended, call.ended_at = ending, self._monotonic()

    def __iter__(self) -> Iterator[Call]:
        return iter(self._calls)

    def views(self) -> list[dict[str, Any]]:
        return [call.view() for call in self._calls]

    def script(self, faults: Iterable[str]) -> None:
        self._script.extend(faults)

    def next_fault(self) -> str:
        """The next scripted fault; an empty one is a call that goes well."""
        return self._script.popleft() if self._script else ""

    def clear(self) -> None:
        """Forget the calls and the script; the numbers go on."""
        self._calls.clear()
        self._script.clear()


def _readable(body: bytes | None) -> Any:
    if not body:
        return None
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError:
        return body.decode("utf-8", "replace")
