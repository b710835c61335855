from __future__ import annotations

import asyncio
import socket

from proxy.supervisor.channel import Channel, Drain, End, Order, Ready, Reload
from proxy.supervisor.worker import Worker
from tests.programs import PATIENCE


async def test_orders_come_one_by_one_until_the_supervisor_is_gone() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        channel, worker = Channel(ours), Worker(1, theirs)
        sent: list[Order] = [Reload(2, b"x" * 100_000), Drain(), End()]
        got = []
        for one in sent:
            channel.send(one)
        async with asyncio.timeout(PATIENCE):
            async for order in worker.orders():
                got.append(order)
                if len(got) == len(sent):
                    channel.close()
    assert got == sent


async def test_an_order_that_is_cut_off_is_none() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.sendall(b"\0\0\0\x09half")
        ours.close()
        async with asyncio.timeout(PATIENCE):
            assert [order async for order in Worker(1, theirs).orders()] == []


def test_nobody_to_tell_is_no_error() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        Worker(1, theirs).tell(Ready(1))


def test_a_supervisor_that_does_not_read_keeps_no_worker() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for _ in range(100_000):
            Worker(1, theirs).tell(Ready(1))
