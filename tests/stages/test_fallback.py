"""Another model takes the place of one that does not answer: which, when, and what the client is told if none does."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy import data
from proxy.core.catalogue import Catalogue
from proxy.core.charge import Charge
from proxy.core.circuit import Circuits, Pass
from proxy.core.departure import Departure
from proxy.core.errors import (
    BadRequest,
    CircuitOpen,
    Draining,
    Elsewhere,
    InsufficientQuota,
    ProxyError,
    UpstreamFailed,
    UpstreamRefusal,
    forget_frames,
)
from proxy.core.exchange import Exchange, Stale, Team, exchange_of
from proxy.core.model import Price
from proxy.pipeline import fold
from proxy.providers.mistral.chat import CHAT
from proxy.providers.mistral.embeddings import EMBEDDINGS
from proxy.providers.mistral.models import MODELS
from proxy.stages import breaker, fallback, pass_over
from proxy.upstream.config import CircuitBreaker
from tests.asgi import Answer, Log, call, exchange, ok, services

LARGE, MEDIUM, OTHER = "mistral-large-latest", "mistral-medium-latest", "openai/gpt-4o"
PRICES = {OTHER: Price(1, 1, context=1_000_000), "openai/tiny": Price(1, 1, context=1_000)}
CATALOGUE = Catalogue(data.read("models.yaml"), {"house": LARGE}, PRICES, ("mistral", "openai"))
BODY = {"model": "house", "messages": []}

End = ProxyError | Callable[[Exchange], None] | None


@dataclass
class Setting:
    """What asking each model comes to; None: it answers."""

    ends: dict[str, End]
    chains: dict[str, list[str]] = field(default_factory=lambda: {"house": [MEDIUM, OTHER]})
    now: float = 0.0
    asked: list[str] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    others: list[bool] = field(default_factory=list)
    log: Log = field(default_factory=Log)
    caught_up: int = 0
    reserves: Callable[[Exchange], Awaitable[None]] | None = None
    """In front of a breaker, if there is one."""

    def __post_init__(self) -> None:
        self.circuits = Circuits(lambda: self.now, self.log)

    async def model(self, scope: Scope, receive: Receive, send: Send) -> None:
        seen = exchange_of(scope)
        assert seen.model
        self.asked.append(seen.model)
        self.others.append(seen.others)
        self.bodies.append(seen.body)
        seen.body = {"cut": True}  # as the context stage may
        seen.attempts, seen.upstream = 2, f"{seen.provider}/{seen.sent_as}"
        seen.rewrites[f"of:{seen.model}"] = None
        end = self.ends.get(seen.model)
        if callable(end):
            end(seen)
        elif end:
            raise end
        await ok(scope, receive, send)

    def quotas(self, app: ASGIApp) -> ASGIApp:
        async def reserve(scope: Scope, receive: Receive, send: Send) -> None:
            assert self.reserves
            await self.reserves(exchange_of(scope))
            await app(scope, receive, send)

        return reserve

    async def ask(self, model: str = LARGE, **fields: Any) -> tuple[Answer | ProxyError, Exchange]:
        async def caught_up() -> None:
            self.caught_up += 1

        quotas = SimpleNamespace(caught_up=caught_up)
        made = services(self.log, CATALOGUE, circuits=self.circuits, quotas=quotas)
        rules = dict.fromkeys(("mistral", "openai"), CircuitBreaker())
        stages = (
            fallback.build(self.chains, CHAT, made),
            pass_over.build(self.chains, rules, CHAT, made),
            *((self.quotas, breaker.build(breaker.Config(rules), CHAT, made)) if self.reserves else ()),
        )
        provider, sent_as = CATALOGUE.place(model)
        about = exchange(model=model, provider=provider, sent_as=sent_as, body=BODY, **fields)
        try:
            return await call(fold(stages, self.model), exchange=about, body=[], stays=True), about
        except ProxyError as error:
            return error, about

    def open_circuit(self, name: str, seconds: float) -> None:
        rules = CircuitBreaker.model_construct(failure_threshold=1, open_duration=seconds)
        self.circuits.failed(Pass(name), rules)


def failed(elsewhere: Elsewhere = Elsewhere.YES) -> ProxyError:
    error = UpstreamFailed("no")
    error.elsewhere = elsewhere
    return error


def of(model: str) -> str:
    return f"mistral/{CATALOGUE.model(model).id}"


def test_where_there_is_nothing_to_do_there_is_no_stage():
    made = services(catalogue=CATALOGUE)
    assert fallback.build({}, CHAT, made) is None
    assert fallback.build({"a": ["b"]}, MODELS, made) is None
    assert fallback.build({"a": ["b"]}, EMBEDDINGS, made)


async def test_one_that_answers_needs_no_other():
    setting = Setting({})
    answer, about = await setting.ask()
    assert isinstance(answer, Answer)
    assert (setting.asked, setting.caught_up, about.all_attempts()) == ([LARGE], 0, 2)


async def test_a_model_without_a_chain_is_alone():
    setting = Setting({"mistral-small-latest": failed()})
    error, _ = await setting.ask("mistral-small-latest")
    assert isinstance(error, UpstreamFailed)
    assert (setting.asked, setting.others) == (["mistral-small-latest"], [False])


@pytest.mark.parametrize("name", [LARGE, CATALOGUE.model(LARGE).id])
async def test_a_chain_is_of_a_model_by_all_its_names(name: str):
    setting = Setting({name: failed()})
    await setting.ask(name)
    assert setting.asked == [name, MEDIUM]


async def test_the_next_one_begins_as_if_it_were_the_only_one():
    def fails(seen: Exchange) -> None:
        seen.streamed = seen.sent = seen.answered = True
        seen.charge, seen.usage, seen.lost = Charge(cost=7), {"total_tokens": 1}, Charge(cost=1)
        seen.attempt_failed = lambda: False
        raise failed()

    def begins(seen: Exchange) -> None:
        left = (seen.streamed, seen.sent, seen.answered, seen.charge, seen.usage, seen.lost, seen.attempt_failed)
        assert not any(left)

    setting = Setting({LARGE: fails, MEDIUM: failed(), OTHER: begins})
    answer, about = await setting.ask()
    assert isinstance(answer, Answer)
    assert setting.asked == [LARGE, MEDIUM, OTHER]
    assert setting.others == [True, True, False]
    assert setting.bodies == [BODY] * 3
    assert setting.caught_up == 2
    assert (about.provider, about.sent_as, about.upstream) == ("openai", "gpt-4o", OTHER)
    assert about.all_attempts() == 6
    charge = about.whole_charge()
    assert charge
    assert charge.cost == 7
    assert list(about.rewrites) == [f"of:{OTHER}"]
    told = [fields for _, event, fields in setting.log.lines if event == "fallback"]
    assert [(one["to"], one["error_code"]) for one in told] == [(MEDIUM, "upstream_error"), (OTHER, "upstream_error")]


async def test_of_all_errors_the_first_is_told():
    first = UpstreamRefusal("first", status=503, type="server_error", code="x")
    first.elsewhere = Elsewhere.YES
    setting = Setting({LARGE: first, MEDIUM: BadRequest("of another"), OTHER: failed()})
    error, about = await setting.ask()
    assert error is first
    assert about.upstream == f"mistral/{LARGE}"
    assert about.all_attempts() == 6


@pytest.mark.parametrize(
    "error",
    [BadRequest("x"), failed(Elsewhere.NO), InsufficientQuota("x", wait=None, detail={}), Draining("x")],
    ids=lambda error: type(error).__name__,
)
async def test_what_is_the_requests_own_fault_is_told_at_once(error: ProxyError):
    setting = Setting({LARGE: error})
    assert (await setting.ask())[0] is error
    assert setting.asked == [LARGE]


async def test_a_drain_ends_it():
    draining = Draining("x")
    setting = Setting({LARGE: failed(), MEDIUM: draining})
    assert (await setting.ask())[0] is draining


async def test_a_quota_that_does_not_allow_one_leaves_the_others():
    setting = Setting({LARGE: failed(), MEDIUM: InsufficientQuota("x", wait=None, detail={})})
    answer, _ = await setting.ask()
    assert isinstance(answer, Answer)
    assert setting.asked[-1] == OTHER


async def test_a_model_whose_circuit_others_are_trying_is_passed_over():
    setting = Setting({})
    name, rules = f"mistral/{CATALOGUE.model(LARGE).id}", CircuitBreaker()
    setting.open_circuit(name, 0.0)
    probe = await setting.circuits.enter(name, rules)
    assert isinstance(probe, Pass)
    answer, about = await setting.ask()
    assert isinstance(answer, Answer)
    assert setting.asked == [MEDIUM]
    assert [one.code for one in about.in_vain] == ["circuit_open"]
    setting.circuits.leave(probe, rules, None)
    await setting.ask()
    assert setting.asked == [MEDIUM, LARGE]


async def test_whoever_tries_a_model_keeps_its_place_while_others_are_asked_what_it_may_use() -> None:
    """Of those who come meanwhile nothing is reserved for it."""
    setting, gate, reserved = Setting({}), asyncio.Event(), list[str | None]()
    setting.open_circuit(of(LARGE), 0.0)

    async def slowly(about: Exchange) -> None:
        reserved.append(about.model)
        if about.model == LARGE:
            await gate.wait()

    setting.reserves = slowly
    first = asyncio.create_task(setting.ask())
    await asyncio.sleep(0)
    await setting.ask()
    assert reserved == [LARGE, MEDIUM]
    gate.set()
    assert (await first)[1].circuit == "half_open"
    await setting.ask()  # its place is free again
    assert setting.asked == [MEDIUM, LARGE, LARGE]
    assert reserved == [LARGE, MEDIUM, LARGE]


async def test_the_place_of_a_probe_is_given_back_once() -> None:
    setting, left = Setting({}), list[bool | None]()
    setting.open_circuit(of(LARGE), 0.0)
    leave = setting.circuits.leave

    def leaves(one: Pass, rules: Any, success: bool | None) -> None:
        if one.circuit:
            left.append(success)
        leave(one, rules, success)

    async def admits(about: Exchange) -> None:
        pass

    setting.circuits.leave, setting.reserves = leaves, admits  # type: ignore[method-assign]
    await setting.ask()
    assert left == [True]


async def test_whoever_may_not_gives_back_the_place_of_a_probe() -> None:
    setting, refused = Setting({}), list[str | None]()
    setting.open_circuit(of(LARGE), 0.0)

    async def refuses(about: Exchange) -> None:
        if not refused:
            refused.append(about.model)
            raise InsufficientQuota("x", wait=None, detail={})

    setting.reserves = refuses
    await setting.ask()
    await setting.ask()
    assert refused == setting.asked == [LARGE]


@pytest.mark.parametrize("refuses", [InsufficientQuota("x", wait=None, detail={}), Draining("x")])
async def test_who_may_not_have_what_is_old_is_told_why_it_was_wanted(refuses: ProxyError):
    setting = Setting({LARGE: failed(), MEDIUM: failed(), OTHER: failed()})

    async def old(*_: object) -> None:
        raise AssertionError

    def stays(seen: Exchange) -> None:
        if seen.rescued:
            raise refuses
        seen.stale = Stale(LARGE, old)
        raise failed()

    setting.ends[LARGE] = stays
    error, about = await setting.ask()
    assert setting.asked == [LARGE, MEDIUM, OTHER, LARGE]
    if isinstance(refuses, Draining):  # the end comes before all else
        assert error is refuses
        return
    assert isinstance(error, UpstreamFailed)
    assert (about.rescued, about.cache, about.replay) == (None, None, None)
    assert [one.then for one in about.in_vain] == ["another model", "another model", "nothing"]


async def test_what_no_other_model_may_do_has_not_failed_in_vain() -> None:
    error, about = await Setting({LARGE: BadRequest("no")}).ask()
    assert isinstance(error, BadRequest)
    assert about.in_vain == ()


async def test_where_all_fail_what_is_told_is_of_the_first_and_each_failure_is_known() -> None:
    codes = {LARGE: "one", MEDIUM: "two", OTHER: "three"}

    def fails(seen: Exchange) -> None:
        assert seen.model
        seen.cache, seen.cache_key = "miss" if seen.model == LARGE else "bypass", f"key of {seen.model}"
        raise UpstreamFailed("no", code=codes[seen.model])

    error, about = await Setting(dict.fromkeys(codes, fails)).ask()
    assert isinstance(error, UpstreamFailed)
    assert (error.code, about.upstream, about.cache, about.cache_key, about.all_attempts()) == (
        *("one", f"mistral/{LARGE}", "miss", f"key of {LARGE}"),
        6,
    )
    assert list(about.rewrites) == [f"of:{LARGE}"]
    assert [(one.provider, one.code, one.then) for one in about.in_vain] == [
        ("mistral", "one", "another model"),
        ("mistral", "two", "another model"),
        ("openai", "three", "nothing"),
    ]


async def test_what_is_old_is_given_for_the_last_failure() -> None:
    async def old(*_: object) -> None:
        raise AssertionError

    def keeps(seen: Exchange) -> None:
        if seen.rescued is None:
            seen.stale = Stale(LARGE, old)
            raise UpstreamFailed("no", code="one")

    ends: dict[str, End] = {LARGE: keeps, MEDIUM: UpstreamFailed("no", code="two")}
    answer, about = await Setting(ends, {LARGE: [MEDIUM]}).ask()
    assert isinstance(answer, Answer)
    assert [(one.code, one.then) for one in about.in_vain] == [("one", "another model"), ("two", "an older answer")]


async def test_whose_client_has_left_asks_no_other_model_for_those_who_have_joined() -> None:
    """They do so themselves."""
    departure = Departure(lambda: None, lambda: None)
    departure.happen()
    setting = Setting({LARGE: failed()})
    error, about = await setting.ask(departure=departure)
    assert isinstance(error, UpstreamFailed)
    assert (setting.asked, about.in_vain) == ([LARGE], ())


async def test_a_conversation_that_is_too_long_goes_to_larger_models_alone():
    setting = Setting({LARGE: failed(Elsewhere.LARGER)}, {LARGE: ["openai/tiny", "openai/unknown", MEDIUM, OTHER]})
    assert CATALOGUE.model(LARGE).context == CATALOGUE.model(MEDIUM).context
    await setting.ask()
    assert setting.asked == [LARGE, OTHER]


async def test_of_a_model_whose_size_nobody_knows_none_is_known_to_be_larger():
    setting = Setting({"ft:x": failed(Elsewhere.LARGER)}, {"ft:x": [MEDIUM]})
    await setting.ask("ft:x")
    assert setting.asked == ["ft:x"]


async def test_a_team_is_taken_nowhere_it_may_not_go():
    setting = Setting({LARGE: failed()})
    error, _ = await setting.ask(team=Team("a", lambda name: name.startswith("mistral")))
    assert setting.asked == [LARGE, MEDIUM]
    setting = Setting({LARGE: failed()})
    error, _ = await setting.ask(team=Team("a", lambda name: name == LARGE))
    assert isinstance(error, UpstreamFailed)
    assert (setting.asked, setting.others) == ([LARGE], [False])


async def test_nothing_is_reserved_for_one_that_is_not_asked_at_the_moment():
    setting = Setting({})
    setting.open_circuit(of(LARGE), 30)
    answer, _ = await setting.ask()
    assert isinstance(answer, Answer)
    assert setting.asked == [MEDIUM]


async def test_what_is_there_already_is_given_whatever_is_known_of_the_model():
    async def replay(*_: Any) -> None:
        raise AssertionError

    setting = Setting({})
    setting.open_circuit(of(LARGE), 30)
    await setting.ask(replay=replay)
    assert setting.asked == [LARGE]


async def test_the_last_one_is_asked_whatever_is_known_of_it():
    """Its own circuit breaker says no; and when its time is over, it lets somebody in who finds out."""
    setting = Setting({OTHER: CircuitOpen("x", wait=5_000)})
    for name, seconds in ((of(LARGE), 30), (of(MEDIUM), 20), (OTHER, 5)):
        setting.open_circuit(name, seconds)
    error, about = await setting.ask()
    assert isinstance(error, CircuitOpen)
    assert error.wait == 5_000
    assert dict(error.headers)[b"retry-after"] == b"5"
    assert setting.asked == [OTHER]
    assert about.upstream == f"mistral/{LARGE}"
    setting.now = 30
    await setting.ask()
    assert setting.asked == [OTHER, LARGE]


async def test_one_that_is_left_alone_and_one_that_fails_are_not_both_left_alone():
    setting = Setting({MEDIUM: failed()}, {LARGE: [MEDIUM]})
    setting.open_circuit(of(LARGE), 30)
    error, _ = await setting.ask()
    assert isinstance(error, CircuitOpen)
    assert error.wait == 30_000


async def test_after_the_first_byte_there_is_no_other():
    def half(seen: Exchange) -> None:
        seen.status = 200
        raise failed()

    setting = Setting({LARGE: half})
    error, _ = await setting.ask()
    assert isinstance(error, UpstreamFailed)
    assert setting.asked == [LARGE]


async def test_when_the_time_is_over_nobody_else_is_asked():
    def late(seen: Exchange) -> None:
        seen.end = asyncio.get_running_loop().time()
        raise failed()

    setting = Setting({LARGE: failed(), MEDIUM: late})
    error, about = await setting.ask()
    assert isinstance(error, UpstreamFailed)
    assert setting.asked == [LARGE, MEDIUM]
    assert about.upstream == f"mistral/{LARGE}"


async def test_what_a_later_model_refuses_another_may_do():
    setting = Setting({LARGE: failed(), MEDIUM: BadRequest("of its own making")})
    assert isinstance((await setting.ask())[0], Answer)
    assert setting.asked == [LARGE, MEDIUM, OTHER]


async def test_what_has_failed_holds_nothing_until_the_garbage_collector_comes():
    class Failed(UpstreamFailed):
        pass

    def fails(seen: Exchange) -> None:
        raise Failed("x")

    setting = Setting({LARGE: fails, MEDIUM: fails, OTHER: fails})
    gc.collect()
    gc.disable()
    try:
        error, _ = await setting.ask()
        assert isinstance(error, Failed)
        forget_frames(error)  # as the rescue stage does
        del error
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        held = [one for one in gc.garbage if isinstance(one, Failed)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not held
