"""The cache stage, with the replay stage inside of it, in front of an application that plays the provider."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy import data
from proxy.core.cache import Answers
from proxy.core.catalogue import Catalogue
from proxy.core.charge import Charge
from proxy.core.errors import ProxyError
from proxy.core.exchange import Exchange, Team, exchange_of
from proxy.core.services import Drainables
from proxy.core.success import send_json, stream_start
from proxy.core.table import Context
from proxy.pipeline import fold
from proxy.player import Player
from proxy.providers.mistral.chat import CHAT
from proxy.stages import cache, replay
from proxy.store.cache.memory import MemoryCache
from tests.asgi import Answer, Log, call, exchange, services
from tests.steps import NoTimer

CATALOGUE = Catalogue(data.read("models.yaml"))
MODEL = CATALOGUE.model("mistral-small-latest")
HOUR = 3_600_000
EVENTS = [b"data: one\n\n", b"data: two\n\n", b"data: [DONE]\n\n"]

Provider = Callable[[Exchange, Send], Awaitable[None]]


def metered(about: Exchange) -> None:
    """The answer alone costs 70; with what was lost before it, 100."""
    about.usage, about.alone = {"prompt_tokens": 3, "completion_tokens": 5}, Charge(prompt=3, completion=5, cost=70)
    about.charge = Charge(prompt=3, completion=5, cost=100)


@dataclass
class Setting:
    """`play` answers the calls that get through; the clock stands still."""

    play: Provider
    row: Any = CHAT
    options: dict[str, Any] = field(default_factory=dict)
    now: int = 1_000_000_000
    seconds: float = 0.0
    calls: int = 0
    counted: int = 0
    admits: Callable[[], Awaitable[object]] | None = None
    """What is waited for by whoever makes no call."""
    log: Log = field(default_factory=Log)
    drainables: Drainables = field(default_factory=Drainables)
    own_keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        config = cache.Config(**self.options)
        self.backend: Any = MemoryCache(config.bounds, lambda: self.now, lambda seconds, do: NoTimer())
        self.answers = Answers(self.backend, b"secret")
        self.build(config)

    def build(self, config: cache.Config) -> None:
        made = services(
            self.log,
            CATALOGUE,
            wall=lambda: self.now,
            answers=self.answers,
            drainables=self.drainables,
            monotonic=lambda: self.seconds,
        )
        policy = config.policy(made.wall)
        player = Player(config.cadence, self.drainables, made.wall, made.monotonic)
        sources = cache.Sources(
            config, lambda row: {"mistral": row}, {"mistral": cache.Place(("m",), 600.0, self.own_keys)}
        )
        stages = (
            cache.build(sources, policy, player, self.row, made),
            self._quotas,
            replay.build(self.row, made, on=sources.on),
        )
        self.app = fold(stages, self._call)

    def _quotas(self, app: ASGIApp) -> ASGIApp:
        async def counts(scope: Scope, receive: Receive, send: Send) -> None:
            self.counted += 1
            if self.admits and exchange_of(scope).replay:
                await self.admits()
            await app(scope, receive, send)

        return counts

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls += 1
        await self.play(exchange_of(scope), send)

    def exchange(self, team: str = "a", control: str = "", **fields: Any) -> Exchange:
        body = {"model": "mistral-small-latest", "temperature": 0} | fields
        headers = [(b"cache-control", control.encode())] if control else []
        about = exchange(headers, model="mistral-small-latest", body=body, sending=body, context=Context(MODEL, body))
        about.team, about.key_id = Team(team, lambda name: True), f"key-{team}"
        return about

    async def ask(self, team: str = "a", control: str = "", **fields: Any) -> Answer:
        options = {name: fields.pop(name) for name in ("taking", "leaves") if name in fields}
        stays = not options.pop("leaves", False)
        about = self.exchange(team, control, **fields)
        return await call(self.app, exchange=about, body=[], stays=stays, **options)

    async def error(self, *args: Any, **fields: Any) -> ProxyError:
        with pytest.raises(ProxyError) as caught:
            await self.ask(*args, **fields)
        return caught.value


async def whole(about: Exchange, send: Send) -> None:
    metered(about)
    await send_json(send, b'{"answer": 1}')


async def streamed(about: Exchange, send: Send) -> None:
    about.streamed = True
    await send(stream_start())
    for event in EVENTS:
        if event is EVENTS[-1]:
            metered(about)
        await send({"type": "http.response.body", "body": event, "more_body": event is not EVENTS[-1]})
        await asyncio.sleep(0)


class Gated:
    """Holds each call until it is let go, and then plays it."""

    def __init__(self, play: Provider) -> None:
        self.play = play
        self.gate = asyncio.Event()
        self.waiting = 0

    async def __call__(self, about: Exchange, send: Send) -> None:
        self.waiting += 1
        await self.gate.wait()
        await self.play(about, send)


class Slowly:
    """In the place of a backend's `keep`: nothing is done yet."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def __call__(self, *arguments: Any) -> None:
        self.asked.append(arguments)


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)
