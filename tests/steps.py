"""Coroutines and timers by hand: for tests of what need not wait."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def now(step: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that has nothing to wait for."""
    try:
        step.send(None)
    except StopIteration as end:
        found: T = end.value
        return found
    raise AssertionError("it waits")


class NoTimer:
    """A timer that nobody waits for."""

    def cancel(self) -> None:
        pass
