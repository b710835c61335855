"""How it is learnt that a client has left.

ASGI tells it to whoever stands in `receive()`: a task for each call, begun for nothing nearly every time, and dearer
than all else that watches over one. So our server tells it by an extension of the scope, too; of any other it is learnt
in the old way (proxy/guard.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from starlette.types import Scope

EXTENSION: Final = "mistral_proxy.departure"


class Departure:
    """Of the client of one request. `listen` has it read from, or nobody learns anything; `cut` has it leave."""

    __slots__ = ("_listen", "cut", "gone", "tell")

    def __init__(self, listen: Callable[[], object], cut: Callable[[], object]) -> None:
        self._listen = listen
        self.cut = cut
        self.gone = False
        self.tell: Callable[[], object] | None = None
        """Whoever is told, one at a time."""

    def watch(self, tell: Callable[[], object]) -> None:
        """Call this when the client leaves before its answer is complete; at once if it has."""
        self.tell = tell
        if self.gone:
            tell()
        else:
            self._listen()

    def ignore(self) -> None:
        """Nobody needs to know any more."""
        self.tell = None

    def happen(self) -> None:
        self.gone = True
        if self.tell:
            self.tell()


def of(scope: Scope) -> Departure | None:
    """None: the server has no such extension."""
    found: Departure | None = scope.get("extensions", {}).get(EXTENSION)
    return found
