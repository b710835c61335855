"""Redis is blamed for its own silence only, not for a loop that had no time to listen."""

from __future__ import annotations

import asyncio
import time

import pytest

from proxy.store.redis_link import Patience


async def test_silence_ends_it() -> None:
    with pytest.raises(TimeoutError):
        async with Patience(0.03):
            await asyncio.Event().wait()


async def test_a_busy_loop_does_not() -> None:
    async with Patience(0.05):
        for _ in range(2):
            _keep_busy(0.1)
            await asyncio.sleep(0)


async def test_it_is_over_with_what_it_was_for() -> None:
    async with Patience(0.03):
        await asyncio.sleep(0)
    await asyncio.sleep(0.1)


async def test_a_cancelled_task_stays_cancelled() -> None:
    async def wait() -> None:
        async with Patience(20.0):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def _keep_busy(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
