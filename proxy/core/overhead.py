"""The time that a request takes in the proxy itself: waits for its client and for a provider are left out.

door        until it is known who asks
understand  from the body to what is asked, and of which model
cache       whether the answer is there
admit       what it may cost, quotas, ledger, breaker
answer      from the provider's answer to the first byte of ours
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor
from typing import Final

from proxy.core.exchange import Exchange

STAGES: Final = ("door", "understand", "cache", "admit", "answer")


def own(exchange: Exchange, now: float) -> float:
    """Seconds, of all until now."""
    seconds = now - exchange.started - exchange.waited - upstream(exchange, now)
    if exchange.received is not None and exchange.admitted is not None:
        seconds -= exchange.received - exchange.admitted
    return max(seconds, 0.0)


def upstream(exchange: Exchange, now: float) -> float:
    """Seconds from the first call to the last answer; until now if that has only begun."""
    if exchange.called is None:
        return 0.0
    return (now if exchange.returned is None else exchange.returned) - exchange.called


def stages(exchange: Exchange) -> tuple[float | None, ...]:
    """Seconds, in the order of STAGES, until the answer began; None: it did not go through that."""
    received, understood, looked_up = exchange.received, exchange.understood, exchange.looked_up
    admitted, called, returned, begun = exchange.admitted, exchange.called, exchange.returned, exchange.begun
    asked, ready = looked_up if understood is None else understood, begun if called is None else called
    return (
        None if admitted is None else admitted - exchange.started,
        None if received is None or asked is None else asked - received,
        None if understood is None or looked_up is None else max(looked_up - understood - exchange.waited, 0.0),
        None if looked_up is None or ready is None else ready - looked_up,
        None if returned is None or begun is None else begun - returned,
    )


def in_microseconds(took: Sequence[float | None]) -> dict[str, int]:
    """The same by its names."""
    return {name: floor(seconds * 1e6) for name, seconds in zip(STAGES, took, strict=True) if seconds is not None}
