"""Circuits (circuit.py) as whoever makes calls needs them."""

from __future__ import annotations

from typing import Protocol

from proxy.core.circuit import Pass, Rules, State


class Switches(Protocol):
    """See Circuits, whose methods these are."""

    def state(self, name: str) -> State: ...
    def left(self, name: str) -> float: ...
    async def enter(self, name: str, rules: Rules) -> Pass | float: ...
    def leave(self, one: Pass, rules: Rules, success: bool | None) -> None: ...
    def failed(self, one: Pass, rules: Rules) -> bool: ...
