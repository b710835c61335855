"""The simulated provider, from outside: what it is to do, and what it says that it was asked."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from aiohttp import ClientSession

from proxy.proof.plan import CHAT, EMBEDDINGS

_MARK: Final = re.compile(rb"proof-[0-9a-f]+-[0-9]+\.[0-9]+")
_PAUSE: Final = 0.05
"""Seconds between two looks whether it has anything to do still."""

_LONGEST: Final = 30.0
"""Seconds that any call of it takes at most."""


class StillBusy(Exception):
    """A call has not ended that should have long ago."""


@dataclass(frozen=True, slots=True)
class Billed:
    """One call as the provider had it. `model` is None when it costs nothing; times are the provider's own seconds."""

    mark: str
    model: str | None
    prompt: int
    completion: int
    started: float
    ended: float


class Provider:
    """By its controls, over HTTP."""

    def __init__(self, url: str, session: ClientSession) -> None:
        self._url = f"{url}/_sim"
        self._session = session

    async def script(self, faults: Sequence[str]) -> None:
        """Forget everything so far, and do this with the calls to come."""
        async with self._session.delete(f"{self._url}/calls") as answer:
            answer.raise_for_status()
        async with self._session.post(f"{self._url}/script", data=msgspec.json.encode(faults)) as answer:
            answer.raise_for_status()

    async def busy(self) -> None:
        """Until it has something to do. Raises TimeoutError when nothing comes."""
        async with asyncio.timeout(_LONGEST / 3):
            while not (await self._get("bill"))["running"]:  # noqa: ASYNC110 (in another process)
                await asyncio.sleep(_PAUSE)

    async def calls(self) -> list[Billed]:
        """Those since the last script, when all have ended. Raises StillBusy."""
        try:
            async with asyncio.timeout(_LONGEST):
                while (await self._get("bill"))["running"]:  # noqa: ASYNC110 (in another process)
                    await asyncio.sleep(_PAUSE)
        except TimeoutError:
            raise StillBusy("a call of the provider has not ended") from None
        return [found for one in await self._get("calls") if (found := billed(one))]

    async def _get(self, what: str) -> Any:
        async with self._session.get(f"{self._url}/{what}") as answer:
            return msgspec.json.decode(await answer.read())


def billed(call: dict[str, Any]) -> Billed | None:
    """None for what asks nothing of a model, or was given up before it had asked."""
    mark = _MARK.search(msgspec.json.encode(call["body"]))
    if call["path"] not in (CHAT, EMBEDDINGS) or mark is None:
        return None
    tokens = call["prompt"], call["completion"]
    return Billed(mark[0].decode(), call["billed_as"], *tokens, call["started"], call["ended_at"])
