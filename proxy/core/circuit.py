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
from math import ceil
from types import MappingProxyType
from typing import Final, Protocol

import msgspec

from proxy.core.errors import KEY_REFUSED, CircuitOpen, ProxyError, UpstreamRefusal, UpstreamUnknown

Log = Callable[..., None]


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

    async def free(self, name: str, most: int) -> bool:
        """Whether `take` would find one now. Never raises."""
        ...

    def give(self, name: str, place: str) -> None:
        """It may be well, and others may find out more."""
        ...

    def keep(self, name: str, place: str, seconds: float) -> None:
        """It is not well: the place is taken for so many seconds from now on."""
        ...


class Alone:
    """Probes of a worker that shares nothing with others."""

    async def take(self, name: str, most: int, seconds: float) -> str | None:
        return ""

    async def free(self, name: str, most: int) -> bool:
        return True

    def give(self, name: str, place: str) -> None:
        """There is nobody to tell."""

    def keep(self, name: str, place: str, seconds: float) -> None:
        """As `give`."""


class Circuit:
    """Of one part of a provider, in one worker. Times are monotonic seconds."""

    __slots__ = ("count", "name", "probes", "state", "until")

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = State.CLOSED
        self.count = 0
        """Failures in a row while it is closed, successes in a row while it is half open."""
        self.probes: list[float] = []
        """When each that is under way stops keeping others from finding out."""
        self.until = 0.0


class Pass(msgspec.Struct, frozen=True):
    """A call that was let in, in an `epoch` between two times that all was forgotten. A probe has a `place` among those
    of all workers until `ends`, and the `circuit` that it is about."""

    name: str
    epoch: int = 0
    circuit: Circuit | None = None
    place: str = ""
    ends: float = 0.0


@dataclass(frozen=True, slots=True)
class Sight:
    """What a call would meet: the `state` of a circuit, and after how many seconds to come again; 0: it is let in."""

    state: State
    wait: float = 0.0


class Circuits:
    """Those of a worker that are not as they are at first: of all others nothing is kept, so that they are as many as
    there is trouble. They outlive a reload."""

    def __init__(self, monotonic: Callable[[], float], log: Log, probes: Probes | None = None) -> None:
        self.probes = probes or Alone()
        self._now = monotonic
        self._log = log
        self._circuits: dict[str, Circuit] = {}
        self._epoch = 0

    def state(self, name: str) -> State:
        circuit = self._circuits.get(name)
        return circuit.state if circuit else State.CLOSED

    def states(self) -> list[tuple[str, State]]:
        """Of all circuits that are not closed, by name."""
        return [(name, one.state) for name, one in self._circuits.items() if one.state is not State.CLOSED]

    def left(self, name: str) -> float:
        """Seconds for which no call will be let in; 0 if one may be."""
        circuit = self._circuits.get(name)
        return max(0.0, circuit.until - self._now()) if circuit and circuit.state is State.OPEN else 0.0

    def forget(self) -> None:
        """What is known, and what calls under way will tell, is about another address or another key."""
        self._circuits.clear()
        self._epoch += 1

    async def look(self, name: str, rules: Rules) -> Sight:
        """What `enter` would do now. Nothing is changed, and no place is taken."""
        circuit = self._circuits.get(name)
        if circuit is None or circuit.state is State.CLOSED:
            return Sight(State.CLOSED)
        left = self.left(name)
        if left:
            return Sight(State.OPEN, left)
        now, most = self._now(), rules.half_open_max_requests
        may = sum(ends > now for ends in circuit.probes) < most and await self.probes.free(name, most)
        return Sight(State.HALF_OPEN, 0.0 if may else SOON)

    def at_once(self, name: str) -> Pass | None:
        """Let a call in, if the circuit is closed: there is nobody to be asked. `leave` must follow."""
        circuit = self._circuits.get(name)
        return Pass(name, self._epoch) if circuit is None or circuit.state is State.CLOSED else None

    async def enter(self, name: str, rules: Rules) -> Pass | float:
        """Let a call in, or say after how many seconds to come again. `leave` must follow."""
        if let_in := self.at_once(name):
            return let_in
        circuit = self._circuits[name]
        if circuit.state is State.OPEN:
            left = circuit.until - self._now()
            if left > 0:
                return left
            self._become(circuit, Event.TIME)
        now = self._now()
        # One that takes longer than the circuit was open keeps nobody else from finding out.
        circuit.probes = [ends for ends in circuit.probes if ends > now]
        if len(circuit.probes) >= rules.half_open_max_requests:
            return SOON
        ends, epoch = now + rules.open_duration, self._epoch
        circuit.probes.append(ends)
        place = None
        try:
            place = await self.probes.take(name, rules.half_open_max_requests, rules.open_duration)
        finally:
            if place is None:
                _remove(circuit.probes, ends)
        return SOON if place is None else Pass(name, epoch, circuit, place, ends)

    def leave(self, one: Pass, rules: Rules, success: bool | None) -> None:
        """The call that was let in has ended. `success`: what it says of the provider, if anything."""
        if one.circuit:
            self._found_out(one, one.circuit, rules, success)
        elif success is False:
            self.failed(one, rules)
        elif success and one.name in self._circuits and self._is_still_closed(one):
            del self._circuits[one.name]

    def _is_still_closed(self, one: Pass) -> bool:
        return one.epoch == self._epoch and self._circuits[one.name].state is State.CLOSED

    def failed(self, one: Pass, rules: Rules) -> bool:
        """An attempt has failed, whatever becomes of its call. Whether there may be another one: not once the circuit
        has been opened, and then those that began before say nothing new."""
        if one.epoch != self._epoch:
            return True
        circuit = self._circuits.get(one.name) or self._new(one.name)
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

    def _found_out(self, one: Pass, circuit: Circuit, rules: Rules, success: bool | None) -> None:
        _remove(circuit.probes, one.ends)
        if success is False:
            self.probes.keep(circuit.name, one.place, rules.open_duration)
        else:
            self.probes.give(circuit.name, one.place)
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


def of_model(provider: str, model: str) -> str:
    """The name of a model's circuit. `model` is the catalogue's id."""
    return model if model.startswith(f"{provider}/") else f"{provider}/{model}"


def is_open(seconds: float) -> CircuitOpen:
    """What a request is told that may not ask before so many have passed."""
    return CircuitOpen(
        "The provider keeps failing, so it is not asked at the moment. Try again later.", wait=ceil(seconds * 1000)
    )


def of_key(provider: str, owner: str | None) -> str:
    """The name of the circuit of a provider's keys: those of all teams, or the one that a team has of its own."""
    return f"{provider} key of {owner}" if owner else f"{provider} key"


def _remove(probes: list[float], ends: float) -> None:
    if ends in probes:
        probes.remove(ends)


def verdict(error: BaseException | None) -> bool | None:
    """What the end of a call says of the provider: True, it does its work; False, it fails; None, nothing."""
    if error is None:
        return True
    if isinstance(error, UpstreamUnknown):
        return None if error.code == KEY_REFUSED or error.is_the_times else False
    if isinstance(error, UpstreamRefusal):
        # What it refuses it has not tried to do: its front may be well where all behind it is not.
        return False if error.status >= 500 else None
    return None


def verdict_on_key(error: BaseException | None) -> bool | None:
    """The same of the key that it is paid with. A 403 may be about what was asked: no team can have the key refused for
    all others."""
    if isinstance(error, ProxyError) and error.code == KEY_REFUSED:
        return False if error.detail.get("upstream", {}).get("status") == 401 else None
    return True if error is None else None
