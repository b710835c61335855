"""What `send` returns when there was nothing to wait for: a message that has been sent already.

No piece of a stream pays for a coroutine that does not wait. Whoever stands between can tell it by its identity, and
then need not wait either.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final, cast


class Sent(tuple[()]):
    """Waits for nothing: each item of an empty tuple."""

    __slots__ = ()
    __await__ = tuple.__iter__


SENT: Final = cast(Awaitable[None], Sent())
