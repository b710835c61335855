"""Ends a block of somebody's code from outside, with a reason."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

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
        self._task = task
        self._before = task.cancelling()
        self._reason: ProxyError | ClientGone | None = None
        self._runs = False
        self._watch(task.get_loop())
        if self._reason is not None:
            self._unwatch()
            raise self._reason
        self._runs = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._unwatch()
        if self._reason and self._task.uncancel() <= self._before and kind is asyncio.CancelledError:
            raise self._reason from None

    def interrupt(self, reason: ProxyError | ClientGone) -> None:
        """The first reason counts."""
        if self._reason is None:
            self._reason = reason
            if self._runs:
                self._task.cancel()

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on whoever has a reason may interrupt; at once, too."""

    def _unwatch(self) -> None:
        """Nobody has any more."""
