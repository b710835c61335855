"""The beginning of a text that somebody else wrote, redacted: what a log line shows of it."""

from __future__ import annotations

from typing import Final

from proxy.core.redact import Redactor

_MOST_LOOKED_AT: Final = 2000
_MOST_SHOWN: Final = 256
"""Characters of a client's text (a path, a name) that are redacted, and that a line shows of it. With these a line
without content stays below 8 KiB, whatever was sent."""


class Excerpts:
    def __init__(self, redact: Redactor) -> None:
        self._redact = redact

    def name(self, text: str) -> str:
        """Of a name or a path: 256 characters, and never nothing at all."""
        return self.of(text, _MOST_LOOKED_AT)[:_MOST_SHOWN] or "…"

    def of(self, text: str, most: int) -> str:
        """Of as many characters, the redacted ones; of a longer text fewer than that are looked at."""
        return self._redact.text(_beginning(text, most))


def _beginning(text: str, most: int) -> str:
    """Where a text is cut, the last word goes too: it could be half a secret, and marks that are shorter than what they
    replace would move it into view."""
    return text if len(text) <= most else " ".join(text[:most].split(" ")[:-1])
