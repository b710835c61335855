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
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Final, Literal

from pydantic import Field
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.capture import Capture
from proxy.core import cache_control, cache_policy, json
from proxy.core.cache import Bounds, Known, Role
from proxy.core.cache_control import Wishes
from proxy.core.cache_key import Keys
from proxy.core.cache_policy import Policy
from proxy.core.config import Duration, Size, Strict
from proxy.core.endpoint import Cache, Endpoint
from proxy.core.entry import Entry
from proxy.core.errors import ClientGone, Elsewhere, NotInCache, ProxyError
from proxy.core.exchange import Exchange, Stale, exchange_of
from proxy.core.flight import Flight, Lost
from proxy.core.json import Json
from proxy.core.services import Middleware, Services
from proxy.guard import Deadlines, Guard
from proxy.player import Cadence, Player

FAILURES: Final = 2
"""Calls of others that may fail before whoever has joined them fails, too: a crowd does not ask a provider that is in
trouble one by one."""

LOSSES: Final = 8
"""Flights that may end without a word of the provider's before a request goes its own way. One is enough where a limit
has refused the call, and it was one of the same key: it would be refused, too, and nobody is to wait for that."""


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
        return Bounds(life, self.max_bytes, self.max_entry, self.max_entries)

    def policy(self, wall: Callable[[], int]) -> Policy:
        return Policy(self.scope, int(self.ttl * 1000), int(self.stale_if_error * 1000), wall)


@dataclass(frozen=True, slots=True)
class Place:
    """One provider: what tells where it is, and how many seconds a request may take there. `own_keys`: some teams pay
    it themselves."""

    address: tuple[str, ...]
    total: float
    own_keys: bool = False


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
    if endpoint.cache is Cache.NEVER:
        return None
    answers = services.answers
    if not sources.on or answers is None:
        return Nothing
    rows = sources.rows(endpoint)
    providers = {name: _provider(name, row, sources, answers.secret) for name, row in rows.items()}

    def middleware(app: ASGIApp) -> ASGIApp:
        return Cached(app, sources.config.max_entry, providers, policy, player, services)

    return middleware


@dataclass(frozen=True, slots=True)
class _Provider:
    """How one provider's answers are kept. `inert` are fields that bear on none; `one_account`: all who share one pay
    with the same keys."""

    keys: Keys
    inert: Collection[str]
    patience: Deadlines
    kept: Callable[[Json], bool]
    one_account: bool


_EXACT: Final = Cache.EXACT


def _provider(name: str, row: Endpoint, sources: Sources, secret: bytes) -> _Provider:
    place = sources.places[name]
    known = row.request.rows if row.request and row.request.open else None
    keys = Keys(secret, row.operation, (name, *place.address), row.inert, known)
    kept = partial(_is_kept, row, sources.config.mode == "all")
    one_account = sources.config.scope != "global" or not place.own_keys
    return _Provider(keys, row.inert, Deadlines.together(place.total), kept, one_account)


def _is_kept(row: Endpoint, everything: bool, body: Json) -> bool:
    """Whether the answer to this is one that may be kept, and given to others."""
    for name in row.beyond:
        if body.get(name) not in _NOT_ASKED:
            return False
    tools = body.get("tools")
    if tools and not (type(tools) is list and all(map(_is_the_clients, tools))):
        return False
    return everything or row.cache is _EXACT or body.get("temperature") == 0


