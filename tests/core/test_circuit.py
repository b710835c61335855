from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.circuit import MOST, NEXT, SOON, Circuits, Event, Pass, Sight, State, verdict, verdict_on_key
from proxy.core.errors import (
    BadRequest,
    ClientGone,
    Draining,
    Overloaded,
    ProxyError,
    StoreUnavailable,
    UpstreamFailed,
    UpstreamRefusal,
    UpstreamTimeout,
)
from proxy.upstream.config import CircuitBreaker
from tests.asgi import Log
from tests.steps import now

T = TypeVar("T")
NAME = "mistral/m"
RULES = CircuitBreaker()


@dataclass
class Places:
    """Probes of all workers, of which there are none left when it is `full`."""

    full: bool = False
    taken: int = 0
    given: int = 0
    kept: int = 0

    async def take(self, name: str, most: int, seconds: float) -> str | None:
        assert (most, seconds) == (RULES.half_open_max_requests, RULES.open_duration)
        if self.full:
            return None
        self.taken += 1
        return "place"

    async def free(self, name: str, most: int) -> bool:
        assert most == RULES.half_open_max_requests
        return not self.full

    def give(self, name: str, place: str) -> None:
        assert place == "place"
        self.given += 1

    def keep(self, name: str, place: str, seconds: float) -> None:
        assert (place, seconds) == ("place", RULES.open_duration)
        self.kept += 1


@dataclass
class Scene:
    clock: float = 100.0
    log: Log = field(default_factory=Log)
    places: Places = field(default_factory=Places)

    def __post_init__(self) -> None:
        self.circuits = Circuits(lambda: self.clock, self.log, self.places)

    def enter(self, name: str = NAME) -> Pass | float:
        """Whoever has looked before knows how it will end."""
        sight = now(self.circuits.look(name, RULES))
        assert sight == now(self.circuits.look(name, RULES))
        found = now(self.circuits.enter(name, RULES))
        assert sight.wait == (0.0 if isinstance(found, Pass) else found)
        return found

    def call(self, success: bool | None, name: str = NAME) -> bool:
        """Whether a call with such an end was let in."""
        found = self.enter(name)
        if not isinstance(found, Pass):
            return False
        self.circuits.leave(found, RULES, success)
        return True

    def opened(self) -> Scene:
        for _ in range(RULES.failure_threshold):
            assert self.call(False)
        assert self.state is State.OPEN
        return self

    @property
    def state(self) -> State:
        return self.circuits.state(NAME)


def test_five_failures_in_a_row_open_it() -> None:
    scene = Scene()
    for success in (False, False, False, False, True, False, False, None, False, False):
        assert scene.call(success)
        assert scene.state is State.CLOSED
    assert scene.call(False)
    assert scene.state is State.OPEN
    assert scene.log.lines == [("error", "circuit_opened", {"circuit": NAME})]


def test_it_says_how_long_and_lets_nobody_in_until_then() -> None:
    scene = Scene().opened()
    assert scene.enter() == 30.0
    scene.clock += 29.5
    assert scene.enter() == 0.5
    scene.clock += 0.5
    assert isinstance(scene.enter(), Pass)
    assert scene.state is State.HALF_OPEN


def test_a_look_takes_no_place_and_moves_nothing() -> None:
    scene = Scene()
    look = partial(scene.circuits.look, NAME, RULES)
    assert now(look()) == Sight(State.CLOSED)
    assert not scene.circuits._circuits
    scene.opened()
    assert now(look()) == Sight(State.OPEN, 30.0)
    scene.clock += 30
    assert [now(look()) for _ in range(500)] == [Sight(State.HALF_OPEN)] * 500
    assert (scene.state, scene.places.taken) == (State.OPEN, 0)
    assert [line[1] for line in scene.log.lines] == ["circuit_opened"]
    assert isinstance(scene.enter(), Pass)
    assert now(look()) == Sight(State.HALF_OPEN, SOON)


