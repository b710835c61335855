"""`x-ratelimit-*` as OpenAI's clients read them: a limit, what is left of it, and when all of it is there again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import inf
from typing import Final

from proxy.core.errors import Headers
from proxy.core.quota import Rule, Standing, Unit

_SHOWN: Final = ((Unit.REQUESTS, b"requests"), (Unit.TOKENS, b"tokens"))


class Shown:
    """Of the rules on requests, and of those on tokens, the one that leaves the least; what is left is what this
    request leaves. Money has no such headers, and what a shadow rule counts is nobody's business."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        groups = [
            (
                [
                    (at, rule.limit, (b"x-ratelimit-limit-" + name, b"%d" % rule.limit))
                    for at, rule in enumerate(rules)
                    if rule.unit is unit and not rule.shadow
                ],
                b"x-ratelimit-remaining-" + name,
                b"x-ratelimit-reset-" + name,
            )
            for unit, name in _SHOWN
        ]
        self._groups = [group for group in groups if group[0]]

    def headers(self, standings: Sequence[Standing]) -> Headers:
        """`standings` are in the order of the rules."""
        found: Headers = []
        for group, remaining, reset in self._groups:
            least: float = inf
            for at, limit, header in group:
                standing = standings[at]
                left = limit - standing.used - standing.reserved
                if left < least:
                    least, shown, binding = left, header, standing
            found += shown, (remaining, str(least if least > 0 else 0).encode()), (reset, _span(binding.reset))
        return found


@lru_cache(4096)  # mostly it is the whole window
def _span(milliseconds: int) -> bytes:
    return span(milliseconds).encode()


def span(milliseconds: int) -> str:
    """As OpenAI writes one: `120ms`, `7.66s`, `6m0s`, `2h0m0s`."""
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    seconds, rest = divmod(milliseconds, 1000)
    last = f"{seconds % 60}.{rest:03}".rstrip("0") if rest else str(seconds % 60)
    if seconds < 60:
        return f"{last}s"
    minutes = seconds // 60
    return f"{minutes}m{last}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60}m{last}s"
