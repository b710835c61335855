"""Circuits: a part of a provider that keeps failing is left alone for a while, and then tried carefully.

    closed     all calls are made
    open       none is, until `open_duration` has passed
    half open  few at a time, by all workers together, to find out

A success or a failure is what a call says of the provider. What the caller did wrong, what the proxy refuses by itself
and a client that leaves say nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final, Protocol

from proxy.core.errors import ProxyError, UpstreamRefusal, UpstreamUnknown

Log = Callable[..., None]

REFUSED: Final = "upstream_auth_failed"
"""The code of an error that says that the provider refuses the proxy's own key."""


class State(Enum):
    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


class Event(Enum):
    FAILURES = "as many failures in a row as it takes"
    SUCCESSES = "as many successes in a row as it takes"
    TIME = "it has been open for its time"


NEXT: Final[Mapping[tuple[State, Event], State]] = MappingProxyType(
    {
        (State.CLOSED, Event.FAILURES): State.OPEN,
        (State.OPEN, Event.TIME): State.HALF_OPEN,
        (State.HALF_OPEN, Event.SUCCESSES): State.CLOSED,
        (State.HALF_OPEN, Event.FAILURES): State.OPEN,  # one is enough
    }
)

_LOGGED: Final = MappingProxyType(
    {
        State.OPEN: ("error", "circuit_opened"),
        State.HALF_OPEN: ("info", "circuit_half_open"),
        State.CLOSED: ("info", "circuit_closed"),
    }
)

MOST: Final = 1_000
"""Circuits of one worker. Models are as many as their clients make up, and when a provider is gone all of them fail."""

SOON: Final = 1.0
"""Seconds after which to come again while others find out."""


class Rules(Protocol):
    """`open_duration` is in seconds."""

    @property
    def failure_threshold(self) -> int: ...
    @property
    def success_threshold(self) -> int: ...
    @property
    def open_duration(self) -> float: ...
    @property
    def half_open_max_requests(self) -> int: ...


class Probes(Protocol):
    """Who may find out whether a part of a provider is well again: so many of all workers together."""

    async def take(self, name: str, most: int, seconds: float) -> str | None:
        """A place among `most`, for `seconds` at most; None: all are taken. Never raises: with nobody to ask, each
        worker decides for itself."""
        ...

    def give(self, name: str, place: str) -> None:
        """It is well. A place that is not given back is free when its seconds are over."""
        ...


class Alone:
    """Probes of a worker that shares nothing with others."""

    async def take(self, name: str, most: int, seconds: float) -> str | None:
        return ""

    def give(self, name: str, place: str) -> None:
        """There is nobody to tell."""


class Circuit:
    """Of one part of a provider, in one worker. Times are monotonic seconds."""

    __slots__ = ("count", "name", "probes", "state", "until")

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = State.CLOSED
        self.count = 0
        """Failures in a row while it is closed, successes in a row while it is half open."""
        self.probes = 0
        self.until = 0.0


@dataclass(frozen=True, slots=True)
class Pass:
    """A call that was let in. A probe has a `place` among those of all workers, and the `circuit` that it is about."""

    name: str
    circuit: Circuit | None = None
    place: str = ""


class Circuits:
    """Those of a worker that are not as they are at first: of all others nothing is kept, so that they are as many as
    there is trouble. They outlive a reload."""

    def __init__(self, monotonic: Callable[[], float], log: Log, probes: Probes | None = None) -> None:
        self.probes = probes or Alone()
        self._now = monotonic
        self._log = log
        self._circuits: dict[str, Circuit] = {}

    def state(self, name: str) -> State:
        circuit = self._circuits.get(name)
        return circuit.state if circuit else State.CLOSED

    def forget(self) -> None:
        """What was known was about another address or another key."""
        self._circuits.clear()

    async def enter(self, name: str, rules: Rules) -> Pass | float:
        """Let a call in, or say after how many seconds to come again. `leave` must follow."""
        circuit = self._circuits.get(name)
        if circuit is None or circuit.state is State.CLOSED:
            return Pass(name)
        if circuit.state is State.OPEN:
            left = circuit.until - self._now()
            if left > 0:
                return left
            self._become(circuit, Event.TIME)
        if circuit.probes >= rules.half_open_max_requests:
            return SOON
        circuit.probes += 1
        try:
            place = await self.probes.take(name, rules.half_open_max_requests, rules.open_duration)
        except BaseException:
            circuit.probes -= 1
            raise
        if place is None:
            circuit.probes -= 1
            return SOON
        return Pass(name, circuit, place)

    def leave(self, one: Pass, rules: Rules, success: bool | None) -> None:
        """The call that was let in has ended. `success`: what it says of the provider, if anything."""
        if one.circuit:
            self._found_out(one.circuit, one.place, rules, success)
        elif success is False:
            self.failed(one.name, rules)
        elif success and self.state(one.name) is State.CLOSED:
            self._circuits.pop(one.name, None)

    def failed(self, name: str, rules: Rules) -> bool:
        """An attempt has failed, whatever becomes of its call. Whether there may be another one: not once the circuit
        has been opened, and then those that began before say nothing new."""
        circuit = self._circuits.get(name) or self._new(name)
        if circuit.state is State.CLOSED:
            circuit.count += 1
            if circuit.count >= rules.failure_threshold:
                self._open(circuit, rules)
        return circuit.state is State.CLOSED

    def _new(self, name: str) -> Circuit:
        """What has failed once and long ago makes room for what fails now."""
        if len(self._circuits) >= MOST:
            closed = (known for known, circuit in self._circuits.items() if circuit.state is State.CLOSED)
            del self._circuits[next(closed, next(iter(self._circuits)))]
        circuit = self._circuits[name] = Circuit(name)
        return circuit

    def _found_out(self, circuit: Circuit, place: str, rules: Rules, success: bool | None) -> None:
        circuit.probes -= 1
        if success is not False:
            self.probes.give(circuit.name, place)
        if circuit.state is not State.HALF_OPEN or self._circuits.get(circuit.name) is not circuit:
            return
        if success is False:
            self._open(circuit, rules)
        elif success:
            circuit.count += 1
            if circuit.count >= rules.success_threshold:
                self._become(circuit, Event.SUCCESSES)
                del self._circuits[circuit.name]

    def _open(self, circuit: Circuit, rules: Rules) -> None:
        circuit.until = self._now() + rules.open_duration
        self._become(circuit, Event.FAILURES)

    def _become(self, circuit: Circuit, event: Event) -> None:
        circuit.state, circuit.count = NEXT[circuit.state, event], 0
        level, what = _LOGGED[circuit.state]
        self._log(level, what, circuit=circuit.name)


def verdict(error: BaseException | None) -> bool | None:
    """What the end of a call says of the provider: True, it does its work; False, it fails; None, nothing."""
    if error is None:
        return True
    if isinstance(error, UpstreamUnknown):
        return None if error.code == REFUSED else False
    if isinstance(error, UpstreamRefusal):
        # What it refuses it has not tried to do: its front may be well where all behind it is not.
        return False if error.status >= 500 else None
    return None


def verdict_on_key(error: BaseException | None) -> bool | None:
    """The same of the key that it is paid with."""
    if isinstance(error, ProxyError) and error.code == REFUSED:
        return False
    return True if error is None else None
