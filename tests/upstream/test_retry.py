from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from proxy.core.errors import Repeat
from proxy.upstream.config import Config, Retry
from proxy.upstream.retry import LEAST, WINDOW, Budget, Retries

SAFE, UNSAFE, NEVER = Repeat.SAFE, Repeat.UNSAFE, Repeat.NEVER
LONG = 600.0


@dataclass
class Clock:
    now: float = 1_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Scene:
    """Retries with dice that always fall the same, and as many requests as are needed for any number of them."""

    dice: float = 0.5
    requests: int = 1_000
    clock: Clock = field(default_factory=Clock)

    def retries(self, **config: Any) -> Retries:
        retries = Retries(Retry(**config), now=self.clock, dice=lambda: self.dice)
        for _ in range(self.requests):
            retries.request()
        return retries


def test_as_it_is_by_default() -> None:
    retries = Scene().retries()
    assert [retries.wait(attempts, SAFE, None, LONG) for attempts in (1, 2, 3, 4)] == [1.0, 2.0, None, None]


def test_it_grows_to_a_bound() -> None:
    retries = Scene().retries(max_attempts=6, initial_delay="1s", multiplier=3.0, max_delay="10s")
    assert [retries.wait(attempts, SAFE, None, LONG) for attempts in range(1, 7)] == [1, 3, 9, 10, 10, None]


@pytest.mark.parametrize(("dice", "wait"), [(0.0, 0.75), (0.25, 0.875), (0.5, 1.0), (1.0, 1.25)])
def test_it_varies_by_a_quarter_to_both_sides(dice: float, wait: float) -> None:
    assert Scene(dice).retries().wait(1, SAFE, None, LONG) == wait


def test_without_jitter_it_does_not() -> None:
    assert Scene(dice=1.0).retries(jitter=0.0).wait(1, SAFE, None, LONG) == 1


@pytest.mark.parametrize(("asked", "wait"), [(0.2, 1.0), (7.5, 7.5), (60.0, 60.0), (3_600.0, 60.0)])
def test_the_provider_is_obeyed_within_bounds(asked: float, wait: float) -> None:
    assert Scene().retries().wait(1, SAFE, asked, LONG) == wait


def test_all_attempts_share_one_deadline() -> None:
    retries = Scene().retries()
    assert retries.wait(1, SAFE, None, 1.0) is None
    assert retries.wait(1, SAFE, None, 1.001) == 1.0
    assert retries.wait(1, SAFE, 20.0, 19.0) is None


def test_what_cannot_be_waited_for_uses_up_nothing() -> None:
    retries = Scene(requests=0).retries()
    for _ in range(10):
        assert retries.wait(1, SAFE, None, 0.5) is None
        assert retries.wait(1, NEVER, None, LONG) is None
    assert [retries.wait(1, SAFE, None, LONG) for _ in range(LEAST + 1)] == [1.0] * LEAST + [None]


def test_what_may_have_been_done_is_only_repeated_if_asked_for() -> None:
    assert Scene().retries().wait(1, UNSAFE, None, LONG) is None
    assert Scene().retries(retry_unsafe=True).wait(1, UNSAFE, None, LONG) == 1.0
    assert Scene().retries(retry_unsafe=True).wait(1, NEVER, None, LONG) is None


def test_it_can_be_turned_off() -> None:
    retries = Scene().retries(max_attempts=1)
    assert not retries.on
    assert retries.wait(1, SAFE, None, LONG) is None


# The budget.


@given(st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=300), st.sampled_from([0.0, 0.1, 0.2, 1.0]))
def test_f2_no_window_has_more_retries_than_its_part(steps: list[tuple[float, bool]], part: float) -> None:
    """Counted by whole seconds: what is a second older than the window may count still, in favour of either."""
    clock = Clock()
    budget = Budget(part, LEAST, clock)
    requests: list[float] = []
    retries: list[float] = []
    for pause, is_request in steps:
        clock.now += pause
        if is_request:
            budget.request()
            requests.append(clock.now)
            continue
        recent = [at for at in retries if int(at) > int(clock.now) - WINDOW]
        asked = [at for at in requests if int(at) > int(clock.now) - WINDOW]
        allowed = len(recent) < max(LEAST, int(part * len(asked)))
        assert budget.take() is allowed
        if allowed:
            retries.append(clock.now)


def test_f2_when_everything_fails_a_tenth_is_added() -> None:
    scene = Scene(requests=0)
    retries = scene.retries()
    made = 0
    for _ in range(3_000):
        retries.request()
        made += retries.wait(1, SAFE, None, LONG) is not None
        scene.clock.now += 0.005
    assert made == 300


@pytest.mark.parametrize(("workers", "each"), [(1, 3), (2, 1), (3, 1), (8, 1)])
def test_f2_workers_share_what_is_allowed_at_least(workers: int, each: int) -> None:
    retries = Retries(Retry(), workers, now=Clock())
    assert sum(retries.wait(1, SAFE, None, LONG) is not None for _ in range(10)) == each


def test_f2_memory_is_that_of_a_window() -> None:
    clock = Clock()
    budget = Budget(0.1, LEAST, clock)
    for _ in range(10_000):
        clock.now += 0.4
        budget.request()
        budget.take()
    assert len(budget._seconds) <= WINDOW + 1
    clock.now += 10 * WINDOW
    budget.request()
    assert (budget._requests, budget._retries, len(budget._seconds)) == (1, 0, 1)


# Settings.


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_attempts", 0),
        ("max_attempts", 11),
        ("initial_delay", "0s"),
        ("initial_delay", 1),
        ("multiplier", 0.5),
        ("max_delay", "0s"),
        ("jitter", 1.5),
        ("budget", 0.1),
        ("budget", "101%"),
        ("budget", "-1%"),
        ("budget", "10"),
        ("attempts", 3),
    ],
)
def test_what_is_no_setting(key: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        Config.model_validate({"retry": {key: value}})


def test_settings_as_they_are_written() -> None:
    written = {"max_attempts": 5, "initial_delay": "250ms", "multiplier": 1.5, "max_delay": "5s", "jitter": 0.0}
    found = Config.model_validate({"retry": written | {"budget": "20%", "retry_unsafe": True}}).retry
    assert (found.max_attempts, found.initial_delay, found.max_delay) == (5, 0.25, 5.0)
    assert (found.budget, found.retry_unsafe) == (0.2, True)
