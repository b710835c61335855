"""A request that is the same to the letter is answered with what is kept; any other one goes the long way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core.cache import Answers, Known
from proxy.core.entry import Entry
from proxy.core.exchange import Team, exchange_of
from proxy.core.flight import Flight
from proxy.player import Player
from proxy.providers.mistral.chat import CHAT
from proxy.providers.mistral.models import MODELS
from proxy.stages import cache, recall
from proxy.store.cache.memory import MemoryCache
from tests.asgi import Answer, Headers, call, exchange, ok, services
from tests.steps import NoTimer

KEY = "a/" + "0" * 64
BODY = b'{"model": "x", "messages": []}'
KNOWN = Known(KEY, "house", "mistral-small-latest", "mistral", "mistral-small-latest", ("drop:user",))


@dataclass
class Setting:
    """`ways` says for each request whether it went the long way or had its answer at once."""

    options: dict[str, Any] = field(default_factory=dict)
    now: int = 1_000_000
    ways: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        config = cache.Config(**self.options)
        self.backend = MemoryCache(config.bounds, lambda: self.now, lambda seconds, do: NoTimer())
        self.build()

    def build(self) -> None:
        config = cache.Config(**self.options)
        made = services(answers=Answers(self.backend, b"secret"), wall=lambda: self.now)
        policy, player = config.policy(made.wall), Player("immediate", set(), made.wall, made.monotonic)
        stage = recall.build(policy, player, CHAT, made, self.at_once, on=True)
        assert stage
        self.app: ASGIApp = stage(self.long_way)

    async def at_once(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.ways.append("at once")
        exchange = exchange_of(scope)
        assert exchange.replay
        await exchange.replay(exchange, receive, send)

    async def long_way(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.ways.append("long")
        about = exchange_of(scope)
        about.known, about.status = KNOWN, 200
        await ok(scope, receive, send)

    async def keep(self, body: bytes = b"kept") -> None:
        entry = Entry(self.now, False, body, 1, 2, 70, rewrites=("mend:x",))
        self.backend.keep(KEY, entry, Flight(1, lambda: 0.0), lambda *_: None)

    async def ask(
        self, body: bytes = BODY, headers: Headers | None = None, team: str = "a", key: str = "1", **more: Any
    ) -> Answer:
        about = exchange(headers)
        about.team, about.key_id, about.raw = Team(team, lambda name: True, **more), key, body
        return await call(self.app, exchange=about, body=[])


async def test_the_second_time_it_is_not_looked_at() -> None:
    setting = Setting()
    await setting.ask()
    await setting.keep()
    setting.now += 5_000
    answer = await setting.ask()
    assert setting.ways == ["long", "at once"]
    assert answer.body == b"kept"
    about = answer.exchange
    assert (about.cache, about.cache_key, about.age, about.saved) == ("hit", "0" * 64, 5, 70)
    assert (about.model_asked, about.model, about.sent_as) == ("house", "mistral-small-latest", "mistral-small-latest")
    assert list(about.rewrites) == ["drop:user", "mend:x"]
    assert about.raw is None


@pytest.mark.parametrize(
    "other",
    [
        {"body": BODY + b" "},
        {"body": BODY.replace(b"x", b"y")},
        {"team": "b"},
        {"key": "2"},
        {"headers": [(b"x-proxy-translation", b"strict")]},
        {"headers": [(b"x-proxy-context", b"off")]},
        {"log_content": True},
        {"headers": [(b"cache-control", b"no-store")]},
        {"headers": [(b"cache-control", b"no-cache")]},
        {"headers": [(b"cache-control", b"max-age=4")]},
    ],
    ids=str,
)
async def test_whatever_is_different_goes_the_long_way(other: dict[str, Any]) -> None:
    setting = Setting()
    await setting.ask()
    await setting.keep()
    setting.now += 5_000
    await setting.ask(**other)
    assert setting.ways == ["long", "long"]


@pytest.mark.parametrize(("more", "ways"), [(0, ["long", "at once"]), (1, ["long", "long"])])
async def test_a_large_body_is_not_worth_it(more: int, ways: list[str]) -> None:
    setting, body = Setting(), bytes(recall.LARGEST + more)
    await setting.ask(body)
    await setting.keep()
    await setting.ask(body)
    assert setting.ways == ways


async def test_other_headers_make_no_difference() -> None:
    setting = Setting()
    await setting.ask(headers=[(b"user-agent", b"one")])
    await setting.keep()
    await setting.ask(headers=[(b"user-agent", b"two"), (b"cache-control", b"max-age=60")])
    assert setting.ways == ["long", "at once"]


async def test_without_an_answer_it_goes_the_long_way_again() -> None:
    setting = Setting()
    await setting.ask()
    await setting.ask()
    await setting.keep()
    setting.now += 3_600_001  # old by now
    await setting.ask()
    assert setting.ways == ["long"] * 3


async def test_what_was_never_understood_is_not_remembered() -> None:
    setting = Setting()

    async def refused(scope: Scope, receive: Receive, send: Send) -> None:
        setting.ways.append("long")

    setting.long_way = refused  # type: ignore[method-assign]
    setting.build()
    await setting.keep()
    await setting.ask()
    await setting.ask()
    assert setting.ways == ["long", "long"]


async def test_no_more_are_remembered_than_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "MOST", 3)
    setting = Setting()
    bodies = [b"%d" % number for number in range(4)]
    for body in bodies:
        await setting.ask(body)
    await setting.keep()
    setting.ways.clear()
    for body in reversed(bodies):
        await setting.ask(body)
    assert setting.ways == ["at once"] * 3 + ["long"]


async def test_of_a_body_only_a_digest_stays() -> None:
    setting = Setting()
    await setting.ask()
    [said] = vars(setting.app)["_known"]
    assert len(said) == 32


async def test_a_size_is_known_for_as_long_as_a_body_of_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "MOST", 3)
    setting = Setting()
    for body in (b"1", b"2", b"1", b"10", b"100", b"200", b"1"):  # none is answered at once, for none is kept
        await setting.ask(body)
    stage = vars(setting.app)
    assert stage["_sizes"] == {1: 1, 3: 2}
    assert sorted(size for _, size in stage["_known"].values()) == [1, 3, 3]


async def test_where_it_has_no_place() -> None:
    config = cache.Config()
    backend = MemoryCache(config.bounds, lambda: 0, lambda seconds, do: NoTimer())
    made = services(answers=Answers(backend, b"secret"))
    policy, player = config.policy(made.wall), Player("immediate", set(), made.wall, made.monotonic)
    assert recall.build(policy, player, CHAT, made, ok, on=True)
    assert recall.build(policy, player, CHAT, made, ok, on=False) is None
    assert recall.build(policy, player, MODELS, made, ok, on=True) is None
    assert recall.build(policy, player, CHAT, services(), ok, on=True) is None
    backend.near = False  # as in a Redis, which has to be asked
    assert recall.build(policy, player, CHAT, made, ok, on=True) is None
