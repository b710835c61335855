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
        self._telling: set[asyncio.Task[None]] = set()

    async def take(self, name: str, most: int, seconds: float) -> str | None:
        place = secrets.token_hex(8)
        try:
            answer = await self._link.run_script(PROBE, (name, place, int(seconds * 1000), most), apart=True)
        except StoreGone:
            return place
        return place if answer[0] == _OK else None

    async def free(self, name: str, most: int) -> bool:
        try:
            answer = await self._link.run_script(PROBE, (name, "", 0, most), apart=True)
        except StoreGone:
            return True
        return bool(answer[0] == _OK)

    def give(self, name: str, place: str) -> None:
        self._tell(name, place, 0)

    def keep(self, name: str, place: str, seconds: float) -> None:
        self._tell(name, place, int(seconds * 1000))

    def _tell(self, *argument: str | int) -> None:
        """Behind the answer: nobody waits for it."""
        task = asyncio.get_running_loop().create_task(self._run(argument))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _run(self, argument: tuple[str | int, ...]) -> None:
        with suppress(StoreGone):  # it is free when its time is over
            await self._link.run_script(PROBE, argument, apart=True)

    async def close(self) -> None:
        if self._telling:
            await asyncio.wait(self._telling)