@dataclass(slots=True)
class _Search:
    """One request that looks for its answer. `lost` flights that it had joined have ended without one, `failed` of them
    because the provider failed."""

    exchange: Exchange
    receive: Receive
    key: str
    wishes: Wishes
    provider: _Provider
    lost: int = 0
    failed: int = 0


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
        providers: Mapping[str, _Provider],
        policy: Policy,
        player: Player,
        services: Services,
    ) -> None:
        assert services.answers
        self._app = app
        self._most = most
        self._providers = providers
        self._policy = policy
        self._player = player
        self._backend = services.answers.backend
        self._flights = services.answers.flights
        self._drainables = services.drainables
        self._wall = services.wall
        self._clock = services.monotonic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        if exchange.replay:  # it is known already what there is
            await self._app(scope, receive, send)
            return
        if exchange.understood is None:
            exchange.understood = self._clock()
        provider, body = self._providers[exchange.provider], exchange.sending
        assert body is not None
        assert exchange.context
        wishes = exchange.head.once(cache_control.wishes)
        if wishes.no_store or not provider.kept(body):
            exchange.cache = "bypass"
            if wishes.only_if_cached:
                raise _absent()
            await self._app(scope, receive, send)
            return
        key = provider.keys.key(self._policy.sharers(exchange), body, exchange.context)
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
        search = _Search(exchange, receive, key, wishes, provider)
        while not await self._answered(search, scope, receive, send):
            pass

    async def _answered(self, search: _Search, scope: Scope, receive: Receive, send: Send) -> bool:
        """False: what this had joined has ended without an answer, and it may look again."""
        exchange, entry = search.exchange, self._at_hand(search)
        if entry is None and search.wishes.max_age is not None and (looking := self._looked_for(search)):
            await looking.looked_for()
            return False
        flight = None if entry else self._joinable(search)
        if entry is None and flight is None:
            entry, flight, leads = await self._look(search)
            if flight and leads:
                await self._lead(search, flight, scope, receive, send)
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
                exchange.replay = self._player.joined(flight, search.key, search.provider.patience)
            await self._app(scope, receive, send)
        return True

    # Looking.

    def _at_hand(self, search: _Search) -> Entry | None:
        if search.wishes.no_cache:
            return None
        entry = self._backend.at_hand(search.key)
        if entry is None or self._policy.is_fresh(entry, search.wishes):
            return entry
        self._remember(search, entry)
        return None

    def _remember(self, search: _Search, entry: Entry | None) -> None:
        """For the case that the provider fails."""
        exchange = search.exchange
        if entry and exchange.stale is None and self._policy.is_better_than_nothing(entry, search.wishes):
            exchange.stale = Stale(exchange.model or "", self._player.kept(entry, search.key))

    def _looked_for(self, search: _Search) -> Flight | None:
        """What somebody else is only looking for may be older than this request wants; but if nothing is found, it is
        asked at that moment. So that has to be waited for."""
        flight = None if search.wishes.no_cache else self._flights.get(search.key)
        return None if flight is None or flight.called or flight.over else flight

    def _joinable(self, search: _Search) -> Flight | None:
        flight, wishes = self._flights.get(search.key), search.wishes
        if not flight or not flight.open or wishes.no_cache or wishes.only_if_cached or search.lost >= LOSSES:
            return None
        return None if flight.over and wishes.max_age == 0 else flight

    async def _look(self, search: _Search) -> tuple[Entry | None, Flight | None, bool]:
        """A fresh entry, or a flight and whether it is this request's own."""
        key, flights, wishes = search.key, self._flights, search.wishes
        if wishes.only_if_cached:
            return await self._only_looked(search), None, False
        flight = Flight(self._most, self._clock)
        if wishes.no_cache or search.lost >= LOSSES:
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
        flight.stale = found.entry
        self._remember(search, found.entry)
        flight.begins()
        if found.role is Role.FOLLOW:
            flight.at_end(partial(self._forget, key, flight))
        return None, flight, found.role is not Role.FOLLOW

    async def _only_looked(self, search: _Search) -> Entry:
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

    def _forget(self, key: str, flight: Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    # Following.

    async def _begun(self, search: _Search, flight: Flight) -> bool:
        """Whether there is something to send: from the flight or, if that has failed, from before; or the provider's
        error, when there is no use in trying."""
        exchange, since = search.exchange, self._clock()
        patience = search.provider.patience
        guard = Guard(search.receive, patience, self._drainables, exchange.end, departure=exchange.departure)
        try:
            if not flight.over:
                with guard:
                    await flight.begun()
            else:
                await flight.begun()
        except ClientGone:
            exchange.client_gone = True
            return False
        except Lost as lost:
            self._remember(search, flight.stale)
            is_refused_too = lost.error is None and lost.unasked and flight.key_id == exchange.key_id
            search.lost += LOSSES if is_refused_too else 1
            return lost.error is not None and self._may_end(search, flight, lost.error)
        finally:
            exchange.end = guard.ends
            exchange.waited += self._clock() - since
        return True

    def _may_end(self, search: _Search, flight: Flight, error: ProxyError) -> bool:
        exchange = search.exchange
        if not error.is_the_providers and not _is_the_same(flight.asked, exchange.body):
            return False  # it may be about a field that bears on no answer, or about how that one has spelled it
        search.failed += 1
        # Where there are other models, it is the fallback stage that says what is to be done.
        if error.is_the_providers and exchange.stale and exchange.is_only:
            exchange.cache, exchange.rescued, exchange.replay = "stale", error, exchange.stale.replay
            return True
        if not exchange.is_only or search.failed >= FAILURES or not error.is_the_providers:
            error = error.again()
            if error.detail.get("timeout") == "total":  # that one's time is over, and this one's is not
                error.elsewhere = Elsewhere.YES
            exchange.cache, exchange.replay = "joined", self._player.failed(error)
            return True
        return False

    # Leading.

    async def _lead(self, search: _Search, flight: Flight, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = search.exchange
        exchange.cache = "miss"
        exchange.stays = flight.stays
        flight.asked, flight.key_id = exchange.body, exchange.key_id
        provider = search.provider
        capture = Capture(flight, exchange, send, self._wall, provider.inert, one_account=provider.one_account)
        try:
            await self._called(search, flight, capture, scope, receive)
            if capture.writing:
                await self._written(search, capture)
        finally:
            capture.stop()

    async def _called(self, search: _Search, flight: Flight, capture: Capture, scope: Scope, receive: Receive) -> None:
        try:
            await self._app(scope, receive, capture.send)
            capture.ended()
        except BaseException as error:
            capture.failed(error)
            raise
        finally:
            await self._settle(search.key, flight, keep=capture.is_kept)

    async def _settle(self, key: str, flight: Flight, *, keep: bool) -> None:
        try:
            if keep and flight.entry:
                other = self._flights.get(key)
                if other and other is not flight and not other.is_newer_than(flight):
                    other.spoiled = True  # there is a newer answer: nobody joins that one any more
                await self._backend.keep(key, flight.entry, flight)
            else:
                self._backend.drop(key, flight)
        finally:
            self._forget(key, flight)  # not before: whoever came meanwhile would ask once more

    async def _written(self, search: _Search, capture: Capture) -> None:
        """Others have the answer; its own client still takes it, for as long as it does. The time and the drain are
        about calls: what has come of one, the error that says so included, may still be taken."""
        exchange = search.exchange
        try:
            with Guard(search.receive, Deadlines.together(inf), set(), departure=exchange.departure):
                await capture.written()
        except ClientGone:
            exchange.client_gone = True


def _is_the_same(one: Json | None, other: Json | None) -> bool:
    """To the letter, but for white space."""
    return one is not None and other is not None and json.encode(one) == json.encode(other)


def _is_the_clients(tool: Json) -> bool:
    """Whether the provider only asks for it. One of another type it uses itself, and then something happens."""
    return type(tool) is dict and tool.get("type", "function") in ("function", "custom")


_NOT_ASKED: Final = (None, False)
"""Values with which a field asks for nothing."""


def _absent() -> NotInCache:
    return NotInCache("This request is not in the cache, and with `Cache-Control: only-if-cached` nobody is asked.")
