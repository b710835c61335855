"""What logs and metrics cost a request, as bench.stages measures it, and a stream of 50 events.

    python -m bench.watching [ROUNDS]

The two lines that a request has in the log, what is remembered of it and what is counted of it; of a stream also the
delays between its events. The lines are written to /dev/null.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import uvloop
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bench.stages import AT_ONCE, REQUESTS, TEAM, Round, answer, bare_forwarder, services, summary
from proxy.core.exchange import exchange_of
from proxy.core.gaps import Gaps
from proxy.logs import Writer
from proxy.pipeline import fold
from proxy.providers.mistral.chat import CHAT
from proxy.stages import access_log, begin, metrics, started

GOAL, GOAL_OF_STREAM = 15, 60
EVENTS: Final = 50


@dataclass(frozen=True, slots=True)
class Route:
    path: str = CHAT.path
    operation: str = CHAT.span


ROUTE: Final = Route()
EVENT: Final[Message] = {"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True}
LAST: Final[Message] = {"type": "http.response.body", "body": b"data: [DONE]\n\n"}


def application(events: int, *, watched: bool) -> ASGIApp:
    """Answers with so many pieces; their delays are counted where somebody watches."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        exchange.team, exchange.key_id = TEAM, "0123456789ab"
        exchange.model_asked = exchange.model = "mistral-small-latest"
        exchange.streamed = events > 1
        scope["route"] = ROUTE
        await asked(scope, receive, send)

    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        await answer(scope, receive, send)
        gaps = Gaps() if watched and events > 1 else None
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(events - 1):
            if gaps:
                gaps.add(0.02)
            await send(EVENT)
        exchange.gaps = gaps
        await send(LAST)

    log = Writer(open("/dev/null", "wb", buffering=0))  # noqa: SIM115  (to the end)
    made = services(log=log)
    asked = fold((started.build("info", CHAT, made),) if watched else (), answered)
    outer = (
        begin.build([], made, sample=1.0),
        access_log.build(access_log.Config(), made, content=False) if watched else None,
        metrics.build(made) if watched else None,
    )
    return fold(outer, app)


async def cpu(app: ASGIApp, requests: int) -> float:
    """CPU µs for each request."""

    async def ask() -> None:
        for _ in range(requests // AT_ONCE):
            scope: dict[str, Any] = {"type": "http", "method": "POST", "path": CHAT.path, "headers": []}
            await app(scope, _never, _taken)

    before = time.process_time()
    await asyncio.gather(*(ask() for _ in range(AT_ONCE)))
    await asyncio.sleep(0.06)  # until the last lines are written
    return (time.process_time() - before) / requests * 1e6


async def _never() -> Message:
    raise NotImplementedError


async def _taken(message: Message) -> None:
    """A client that takes all there is."""


async def measure(rounds: int, events: int, requests: int) -> list[Round]:
    with tempfile.TemporaryDirectory() as folder:
        async with bare_forwarder(Path(folder)) as forwarded:
            plain, watched = (application(events, watched=one) for one in (False, True))
            await cpu(watched, requests)
            return [
                Round(await forwarded(), await cpu(plain, requests), await cpu(watched, requests))
                for _ in range(rounds)
            ]


def main(arguments: list[str]) -> None:
    rounds = int(arguments[0]) if arguments else 20
    print(summary("logs and metrics", GOAL, uvloop.run(measure(rounds, 1, REQUESTS))))
    print(summary("the same of 50 events", GOAL_OF_STREAM, uvloop.run(measure(rounds, EVENTS, REQUESTS // 10))))


if __name__ == "__main__":
    main(sys.argv[1:])
