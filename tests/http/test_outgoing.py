"""The sending side alone: a client that does not read, and one that goes on sending."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable

import pytest

from proxy.http.outgoing import Outgoing
from tests.fuzz.framing import Wire, limits

SOON = 0.05
"""Seconds of a deadline that a test waits for."""

PATIENCE = 20.0


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class Slow(Wire):
    """Its client reads `pace` bytes between two looks."""

    def __init__(self, unsent: int, pace: int = 0) -> None:
        super().__init__()
        self.unsent, self.pace, self.looks = unsent, pace, 0

    def get_write_buffer_size(self) -> int:
        self.looks += 1
        self.unsent = max(0, self.unsent - self.pace)
        return self.unsent


def outgoing(wire: Wire, sending: bool = False, stall: float = SOON, linger: float = SOON) -> Outgoing:
    bounds = limits(write_stall=stall, linger=linger)
    return Outgoing(wire, asyncio.get_running_loop(), bounds, lambda: sending)


async def test_e6_a_client_that_reads_nothing_is_cut_off() -> None:
    wire = Slow(100_000)
    outgoing(wire).pause_writing()
    await until(lambda: wire.aborted)


async def test_e6_a_client_that_reads_slowly_is_not() -> None:
    wire = Slow(100_000, pace=1)
    out = outgoing(wire)
    out.pause_writing()
    await until(lambda: wire.looks > 6)
    out.resume_writing()
    assert out._timer is None
    assert not wire.aborted


async def test_e6_an_end_is_not_waited_for_longer() -> None:
    """The last answer is written and the connection closed, but the client does not take it."""
    wire = Slow(1000)
    outgoing(wire).close()
    assert (wire.closed, wire.aborted) == (True, False)
    await until(lambda: wire.aborted)


async def test_a_client_that_sends_no_more_is_closed_at_once() -> None:
    wire = Wire()
    out = outgoing(wire)
    out.close()
    assert out.is_closing()
    assert (wire.closed, wire.half_closed) == (True, False)


async def test_a_client_that_is_sending_can_read_its_answer() -> None:
    wire = Wire()
    wire.reading = False
    out = outgoing(wire, sending=True)
    out.close()
    assert out.is_closing()
    assert (wire.closed, wire.half_closed, wire.reading) == (False, True, True)
    await until(lambda: wire.closed)


async def test_a_client_that_is_sending_and_reads_slowly_can_read_all_of_it() -> None:
    wire = Slow(20, pace=1)
    outgoing(wire, sending=True, linger=SOON / 5, stall=SOON / 5).close()
    await until(lambda: wire.aborted)
    assert wire.unsent == 0


@pytest.mark.parametrize("sending", [False, True])
async def test_a_second_end_is_final(sending: bool) -> None:
    wire = Wire()
    out = outgoing(wire, sending)
    out.close()
    out.close()
    assert wire.closed


async def test_nothing_is_left_behind_when_the_connection_is_lost() -> None:
    for sending in (False, True):
        wire = Slow(1000)
        out = outgoing(wire, sending)
        out.close()
        assert out._timer is not None
        out.lost()
        assert out._timer is None


async def test_a_connection_that_is_lost_is_only_closed() -> None:
    """uvicorn does that."""
    for sending in (False, True):
        wire = Slow(1000)
        out = outgoing(wire, sending)
        out.lost()
        out.close()
        assert (wire.closed, wire.half_closed) == (True, False)
        assert out._timer is None


async def test_a_connection_that_is_lost_is_let_go() -> None:
    class Sender:
        def is_sending(self) -> bool:
            return True

    sender = Sender()
    out = Outgoing(Wire(), asyncio.get_running_loop(), limits(), sender.is_sending)
    remembered = weakref.ref(sender)
    del sender
    assert remembered()
    out.lost()
    assert not remembered()


async def test_a_connection_that_is_closing_is_neither_paused_nor_resumed() -> None:
    wire = Wire()
    out = outgoing(wire)
    out.pause_reading()
    assert not wire.reading
    out.resume_reading()
    assert wire.reading
    wire.closed = True
    out.pause_reading()
    assert wire.reading
    wire.reading = False
    out.resume_reading()
    assert not wire.reading
