"""Whatever happens in whatever order, each follower gets the same bytes as the one for whom the call is made."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.entry import Entry
from proxy.core.errors import UpstreamFailed
from proxy.core.flight import AT_ONCE, Behind, Flight, Lost

ENTRY = Entry(0, True, b"", 0, 0, None)
ERROR = UpstreamFailed("It broke.")


async def settle() -> None:
    """Until everybody waits for something that is not there yet."""
    for _ in range(8):
        await asyncio.sleep(0)


def a_flight(most: int = 1_000, *, streamed: bool = True) -> Flight:
    flight = Flight(most, lambda: 0.0)
    flight.called, flight.streamed = True, streamed
    return flight


class Follower:
    """Reads a flight; while it is `held` it does not go on to the next piece."""

    def __init__(self, flight: Flight) -> None:
        self.flight = flight
        self.got = b""
        self.ready = asyncio.Event()
        self.ready.set()
        self.task = asyncio.create_task(self.read())

    async def read(self) -> None:
        with self.flight.follow():
            await self.flight.begun()
            async for piece in self.flight.pieces():
                assert piece
                self.got += piece
                await self.ready.wait()

    @property
    def lost(self) -> Lost | Behind | None:
        if self.task.cancelled():
            return None
        error = self.task.exception()
        assert error is None or isinstance(error, Lost | Behind)
        return error

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@dataclass
class Story:
    """Of one flight. What was `sent` is what all should get."""

    flight: Flight
    most: int
    sent: bytes = b""
    largest: int = 0
    followers: list[Follower] = field(default_factory=list)
    asked: bool = False
    stays: bool = False
    left: int = 0

    async def step(self, what: str, number: int) -> None:
        flight = self.flight
        if what == "add":
            piece = bytes([(len(self.sent) + n) % 256 for n in range(number)])
            self.sent += piece
            self.largest = max(self.largest, number)
            flight.add(piece)
        elif what == "join" and flight.open:
            self.followers.append(Follower(flight))
            await asyncio.sleep(0)  # it follows
        elif what == "turn":
            for _ in range(number % 4):
                await asyncio.sleep(0)
        elif what == "client leaves" and not self.asked:
            self.asked = True
            self.stays = flight.stays(self.leave)
            assert self.stays is (flight.followers > 0)
        elif self.followers:
            follower = self.followers[number % len(self.followers)]
            if what == "hold":
                follower.ready.clear()
            elif what == "release":
                follower.ready.set()
            elif what == "leave":
                await follower.leave()
        self.check()

    def leave(self) -> None:
        assert not self.flight.followers
        assert not self.flight.over
        self.left += 1

    @property
    def is_ending(self) -> bool:
        """Whoever came now would join what is about to be given up."""
        return bool(self.left) or (self.asked and not self.stays)

    def check(self) -> None:
        flight = self.flight
        assert self.left <= 1  # a call that nobody waits for is given up, once
        assert self.left or flight.followers or not self.stays
        assert flight.size == len(self.sent)
        assert flight.open is (len(self.sent) <= self.most and not self.is_ending)
        assert sum(map(len, flight.parts)) <= self.most + self.largest
        if flight.whole:
            assert b"".join(flight.parts) == self.sent
            assert sum(flight.cadence[1::2]) == len(self.sent)
        else:
            assert flight.cadence == []
        for follower in self.followers:
            assert self.sent.startswith(follower.got)
            if follower.task.done() and not follower.task.cancelled():
                assert len(self.sent) - len(follower.got) > self.most
                assert follower.lost
                assert isinstance(follower.lost, Behind)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "join", "turn", "hold", "release", "leave", "client leaves"]),
        st.integers(0, 40),
    ),
    max_size=40,
)


@settings(max_examples=400)
@given(STEPS, st.sampled_from([0, 10, 60, 100_000]), st.booleans(), st.booleans())
async def test_everybody_gets_the_same(steps: list[tuple[str, int]], most: int, fails: bool, told: bool) -> None:
    story = Story(a_flight(most), most)
    for what, number in steps:
        await story.step(what, number)
    flight, left = story.flight, story.left
    if fails:
        flight.fail(ERROR, told=told)
    else:
        flight.finish(ENTRY, 7)
    flight.finish(None, 8)  # it has ended, and nothing is changed by what comes later
    flight.fail(None)
    assert flight.open is (not fails and len(story.sent) <= most and not story.is_ending)
    if flight.open:
        story.followers.append(Follower(flight))
    for follower in story.followers:
        follower.ready.set()
    await settle()
    assert story.left == left
    assert flight.followers == 0
    errors = []
    for follower in story.followers:
        assert follower.task.done()
        lost = follower.lost
        if follower.task.cancelled():
            assert story.sent.startswith(follower.got)
        elif isinstance(lost, Behind):
            assert len(story.sent) - len(follower.got) > most
        elif fails:
            assert lost
            assert (lost.error, lost.told, follower.got) == (ERROR, told, story.sent)
            errors.append(id(lost))
        else:
            assert lost is None
            assert follower.got == story.sent
    assert len(set(errors)) == len(errors)  # each its own
    assert id(flight.lost) not in errors
    assert (flight.done, flight.saved) == ((False, 0) if fails else (True, 7))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(0, 60), st.integers(1, 4))
async def test_whoever_keeps_up_gets_all_of_a_flight_that_is_too_long(sizes: list[int], most: int, many: int) -> None:
    flight = a_flight(most)
    followers = [Follower(flight) for _ in range(many)]
    slow = Follower(flight)
    await settle()
    slow.ready.clear()
    sent = b""
    for n, size in enumerate(sizes):
        piece = bytes([n]) * size
        sent += piece
        flight.add(piece)
        await settle()
        assert [follower.got for follower in followers] == [sent] * many
    flight.finish(None, 0)
    slow.ready.set()
    await settle()
    assert [follower.lost for follower in followers] == [None] * many
    # Of what the slow one has not read there are at most the newest `most` bytes before the last piece came, and that.
    unread = sizes[1:]
    fits = sum(unread[:-1]) <= most or len(sent) <= most
    assert (slow.lost is None) is fits
    assert slow.got == (sent if fits else sent[: sizes[0]])


async def test_who_leaves_after_the_end_leaves_it_to_others() -> None:
    flight = a_flight()
    flight.add(b"all of it")
    flight.finish(ENTRY, 7)
    assert not flight.stays(lambda: None)
    assert flight.open


async def test_pieces_are_given_as_they_come_and_at_once_to_who_is_behind() -> None:
    flight = a_flight()
    flight.add(b"one ")
    flight.add(b"two ")
    pieces = flight.pieces()
    assert await anext(pieces) == b"one two "
    flight.add(b"three ")
    assert await anext(pieces) == b"three "
    waiting = asyncio.ensure_future(anext(pieces))
    await settle()
    assert not waiting.done()
    flight.add(b"four")
    assert await waiting == b"four"
    flight.finish(ENTRY, 0)
    with pytest.raises(StopAsyncIteration):
        await anext(pieces)


async def test_who_is_far_behind_is_not_given_all_of_it_at_once() -> None:
    """Each that comes late would cost as much memory as the whole answer."""
    flight = a_flight(10_000_000)
    for size in (10, AT_ONCE - 10, 1, AT_ONCE - 1, 2 * AT_ONCE, 0, 3 * AT_ONCE, 5, AT_ONCE - 4, 7):
        flight.add(bytes(size))
    flight.finish(None, 0)
    sizes = [len(piece) async for piece in flight.pieces(3)]
    assert sizes == [AT_ONCE - 3, AT_ONCE, 2 * AT_ONCE, 3 * AT_ONCE, 5, AT_ONCE - 4, 7]


async def test_who_is_in_the_middle_of_a_piece_is_told_that_the_next_one_is_gone() -> None:
    flight, told = a_flight(10), list[str]()
    with flight.follow(), flight.reading(lambda: told.append("one")) as one:
        pieces = flight.pieces(reader=one)
        flight.add(b"12345")
        assert await anext(pieces) == b"12345"
        flight.add(b"1234567890")  # so much may be kept
        flight.add(b"1")
        assert not told
        flight.add(b"2")
        assert told == ["one"]
        flight.add(b"1234567890" * 3)
        assert told == ["one"]
        with pytest.raises(Behind):
            await anext(pieces)
        with flight.reading(lambda: told.append("two")):
            pass
        flight.add(b"1234567890" * 3)
    assert told == ["one"]


async def test_those_who_can_wait_longest_hear_first_that_it_is_lost() -> None:
    flight, heard = a_flight(), list[float]()

    async def waits(until: float) -> None:
        with pytest.raises(Lost):
            await flight.begun(until)
        heard.append(until)

    tasks = [asyncio.create_task(waits(until)) for until in (3.0, 1.0, 5.0, 2.0, 4.0)]
    await settle()
    tasks[4].cancel()
    flight.add(b"")
    await settle()
    flight.fail(ERROR)
    await settle()
    assert heard == [5.0, 3.0, 2.0, 1.0]


async def test_who_has_left_is_not_remembered() -> None:
    """A whole answer may take ten minutes, and whoever leaves before it counts for nothing."""
    flight = a_flight()
    tasks = [asyncio.create_task(flight.begun()) for _ in range(100)]
    await settle()
    assert len(flight._waiting or ()) == 100
    for task in tasks[:99]:
        task.cancel()
    await asyncio.gather(*tasks[:99], return_exceptions=True)
    assert len(flight._waiting or ()) == 1
    flight.add(b"x")
    await tasks[99]


async def test_a_piece_without_bytes_is_none() -> None:
    flight = a_flight()
    follower = Follower(flight)
    flight.add(b"")
    await settle()
    flight.add(b"x")
    flight.add(b"")
    await settle()
    assert follower.got == b"x"
    flight.finish(ENTRY, 0)
    await settle()
    assert follower.lost is None


async def test_one_that_leaves_does_not_hurt_the_others() -> None:
    flight = a_flight()
    followers = [Follower(flight) for _ in range(5)]
    await settle()
    await followers[2].leave()
    assert flight.followers == 4
    flight.add(b"all")
    followers[3].task.cancel()  # while it is being told
    await settle()
    assert [follower.got for follower in followers] == [b"all", b"all", b"", b"", b"all"]
    flight.finish(ENTRY, 0)
    await settle()
    assert [follower.task.cancelled() for follower in followers] == [False, False, True, True, False]
    assert flight.followers == 0


async def test_one_that_is_too_slow_has_lost_it_and_holds_up_nobody() -> None:
    flight = a_flight(10)
    slow, fast = Follower(flight), Follower(flight)
    await settle()
    slow.ready.clear()
    for _ in range(100):
        flight.add(b"123456")
        await settle()
        assert len(flight.parts) <= 2
    slow.ready.set()
    await settle()
    assert isinstance(slow.lost, Behind)
    assert (slow.got, fast.got) == (b"123456", b"123456" * 100)


@given(st.lists(st.binary(min_size=1, max_size=8), max_size=12), st.integers(0, 80), st.sampled_from([0, 10, 1000]))
async def test_who_has_a_part_of_it_goes_on_from_there(parts: list[bytes], start: int, most: int) -> None:
    """If what comes next is still here."""
    flight, whole = a_flight(most), b"".join(parts)
    with flight.follow():
        for part in parts:
            flight.add(part)
        flight.finish(None, 0)
        kept = b"".join(flight.parts)
        try:
            got = b"".join([piece async for piece in flight.pieces(start)])
        except Behind:
            assert start < len(whole) - len(kept)
        else:
            assert (start >= len(whole) - len(kept), got) == (True, whole[start:])
            assert most < 1000 or kept == whole


async def test_when_nobody_follows_what_is_too_long_is_not_kept() -> None:
    flight = a_flight(10)
    flight.add(b"12345")
    assert (flight.open, flight.whole) == (True, True)
    flight.add(b"67890")
    assert (flight.open, flight.parts, flight.cadence) == (True, [b"12345", b"67890"], [0, 5, 0, 5])
    flight.add(b"1")
    flight.add(b"")
    assert (flight.open, flight.whole, flight.parts, flight.cadence) == (False, False, [], [])
    with pytest.raises(Behind):  # and not what is left of it
        await anext(flight.pieces())
    flight.finish(None, 3)
    assert (flight.open, flight.size) == (False, 11)


async def test_a_very_long_flight_takes_no_more_and_more_memory() -> None:
    flight = a_flight(100)
    follower = Follower(flight)
    await settle()
    for _ in range(1_000):
        flight.add(b"1234567890")
    assert (len(flight.parts), flight.cadence) == (11, [])
    await settle()
    assert follower.lost


def test_cadence_is_when_each_piece_came() -> None:
    clock = 100.0
    flight = Flight(100, lambda: clock)
    flight.add(b"one")
    clock += 0.25
    flight.add(b"three")
    clock += 1.5
    flight.add(b"")
    assert flight.cadence == [0, 3, 250, 5, 1_750, 0]


# What has begun.


def test_nobody_is_let_in_who_would_have_to_wait_for_a_client() -> None:
    flight = a_flight()
    flight.blocked = True
    assert not flight.open
    flight.blocked = False
    assert flight.open
    flight.fail(None)
    assert not flight.open


async def waits(step: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    task = asyncio.create_task(step)
    await settle()
    assert not task.done()
    return task


async def test_a_stream_has_begun_with_its_first_byte() -> None:
    flight = a_flight()
    begun = await waits(flight.begun())
    flight.add(b"")
    await settle()
    assert not begun.done()
    flight.add(b"x")
    await begun
    await flight.begun()
    flight.fail(ERROR)
    await flight.begun()  # what there is has to be sent


async def test_it_may_turn_out_late_that_it_is_a_stream() -> None:
    flight = a_flight(streamed=False)
    flight.add(b"x")
    begun = await waits(flight.begun())
    flight.streamed = True
    flight.add(b"y")
    await begun


async def test_an_answer_in_one_piece_has_begun_when_it_is_there() -> None:
    flight = a_flight(streamed=False)
    begun = await waits(flight.begun())
    flight.finish(ENTRY, 5)
    await begun
    await flight.begun()
    assert (flight.entry, flight.saved) == (ENTRY, 5)
    assert [piece async for piece in flight.pieces()] == []


async def test_an_empty_stream_has_begun_when_it_has_ended() -> None:
    flight = a_flight()
    begun = await waits(flight.begun())
    flight.finish(ENTRY, 0)
    await begun
    assert [piece async for piece in flight.pieces()] == []


@pytest.mark.parametrize("streamed", [True, False])
async def test_what_fails_before_it_has_begun_is_lost_for_each_by_itself(streamed: bool) -> None:
    flight = a_flight(streamed=streamed)
    waiting = [await waits(flight.begun()) for _ in range(3)]
    flight.fail(ERROR, told=True)
    ends = await asyncio.gather(*waiting, return_exceptions=True)
    with pytest.raises(Lost) as late:
        await flight.begun()
    losses = [*ends, late.value]
    assert [(end.error, end.told) for end in losses if isinstance(end, Lost)] == [(ERROR, True)] * 4
    assert len({id(end) for end in losses}) == 4
    assert flight.lost
    assert flight.lost not in losses
    assert traceback.extract_tb(flight.lost.__traceback__) == traceback.StackSummary()


# Who stays.


async def test_a_call_goes_on_for_as_long_as_somebody_follows() -> None:
    flight, left = a_flight(), []
    first, second = Follower(flight), Follower(flight)
    await settle()
    assert flight.stays(lambda: left.append(1))
    await first.leave()
    assert left == []
    third = Follower(flight)
    await settle()
    await second.leave()
    assert left == []
    await third.leave()
    assert left == [1]
    await Follower(flight).leave()
    late = Follower(flight)
    await settle()
    await late.leave()
    assert left == [1]  # whoever gives up a call twice may hurt what it still has to do


async def test_a_call_that_nobody_follows_does_not_go_on() -> None:
    flight = a_flight()
    assert not flight.stays(list)
    with flight.follow():
        pass


@pytest.mark.parametrize("fails", [True, False])
async def test_what_has_ended_is_not_given_up(fails: bool) -> None:
    """The one that made the call may be about to keep what came of it."""
    flight, left = a_flight(), []
    follower = Follower(flight)
    await settle()
    assert flight.stays(lambda: left.append(1))
    if fails:
        flight.fail(None)
    else:
        flight.finish(ENTRY, 0)
    await settle()
    assert follower.task.done()
    assert left == []


async def test_who_wants_to_know_is_told_of_the_end_once() -> None:
    for end in (lambda flight: flight.finish(None, 0), lambda flight: flight.fail(None)):
        flight, told = a_flight(), []
        flight.at_end(lambda: told.append(1))  # noqa: B023
        flight.add(b"x")
        assert told == []
        end(flight)
        end(flight)
        flight.fail(ERROR)
        assert told == [1]
        flight.at_end(lambda: told.append(2))  # noqa: B023
        assert told == [1, 2]
