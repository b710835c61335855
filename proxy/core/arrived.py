"""How a body is had that has come with its head, as most do.

ASGI hands it over by `receive()`, which waits; and whoever waits for a client has to look after the time, which costs
more than to read the body. So our server hands over what is there by an extension of the scope, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from starlette.types import Scope

EXTENSION: Final = "mistral_proxy.arrived"


def arrived(scope: Scope) -> bytes | None:
    """All of the body, and nothing is received any more; None: it has to be waited for, or the server has no such
    extension."""
    take: Callable[[], bytes | None] | None = scope.get("extensions", {}).get(EXTENSION)
    return take() if take else None
