"""`GET /metrics`: what all workers have counted, and what is known when it is asked for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from platform import python_version

from starlette.types import Receive, Scope, Send

from proxy import __version__
from proxy.core.metrics import families
from proxy.core.metrics.board import Board
from proxy.core.metrics.page import CONTENT_TYPE, Sample, page
from proxy.core.quota import StoreGone

ALIVE = 5
"""Seconds after which a worker that has not been seen is thought to have ended: how it is, nobody knows."""


class Scrape:
    """`look` brings up to date what this worker says of itself, `quotas` asks how all teams stand. `config` tells the
    file from others, `generation` is its number in this process."""

    def __init__(
        self,
        board: Board,
        monotonic: Callable[[], float],
        look: Callable[[], object],
        quotas: Callable[[], Awaitable[Sequence[Sample]]],
        *,
        generation: int,
        config: str | None,
    ) -> None:
        self._board = board
        self._clock = monotonic
        self._look = look
        self._quotas = quotas
        self._always: tuple[Sample, ...] = (
            (families.BUILD, (__version__, python_version()), "1"),
            (families.CONFIG, (config or "", str(generation)), "1"),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._look()
        since = int(self._clock()) - ALIVE
        body = await page(self._board, since, await self._known(since))
        headers = [
            (b"content-type", CONTENT_TYPE),
            (b"content-length", b"%d" % len(body)),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _known(self, since: int) -> Iterable[Sample]:
        known: list[Sample] = [
            *self._always,
            (families.WORKERS, (), str(len(list(self._board.alive(since))))),
            (families.SERIES_LOST, (), str(sum(part.lost for part in self._board.parts))),
        ]
        try:
            return [*known, *await self._quotas()]
        except StoreGone:  # how teams stand is not known; everything else is
            return known
