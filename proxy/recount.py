"""Counters that have to be looked up in the ledger once more: those of rules that somebody has just written.

While no rule asks for a counter nobody counts for it, and it may be there still from the time in which one did.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from proxy.core.quota import Counter, Rule, StoreGone
from proxy.core.services import Log
from proxy.core.team_key import Issued
from proxy.generation import Counters
from proxy.settings.model import Settings

AGAIN: Final = 5.0
"""Seconds until the next attempt."""


def key_ids(settings: Settings, issued: Issued | None) -> dict[str, list[str]]:
    """Of the keys of each team, written and issued."""
    return {
        name: [*(key.id for key in team.keys), *(issued.ids(name) if issued else ())]
        for name, team in settings.teams.items()
    }


def calendar_counters(rules: Mapping[str, Iterable[Rule]], keys: Mapping[str, Sequence[str]]) -> Iterator[Counter]:
    """Those of the rules of each team; `keys` are the ids of its keys, where each is counted apart."""
    for team, ours in rules.items():
        for rule in ours:
            if rule.window and rule.window.span is None:
                for key in keys.get(team, ()) if rule.per_key else (None,):
                    yield Counter(team, rule.unit, rule.window, key, rule.model, rule.shadow)


class Recounting:
    """Has counters count what the ledger knows, and does not give up on those for which that cannot be had at once."""

    def __init__(self, quotas: Counters, log: Log, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        self._quotas = quotas
        self._log = log
        self._sleep = sleep
        self._left: set[Counter] = set()
        self._going_on: asyncio.Task[None] | None = None

    async def recount(self, counters: Iterable[Counter], *, missed: bool) -> None:
        """One attempt for all of them; those that fail are tried again later, and hold up nothing. `missed`: they are
        known to have missed something, if they are there."""
        self._left |= await self._attempt(set(counters), missed)
        if self._left and not self._going_on:
            self._log("warning", "recount_failed", counters=len(self._left))
            self._going_on = asyncio.create_task(self._go_on())

    async def close(self) -> None:
        if self._going_on:
            self._going_on.cancel()
            await asyncio.wait([self._going_on])

    async def _go_on(self) -> None:
        try:
            while self._left:
                await self._sleep(AGAIN)
                tried = set(self._left)
                self._left -= tried - await self._attempt(tried, True)
        finally:  # whatever it was, the next one that fails begins again
            self._going_on = None
        self._log("info", "recounted")

    async def _attempt(self, counters: set[Counter], missed: bool) -> set[Counter]:
        """Those for which it cannot be had now."""
        asked = list(counters)
        steps = [self._quotas.recount(counter, missed=missed) for counter in asked]
        answers = await asyncio.gather(*steps, return_exceptions=True)
        failed = set()
        for counter, answer in zip(asked, answers, strict=True):
            if isinstance(answer, StoreGone):
                failed.add(counter)
            elif isinstance(answer, BaseException):
                raise answer
        return failed