def test_f8_one_at_a_time_finds_out() -> None:
    scene = Scene().opened()
    scene.clock += 30
    probe = scene.enter()
    assert isinstance(probe, Pass)
    assert [scene.enter() for _ in range(500)] == [SOON] * 500
    scene.circuits.leave(probe, RULES, True)
    assert (scene.state, scene.places.taken, scene.places.given) == (State.HALF_OPEN, 1, 1)
    for _ in range(2):
        assert scene.call(True)
    assert scene.state is State.CLOSED
    assert [line[1] for line in scene.log.lines] == ["circuit_opened", "circuit_half_open", "circuit_closed"]
    assert not scene.circuits._circuits  # as at first


def test_f8_a_probe_that_fails_opens_it_again_and_keeps_its_place() -> None:
    scene = Scene().opened()
    scene.clock += 30
    assert scene.call(True)
    assert scene.call(False)
    assert scene.enter() == 30.0
    assert (scene.places.taken, scene.places.given, scene.places.kept) == (2, 1, 1)


def test_f8_a_slow_probe_keeps_nobody_else_from_finding_out() -> None:
    scene = Scene().opened()
    scene.clock += 30
    slow = scene.enter()
    assert isinstance(slow, Pass)
    scene.clock += 29
    assert scene.enter() == SOON
    scene.clock += 1
    for _ in range(3):
        assert scene.call(True)
    scene.circuits.leave(slow, RULES, True)
    assert scene.state is State.CLOSED


def test_f8_a_probe_that_says_nothing_is_another_ones_turn() -> None:
    scene = Scene().opened()
    scene.clock += 30
    assert scene.call(None)
    assert (scene.state, scene.places.given) == (State.HALF_OPEN, 1)
    assert scene.call(True)


def test_f8_while_another_worker_finds_out_nobody_does_here() -> None:
    scene = Scene().opened()
    scene.clock += 30
    scene.places.full = True
    assert [scene.enter() for _ in range(3)] == [SOON] * 3
    scene.places.full = False
    assert scene.call(True)


async def test_f8_a_client_that_leaves_while_it_asks_for_a_place_keeps_none() -> None:
    class Slow(Places):
        async def take(self, name: str, most: int, seconds: float) -> str | None:
            await asyncio.Event().wait()
            raise AssertionError

    scene = Scene(places=Slow()).opened()
    scene.clock += 30
    task = asyncio.create_task(scene.circuits.enter(NAME, RULES))
    await asyncio.sleep(0)
    assert scene.enter() == SOON
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    scene.circuits.probes = Places()
    assert isinstance(await scene.circuits.enter(NAME, RULES), Pass)


def test_f8_of_several_that_find_out_the_first_failure_counts() -> None:
    class Many(Places):
        async def take(self, name: str, most: int, seconds: float) -> str | None:
            return "place"

    rules = CircuitBreaker(half_open_max_requests=3, success_threshold=1)
    scene = Scene(places=Many()).opened()
    scene.clock += 30
    first, second, third = (now(scene.circuits.enter(NAME, rules)) for _ in range(3))
    assert isinstance(first, Pass)
    assert isinstance(second, Pass)
    assert isinstance(third, Pass)
    scene.circuits.leave(first, rules, False)
    scene.clock += 10
    scene.circuits.leave(second, rules, True)
    scene.circuits.leave(third, rules, False)
    assert scene.enter() == 20.0
    assert [line[1] for line in scene.log.lines] == ["circuit_opened", "circuit_half_open", "circuit_opened"]


def test_those_that_began_before_say_nothing_new() -> None:
    scene = Scene()
    early = [scene.enter() for _ in range(10)]
    scene.opened()
    scene.clock += 10
    for one in early[:5]:
        assert isinstance(one, Pass)
        scene.circuits.leave(one, RULES, False)
    assert scene.enter() == 20.0
    scene.clock += 20
    probe = scene.enter()
    for one, success in zip(early[5:], (True, False, True, True, True), strict=True):
        assert isinstance(one, Pass)
        scene.circuits.leave(one, RULES, success)
    assert isinstance(probe, Pass)
    assert scene.state is State.HALF_OPEN
    scene.circuits.leave(probe, RULES, False)
    assert scene.enter() == 30.0


