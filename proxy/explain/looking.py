"""Services that only look. A stage that is given them does what it always does, and nothing comes of it."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

from starlette.types import Receive, Send

from proxy.core.cache import Answers, Backend, Found, Role, Stats, Then, Verified
from proxy.core.circuit import Pass, Rules, Sight, State
from proxy.core.entry import Entry
from proxy.core.exchange import Exchange
from proxy.core.flight import Flight
from proxy.core.quota import Claim, QuotaStore, Verdict
from proxy.core.services import Drainables, Services, Traffic
from proxy.core.switches import Switches
from proxy.explain.notes import noted
from proxy.guard import Deadlines
from proxy.player import Player


def only_looking(services: Services) -> Services:
    """The same, as far as reading goes. No ledger is kept of what does not happen."""
    answers = services.answers
    return replace(
        services,
        log=_Unsaid(),
        quotas=_Quotas(services.quotas),
        ledger=None,
        circuits=_Circuits(services.circuits),
        next_call=str,
        answers=answers and Answers(_Kept(answers.backend), answers.secret, _Flights(answers.flights)),
        traffic=Traffic(),
        drainables=Drainables(),
    )


class _Unsaid:
    """What has not happened is in no log."""

    def __call__(self, level: str, event: str, **fields: Any) -> None:
        """Not a line."""

    def ready(self, level: str, event: str, fields: bytes) -> None:
        """Neither."""


class _Quotas:
    """A QuotaStore."""

    def __init__(self, store: QuotaStore) -> None:
        self._store = store

    async def reserve(self, call: str, claims: Sequence[Claim]) -> Verdict:
        notes = noted()
        notes.claims = claims
        notes.verdict = await self._store.look(claims)
        return notes.verdict

    async def look(self, claims: Sequence[Claim]) -> Verdict:
        return await self._store.look(claims)

    def settle(self, call: str, claims: Sequence[Claim], used: Sequence[int]) -> None:
        """Nothing is held."""

    async def caught_up(self) -> None:
        """Nothing was settled."""


class _Circuits:
    """Switches."""

    def __init__(self, circuits: Switches) -> None:
        self._circuits = circuits

    def left(self, name: str) -> float:
        left = self._circuits.left(name)
        if left:
            noted().circuits[name] = Sight(State.OPEN, left)
        return left

    def state(self, name: str) -> State:
        return self._circuits.state(name)

    async def look(self, name: str, rules: Rules) -> Sight:
        return await self._circuits.look(name, rules)

    def at_once(self, name: str) -> None:
        """Nobody: `enter` is asked, and noted."""

    async def enter(self, name: str, rules: Rules) -> Pass | float:
        sight = noted().circuits[name] = await self._circuits.look(name, rules)
        return sight.wait or Pass(name)

    def leave(self, one: Pass, rules: Rules, success: bool | None) -> None:
        """Nothing has ended."""

    def failed(self, one: Pass, rules: Rules) -> bool:
        return True


class _Kept:
    """A Backend. What only an admin does with one, no stage does, and so nothing that is explained."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.near = backend.near

    def at_hand(self, key: str) -> Entry | None:
        return self._backend.peek(key)

    peek = at_hand

    async def look(self, key: str, since: int, flight: Flight) -> Found:
        found = await self._backend.would_find(key, since)
        if found.role is Role.FOLLOW:
            _begin(flight)
        return found

    async def would_find(self, key: str, since: int) -> Found:
        return await self._backend.would_find(key, since)

    def keep(self, key: str, entry: Entry, flight: Flight, then: Then) -> None:
        """Nothing was answered."""
        then(key, flight)

    def drop(self, key: str, flight: Flight) -> None:
        """Nothing was led."""

    def become(self, *_: object) -> None:
        raise NotImplementedError

    async def delete(self, team: str | None) -> int:
        raise NotImplementedError

    async def stats(self, team: str | None) -> Stats:
        raise NotImplementedError

    async def verify(self) -> Verified:
        raise NotImplementedError


class _Flights(MutableMapping[str, Flight]):
    """Of each that is under way a likeness, which can be followed without anybody's noticing."""

    def __init__(self, flights: MutableMapping[str, Flight]) -> None:
        self._flights = flights

    def __getitem__(self, key: str) -> Flight:
        flight = self._flights[key]
        if not flight.called or not flight.open:
            raise KeyError(key)
        likeness = Flight(1, float)
        _begin(likeness)
        if flight.done:
            likeness.finish(flight.entry, flight.saved)
        return likeness

    def __setitem__(self, key: str, flight: Flight) -> None:
        """Nobody waits for what is only looked for."""

    def __delitem__(self, key: str) -> None:
        """It is not there."""

    def __iter__(self) -> Iterator[str]:
        return iter(self._flights)

    def __len__(self) -> int:
        return len(self._flights)


def _begin(flight: Flight) -> None:
    """Whoever follows it has not to wait for its first byte."""
    flight.called = flight.streamed = True
    flight.add(b" ")


class Glimpse(Player):
    """Plays nothing to nobody."""

    def kept(self, entry: Entry, key: str) -> Any:
        noted().kept = entry
        return super().kept(entry, key)

    async def _send(self, entry: Entry, exchange: Exchange, receive: Receive, send: Send) -> None:
        exchange.streamed = entry.stream

    async def _join(
        self, flight: Flight, key: str, patience: Deadlines, exchange: Exchange, receive: Receive, send: Send
    ) -> None:
        if flight.done and flight.entry:
            await self._play(flight.entry, key, exchange, receive, send)
