from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from proxy import data
from proxy.core.catalogue import Catalogue
from proxy.core.circuit import Circuits, State
from proxy.core.errors import BadRequest, CircuitOpen, ProxyError, UpstreamFailed, UpstreamRefusal
from proxy.core.exchange import Exchange, exchange_of
from proxy.providers.mistral.chat import CHAT
from proxy.stages import breaker
from proxy.upstream.config import CircuitBreaker
from tests.asgi import Log, call, exchange, services

CATALOGUE = Catalogue(data.read("models.yaml"))
SMALL = CATALOGUE.model("mistral-small-latest").id


@dataclass
class Scene:
    """A provider that does what is next in the list, and calls that are counted."""

    ends: list[Any]
    clock: float = 0.0
    calls: int = 0
    log: Log = field(default_factory=Log)

    def __post_init__(self) -> None:
        self.circuits = Circuits(lambda: self.clock, self.log)

    async def provider(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls += 1
        seen, end = exchange_of(scope), self.ends.pop(0)
        seen.attempts = 1
        if callable(end):
            end(seen)
        elif end:
            raise end

    async def ask(self, model: str | None = "mistral-small-latest", **rules: Any) -> BaseException | None:
        made = services(self.log, CATALOGUE, circuits=self.circuits)
        app = breaker.build(breaker.Config({"mistral": CircuitBreaker(**rules)}), CHAT, made)(self.provider)
        try:
            await call(app, exchange=exchange(model=model), body=[], stays=True)
        except (ProxyError, asyncio.CancelledError, ZeroDivisionError) as error:
            return error
        return None

    def state(self, name: str = f"mistral/{SMALL}") -> State:
        return self.circuits.state(name)


def failed() -> UpstreamFailed:
    return UpstreamFailed("x")


def refused() -> UpstreamFailed:
    return UpstreamFailed("x", code="upstream_auth_failed", detail={"upstream": {"status": 401}})


async def test_f7_what_keeps_failing_is_left_alone() -> None:
    scene = Scene([failed() for _ in range(5)])
    for _ in range(5):
        assert isinstance(await scene.ask(), UpstreamFailed)
    scene.clock += 12.25
    error = await scene.ask()
    assert isinstance(error, CircuitOpen)
    assert (error.status, error.code) == (503, "circuit_open")
    assert error.headers == [(b"retry-after", b"18"), (b"retry-after-ms", b"17750"), (b"x-should-retry", b"false")]
    assert scene.calls == 5


async def test_f10_another_model_is_not_and_another_name_of_it_is() -> None:
    scene = Scene([*(failed() for _ in range(5)), None])
    for _ in range(5):
        await scene.ask()
    assert await scene.ask("mistral-large-latest") is None
    assert isinstance(await scene.ask(SMALL), CircuitOpen)


async def test_what_is_about_no_model_has_a_circuit_of_its_own() -> None:
    scene = Scene([failed() for _ in range(6)])
    for _ in range(5):
        await scene.ask(None)
    assert scene.state("mistral") is State.OPEN
    assert isinstance(await scene.ask(), UpstreamFailed)


async def test_an_error_within_a_stream_is_one() -> None:
    def breaks(seen: Exchange) -> None:
        seen.error = failed()

    scene = Scene([breaks] * 5)
    for _ in range(5):
        assert await scene.ask() is None
    assert scene.state() is State.OPEN


async def test_f9_what_is_nobodys_fault_but_the_callers_or_ours_is_not_counted() -> None:
    def leaves(seen: Exchange) -> None:
        seen.client_gone = True

    def nothing_sent(seen: Exchange) -> None:
        seen.attempts = 0
        raise failed()

    bad = UpstreamRefusal("x", status=400, type="t", code="c")
    ends = [leaves, nothing_sent, bad, BadRequest("x"), asyncio.CancelledError(), ZeroDivisionError()]
    scene = Scene(ends * 4)
    for _ in range(4 * len(ends)):
        await scene.ask()
    assert scene.state() is State.CLOSED
    assert scene.log.lines == []


async def test_a_key_that_is_refused_is_not_tried_for_ever() -> None:
    """Nor is it the clients' own, as a 401 would say."""
    scene = Scene([*(refused() for _ in range(5)), None, None, None, None])
    for _ in range(5):
        await scene.ask()
    assert scene.state("mistral key") is State.OPEN
    assert scene.state() is State.CLOSED
    for model in ("mistral-small-latest", "mistral-large-latest", None):
        error = await scene.ask(model)
        assert isinstance(error, UpstreamFailed)
        assert (error.status, error.code) == (502, "upstream_auth_failed")
        assert error.headers == [(b"x-should-retry", b"false")]
        assert not error.billed
    assert scene.calls == 5
    scene.clock += 30
    for _ in range(4):
        assert await scene.ask() is None
    assert scene.state("mistral key") is State.CLOSED


async def test_an_open_circuit_does_not_use_up_the_probe_of_the_key() -> None:
    scene = Scene([*(failed() for _ in range(5)), *(refused() for _ in range(5))])
    for _ in range(5):
        await scene.ask()
    for _ in range(5):
        await scene.ask("mistral-large-latest")
    scene.clock += 29
    scene.circuits._circuits["mistral key"].until = 0.0
    assert isinstance(await scene.ask(), CircuitOpen)
    scene.ends.append(None)
    assert await scene.ask("mistral-large-latest") is None


async def test_its_attempts_count() -> None:
    def tries(seen: Exchange) -> None:
        assert seen.attempt_failed
        assert [seen.attempt_failed() for _ in range(3)] == [True, True, False]

    scene = Scene([tries])
    await scene.ask(failure_threshold=3)
    assert scene.state() is State.OPEN


async def test_an_end_that_the_provider_has_told_is_heard_though_the_client_is_gone() -> None:
    def leaves(seen: Exchange) -> None:
        seen.client_gone = True

    def leaves_late(seen: Exchange) -> None:
        seen.client_gone, seen.usage = True, {"total_tokens": 1}

    scene = Scene([failed(), leaves, leaves_late], clock=0.0)
    await scene.ask(failure_threshold=1)
    scene.clock = 31.0
    await scene.ask(success_threshold=1)
    assert scene.state() is State.HALF_OPEN
    await scene.ask(success_threshold=1)
    assert scene.state() is State.CLOSED


class Asked:
    """Probes of whom nobody knows yet whether they may."""

    def __init__(self) -> None:
        self.waits = asyncio.Event()

    async def take(self, *_: Any) -> None:
        self.waits.set()
        await asyncio.Event().wait()


async def test_who_leaves_before_it_is_known_is_told_of_no_circuit() -> None:
    scene = Scene([failed() for _ in range(5)])
    for _ in range(5):
        await scene.ask()
    scene.clock, probes = 31.0, Asked()
    scene.circuits.probes = probes  # type: ignore[assignment]
    made = services(scene.log, CATALOGUE, circuits=scene.circuits)
    app = breaker.build(breaker.Config({"mistral": CircuitBreaker()}), CHAT, made)(scene.provider)
    about = exchange(model="mistral-small-latest")
    asking = asyncio.ensure_future(call(app, exchange=about, body=[], stays=True))
    await probes.waits.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert about.circuit is None
    assert scene.state() is State.HALF_OPEN
