"""The time that a request takes in the proxy itself: waits for its client and for a provider are left out.

door        until it is known who asks
understand  from the body to what is asked, and of which model
cache       whether the answer is there
admit       what it may cost, quotas, ledger, breaker
answer      from the provider's answer to the first byte of ours
"""

from __future__ import annotations

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
    admitted, received, understood = exchange.admitted, exchange.received, exchange.understood
    looked_up, called, begun = exchange.looked_up, exchange.called, exchange.begun
    return (
        _between(exchange.started, admitted),
        _between(received, understood or looked_up),
        None if understood is None or looked_up is None else max(looked_up - understood - exchange.waited, 0.0),
        _between(looked_up, called or begun),
        _between(exchange.returned, begun),
    )


def _between(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else other - one
