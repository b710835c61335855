"""Money is a whole number of nano-USD: a token of a small model costs a fraction of a micro-USD, and no fraction of it
is ever lost or made up."""

from __future__ import annotations

from typing import Final

NANO: Final = 10**9
"""nano-USD in one USD."""


def decimal(nano: int) -> str:
    """In USD, exactly: `12.5`."""
    whole, fraction = divmod(abs(nano), NANO)
    text = f"{whole}.{str(fraction).zfill(9)}".rstrip("0").rstrip(".")
    return f"-{text}" if nano < 0 else text


def usd(nano: int) -> str:
    """`12.5 USD`, exactly."""
    return f"{decimal(nano)} USD"
