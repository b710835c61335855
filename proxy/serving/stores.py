"""What a serving process keeps outside of itself: counters, the ledger, issued keys. Opened once, in the process that
serves and in its event loop, and closed when its last request has ended."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from proxy.core.cache import Answers
from proxy.core.calendar import Calendar
from proxy.core.circuit import Alone, Probes
from proxy.core.ledger import Ledger
from proxy.core.quota import Counter, Rule, StoreGone, Unit
from proxy.core.secret import Secret
from proxy.core.services import Log
from proxy.core.team_key import Issued
from proxy.generation import Counters
from proxy.serving.ledger_place import ledger_url
from proxy.serving.minted import state_folder
from proxy.serving.pepper import of_answers, pepper
from proxy.serving.plan import CannotStart
from proxy.settings.model import Settings
from proxy.settings.rules import catalogue_of, rules_of
from proxy.store.cache.memory import MemoryCache
from proxy.store.memory import MemoryStore

if TYPE_CHECKING:  # SQLAlchemy takes 0.2 s to import, and not everybody keeps a ledger
    from proxy.store.database import Database
    from proxy.store.ledger.history import LedgerHistory, Recent
    from proxy.store.ledger.store import LedgerStore

_HOUR = 3_600_000
"""Milliseconds: the longest sliding window."""

_GOODBYE = 1.0
"""Seconds that the end of the process waits for the database to take when keys were used last, and for Redis to take
what is not settled yet."""

_LAST_ROWS = 2.0
"""Seconds that it waits for the database to take the last rows; what it does not take is in the journal. All of this
together is less than a supervisor waits (supervisor.Timing)."""

_ORPHANED = 3_600_000
"""Milliseconds after which, at least, a call that is open in the database is nobody's."""


@dataclass(frozen=True, slots=True)
class Stores:
    """`ledger` and `issued` are None when there is no database."""

    quotas: Counters
    probes: Probes
    answers: Answers
    ledger: Ledger | None = None
    issued: Issued | None = None


