"""What `send` returns when there was nothing to wait for: a message that has been sent already.

No piece of a stream pays for a coroutine that does not wait. Whoever stands between can tell it by its identity, and
then need not wait either.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final


class Sent:
    def __await__(self) -> Generator[None, None, None]:
        return iter(())  # type: ignore[return-value]  # any iterator will do


SENT: Final = Sent()
