"""What an account at a provider may still ask of a model: the provider's own word, kept up to date between two answers.

Providers count in a minute that slides, and say with each answer what is left of it. From one answer to the next that
shows what everybody who shares the account has used, and when: a minute later it is free again. So calls can be held
back just before the provider would refuse them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from proxy.core.errors import ProviderBusy
from proxy.core.provider import Left

WINDOW: Final = 60.0
"""Seconds."""

EDGE: Final = 0.001
"""Seconds behind the end of a minute."""

MERGED: Final = 0.1
"""Seconds within which what is used counts as one."""

BLIND: Final = 5.0
"""Seconds after which one call finds out more, when nobody has seen what was used."""

SOON: Final = 1.0
"""Seconds after it that the others come back."""

DOUBTS: Final = 3
"""Calls in a row that found something although nothing was left. Then what the provider says means something else; it
is believed again when it refuses one."""

PATIENCE: Final = 5.0
"""Seconds that a call may be held back. Who would have to wait longer is told so."""


class Sent(msgspec.Struct, frozen=True, gc=False):
    """When a call was sent, as which of all, and whether that was to find out."""

    at: float
    number: int = 0
    blind: bool = False


class Used(msgspec.Struct, frozen=True, gc=False):
    """So much was used between two moments: the call was sent, and the answer came."""

    sent: float
    heard: float
    amount: int


class Quantity:
    """One of what is limited, requests or tokens. Times are monotonic seconds."""

    __slots__ = ("_left", "_most", "_sent", "_sum", "_told", "_used")

    def __init__(self) -> None:
        self._left: int | None = None
        self._most = 0
        """That was ever left."""
        self._sent, self._told = Sent(0.0), 0.0
        """The call whose answer is known, and when that came."""
        self._used: deque[Used] = deque()
        """Of the minute that was running then, oldest first."""
        self._sum = 0
        """Of all of them."""

    def told(self, left: int, sent: Sent, now: float) -> None:
        """The provider has said, at some moment since this call was sent, that so much is left."""
        before, used = self.left(now), self._used
        if before is not None and sent.number < self._sent.number:
            # Younger calls have been answered first: what this one saw they have had, what it misses they have told.
            self._left = min(left, before)
            return
        if before is not None and sent.number == self._sent.number and left >= before:
            return  # of those that nobody has counted no order is known
        while used and used[0].sent + WINDOW <= now:
            self._forget()  # it may be counted as free already
        if before is not None and before > left:
            self._note(Used(self._sent.at, now, before - left))
        self._left, self._sent, self._told = left, sent, now
        self._most = max(self._most, left)
        # More than this cannot have been used within the minute: what is beyond it is free already, too.
        while used and self._sum > self._most - left:
            self._forget(self._sum - (self._most - left))

    def _note(self, one: Used) -> None:
        self._sum += one.amount
        last = self._used[-1] if self._used else None
        if last and one.heard - last.heard < MERGED:
            self._used[-1] = Used(last.sent, one.heard, last.amount + one.amount)
        else:
            self._used.append(one)

    def _forget(self, most: int | None = None) -> int:
        """So much of the oldest that was used, or all of it; how much that was."""
        oldest = self._used.popleft()
        amount = oldest.amount if most is None else min(most, oldest.amount)
        if amount < oldest.amount:
            self._used.appendleft(Used(oldest.sent, oldest.heard, oldest.amount - amount))
        self._sum -= amount
        return amount

    def left(self, now: float) -> int | None:
        """None: nothing is known."""
        left, used = self._left, self._used
        if left is None or (not used and now - self._told <= WINDOW):
            return left
        if now - self._told > WINDOW:
            # Another minute has begun, and what it allows is known.
            left = max(left, self._most)
            used.clear()
            self._sum = 0
        while used and used[0].heard + WINDOW < now:
            left += self._forget()
        self._left = left
        return left

    def is_used_up(self) -> bool:
        """When it was last looked at."""
        return self._left == 0

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


class Allowance:
    """Of one key and one model. `workers` share it, and each takes its part of what is left."""

    def __init__(self, workers: int, now: Callable[[], float]) -> None:
        self._workers = workers
        self._now = now
        self._requests = Quantity()
        self._tokens = Quantity()
        self._sent = self._sent_tokens = 0
        """Of calls that the provider may have counted or not: it has not answered yet."""
        self._line: dict[int, int] = {}
        """Who waits, in the order in which they came, and the tokens of each."""
        self._came = self._calls = 0
        self._doubts = 0

    def wait(self, tokens: int, others: int = 0, their_tokens: int = 0) -> float:
        """Seconds until a call with a prompt of so many tokens may be made, behind others that wait already."""
        if self._doubts >= DOUBTS:
            return 0.0
        now, workers, calls = self._now(), self._workers, 1 + others + self._sent
        # A prompt may be larger than one worker's part of the tokens. Of what is under way the others have as much.
        needed = tokens + their_tokens + self._sent_tokens * workers
        alone = calls == 1
        return max(self._requests.wait(calls * workers, now, alone), self._tokens.wait(needed, now, alone))

    def at_once(self, tokens: int) -> Sent | None:
        """Count a call as sent, if it need not be held back."""
        return None if self._line or self.wait(tokens) else self._count(tokens)

    async def turn(self, tokens: int, rest: Callable[[float], Awaitable[None]]) -> Sent:
        """Hold a call back for as long as it must be, in the order in which they came, and count it as sent. `rest`
        sleeps. Raises ProviderBusy if that takes longer than PATIENCE."""
        if self._line or self.wait(tokens):
            await self._wait_in_line(tokens, rest)
        return self._count(tokens)

    def _count(self, tokens: int) -> Sent:
        self._sent += 1
        self._sent_tokens += tokens
        self._calls += 1
        return Sent(self._now(), self._calls, self._requests.is_used_up() or self._tokens.is_used_up())

    async def _wait_in_line(self, tokens: int, rest: Callable[[float], Awaitable[None]]) -> None:
        end, number = self._now() + PATIENCE, self._came
        self._came += 1
        self._line[number] = tokens
        try:
            while wait := self.wait(tokens, *self._before(number)):
                if self._now() + wait > end:
                    raise ProviderBusy(wait)
                await rest(wait)
        finally:
            del self._line[number]

    def _before(self, number: int) -> tuple[int, int]:
        """How many came before and wait still, and their tokens."""
        before = [tokens for other, tokens in self._line.items() if other < number]
        return len(before), sum(before)

    def heard(self, left: Left, sent: Sent, *, refused: bool = False) -> None:
        """The provider has answered this call, or has `refused` it for what is left."""
        now = self._now()
        if left.requests is not None:
            self._requests.told(left.requests, sent, now)
        if left.tokens is not None:
            self._tokens.told(left.tokens, sent, now)
        if refused:
            self._doubts = 0
        elif sent.blind:
            self._doubts += 1

    def over(self, tokens: int) -> None:
        """A call that was sent has been answered, or never will be."""
        self._sent -= 1
        self._sent_tokens -= tokens
