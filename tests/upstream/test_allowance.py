"""Calls are held back just before the provider would refuse them, and no longer than they must be."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.core.errors import ProviderBusy
from proxy.core.provider import Left
from proxy.upstream.allowance import BLIND, DOUBTS, EDGE, PATIENCE, SOON, WINDOW, Allowance, Quantity, Sent

NOW = 1000.0
FREE_AGAIN = WINDOW + EDGE


@dataclass
class Clock:
    now: float = NOW
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    async def rest(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


def at_once(allowance: Allowance, tokens: int = 0) -> Sent:
    """Send a call that need not wait."""

    async def rest(seconds: float) -> None:
        raise AssertionError(f"held back for {seconds} s")

    with pytest.raises(StopIteration) as ended:
        allowance.turn(tokens, rest).send(None)
    sent: Sent = ended.value.value
    return sent


def test_nothing_is_known_at_first():
    quantity = Quantity()
    assert quantity.left(1000.0) is None
    assert quantity.wait(10**9, 1000.0, False) == 0


def test_what_is_used_is_free_a_minute_later():
    quantity = Quantity()
    for second, left in ((1000, 9), (1001, 6), (1010, 0)):
        quantity.told(left, Sent(second, second), second)
    assert quantity.wait(1, 1020.0, True) == pytest.approx(1001 + FREE_AGAIN - 1020)
    assert quantity.wait(4, 1020.0, True) == pytest.approx(1010 + FREE_AGAIN - 1020)
    assert quantity.left(1001 + WINDOW) == 0
    assert quantity.left(1001 + FREE_AGAIN) == 3


def test_what_the_provider_has_freed_itself_is_not_freed_twice():
    quantity = Quantity()
    for second, left in ((1000, 9), (1001, 6), (1062, 9)):
        quantity.told(left, Sent(second, second), second)
    assert quantity.left(1100.0) == 9


def test_after_a_minute_there_is_as_much_as_ever():
    quantity = Quantity()
    quantity.told(7, Sent(990.0, 1), 990.0)
    quantity.told(0, Sent(1000.0, 2), 1000.0)
    assert quantity.left(1000.0 + WINDOW) == 0
    assert quantity.left(1000.1 + WINDOW) == 7


def test_where_nobody_has_seen_it_used_one_call_finds_out():
    clock = Clock()
    allowance = Allowance(1, clock)
    allowance.heard(Left(0, None), Sent(NOW))
    assert allowance.wait(0) == BLIND
    clock.now += BLIND
    assert allowance.wait(0) == 0
    sent = at_once(allowance)
    assert allowance.wait(0) == BLIND + SOON
    allowance.heard(Left(0, None), sent)
    allowance.over(0)
    assert allowance.wait(0) == BLIND


def test_an_answer_that_was_overtaken_gives_nothing_back():
    clock = Clock()
    allowance = Allowance(1, clock)
    allowance.heard(Left(9, None), Sent(NOW))
    first = at_once(allowance)
    clock.now += 1
    second = at_once(allowance)
    for sent, left in ((second, 0), (first, 1)):
        allowance.over(0)
        allowance.heard(Left(left, None), sent)
    assert allowance.wait(0) > 0
    allowance.heard(Left(3, None), Sent(second.at + 1, second.number + 1))
    assert allowance.wait(0) == 0


def test_a_provider_that_answers_whatever_it_says_is_not_held_back_for_ever():
    clock = Clock()
    allowance = Allowance(1, clock)
    allowance.heard(Left(0, 0), Sent(NOW))
    for _ in range(DOUBTS):
        assert allowance.wait(0) == BLIND
        clock.now += BLIND
        sent = at_once(allowance)
        allowance.over(0)
        allowance.heard(Left(0, 0), sent)
    for _ in range(10):
        at_once(allowance, 10**6)
    allowance.heard(Left(0, None), Sent(clock.now), refused=True)
    assert allowance.wait(0) > 0


def test_what_is_free_again_is_no_reason_to_doubt():
    clock = Clock()
    allowance = Allowance(1, clock)
    allowance.heard(Left(1, None), Sent(NOW))
    for _ in range(3 * DOUBTS):
        sent = at_once(allowance)
        assert not sent.blind
        allowance.over(0)
        allowance.heard(Left(0, None), sent)
        assert allowance.wait(0) == pytest.approx(FREE_AGAIN)
        clock.now += FREE_AGAIN


def test_calls_under_way_are_not_free():
    allowance = Allowance(1, Clock())
    allowance.heard(Left(5, None), Sent(NOW))
    allowance.heard(Left(2, None), Sent(NOW))
    at_once(allowance)
    at_once(allowance)
    assert allowance.wait(0) == pytest.approx(FREE_AGAIN)


def test_tokens_are_counted_as_requests_are():
    allowance = Allowance(1, Clock())
    allowance.heard(Left(100, 1000), Sent(NOW))
    allowance.heard(Left(99, 500), Sent(NOW))
    at_once(allowance, 300)
    assert allowance.wait(200) == 0
    assert allowance.wait(201) == pytest.approx(FREE_AGAIN)


def test_each_worker_takes_its_part():
    allowance = Allowance(4, Clock())
    allowance.heard(Left(11, None), Sent(NOW))
    allowance.heard(Left(10, None), Sent(NOW))
    at_once(allowance)
    at_once(allowance)
    assert allowance.wait(0) > 0


async def test_who_would_wait_long_is_told_so():
    clock = Clock()
    allowance = Allowance(1, clock)
    allowance.heard(Left(1, None), Sent(NOW))
    allowance.heard(Left(0, None), Sent(NOW))
    with pytest.raises(ProviderBusy) as busy:
        await allowance.turn(0, clock.rest)
    assert busy.value.asked == pytest.approx(FREE_AGAIN)
    assert clock.slept == []


async def test_who_waits_is_served_in_turn_and_nobody_else_before():
    clock = Clock()
    allowance = Allowance(1, clock)
    for left in (3, 2, 1, 0):  # three were used in this second
        allowance.heard(Left(left, None), Sent(NOW))
    clock.now += FREE_AGAIN - PATIENCE
    allowance.heard(Left(0, None), Sent(NOW))
    served: list[int] = []
    all_there = asyncio.Event()

    async def rest(seconds: float) -> None:
        await all_there.wait()
        await clock.rest(seconds)

    async def one(number: int) -> None:
        await allowance.turn(0, rest)
        served.append(number)

    waiting = [asyncio.create_task(one(number)) for number in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(ProviderBusy):  # the three have all that will be free
        await one(3)
    all_there.set()
    await asyncio.gather(*waiting)
    assert served == [0, 1, 2]


async def test_one_that_leaves_the_line_leaves_nothing_behind():
    clock = Clock()
    allowance = Allowance(1, clock)
    allowance.heard(Left(1, None), Sent(NOW))
    allowance.heard(Left(0, None), Sent(NOW))
    clock.now += FREE_AGAIN - PATIENCE
    allowance.heard(Left(0, None), Sent(NOW))

    async def never(seconds: float) -> None:
        await asyncio.Event().wait()

    leaver = asyncio.create_task(allowance.turn(0, never))
    await asyncio.sleep(0)
    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    assert not allowance._line
    await allowance.turn(0, clock.rest)
    assert allowance._sent == 1


class Provider:
    """Counts in a window that slides, and refuses nothing: `worst` is the most that a window has seen."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.calls: deque[float] = deque()
        self.worst = 0

    def call(self, now: float) -> Left:
        while self.calls and self.calls[0] < now - WINDOW:
            self.calls.popleft()
        self.calls.append(now)
        self.worst = max(self.worst, len(self.calls))
        return Left(max(0, self.limit - len(self.calls)), None)


