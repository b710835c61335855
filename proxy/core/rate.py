"""How a limit is written: `60/minute`, `100000 per hour`, `50 USD/month`.

The notation is that of the library `limits`, whose parser reads it. It knows no week, and its month is 30 days long; of
what it reads, only its units are taken, each of which is one of our windows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from proxy.core.money import NANO
from proxy.core.quota import WINDOWS, Window

MOST: Final = 10**15
"""A limit stays exact wherever it is counted: Lua's numbers are exact up to 2^53, about nine times as much."""

_WEEK = re.compile(r"(?:1\s*)?week(s?)\s*$")
_USD = re.compile(r"([0-9]{1,7})(?:\.([0-9]{1,9}))? ?USD(.+)")
_UNITS: Mapping[tuple[int, str], Window] = {
    (1, "second"): WINDOWS["second"],
    (1, "minute"): WINDOWS["minute"],
    (1, "hour"): WINDOWS["hour"],
    (1, "day"): WINDOWS["day"],
    (7, "day"): WINDOWS["week"],
    (1, "month"): WINDOWS["month"],
}
_EXPECTED = f"a limit in a window, as in 60/minute or 50 USD/month; windows are {', '.join(WINDOWS)}"


@dataclass(frozen=True, slots=True)
class Rate:
    """`limit` is in requests, tokens or nano-USD; `text` as it was written."""

    limit: int
    window: Window
    text: str


def rate(text: str) -> Rate:
    """A number of requests or tokens in a window. Raises ValueError."""
    from limits import parse_many  # 80 ms: only a configuration with quotas pays for it

    try:
        (item,) = parse_many(_WEEK.sub(r"7 day\1", text))
    except ValueError:
        raise ValueError(f"expected {_EXPECTED}") from None
    window = _UNITS.get((item.multiples, item.GRANULARITY.name))
    if window is None:
        raise ValueError(f"expected {_EXPECTED}")
    return _bounded(item.amount, window, text)


def spend(text: str) -> Rate:
    """An amount of USD in a window. Raises ValueError."""
    match = _USD.fullmatch(text.strip())
    if match is None:
        raise ValueError("expected an amount in a window, as in 50 USD/month")
    whole, fraction, window = match.groups()
    amount = int(whole) * NANO + int((fraction or "0").ljust(9, "0"))
    return _bounded(amount, rate(f"1{window}").window, text)  # which says what is wrong with the window


def _bounded(limit: int, window: Window, text: str) -> Rate:
    if limit > MOST:
        raise ValueError("no limit can be as high as this")
    return Rate(limit, window, text)
