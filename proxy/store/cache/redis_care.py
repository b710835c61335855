"""Looking after the entries in Redis: how many there are, which of them are right, and away with those of a team."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from hashlib import sha1
from typing import Final

from proxy.core.cache import CacheGone, Stats, Verified
from proxy.core.cache_key import EVERYBODY, team_of
from proxy.core.entry import Sealer
from proxy.store.cache.redis_wire import MEND, REJECT, REMOVE, TOTALS, Refused, Wire, number, texts

PART: Final = 500
"""Keys that one question is about, so that nobody waits long behind it. lua/totals.lua has the same."""


class Care:
    """Everything here raises CacheGone. `prefix` is that of all keys."""

    def __init__(self, wire: Wire, prefix: bytes, sealer: Sealer) -> None:
        self._wire = wire
        self._prefix = prefix
        self._sealer = sealer

    async def mend(self, key: str = "", lease: str = "") -> None:
        """The books, if there is something else in their place, and with them this entry."""
        await self._wire.run_script(MEND, self._prefix, key.encode(), lease.encode())

    async def delete(self, team: str | None) -> int:
        await self.mend()
        whose = EVERYBODY.encode() if team is None else team.encode()
        deleted = number(await self._wire.run_script(REMOVE, self._prefix, whose))  # before it is known what there is
        async for keys in self._scan(team):
            deleted += number(await self._wire.run_script(REMOVE, self._prefix, whose, *keys))
        # What is not there any more, but for those who count; and in any case: a server that was full has room now.
        async for found in self._booked(team):
            deleted += number(await self._wire.run_script(REMOVE, self._prefix, whose, *found[::2]))
        return deleted

    async def stats(self, team: str | None, life: int) -> Stats:
        """`life` is how long an entry is kept, in milliseconds."""
        await self.mend()
        left = PART
        while left >= PART:
            answer = await self._wire.run_script(TOTALS, self._prefix, b"%d" % life)
            if type(answer) is not list or len(answer) != 4:
                raise CacheGone("NoAnswer")
            left, entries, size, evicted = map(number, answer)
        if team is None:
            return Stats(entries, size, evicted)
        sizes: dict[bytes, int] = {}
        async for found in self._booked(team):
            try:
                sizes.update(zip(found[::2], map(int, found[1::2]), strict=True))
            except ValueError:
                raise CacheGone("NoAnswer") from None
        return Stats(len(sizes), sum(sizes.values()))

    async def verify(self) -> Verified:
        right = wrong = 0
        async for keys in self._scan(None):
            for key in keys:
                try:
                    data = await self._wire.ask(b"GET", self._prefix + key)
                except Refused:
                    data = b""  # it is no string
                if type(data) not in (bytes, type(None)):
                    raise CacheGone("NoAnswer")
                name = key.decode(errors="replace")
                if data is not None and self._sealer.open(name, data):
                    right += 1
                elif data is not None:
                    wrong += await self._reject(key, data)
        return Verified(right, wrong)

    async def reject(self, key: str, data: bytes) -> None:
        """Forget this, which does not open."""
        await self._reject(key.encode(), data)

    async def _reject(self, key: bytes, data: bytes) -> int:
        sha = sha1(data, usedforsecurity=False).hexdigest().encode()
        return number(await self._wire.run_script(REJECT, self._prefix, key, sha))

    def _booked(self, team: str | None) -> AsyncIterator[list[bytes]]:
        """The keys of the entries that are in the books, each with its size."""
        return self._pages(b"HSCAN", self._prefix + b"=sizes", match=b"*" if team is None else _glob(team))

    async def _scan(self, team: str | None) -> AsyncIterator[list[bytes]]:
        """The keys of the entries of a team, or of all. One may come twice."""
        start = len(self._prefix)
        match = _escaped(self._prefix) + (b"*" if team is None else _glob(team))
        async for found in self._pages(b"SCAN", match=match):
            keys = [key[start:] for key in found]
            keys = [key for key in keys if _is_of(key.decode(errors="replace"), team)]
            if keys:
                yield keys

    async def _pages(self, *command: bytes, match: bytes) -> AsyncIterator[list[bytes]]:
        cursor = b"0"
        while True:
            answer = await self._wire.ask(*command, cursor, b"MATCH", match, b"COUNT", b"%d" % PART)
            if type(answer) is not list or len(answer) != 2 or type(answer[0]) is not bytes:
                raise CacheGone("NoAnswer")
            cursor = answer[0]
            yield texts(answer[1])
            if cursor == b"0":
                return


def _is_of(key: str, team: str | None) -> bool:
    """Whether it is an entry's, and this team's."""
    return not key.startswith("=") and team in (None, team_of(key))


def _glob(team: str) -> bytes:
    """What matches the keys of its entries."""
    return _escaped(team.encode()) + b"[:/]*"


def _escaped(text: bytes) -> bytes:
    return re.sub(rb"([\\*?\[\]^])", rb"\\\1", text)
