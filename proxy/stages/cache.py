"""Whether the answer is there already, or on its way to somebody else: then nobody is asked and nothing is paid.

Looked for before anything is reckoned: what is answered without a call claims no tokens and no money. The answer itself
is given further inside, by the replay stage, when the request has been counted and written down.

    hit      what is kept is young enough
    joined   the same is being asked at this moment, here or in another process
    miss     asked; the answer is kept if it is complete, and others may join it meanwhile
    stale    asked, and the provider failed: what is kept, though not young any more
    bypass   not looked for and not kept
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Literal

from pydantic import Field
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core import cache_control, cache_policy
from proxy.core.cache import Bounds, Known, Role
from proxy.core.cache_key import Keys
from proxy.core.cache_policy import Policy
from proxy.core.config import Duration, Size, Strict
from proxy.core.endpoint import Cache, Endpoint
from proxy.core.entry import Entry
from proxy.core.errors import ClientGone, NotInCache, ProxyError
from proxy.core.exchange import exchange_of
from proxy.core.flight import Flight, Lost
from proxy.core.services import Middleware, Services
from proxy.guard import Deadlines, Guard
from proxy.leading import Leading
from proxy.player import Cadence, Player
from proxy.search import LOSSES, Search, Terms


class Config(Strict):
    """`cache` of proxy.yaml. `ttl` is how many seconds an answer is served for, `stale_if_error` how many it may be old
    when the provider fails; `max_bytes` are those of all entries (in a process, or in the Redis that several share),
    `max_entries` how many there may be in a process, `max_entry` the bytes of one."""

    mode: Literal["off", "deterministic", "all"] = "deterministic"
    ttl: Duration = Field(3_600.0, gt=0, le=366 * 86_400)
    stale_if_error: Duration = Field(86_400.0, ge=0, le=366 * 86_400)
    max_bytes: Size = Field(256 << 20, ge=1 << 20)
    max_entries: int = Field(1_000_000, ge=1)
    max_entry: Size = Field(4 << 20, ge=1, le=64 << 20)
    scope: cache_policy.Scope = "team"
    cadence: Cadence = "immediate"

    @property
    def bounds(self) -> Bounds:
        life = int(max(self.ttl, self.stale_if_error) * 1000)
        return Bounds(life, self.max_bytes, min(self.max_entry, self.max_bytes), self.max_entries)

    def policy(self, wall: Callable[[], int]) -> Policy:
        return Policy(self.scope, int(self.ttl * 1000), int(self.stale_if_error * 1000), wall)


@dataclass(frozen=True, slots=True)
class Place:
    """One provider: what tells where it is, how many seconds a request may take there, and the teams that pay it with
    `own_keys`."""

    address: tuple[str, ...]
    total: float
    own_keys: Collection[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Sources:
    """`rows(endpoint)` is how each provider serves an endpoint; `places` are by the same names."""

    config: Config
    rows: Callable[[Endpoint], Mapping[str, Endpoint]]
    places: Mapping[str, Place]

    @property
    def on(self) -> bool:
        return self.config.mode != "off"


def build(
    sources: Sources, policy: Policy, player: Player, endpoint: Endpoint, services: Services
) -> Middleware | None:
    answers = services.answers
    if endpoint.cache is Cache.NEVER or not sources.on or answers is None:
        return Nothing
    rows = sources.rows(endpoint)
    terms = {name: _terms(name, row, sources, answers.secret) for name, row in rows.items()}

    def middleware(app: ASGIApp) -> ASGIApp:
        return Cached(app, sources.config.bounds.most_entry, terms, policy, player, services)

    return middleware


def _terms(name: str, row: Endpoint, sources: Sources, secret: bytes) -> Terms:
    place = sources.places[name]
    known = row.request.rows if row.request and row.request.open else None
    keys = Keys(secret, row.operation, (name, *place.address), row.inert, known)
    # Whoever shares an answer with nobody but its own team pays as they do.
    payers = frozenset(place.own_keys if sources.config.scope == "global" else ())
    return Terms(keys, row, sources.config.mode == "all", Deadlines.together(place.total), payers)


class Nothing:
    """There is no cache, and who wants no call made gets none."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if exchange_of(scope).head.once(cache_control.wishes).only_if_cached:
            raise _absent()
        return self._app(scope, receive, send)


