"""Blocks that are ended from outside."""

from __future__ import annotations

import asyncio

import pytest

from proxy.core.errors import ClientGone, Draining
from proxy.core.interrupt import Interruptible


class Block(Interruptible):
    """`at_once` is a reason that is there before it begins."""

    def __init__(self, at_once: Draining | None = None) -> None:
        self.at_once = at_once
        self.watched = False

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        self.watched = True
        if self.at_once:
            self.interrupt(self.at_once)

    def _unwatch(self) -> None:
        self.watched = False


async def started(block: Block) -> asyncio.Task[None]:
    async def run() -> None:
        with block:
            await asyncio.Event().wait()

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    return task


async def test_the_first_reason_is_what_leaves_the_block() -> None:
    block = Block()
    task = await started(block)
    block.interrupt(Draining("one"))
    block.interrupt(ClientGone())
    with pytest.raises(Draining):
        await task
    assert task.cancelling() == 0


async def test_another_cancellation_passes() -> None:
    task = await started(Block())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_one_that_comes_besides_passes_too() -> None:
    """Whoever cancels a task waits for it to be cancelled."""
    block = Block()
    task = await started(block)
    task.cancel()
    block.interrupt(Draining("one"))
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_one_from_before_the_block_is_not_its_own() -> None:
    block, reached = Block(), asyncio.Event()

    async def run() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            with block:  # what is still to be done then
                reached.set()
                await asyncio.Event().wait()

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    task.cancel()
    await reached.wait()
    block.interrupt(Draining("one"))
    with pytest.raises(Draining):
        await task


async def test_a_block_with_a_reason_against_it_does_not_begin_and_nothing_of_that_stays() -> None:
    block, begun = Block(Draining("one")), False
    with pytest.raises(Draining):
        with block:
            begun = True
    assert not begun
    assert not block.watched
    await asyncio.sleep(0)  # a cancellation that nobody has seen would come here
