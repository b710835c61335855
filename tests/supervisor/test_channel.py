from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.supervisor.channel import LENGTH, Applied, Channel, Drain, End, Failed, Order, Ready, Reload, order, packed
from proxy.supervisor.worker import Worker

BIG = 4 << 20
"""More than a socket holds."""

Pair = tuple[Channel, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with theirs:
        channel = Channel(ours)
        yield channel, theirs
        channel.close()


def read(sock: socket.socket, channel: Channel) -> list[Order]:
    """What the worker's end gets, while the supervisor goes on writing."""
    sock.setblocking(False)
    data = b""
    while True:
        try:
            data += sock.recv(1 << 16)
        except BlockingIOError:
            if not channel.pending:
                break
            channel.flush()
    orders = []
    while data:
        end = LENGTH + int.from_bytes(data[:LENGTH], "big")
        orders.append(order(data[LENGTH:end]))
        data = data[end:]
    return orders


REPORTS = st.lists(
    st.one_of(st.builds(Ready, st.integers(1, 9)), st.builds(Applied, st.integers(1, 9)), st.builds(Failed, st.text()))
)


@given(REPORTS, st.data())
def test_reports_arrive_whole_however_they_are_cut(
    reports: list[Ready | Applied | Failed], cuts: st.DataObject
) -> None:
    ours, theirs = socket.socketpair()
    with theirs, closing(Channel(ours)) as channel:
        data, arrived = b"".join(map(packed, reports)), []
        while data:
            cut = cuts.draw(st.integers(1, len(data)))
            theirs.sendall(data[:cut])
            data = data[cut:]
            arrived += channel.receive()
        assert arrived == reports
        assert not channel.ended


def test_the_end_is_seen_after_the_last_words(pair: Pair) -> None:
    channel, theirs = pair
    Worker(1, theirs).tell(Failed("no port"))
    theirs.close()
    assert channel.receive() == [Failed("no port")]
    assert channel.ended


def test_orders_go_out_at_once(pair: Pair) -> None:
    channel, theirs = pair
    channel.send(Reload(2, b"two"))
    channel.send(Drain())
    channel.send(End())
    assert not channel.pending
    assert read(theirs, channel) == [Reload(2, b"two"), Drain(), End()]


def test_a_worker_that_does_not_read_keeps_nobody_and_gets_only_the_newest(pair: Pair) -> None:
    channel, theirs = pair
    for generation in range(2, 9):
        channel.send(Reload(generation, b"x" * BIG))
    channel.send(Drain())
    assert channel.pending
    first, newest, drain = read(theirs, channel)
    assert isinstance(first, Reload)
    assert isinstance(newest, Reload)
    assert (first.generation, len(first.changes)) == (2, BIG)
    assert (newest.generation, len(newest.changes)) == (8, BIG)
    assert drain == Drain()


def test_nothing_is_kept_for_a_worker_that_is_gone(pair: Pair) -> None:
    channel, theirs = pair
    channel.send(Reload(2, b"x" * BIG))
    assert channel.pending
    theirs.close()
    channel.flush()
    assert not channel.pending
    channel.send(Drain())
    assert not channel.pending


def test_no_repr_shows_the_sources() -> None:
    assert repr(Reload(2, b"a secret")) == "Reload(2)"
