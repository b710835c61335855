"""When a client may come back: what its provider says of it, in the headers that OpenAI's SDKs obey."""

from __future__ import annotations

import re
from email.utils import mktime_tz, parsedate_tz
from math import ceil

from proxy.core.errors import SHOULD_RETRY, Headers
from proxy.core.provider import Header

_NUMBER = re.compile(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*", re.ASCII)
_LONGEST_OBEYED = 120  # seconds; OpenAI SDK 3: a longer retry-after ends the attempts


def advice(status: int, again: int | None, header: Header) -> Headers:
    """Headers for an error with `status`. `again` is after how many seconds a repeat may succeed if the provider does
    not say; 0: nothing is known; None: never, and SDKs that would repeat by status alone are told so."""
    if status not in (408, 409, 429) and status < 500:
        return []
    if again is None:
        return [(SHOULD_RETRY, b"false")]
    said = asked(header)
    wait = again if said is None else min(max(said, 1), 3600)
    if not wait:
        return []
    return [
        (b"retry-after", b"%d" % ceil(wait)),
        (b"retry-after-ms", b"%d" % ceil(wait * 1000)),
        (SHOULD_RETRY, b"true" if wait <= _LONGEST_OBEYED else b"false"),
    ]


def asked(header: Header) -> float | None:
    """Seconds, from milliseconds, seconds or a date; None when the provider names none, or nonsense."""
    if number := _NUMBER.fullmatch(header("retry-after-ms") or ""):
        return float(number[1]) / 1000
    said = header("retry-after") or ""
    if number := _NUMBER.fullmatch(said):
        return float(number[1])
    return _seconds_between(header("date") or "", said)


def _seconds_between(now: str, then: str) -> float | None:
    # The answer's own Date is the clock: it was set by the server that wrote the other one.
    try:
        start, end = parsedate_tz(now), parsedate_tz(then)
        return float(mktime_tz(end) - mktime_tz(start)) if start and end else None
    except (ValueError, OverflowError, IndexError, TypeError):
        return None