@dataclass
class World:
    """One worker, and the provider far away. Calls take their time to get there, and answers to come back."""

    limit: int
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.provider = Provider(self.limit)
        self.allowance = Allowance(1, self.clock)
        self.allowance.heard(self.provider.call(self.clock.now), Sent(NOW))
        self._soon: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def call(self, there: float, back: float) -> None:
        sent = at_once(self.allowance)
        self._after(there, lambda: self._arrive(sent, back))

    def _arrive(self, sent: Sent, back: float) -> None:
        left = self.provider.call(self.clock.now)
        self._after(back, lambda: self._answer(sent, left))

    def _answer(self, sent: Sent, left: Left) -> None:
        self.allowance.over(0)
        self.allowance.heard(left, sent)

    def _after(self, seconds: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self._soon, (self.clock.now + seconds, next(self._order), happens))

    def pass_time(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while self._soon and self._soon[0][0] <= end:
            self.clock.now, _, happens = heapq.heappop(self._soon)
            happens()
        self.clock.now = end


LATE = [(2, 51.0, 0.0), (2, 43.0, 9.0), (1, 1.0, 0.0), (1, 0.0, 0.0), (1, 26.0, 0.0), (3, 0.0, 0.0), (1, 1.0, 0.0)]
"""The answer of the fourth call comes when the first ones are free again, and counts them still."""


@example(6, 0.2586134623026434, LATE)
@settings(max_examples=300)
@given(
    st.integers(2, 20),
    st.floats(0, 0.5),
    st.lists(st.tuples(st.integers(1, 6), st.one_of(st.floats(0, 1), st.floats(0, 70)), st.floats(0, 30)), max_size=80),
)
def test_the_provider_never_has_to_refuse(limit: int, there: float, steps: list[tuple[int, float, float]]):
    """Whatever the moments at which calls come, and however late their answers are."""
    world = World(limit)
    for calls, pause, back in steps:
        for at in range(calls):
            if not world.allowance.wait(0):
                world.call(there, back * (at + 1) / calls)
        world.pass_time(pause)
    assert world.provider.worst <= limit


@given(st.integers(2, 20), st.lists(st.floats(0, 3), min_size=30, max_size=30))
def test_what_the_provider_would_take_is_used(limit: int, pauses: list[float]):
    """Nobody else has the account, so all of it is had: within a minute, and again when it has passed."""
    world = World(limit)
    for _ in range(2):
        for pause in pauses:
            while not world.allowance.wait(0):
                world.call(0.0, 0.0)
                world.pass_time(0.0)
            world.pass_time(pause)
        assert world.provider.worst == limit
        world.pass_time(FREE_AGAIN)
        world.provider.worst = 0
