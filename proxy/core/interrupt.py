"""Ends a block of somebody's code from outside, with a reason."""

from __future__ import annotations

import asyncio

from proxy.core.errors import ClientGone, ProxyError


class Interruptible:
    """A block that a task runs between `begin()` and `end()`. `interrupt` cancels the task, and `end` turns that
    cancellation into the reason; any other one passes."""

    __slots__ = ("_before", "_reason", "_task")

    def begin(self) -> asyncio.Task[object]:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._before = task.cancelling()
        self._reason: ProxyError | ClientGone | None = None
        return task

    def end(self, kind: type[BaseException] | None) -> None:
        """`kind` is the exception that leaves the block."""
        if self._reason and self._task.uncancel() <= self._before and kind is asyncio.CancelledError:
            raise self._reason from None

    def interrupt(self, reason: ProxyError | ClientGone) -> None:
        """The first reason counts."""
        if self._reason is None:
            self._reason = reason
            self._task.cancel()
