"""How long a worker that died is waited with before the next one takes its place."""

from __future__ import annotations

from dataclasses import dataclass

FIRST, LONGEST = 0.1, 30.0
"""Seconds before the second attempt and, doubling, at most."""

SOON, LONG = 5.0, 60.0
"""Seconds of service: a worker that served for less than SOON has failed; one that served for LONG shows that all is
well again."""

LOOP = 3
"""Failures in a row from which on it is called a crash loop."""


@dataclass
class Backoff:
    """`failures` in a row; `first`: seconds to wait after the first one."""

    first: float = FIRST
    failures: int = 0

    def after(self, served: float | None) -> float:
        """Seconds to wait, now that a worker has died that `served` so long; None: it was never ready.

        Whoever has served well is replaced at once.
        """
        if served is None or served < SOON:
            self.failures += 1
        elif served >= LONG:
            self.failures = 0
        return min(LONGEST, self.first * 2.0 ** min(self.failures - 1, 20)) if self.failures else 0.0

    @property
    def looping(self) -> bool:
        return self.failures >= LOOP