def test_attempts_count_and_there_is_none_once_it_is_open() -> None:
    scene = Scene()
    one = scene.enter()
    assert isinstance(one, Pass)
    assert [scene.circuits.failed(one, RULES) for _ in range(7)] == [True] * 4 + [False] * 3


def test_f10_one_model_is_not_another() -> None:
    scene = Scene().opened()
    assert scene.enter() == 30.0
    assert scene.call(False, "mistral/other")
    assert scene.call(True, "mistral/other")


def test_what_is_forgotten_is_as_at_first_whoever_is_under_way() -> None:
    scene = Scene().opened()
    scene.clock += 30
    probe = scene.enter()
    assert isinstance(probe, Pass)
    scene.circuits.forget()
    assert scene.state is State.CLOSED
    scene.circuits.leave(probe, RULES, False)
    assert scene.state is State.CLOSED
    early = [scene.enter() for _ in range(10)]
    scene.circuits.forget()
    for one in early:
        assert isinstance(one, Pass)
        assert scene.circuits.failed(one, RULES)
        scene.circuits.leave(one, RULES, False)
    assert scene.state is State.CLOSED
    assert scene.call(False)
    scene.circuits.leave(early[0], RULES, True)  # type: ignore[arg-type]
    assert [scene.call(False) for _ in range(5)] == [True] * 4 + [False]


def test_names_that_clients_make_up_are_no_leak() -> None:
    scene = Scene().opened()
    for n in range(3 * MOST):
        scene.call(False, f"mistral/{n}")
    assert len(scene.circuits._circuits) == MOST
    assert scene.state is State.OPEN  # what is open stays
    scene.call(True)


def test_every_state_is_left() -> None:
    assert {state for state, _ in NEXT} == set(State)
    assert set(NEXT.values()) == set(State)
    assert {event for _, event in NEXT} == set(Event)


@given(st.lists(st.one_of(st.sampled_from([True, False, None]), st.floats(0, 40)), max_size=200))
def test_as_an_oracle_has_it(steps: list[bool | float | None]) -> None:
    """Calls one after the other, and time that passes."""
    scene = Scene()
    failures = successes = 0
    until: float | None = None
    for step in steps:
        if isinstance(step, float):
            scene.clock += step
            continue
        let_in = until is None or scene.clock >= until
        assert scene.call(step) is let_in
        if not let_in or step is None:
            continue
        if until is None:
            failures = 0 if step else failures + 1
            opens, closes = failures == 5, False
        else:
            successes = successes + 1 if step else 0
            opens, closes = not step, successes == 3
        if opens:
            until, failures, successes = scene.clock + 30.0, 0, 0
        elif closes:
            until = None
            successes = 0


def refusal(status: int) -> UpstreamRefusal:
    return UpstreamRefusal("x", status=status, type="t", code="c")


@pytest.mark.parametrize(
    ("error", "well"),
    [
        (None, True),
        (UpstreamFailed("x"), False),
        (UpstreamTimeout("x"), False),
        (UpstreamTimeout("x", detail={"timeout": "idle"}), False),
        (UpstreamTimeout("x", detail={"timeout": "total"}), None),
        (refusal(500), False),
        (refusal(503), False),
        (refusal(400), None),
        (refusal(404), None),
        (refusal(429), None),
        (UpstreamFailed("x", code="upstream_auth_failed"), None),
        (BadRequest("x"), None),
        (Overloaded("x"), None),
        (Draining("x"), None),
        (StoreUnavailable("x"), None),
        (ProxyError("x"), None),
        (ClientGone(), None),
        (asyncio.CancelledError(), None),
        (ZeroDivisionError(), None),
    ],
)
def test_f9_what_an_end_says_of_the_provider(error: BaseException | None, well: bool | None) -> None:
    assert verdict(error) is well


def test_what_an_end_says_of_the_key() -> None:
    def refused(status: int) -> UpstreamFailed:
        return UpstreamFailed("x", code="upstream_auth_failed", detail={"upstream": {"status": status}})

    ends = (None, refused(401), refused(403), UpstreamFailed("x"), refusal(400))
    assert [verdict_on_key(error) for error in ends] == [True, False, None, None, None]
