"""Ends a block of somebody's code from outside, with a reason."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import NoReturn, Self

from proxy.core.errors import ClientGone, ProxyError


class Interruptible:
    """`with` it a task runs a block. `interrupt` cancels the task, and what leaves the block in place of that
    cancellation is the reason; any other one passes.

    A task that cancels itself goes on until it waits for something, with a call to the upstream, say. So for a block
    that was interrupted before it began the task is not cancelled: the block does not begin.
    """

    __slots__ = ("_before", "_reason", "_runs", "_task")

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task: asyncio.Task[object] | None = task
        self._before = task.cancelling()
        self._reason: ProxyError | ClientGone | None = None
        self._runs = False
        self._watch(task.get_loop())
        if self._reason is not None:
            self._unwatch()
            self._raise()
        self._runs = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._unwatch()
        task, self._task = self._task, None
        assert task
        if self._reason and task.uncancel() <= self._before and kind is asyncio.CancelledError:
            self._raise()

    def interrupt(self, reason: ProxyError | ClientGone) -> None:
        """The first reason counts."""
        if self._reason is None:
            self._reason = reason
            if self._runs and self._task:
                self._task.cancel()

    def _raise(self) -> NoReturn:
        """What is raised holds the frames it comes through, and nobody in them is to hold it: such a circle, with the
        bodies that are in it, would stay until the garbage collector's turn."""
        reason, self._reason = self._reason, None
        assert reason
        try:
            raise reason from None
        finally:
            del reason

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on whoever has a reason may interrupt; at once, too."""

    def _unwatch(self) -> None:
        """Nobody has any more."""