@dataclass(frozen=True, slots=True)
class Opener:
    """What opening needs to know. `owner` is this process among all, `closing` gets what has to be closed."""

    settings: Settings
    environ: Mapping[str, str]
    owner: str
    log: Log
    wall: Callable[[], int]
    monotonic: Callable[[], float]
    closing: AsyncExitStack

    async def open(self) -> Stores:
        """Raises CannotStart."""
        calendar = Calendar(ZoneInfo(self.settings.server.time_zone))
        try:
            url = ledger_url(self.settings, self.environ)
        except OSError as error:
            raise CannotStart(f"The folder of the ledger cannot be made: {error}. Set ledger.url.") from None
        answers = await self._answers()
        if url is None:
            return Stores(*await self._counters(calendar, None), answers)
        database = await self._database(url.reveal())
        ledger, history = await self._ledger(database, url.reveal())
        issued = await self._issued(database)
        return Stores(*await self._counters(calendar, history), answers, ledger, issued)

    async def _answers(self) -> Answers:
        """Whatever the mode is: a reload may change it."""
        settings, bounds = self.settings, self.settings.cache.bounds
        if not settings.store.shared:
            return Answers(MemoryCache(bounds, self.wall), secrets.token_bytes(32))
        from proxy.store.cache.redis import RedisCache

        secret = of_answers(self._pepper())
        backend = RedisCache(
            settings.store.url,
            bounds,
            secret,
            owner=self.owner,
            log=self.log,
            wall=self.wall,
            monotonic=self.monotonic,
        )
        await backend.start()
        self.closing.push_async_callback(backend.close)
        return Answers(backend, secret)

    def _pepper(self) -> Secret:
        try:
            return pepper(self.settings.server.key_pepper, self.environ)
        except OSError as error:
            raise CannotStart(f"The pepper of issued keys cannot be had: {error}. Set server.key_pepper.") from None

    async def _database(self, url: str) -> Database:
        from proxy.store.database import DatabaseGone, DatabaseUnfit, open_database, place
        from proxy.store.migrations import migrate

        try:
            database = open_database(url)
            self.closing.callback(database.close)
            await asyncio.to_thread(migrate, database)
        except DatabaseUnfit as error:
            raise CannotStart(f"The ledger's database ({place(url)}) cannot be used: {error}.") from None
        except DatabaseGone as error:
            # With a shared store everything but calendar counters that it does not have can do without it for now: the
            # ledger brings it up to date when it comes.
            if not self.settings.store.shared:
                raise CannotStart(f"The ledger's database ({place(url)}) cannot be used: {error}.") from None
        return database

    async def _ledger(self, database: Database, url: str) -> tuple[LedgerStore, LedgerHistory]:
        from proxy.store.ledger.history import LedgerHistory
        from proxy.store.ledger.store import LedgerStore

        kept = int(self.settings.ledger.retention * 1000)
        try:
            folder = self._journals(url)
        except OSError as error:
            raise CannotStart(f"The journal of the ledger has no folder: {error}.") from None
        longest = round(max(one.timeouts.total for one in self.settings.providers.values()) * 1000)
        ledger = LedgerStore(
            database,
            folder,
            self.owner,
            log=self.log,
            now=self.wall,
            kept=kept,
            orphaned=max(_ORPHANED, 2 * longest),
        )
        try:
            await ledger.start()
        except OSError as error:
            raise CannotStart(f"The journal of the ledger cannot be kept in {folder}: {error}.") from None
        self.closing.push_async_callback(ledger.close_down, _LAST_ROWS)
        history = LedgerHistory(database, ledger.flush)
        self.closing.callback(history.close)
        return ledger, history

    def _journals(self, url: str) -> Path:
        """A folder for each database, whoever asks it."""
        from sqlalchemy import make_url

        parsed = make_url(url)
        name = os.path.realpath(parsed.database or "") if parsed.drivername == "sqlite" else parsed.database
        place = repr((parsed.drivername, parsed.host, parsed.port, name)).encode()
        return state_folder(self.environ) / "journal" / hashlib.sha256(place).hexdigest()[:16]

    async def _issued(self, database: Database) -> Issued:
        from proxy.store.database import DatabaseGone, DatabaseUnfit
        from proxy.store.issued import IssuedKeys
        from proxy.store.keys import Keys

        secret = self._pepper()
        issued = IssuedKeys(Keys(database), secret, self.wall, self.log)
        with suppress(DatabaseGone, DatabaseUnfit):  # `follow` says so
            await asyncio.to_thread(issued.refresh)
        following = asyncio.ensure_future(issued.follow())

        async def stop() -> None:
            following.cancel()
            await asyncio.wait([following])
            with suppress(DatabaseGone, DatabaseUnfit, TimeoutError):
                async with asyncio.timeout(_GOODBYE):
                    await issued.note_used()

        self.closing.push_async_callback(stop)
        return issued

    async def _counters(self, calendar: Calendar, history: LedgerHistory | None) -> tuple[Counters, Probes]:
        if self.settings.store.shared:
            return await self._redis(calendar, history)
        store = MemoryStore(calendar, self.wall, history)
        if history:
            try:
                recent = await history.recent(self.wall() - _HOUR)
            except StoreGone as error:
                raise CannotStart(f"The last hour of the ledger cannot be read: {error}.") from None
            seed(store, recent, self._rules())
        return store, Alone()

    async def _redis(self, calendar: Calendar, history: LedgerHistory | None) -> tuple[Counters, Probes]:
        from proxy.store.outage import WithOutage
        from proxy.store.redis import RedisStore, StoreUnfit

        store = self.settings.store
        redis = RedisStore(
            store.url,
            calendar,
            history,
            owner=self.owner,
            log=self.log,
            wall=self.wall,
            monotonic=self.monotonic,
            workers=self.settings.server.workers,
        )
        try:
            await redis.start()
        except StoreUnfit as error:
            raise CannotStart(f"The Redis of store.url is not fit for quotas: {error}.") from None
        self.closing.push_async_callback(redis.close, _GOODBYE)
        guarded = WithOutage(
            redis, store.on_outage, redis.peers, self.log, self.monotonic, calendar=calendar, wall=self.wall
        )
        self.closing.push_async_callback(guarded.close)
        return guarded, redis.probes

    def _rules(self) -> Mapping[str, list[Rule]]:
        catalogue = catalogue_of(self.settings)
        return {name: rules_of(team, catalogue) for name, team in self.settings.teams.items()}


def seed(store: MemoryStore, recent: list[Recent], rules: Mapping[str, list[Rule]]) -> None:
    """Let the sliding windows of `rules` count what the ledger knows of the last hour."""
    for row in sorted(recent, key=lambda row: row.second):
        amounts = {Unit.REQUESTS: row.requests, Unit.TOKENS: row.tokens, Unit.SPEND: row.cost}
        for rule in rules.get(row.team, ()):
            if rule.window and rule.window.span and rule.model in (None, row.model):
                key = row.key_id if rule.per_key else None
                counter = Counter(row.team, rule.unit, rule.window, key, rule.model, rule.shadow)
                store.seed(counter, row.second * 1000 + 999, amounts[rule.unit])
