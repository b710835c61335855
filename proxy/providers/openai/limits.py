"""What OpenAI's rate-limit headers say: what the account has left, and when it has something again.

Source: OpenAI's guide "Rate limits", the headers `x-ratelimit-*`; other servers use the same names.
"""

from __future__ import annotations

import re
from typing import Final

from proxy.core.provider import Header, Left

LIMITS: Final = ("x-ratelimit-limit-requests", "x-ratelimit-limit-tokens")
REQUESTS_LEFT: Final = "x-ratelimit-remaining-requests"
TOKENS_LEFT: Final = "x-ratelimit-remaining-tokens"

_RESETS = ((REQUESTS_LEFT, "x-ratelimit-reset-requests"), (TOKENS_LEFT, "x-ratelimit-reset-tokens"))
_COUNT = re.compile(r"[0-9]{1,15}")
_NUMBER = r"([0-9]{1,9}(?:\.[0-9]{1,9})?)"
_DURATION = re.compile(rf"(?:{_NUMBER}d)?(?:{_NUMBER}h)?(?:{_NUMBER}m)?(?:{_NUMBER}s)?(?:{_NUMBER}ms)?")
_SECONDS = (86400.0, 3600.0, 60.0, 1.0, 0.001)


def left(header: Header) -> Left:
    """Nothing that calls could be held back for. These servers fill a bucket, or count by the second or the day, and
    which of it is not told: only a refusal says when to come back."""
    return Left()


def _count(said: str | None) -> int | None:
    return int(said) if said and _COUNT.fullmatch(said) else None


def reset(header: Header) -> float | None:
    """Seconds until the account has something left again: of what is used up, the one that takes longest. None when
    nothing is, or it is not told."""
    used_up = [header(resets) for remaining, resets in _RESETS if _count(header(remaining)) == 0]
    known = [seconds for said in used_up if (seconds := duration(said)) is not None]
    return max(known, default=None)


def duration(said: str | None) -> float | None:
    """Seconds, of "1s", "6m0s", "2m59.56s" or "20ms". None for anything else."""
    found = _DURATION.fullmatch(said) if said else None
    if found is None:
        return None
    return sum(float(number) * unit for number, unit in zip(found.groups(), _SECONDS, strict=True) if number)
