"""Counters that have to be looked up in the ledger once more: those of rules that somebody has just written.

While no rule asks for a counter nobody counts for it, and it may be there still from the time in which one did.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence

from proxy.core.quota import Counter, Rule, StoreGone
from proxy.core.services import Log
from proxy.core.team_key import Issued
from proxy.generation import Counters
from proxy.settings.model import Settings


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


async def recount(quotas: Counters, counters: Iterable[Counter], log: Log) -> None:
    """Have them count what the ledger knows. One for which that cannot be had now goes on with what it has: it is said,
    and holds up nothing."""
    failed = 0
    for one in await asyncio.gather(*map(quotas.recount, counters), return_exceptions=True):
        if isinstance(one, StoreGone):
            failed += 1
        elif isinstance(one, BaseException):
            raise one
    if failed:
        log("warning", "recount_failed", counters=failed)
