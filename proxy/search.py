"""One request that looks for its answer: on which terms, and what it has come upon so far."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from starlette.types import Receive

from proxy.core import json
from proxy.core.cache_control import Wishes
from proxy.core.cache_key import Keys
from proxy.core.cache_policy import Policy
from proxy.core.endpoint import Cache, Endpoint
from proxy.core.entry import Entry
from proxy.core.errors import CircuitOpen, Elsewhere, ProxyError, forget_frames
from proxy.core.exchange import Exchange, Stale
from proxy.core.flight import Flight, Lost
from proxy.core.json import Json
from proxy.guard import Deadlines
from proxy.player import Player

FAILURES: Final = 2
"""Calls of others that may fail before whoever has joined them fails, too: a crowd does not ask a provider that is in
trouble one by one."""

LOSSES: Final = 8
"""Flights that may end without a word of the provider's before a request goes its own way. One is enough where the call
was not even made, because of a limit or otherwise, and it was one of the same key: it would be refused, too, and nobody
is to wait for that."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How the answers of one provider are kept: `row` is how it serves the endpoint. `everything`: what is sampled,
    too. `patience` is how long a request waits there; `payers` are the teams that pay with a key of their own and may
    share an answer with others."""

    keys: Keys
    row: Endpoint
    everything: bool
    patience: Deadlines
    payers: Collection[str]

    def payer(self, exchange: Exchange) -> str:
        """Who pays for the call of this one: a team, or '' with the keys that all others use."""
        assert exchange.team
        return exchange.team.name if exchange.team.name in self.payers else ""

    def may_be_kept(self, body: Json) -> bool:
        """Whether the answer to this is one that may be kept, and given to others."""
        row = self.row
        for name in row.beyond:
            if body.get(name) not in _NOT_ASKED:
                return False
        tools = body.get("tools")
        if tools and not (type(tools) is list and all(map(_is_the_clients, tools))):
            return False
        temperature = body.get("temperature")
        return self.everything or row.cache is _EXACT or (temperature == 0 and temperature is not False)


_EXACT: Final = Cache.EXACT

_NOT_ASKED: Final = (None, False)
"""Values with which a field asks for nothing; 0 is as good as false."""


def _is_the_clients(tool: Json) -> bool:
    """Whether the provider only asks for it. One of another type it uses itself, and then something happens."""
    return type(tool) is dict and tool.get("type", "function") in ("function", "custom")


@dataclass(slots=True)
class Search:
    """`losses` flights that it had joined have ended without an answer, in `failures` of them because the provider
    failed."""

    exchange: Exchange
    receive: Receive
    key: str
    wishes: Wishes
    terms: Terms
    policy: Policy
    player: Player
    losses: int = 0
    failures: int = 0

    def remember(self, entry: Entry | None) -> None:
        """For the case that the provider fails."""
        exchange = self.exchange
        if entry and exchange.stale is None and self.policy.is_better_than_nothing(entry, self.wishes):
            exchange.stale = Stale(exchange.model or "", self.player.kept(entry, self.key))

    def ends_with(self, flight: Flight, lost: Lost) -> bool:
        """Whether the loss of what it had joined is its own end: then there is a replay. Else it may look again. Raises
        CircuitOpen."""
        error, exchange = lost.error, self.exchange
        if isinstance(error, CircuitOpen) and exchange.others:
            raise error.again()  # as it would be told further inside, before anything is reserved for that model
        if error and error.is_the_accounts and flight.payer != self.terms.payer(exchange):
            error = None
        if error and error.is_the_times and not exchange.others:  # which was that one's: this one has more
            self.losses += 1
            return False
        if error is None:
            is_refused_too = lost.unasked and flight.key_id == exchange.key_id
            self.losses += LOSSES if is_refused_too else 1
            return False
        if error.is_the_providers:
            self.losses += 1
            self.failures += 1
            if self.failures < FAILURES and exchange.is_only and not exchange.stale:
                return False
        elif not _is_the_same(flight.asked, exchange.body):
            # It may be about a field that bears on no answer, or about how that one has spelled it. The second time it
            # is hardly about what others have said.
            self.losses += LOSSES // 2
            return False
        error = error.again()
        if error.is_the_times:  # and this one has some for other models
            error.elsewhere = Elsewhere.YES
        self.fails(error)
        return True

    def fails(self, error: ProxyError) -> None:
        """It is answered with what there was before, if there is anything, or with this."""
        forget_frames(error)
        exchange = self.exchange
        # Where there are other models, it is the fallback stage that says what is to be done.
        if error.is_the_providers and exchange.stale and exchange.is_only:
            exchange.cache, exchange.rescued, exchange.replay = "stale", error, exchange.stale.replay
        else:
            exchange.cache, exchange.replay = "joined", self.player.failed(error)


def _is_the_same(one: Json | None, other: Json | None) -> bool:
    """To the letter, but for white space."""
    return one is not None and other is not None and json.encode(one) == json.encode(other)
