from __future__ import annotations

import asyncio

import pytest
from starlette.types import Receive, Scope, Send

from proxy.core.errors import Overloaded
from proxy.core.services import Traffic
from proxy.stages import gate
from tests.asgi import call, exchange, services


async def test_one_too_many_is_told_so_and_who_ends_makes_room() -> None:
    traffic, go_on = Traffic(), asyncio.Event()
    reached = 0

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal reached
        reached += 1
        await go_on.wait()

    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    made = services(traffic=traffic)
    slow = gate.build(2, made)(waits)
    tasks = [asyncio.create_task(call(slow, exchange=exchange(), body=[], stays=True)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as caught:
        await call(slow, exchange=exchange(), body=[], stays=True)
    assert (caught.value.status, caught.value.code, reached) == (503, "overloaded", 2)
    assert (b"retry-after", b"1") in caught.value.headers
    tasks[0].cancel()
    await asyncio.gather(tasks[0], return_exceptions=True)
    with pytest.raises(ZeroDivisionError):  # another endpoint is behind the same gate
        await call(gate.build(2, made)(fails), exchange=exchange(), body=[], stays=True)
    go_on.set()
    await tasks[1]
    assert traffic.requests == 0
