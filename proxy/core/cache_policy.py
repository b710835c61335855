"""Whose answers are whose, and how old they may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from proxy.core.cache import SKEW, is_fresh
from proxy.core.cache_control import Wishes
from proxy.core.cache_key import EVERYBODY
from proxy.core.entry import Entry
from proxy.core.exchange import Exchange

NEVER: Final = 1 << 62
"""Unix milliseconds at which nothing has been made yet."""

Scope = Literal["team", "key", "global"]
"""Who may be given an answer that another request has paid."""


@dataclass(frozen=True, slots=True)
class Policy:
    """`ttl` and `stale` are the milliseconds that an answer is given for, while the provider is well and while it is
    not. `wall` gives Unix milliseconds."""

    scope: Scope
    ttl: int
    stale: int
    wall: Callable[[], int]

    def sharers(self, exchange: Exchange) -> str:
        """It comes of the key that was sent, and of nothing in the request."""
        return _SHARERS[self.scope](exchange)

    def since(self, wishes: Wishes) -> int:
        """Nothing that is older is fresh (Unix milliseconds). What is no older than 0 seconds is what is made now: what
        was kept within this very millisecond, or by a clock that is ahead, is not."""
        return NEVER if wishes.max_age == 0 else self.wall() - self._most(self.ttl, wishes)

    def is_fresh(self, entry: Entry, wishes: Wishes) -> bool:
        return is_fresh(entry, self.since(wishes), self.wall())

    def is_better_than_nothing(self, entry: Entry, wishes: Wishes) -> bool:
        now = self.wall()
        return now - self._most(self.stale, wishes) < entry.created <= now + SKEW

    def _most(self, milliseconds: int, wishes: Wishes) -> int:
        return milliseconds if wishes.max_age is None else min(milliseconds, wishes.max_age * 1000)


def _team(exchange: Exchange) -> str:
    assert exchange.team
    return exchange.team.name


_SHARERS: Final[Mapping[Scope, Callable[[Exchange], str]]] = {
    "team": _team,
    "key": lambda exchange: f"{_team(exchange)}:{exchange.key_id}",
    "global": lambda exchange: EVERYBODY,
}
