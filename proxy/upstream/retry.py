"""Whether a call that failed is made once more, and when.

    what has failed                                             core/errors.Repeat
    429, 500, 502, 503 of the provider's, no connection         SAFE     it has not been done
    504, and whatever ends a call that was sent                 UNSAFE   it may have been done, and may be billed
    all else                                                    NEVER    it would end the same way

A retry is worth more to one caller than to all: where everything fails, retries only add to it. So they are rationed,
for each upstream, to a part of what is asked of it anyway.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from proxy.core.errors import Repeat
from proxy.upstream.config import Retry

WINDOW: Final = 30
"""Seconds of traffic that retries are a part of."""

LEAST: Final = 3
"""Retries within WINDOW that are allowed however little is asked: by all workers together."""


class Budget:
    """Retries of the last WINDOW seconds, and the requests of which they may be a `part`. `now` gives seconds."""

    def __init__(self, part: float, least: int, now: Callable[[], float]) -> None:
        self._part, self._least, self._now = part, least, now
        self._seconds: deque[list[int]] = deque()
        """Second, requests, retries: oldest first."""
        self._requests = self._retries = 0

    def request(self) -> None:
        self._second()[1] += 1
        self._requests += 1

    def take(self) -> bool:
        """Whether there may be one more retry."""
        second = self._second()
        if self._retries >= max(self._least, int(self._part * self._requests)):
            return False
        second[2] += 1
        self._retries += 1
        return True

    def _second(self) -> list[int]:
        """The counts of the second that it is; what is too old is forgotten."""
        now, seconds = int(self._now()), self._seconds
        if seconds and seconds[-1][0] == now:
            return seconds[-1]
        while seconds and seconds[0][0] <= now - WINDOW:
            _, requests, retries = seconds.popleft()
            self._requests -= requests
            self._retries -= retries
        seconds.append([now, 0, 0])
        return seconds[-1]


class Retries:
    """Of one upstream. `workers` share what is allowed at least. `dice` gives a number from 0 to 1."""

    def __init__(
        self,
        config: Retry,
        workers: int = 1,
        *,
        now: Callable[[], float] = time.monotonic,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self._config = config
        self._dice = dice
        self._budget = Budget(config.budget, max(1, LEAST // workers), now)
        self.on = config.max_attempts > 1

    def request(self) -> None:
        """Somebody asks for something: retries may be a part of this."""
        self._budget.request()

    def wait(
        self, attempts: int, repeat: Repeat, asked: float | None, left: float, *, patient: bool = True
    ) -> float | None:
        """After how many seconds the call is made once more that has failed, after so many `attempts`; None: it is not.
        `asked` is what the provider wants, and what is `left` of the call's time must be enough for the wait. Who can
        turn to another model is not `patient`: where the provider wants a longer pause than ours, there is none."""
        config = self._config
        if attempts >= config.max_attempts or not self._is_allowed(repeat):
            return None
        pause = min(config.initial_delay * config.multiplier ** (attempts - 1), config.max_delay)
        pause *= 1 + config.jitter * (2 * self._dice() - 1)
        if asked is not None and asked > pause and not patient:
            return None
        if asked is not None:
            pause = max(pause, min(asked, config.max_delay))
        return pause if pause < left and self._budget.take() else None

    def _is_allowed(self, repeat: Repeat) -> bool:
        return repeat is Repeat.SAFE or (repeat is Repeat.UNSAFE and self._config.retry_unsafe)
