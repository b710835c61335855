"""The keys in force, as one worker holds them: a copy in memory, so that no request asks the database for its key."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from proxy.core import team_key
from proxy.core.errors import place_of
from proxy.core.quota import StoreGone
from proxy.core.secret import Secret
from proxy.core.services import Log
from proxy.store.database import DatabaseGone, DatabaseUnfit
from proxy.store.keys import InForce, Keys

EVERY: Final = 0.5
"""Seconds between two looks at the version: a key that is revoked is out everywhere within a second."""

USED_EVERY: Final = 60_000
"""Milliseconds between two notes of when keys were used."""


@dataclass(frozen=True, slots=True, repr=False)
class _Snapshot:
    version: int
    keys: dict[bytes, InForce]


_NOBODY: Final = InForce(bytes(32), "", "", 0)


class IssuedKeys:
    """`wall` is the time of day, in Unix milliseconds. A database that is gone changes nothing: the last copy is in
    force until it is back. Only when there was none yet, nobody can tell."""

    def __init__(self, keys: Keys, pepper: Secret, wall: Callable[[], int], log: Log) -> None:
        self._keys = keys
        self._pepper = pepper
        self._wall = wall
        self._log = log
        self._snapshot: _Snapshot | None = None
        self._used: dict[str, int] = {}
        self._noted = wall()
        self._well = True

    def lookup(self, token: bytes) -> tuple[str, str] | None:
        """Team and key id; None for what is unknown, revoked or expired. Raises StoreGone when it may be a key and none
        were read yet."""
        digest = team_key.digest(token, self._pepper)
        if self._snapshot is None:
            if team_key.is_whole(token):
                raise StoreGone
            return None
        key = self._snapshot.keys.get(digest, _NOBODY)
        now = self._wall()
        same = hmac.compare_digest(key.digest, digest)
        if not same or (key.expires is not None and key.expires <= now):
            return None
        self._used[key.id] = now
        return key.team, key.id

    def ids(self, team: str) -> list[str]:
        keys = self._snapshot.keys.values() if self._snapshot else ()
        return [key.id for key in keys if key.team == team]

    def refresh(self) -> None:
        """Read the keys again if any has changed. Blocks. Raises DatabaseGone or DatabaseUnfit."""
        before = self._snapshot
        changed = self._keys.changed_since(before.version if before else None)
        if changed:
            version, keys = changed
            self._snapshot = _Snapshot(version, {key.digest: key for key in keys})

    async def follow(self, every: float = EVERY) -> None:
        """Refresh every so many seconds, and note what was used, until cancelled."""
        while True:
            await self._look()
            await asyncio.sleep(every)

    async def note_used(self) -> None:
        """Write down when keys were used: from time to time, and at the end. Raises what `refresh` does."""
        self._noted = self._wall()
        if not self._used:
            return
        used, self._used = self._used, {}
        try:
            await asyncio.to_thread(self._keys.touch, used)
        except BaseException:
            self._used = used | self._used
            raise

    async def _look(self) -> None:
        try:
            await asyncio.to_thread(self.refresh)
            if abs(self._wall() - self._noted) >= USED_EVERY:
                await self.note_used()
        except (DatabaseGone, DatabaseUnfit) as error:
            self._is(False, str(error))
        except Exception as error:  # a fault here must not be the last look
            self._is(False, f"{type(error).__name__} in {place_of(error)}")
        else:
            self._is(True)

    def _is(self, well: bool, reason: str | None = None) -> None:
        if well is self._well:
            return
        self._well = well
        if well:
            self._log("info", "keys_available")
        else:
            self._log("error", "keys_unavailable", reason=reason)
