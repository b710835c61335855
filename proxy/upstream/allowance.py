"""What an account at a provider may still ask of a model: the provider's own word, kept up to date between two answers.

Providers count in a minute that slides, and say with each answer what is left of it. From one answer to the next that
shows what everybody who shares the account has used, and when: a minute later it is free again. So calls can be held
back just before the provider would refuse them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from proxy.core.errors import ProviderBusy
from proxy.core.provider import Left

WINDOW: Final = 60.0
"""Seconds."""

EDGE: Final = 0.001
"""Seconds behind the end of a minute."""

BLIND: Final = 5.0
"""Seconds after which one call finds out more, when nobody has seen what was used."""

SOON: Final = 1.0
"""Seconds after it that the others come back."""

DOUBTS: Final = 3
"""Calls in a row that found something although nothing was left. Then what the provider says means something else; it
is believed again when it refuses one."""

PATIENCE: Final = 5.0
"""Seconds that a call may be held back. Who would have to wait longer is told so."""


class Used(NamedTuple):
    """So much was used between two moments: the call was sent, and the answer came."""

    sent: float
    heard: float
    amount: int


class Quantity:
    """One of what is limited, requests or tokens. Times are monotonic seconds."""

    __slots__ = ("_left", "_most", "_sent", "_told", "_used")

    def __init__(self) -> None:
        self._left: int | None = None
        self._most = 0
        """That was ever left."""
        self._sent = self._told = 0.0
        """When the call went out, and came back, whose answer is known."""
        self._used: deque[Used] = deque()
        """Of the minute that was running then, oldest first."""

    def told(self, left: int, sent: float, now: float) -> None:
        """The provider has said at some moment between these two that so much is left."""
        before, used = self.left(now), self._used
        if sent <= self._sent and before is not None and left >= before:
            return  # younger calls have been answered first, and have had what this one saw
        while used and used[0].sent + WINDOW <= now:
            used.popleft()  # it may be counted as free already
        if before is not None and before > left:
            used.append(Used(self._sent, now, before - left))
        self._left, self._sent, self._told = left, max(sent, self._sent), now
        self._most = max(self._most, left)

    def left(self, now: float) -> int | None:
        """None: nothing is known."""
        left, used = self._left, self._used
        if left is None:
            return None
        if now - self._told > WINDOW:
            # Another minute has begun, and what it allows is known.
            left = max(left, self._most)
            used.clear()
        while used and used[0].heard + WINDOW < now:
            left += used.popleft().amount
        self._left = left
        return left

    def wait(self, amount: int, now: float, alone: bool) -> float:
        """Seconds until so much is left; 0: it is, or nothing is known. Where nobody has seen when it was used, one who
        is `alone` may find out."""
        left = self.left(now)
        if left is None or left >= amount:
            return 0.0
        for used in self._used:
            left += used.amount
            if left >= amount:
                return used.heard + WINDOW + EDGE - now
        return max(0.0, self._told + BLIND - now) if alone else BLIND + SOON


class Sent(NamedTuple):
    """When a call was sent, and whether that was to find out."""

    at: float
    blind: bool = False


class Allowance:
    """Of one key and one model. `workers` share it, and each takes its part of what is left."""

    __slots__ = (
        "_doubts",
        "_line",
        "_now",
        "_requests",
        "_sent",
        "_sent_tokens",
        "_tokens",
        "_waiting",
        "_workers",
    )

    def __init__(self, workers: int, now: Callable[[], float]) -> None:
        self._workers = workers
        self._now = now
        self._requests = Quantity()
        self._tokens = Quantity()
        self._sent = self._sent_tokens = 0
        """Of calls that the provider may have counted or not: it has not answered yet."""
        self._doubts = 0
        self._line = asyncio.Lock()
        self._waiting = 0

    def wait(self, tokens: int, others: int = 0) -> float:
        """Seconds until a call with a prompt of so many tokens may be made, and as many others as wait already."""
        if self._doubts >= DOUBTS:
            return 0.0
        now, workers, calls = self._now(), self._workers, 1 + others
        alone = calls + self._sent == 1
        return max(
            self._requests.wait((calls + self._sent) * workers, now, alone),
            self._tokens.wait((calls * tokens + self._sent_tokens) * workers, now, alone),
        )

    async def turn(self, tokens: int, rest: Callable[[float], Awaitable[None]]) -> Sent:
        """Hold a call back for as long as it must be, in the order in which they came, and count it as sent. `rest`
        sleeps. Raises ProviderBusy if that takes longer than PATIENCE."""
        wait = self.wait(tokens, self._waiting)
        if wait:
            await self._wait(wait, tokens, rest)
        now = self._now()
        blind = self._requests.left(now) == 0 or self._tokens.left(now) == 0
        self._sent += 1
        self._sent_tokens += tokens
        return Sent(now, blind)

    async def _wait(self, wait: float, tokens: int, rest: Callable[[float], Awaitable[None]]) -> None:
        end = self._now() + PATIENCE
        self._waiting += 1
        try:
            if self._now() + wait > end:
                raise ProviderBusy(wait)
            async with self._line:
                while wait := self.wait(tokens):
                    if self._now() + wait > end:
                        raise ProviderBusy(wait)
                    await rest(wait)
        finally:
            self._waiting -= 1

    def heard(self, left: Left, sent: Sent, *, refused: bool = False) -> None:
        """The provider has answered this call, or has `refused` it for what is left."""
        now = self._now()
        if left.requests is not None:
            self._requests.told(left.requests, sent.at, now)
        if left.tokens is not None:
            self._tokens.told(left.tokens, sent.at, now)
        if refused:
            self._doubts = 0
        elif sent.blind:
            self._doubts += 1

    def over(self, tokens: int) -> None:
        """A call that was sent has been answered, or never will be."""
        self._sent -= 1
        self._sent_tokens -= tokens
