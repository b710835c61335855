"""How many answers a chat was asked for, and whether they are there."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.core.json import Json
from proxy.core.table import Context


def expected(context: Context) -> int:
    return context.asked.get("n") or 1


def is_all(choices: Sequence[Json], context: Context) -> bool:
    """Whether a whole answer has all that was asked for, each with a message and without an error of its own, and none
    twice."""
    if len(choices) != expected(context):
        return False
    if len(choices) > 1:
        numbers = [number for choice in choices if type(number := choice.get("index")) is int]
        if len(set(numbers)) != len(numbers):
            return False
    for choice in choices:  # noqa: SIM110 (a generator takes longer for one)
        if type(choice.get("message")) is not dict or choice.get("error"):
            return False
    return True
