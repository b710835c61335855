"""Which worker may find out whether a provider is well again, when several share a Redis."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from typing import Final

from proxy.core.quota import StoreGone
from proxy.store.redis_link import PROBE, Link

_OK: Final = 0


class RedisProbes:
    """A core.circuit.Probes. A Redis that does not answer keeps nobody from finding out."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._giving: set[asyncio.Task[None]] = set()

    async def take(self, name: str, most: int, seconds: float) -> str | None:
        place = secrets.token_hex(8)
        try:
            answer = await self._link.run_script(PROBE, (name, place, most, int(seconds * 1000)), apart=True)
        except StoreGone:
            return place
        return place if answer[0] == _OK else None

    def give(self, name: str, place: str) -> None:
        task = asyncio.get_running_loop().create_task(self._give(name, place))
        self._giving.add(task)
        task.add_done_callback(self._giving.discard)

    async def _give(self, name: str, place: str) -> None:
        with suppress(StoreGone):  # it is free when its time is over
            await self._link.run_script(PROBE, (name, place), apart=True)

    async def close(self) -> None:
        if self._giving:
            await asyncio.wait(self._giving)
