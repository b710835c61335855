"""The reason for every answer, in one header: `x-proxy-decision`, a Dictionary of RFC 9651.

auth="research";key="k-5f2a", quota="requests 60/minute";used=5;reserved=1;limit=60, cache=miss, breaker=closed,
route="mistral/mistral-small-latest";attempts=2;causes="upstream_timeout", rewrites=1, own_us=312

auth      the team, and the id of its key; admin, for one of theirs; none, for an error without a known key
quota     the rule that is nearest to its end, or that has refused the request; money is in USD, as text
cache     what the cache did, and how old the answer is
breaker   the circuit of the model, as it was
route     who answered, after how many attempts, and why those before did not
rewrites  how many there are; x-proxy-rewrites has them
fault     whose fault the failure is, and its code
own_us    microseconds that the proxy itself has taken
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import floor
from typing import Final

from proxy.core.errors import Headers, ProxyError
from proxy.core.exchange import Exchange, Failed
from proxy.core.overhead import own, stages, upstream

MOST_CAUSES: Final = 8


def headers(exchange: Exchange, now: float) -> Headers:
    """`x-proxy-decision`, and `server-timing` for browsers. `now` is when the answer begins."""
    seconds = own(exchange, now)
    exchange.took = stages(exchange)
    # Who has no key is told no times: to the microsecond they might say how near a guess was.
    is_a_stranger = exchange.key_id is None and exchange.team is None and exchange.error is not None
    exchange.decision = decision = _decision(exchange, None if is_a_stranger else seconds)
    if is_a_stranger:
        return [(b"x-proxy-decision", decision.encode())]
    return [(b"x-proxy-decision", decision.encode()), (b"server-timing", _times(exchange, seconds, now))]


def of_no_request(error: ProxyError) -> bytes:
    """The same of what was refused before it was a request."""
    return f"auth=none, {_fault(error)}".encode()


def _decision(exchange: Exchange, seconds: float | None) -> str:
    text = _auth(exchange)
    stand = exchange.stand() if exchange.stand else None
    if stand:
        text += f"quota={stand.rule};used={stand.used};reserved={stand.reserved};limit={stand.limit}, "
    if exchange.cache:
        text += f"cache={exchange.cache}, " if exchange.age is None else f"cache={exchange.cache};age={exchange.age}, "
    if exchange.circuit:
        text += f"breaker={exchange.circuit}, "
    if exchange.upstream:
        causes = f";causes={quoted(_causes(exchange.in_vain))}" if exchange.in_vain else ""
        text += f"route={quoted(exchange.upstream)};attempts={exchange.all_attempts()}{causes}, "
    if exchange.rewrites:
        text += f"rewrites={len(exchange.rewrites)}, "
    if exchange.error:
        text += f"{_fault(exchange.error)}, "
    return text.removesuffix(", ") if seconds is None else f"{text}own_us={floor(seconds * 1e6)}"


def _times(exchange: Exchange, seconds: float, now: float) -> bytes:
    text = "proxy;dur=" + _milliseconds(seconds)
    if exchange.called is not None:
        text += ", upstream;dur=" + _milliseconds(upstream(exchange, now))
    return text.encode()


def _milliseconds(seconds: float) -> str:
    """To the microsecond, as a decimal."""
    text = str(floor(seconds * 1e6)).zfill(4)
    return f"{text[:-3]}.{text[-3:]}"


@lru_cache(4096)  # mostly they are the names of the configuration
def quoted(text: str) -> str:
    """A String of RFC 9651. It has no room for other characters than those of ASCII."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    plain = "".join(one if one.isascii() and one.isprintable() else "?" for one in text)
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _auth(exchange: Exchange) -> str:
    if exchange.team:
        return f"auth={quoted(exchange.team.name)};key={quoted(exchange.key_id or '')}, "
    if exchange.key_id:
        return f"auth=admin;key={quoted(exchange.key_id)}, "
    return "auth=none, " if exchange.error else ""


def _fault(error: ProxyError) -> str:
    return f"fault={error.fault.value};code={error.code}" if error.code else f"fault={error.fault.value}"


def _causes(failed: Sequence[Failed]) -> str:
    return " ".join(one.code for one in failed[:MOST_CAUSES])