class Cached:
    """`most` bytes of an answer are kept for those who join it."""

    def __init__(
        self,
        app: ASGIApp,
        most: int,
        terms: Mapping[str, Terms],
        policy: Policy,
        player: Player,
        services: Services,
    ) -> None:
        answers = services.answers
        assert answers
        self._app = app
        self._leading = Leading(app, answers, services.wall)
        self._most = most
        self._terms = terms
        self._policy = policy
        self._player = player
        self._backend = answers.backend
        self._flights = answers.flights
        self._forget = answers.forget
        self._drainables = services.drainables
        self._clock = services.monotonic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        if exchange.replay:  # it is known already what there is
            await self._app(scope, receive, send)
            return
        if exchange.understood is None:
            exchange.understood = self._clock()
        terms, body = self._terms[exchange.provider], exchange.sending
        assert body is not None
        assert exchange.context
        wishes = exchange.head.once(cache_control.wishes)
        if wishes.no_store or not terms.may_be_kept(body):
            exchange.cache = "bypass"
            if wishes.only_if_cached:
                raise _absent()
            await self._app(scope, receive, send)
            return
        key = terms.keys.key(self._policy.sharers(exchange), body, exchange.context)
        exchange.cache_key = key.rpartition("/")[2]
        if not exchange.turned:  # what the body comes to at first is what it always comes to
            exchange.known = Known(
                key,
                exchange.model_asked,
                exchange.model,
                exchange.provider,
                exchange.sent_as or "",
                tuple(exchange.rewrites),
            )
        search = Search(exchange, receive, key, wishes, terms, self._policy, self._player)
        while not await self._answered(search, scope, receive, send):
            pass

    async def _answered(self, search: Search, scope: Scope, receive: Receive, send: Send) -> bool:
        """False: what this had joined has ended without an answer, and it may look again."""
        exchange, entry = search.exchange, self._at_hand(search)
        if entry is None and search.wishes.max_age is not None and (looking := self._looked_for(search)):
            await looking.looked_for()
            return False
        flight = None if entry else self._joinable(search)
        if entry is None and flight is None:
            entry, flight, leads = await self._look(search)
            if flight and leads:
                await self._leading.lead(search, flight, scope, receive, send)
                return True
        if entry:
            self._player.found(entry, exchange, search.key)
            await self._app(scope, receive, send)
            return True
        assert flight
        with flight.follow():
            was_over = flight.over
            if not await self._begun(search, flight):
                return exchange.client_gone
            if exchange.replay is None:  # somebody may have been looking only, and have found nothing
                exchange.cache = "joined" if flight.called and not was_over else "hit"
                exchange.replay = self._player.joined(flight, search.key, search.terms.patience)
            await self._app(scope, receive, send)
        return True

    # Looking.

    def _at_hand(self, search: Search) -> Entry | None:
        if search.wishes.no_cache:
            return None
        entry = self._backend.at_hand(search.key)
        if entry is None or self._policy.is_fresh(entry, search.wishes):
            return entry
        search.remember(entry)
        return None

    def _looked_for(self, search: Search) -> Flight | None:
        """What somebody else is only looking for may be older than this request wants; but if nothing is found, it is
        asked at that moment. So that has to be waited for."""
        flight = None if search.wishes.no_cache else self._flights.get(search.key)
        return None if flight is None or flight.called or flight.over else flight

    def _joinable(self, search: Search) -> Flight | None:
        flight, wishes = self._flights.get(search.key), search.wishes
        if not flight or not flight.open or wishes.no_cache or search.losses >= LOSSES:
            return None
        if flight.over:  # and what has come of it is being kept
            return flight if flight.entry and self._policy.is_fresh(flight.entry, wishes) else None
        return None if wishes.only_if_cached else flight

    async def _look(self, search: Search) -> tuple[Entry | None, Flight | None, bool]:
        """A fresh entry, or a flight and whether it is this request's own."""
        key, flights, wishes = search.key, self._flights, search.wishes
        if wishes.only_if_cached:
            return await self._only_looked(search), None, False
        flight = Flight(self._most, self._clock)
        if wishes.no_cache or search.losses >= LOSSES:
            flight.begins()
            return None, flight, True
        flights[key] = flight  # from now on others of this process wait for what comes of this
        try:
            found = await self._backend.look(key, self._policy.since(wishes), flight)
        except BaseException:
            self._give_up(key, flight)
            raise
        if found.role is Role.DONE and found.entry:
            flight.finish(found.entry, found.entry.cost or 0)
            self._forget(key, flight)
            return found.entry, None, False
        if not self._backend.near:  # else whoever joins has looked by itself, and after all that was deleted
            flight.stale = found.entry
        search.remember(found.entry)
        flight.begins()
        if found.role is Role.FOLLOW:
            flight.at_end(partial(self._forget, key, flight))
        return None, flight, found.role is not Role.FOLLOW

    async def _only_looked(self, search: Search) -> Entry:
        """For whoever makes no call: nobody is to wait for what comes of this."""
        if not search.wishes.no_cache:
            found = await self._backend.would_find(search.key, self._policy.since(search.wishes))
            if found.role is Role.DONE and found.entry:
                return found.entry
        raise _absent()

    def _give_up(self, key: str, flight: Flight) -> None:
        """What was only being looked for is not asked."""
        flight.fail(None)
        self._forget(key, flight)
        self._backend.drop(key, flight)

    # Following.

    async def _begun(self, search: Search, flight: Flight) -> bool:
        """Whether there is something to send: from the flight or, if that has failed, what `search` makes of it."""
        exchange, since = search.exchange, self._clock()
        patience = search.terms.patience
        guard = Guard(search.receive, patience, self._drainables, exchange.end, departure=exchange.departure)
        try:
            with nullcontext() if flight.over else guard:
                await flight.begun(guard.ends or inf)
        except ClientGone:
            exchange.client_gone = True
            return False
        except Lost as lost:
            search.remember(flight.stale)
            return search.ends_with(flight, lost)
        except ProxyError as error:  # its own time is over, or the proxy stops
            search.remember(flight.stale)
            search.fails(error)
        finally:
            exchange.end = guard.ends
            exchange.waited += self._clock() - since
        return True


def _absent() -> NotInCache:
    return NotInCache("This request is not in the cache, and with `Cache-Control: only-if-cached` nobody is asked.")
