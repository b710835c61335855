"""The quota stage: what it claims, what it settles, and what a refused client is told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.types import ASGIApp

from proxy import data
from proxy.core.calendar import Calendar
from proxy.core.catalogue import Catalogue
from proxy.core.charge import FREE as FOR_NOTHING
from proxy.core.charge import NOTHING, Charge, Estimate
from proxy.core.endpoint import Endpoint
from proxy.core.errors import InsufficientQuota, ModelNotAllowed, ProxyError, RateLimited, StoreUnavailable
from proxy.core.exchange import Exchange, Team, exchange_of
from proxy.core.money import NANO
from proxy.core.quota import WINDOWS, Claim, Rule, Standing, StoreGone, Unit, Verdict
from proxy.providers.mistral.chat import CHAT
from proxy.providers.mistral.models import MODELS
from proxy.stages import quota
from proxy.store.memory import MemoryStore
from tests.asgi import call, exchange, ok, services

CATALOGUE = Catalogue(data.read("models.yaml"))
ESTIMATE = Estimate(prompt=10, completion=90, tokens=100, cost=5 * NANO)
FREE = Standing(0, 0, 60_000)


@dataclass
class Store:
    """Answers with these standings (FREE for whatever has none), and keeps what it was asked."""

    standings: dict[Unit, Standing] = field(default_factory=dict)
    gone: bool = False
    reserved: list[tuple[str, list[Claim]]] = field(default_factory=list)
    settled: list[tuple[str, list[Claim], list[int]]] = field(default_factory=list)

    async def reserve(self, call: str, claims: Sequence[Claim]) -> Verdict:
        if self.gone:
            raise StoreGone
        self.reserved.append((call, list(claims)))
        standings = tuple(self.standings.get(claim.counter.unit, FREE) for claim in claims)
        refused = any(one.wait != 0 and not claim.counter.shadow for one, claim in zip(standings, claims, strict=True))
        return Verdict(not refused, standings)

    async def caught_up(self) -> None: ...

    def settle(self, call: str, claims: Sequence[Claim], used: Sequence[int]) -> None:
        self.settled.append((call, list(claims), list(used)))


def rules(*quotas: dict[str, Any], model: str | None = None) -> list[Rule]:
    return [quota.Quota.model_validate(one).rule(model) for one in quotas]


def request(**fields: Any) -> Exchange:
    known: dict[str, Any] = {
        "team": Team("research", lambda name: True),
        "key_id": "k1",
        "model": "mistral-small-latest",
    }
    return exchange(**(known | {"call": "owner-1", "estimate": ESTIMATE} | fields))


async def ask(
    store: Store | MemoryStore,
    ours: Sequence[Rule],
    found: Exchange | None = None,
    app: ASGIApp = ok,
    endpoint: Endpoint = CHAT,
) -> Exchange:
    found = found or request()
    config = quota.Config({"research": ours})
    stage = quota.build(config, endpoint, services(catalogue=CATALOGUE, quotas=store))
    await call(stage(app), exchange=found)
    return found


ALL = rules(
    {"requests": "60/minute"}, {"tokens": "1000/minute"}, {"spend": "50 USD/month"}, {"concurrency": 8},
    {"requests": "10/minute", "per": "key", "mode": "shadow"},
)  # fmt: skip


async def test_everything_is_claimed_in_one_step() -> None:
    store = Store()
    await ask(store, ALL)
    [(made, claims)] = store.reserved
    assert made == "owner-1"
    assert [(one.counter.name, one.limit, one.amount) for one in claims] == [
        ("research|requests|minute", 60, 1),
        ("research|tokens|minute", 1000, 100),
        ("research|spend|month", 50 * NANO, 5 * NANO),
        ("research|concurrency|now", 8, 1),
        ("research|requests|minute|shadow|key=k1", 10, 1),
    ]


async def test_what_makes_no_call_is_a_request_and_holds_no_slot() -> None:
    store = Store()
    await ask(store, ALL, request(estimate=FOR_NOTHING))
    [(_, claims)] = store.reserved
    assert [(one.counter.unit.value, one.amount) for one in claims] == [
        ("requests", 1), ("tokens", 0), ("spend", 0), ("concurrency", 0), ("requests", 1)
    ]  # fmt: skip
    await ask(store, ALL)
    assert [one.amount for one in store.reserved[1][1]] == [1, 100, 5 * NANO, 1, 1]
    assert [one.counter for one in store.reserved[1][1]] == [one.counter for one in claims]


@pytest.mark.parametrize(
    ("limit", "lets_in"),
    [({"requests": "0/second"}, False), ({"tokens": "0/day"}, True), ({"spend": "0 USD/day"}, True),
     ({"concurrency": 0}, True)],
)  # fmt: skip
async def test_what_makes_no_call_is_kept_out_by_a_limit_of_requests_alone(
    limit: dict[str, Any], lets_in: bool
) -> None:
    store = MemoryStore(Calendar(UTC), lambda: 0)
    try:
        await ask(store, rules(limit), request(estimate=FOR_NOTHING))
    except RateLimited:
        assert not lets_in
    else:
        assert lets_in


async def test_what_was_used_is_settled() -> None:
    async def charged(scope: Any, receive: Any, send: Any) -> None:
        exchange_of(scope).charge = Charge(12, 0, 30, 0, 0, 0, cost=NANO, estimated=False)
        await ok(scope, receive, send)

    store = Store()
    await ask(store, ALL, app=charged)
    assert [(made, used) for made, _, used in store.settled] == [("owner-1", [1, 42, NANO, 0, 1])]
    assert store.settled[0][1] == store.reserved[0][1]


@pytest.mark.parametrize("charge", [None, NOTHING])
@pytest.mark.parametrize("error", [None, ProxyError("x"), RuntimeError(), asyncio.CancelledError()])
async def test_it_is_settled_however_it_ends(charge: Charge | None, error: BaseException | None) -> None:
    async def ends(scope: Any, receive: Any, send: Any) -> None:
        exchange_of(scope).charge = charge
        if error:
            raise error

    store = Store()
    if error:
        with pytest.raises(type(error)):
            await ask(store, ALL, app=ends)
    else:
        await ask(store, ALL, app=ends)
    assert [used for _, _, used in store.settled] == [[1, 0, 0, 0, 1]]


async def test_what_cannot_be_written_down_has_used_nothing() -> None:
    async def unwritten(scope: Any, receive: Any, send: Any) -> None:
        raise StoreUnavailable("x")

    store = Store()
    with pytest.raises(StoreUnavailable):
        await ask(store, ALL, app=unwritten)
    assert [used for _, _, used in store.settled] == [[0, 0, 0, 0, 0]]


async def test_a_team_without_rules_is_not_counted() -> None:
    store = Store()
    await ask(store, [])
    await ask(store, ALL, request(team=Team("another", lambda name: True)))
    assert (store.reserved, store.settled) == ([], [])


@pytest.mark.parametrize("asked", ["mistral-large-latest", "mistral-large-2512", "mistral-large-3"])
async def test_a_model_has_one_counter_whatever_it_is_called(asked: str) -> None:
    store = Store()
    large = CATALOGUE.model("mistral-large-latest").id
    ours = rules({"requests": "10/minute", "model": "mistral-large-latest"}, model=large)
    await ask(store, ours, request(model=asked))
    await ask(store, ours)
    [(_, claims)] = store.reserved
    assert [one.counter.model for one in claims] == [large]


async def test_an_endpoint_that_costs_nothing_is_counted_as_a_request() -> None:
    store = Store()
    await ask(store, ALL, request(estimate=None, model=None), endpoint=MODELS)
    [(_, claims)] = store.reserved
    assert [one.counter.unit for one in claims] == [Unit.REQUESTS, Unit.CONCURRENCY, Unit.REQUESTS]


UNPRICED = Estimate(prompt=1, completion=1, tokens=2, cost=None)


async def test_what_has_no_price_is_refused_to_those_who_must_not_overspend() -> None:
    store, asked = Store(), request(estimate=UNPRICED, cache="miss")
    with pytest.raises(ModelNotAllowed, match=r"models\.prices") as caught:
        await ask(store, ALL, asked)
    assert caught.value.param == "model"
    assert asked.cache is None  # nothing was asked
    assert (store.reserved, store.settled) == ([], [])


async def test_what_has_no_price_is_let_in_elsewhere() -> None:
    store = Store()
    ours = rules({"spend": "5 USD/day", "mode": "shadow"}, {"requests": "5/day"})
    await ask(store, ours, request(estimate=UNPRICED))
    assert [one.counter.unit for one in store.reserved[0][1]] == [Unit.REQUESTS]


async def refused(standings: dict[Unit, Standing], ours: Sequence[Rule] = ALL) -> tuple[ProxyError, Exchange]:
    store, found = Store(standings), request()
    with pytest.raises(ProxyError) as caught:
        await ask(store, ours, found)
    assert store.settled == []  # nothing was taken
    return caught.value, found


async def test_a_refusal_says_which_rule_and_when() -> None:
    error, found = await refused({Unit.REQUESTS: Standing(55, 5, 59_100, wait=12_345)})
    assert isinstance(error, RateLimited)
    assert (error.status, error.type, error.code) == (429, "requests", "rate_limit_exceeded")
    assert error.message == (
        "Quota of team 'research': requests 60/minute: used 55, reserved 5, limit 60, asked 1. Try again in 12.345s."
    )
    assert error.detail == {
        "rule": "requests 60/minute", "used": "55", "reserved": "5", "limit": "60", "asked": "1", "reset": "59.1s",
    }  # fmt: skip
    assert error.headers == [(b"retry-after", b"13"), (b"retry-after-ms", b"12345"), (b"x-should-retry", b"true")]
    assert (b"x-ratelimit-remaining-requests", b"0") in found.quota_headers


async def test_tokens_have_a_type_of_their_own() -> None:
    error, _ = await refused({Unit.TOKENS: Standing(950, 0, 60_000, wait=1)})
    assert (error.type, error.code) == ("tokens", "rate_limit_exceeded")


async def test_money_that_is_spent_is_not_asked_for_again() -> None:
    error, _ = await refused({Unit.SPEND: Standing(49 * NANO, NANO // 2, 86_400_000, wait=86_400_000)})
    assert isinstance(error, InsufficientQuota)
    assert (error.status, error.type, error.code) == (429, "insufficient_quota", "insufficient_quota")
    assert "spend 50 USD/month: used 49 USD, reserved 0.5 USD, limit 50 USD, asked 5 USD" in error.message
    assert (b"x-should-retry", b"false") in error.headers
    assert (b"retry-after", b"86400") in error.headers


async def test_a_slot_may_be_free_at_any_time() -> None:
    error, _ = await refused({Unit.CONCURRENCY: Standing(0, 8, 0, wait=None)})
    assert (error.type, error.headers[0]) == ("requests", (b"retry-after", b"1"))


async def test_what_can_never_fit_is_not_worth_a_retry() -> None:
    error, _ = await refused({Unit.TOKENS: Standing(0, 0, 0, wait=None)})
    assert "can never fit" in error.message
    assert error.headers == [(b"x-should-retry", b"false")]


async def test_no_slots_at_all_can_never_fit() -> None:
    error, _ = await refused({Unit.CONCURRENCY: Standing(0, 0, 0, wait=None)}, rules({"concurrency": 0}))
    assert error.headers == [(b"x-should-retry", b"false")]


async def test_the_longest_wait_is_told() -> None:
    error, _ = await refused(
        {Unit.REQUESTS: Standing(60, 0, 1, wait=5_000), Unit.SPEND: Standing(50 * NANO, 0, 1, wait=900_000)}
    )
    assert error.code == "insufficient_quota"


async def test_a_shadow_rule_says_whom_it_would_have_refused() -> None:
    shadows = rules({"tokens": "50/minute", "mode": "shadow"}, {"requests": "60/minute"})
    found = await ask(Store({Unit.TOKENS: Standing(10, 0, 1, wait=None)}), shadows)
    assert found.shadow_refusals == ("tokens 50/minute",)
    assert (await ask(Store(), shadows)).shadow_refusals == ()
    # Another model is asked: what the first one's rule would have done stays said.
    found.turn_to("mistral-large-latest", "mistral", "mistral-large-latest")
    found.call = "again"
    assert (await ask(Store(), shadows, found)).shadow_refusals == ("tokens 50/minute",)


async def test_of_an_answer_that_a_quota_refuses_the_cache_says_nothing() -> None:
    found = request()
    found.cache, found.age = "hit", 7
    with pytest.raises(RateLimited):
        await ask(Store({Unit.REQUESTS: Standing(60, 0, 1, wait=5_000)}), rules({"requests": "60/minute"}), found)
    assert {name: getattr(found, name) for name in ("cache", "age")} == {"cache": None, "age": None}


async def test_a_store_that_is_gone_is_nobodys_fault() -> None:
    store, about = Store(gone=True), request(cache="joined", age=3)
    with pytest.raises(StoreUnavailable) as caught:
        await ask(store, ALL, about)
    assert (about.cache, about.age) == (None, None)  # nothing comes of it
    assert (caught.value.status, caught.value.code) == (503, "store_unavailable")
    assert (b"retry-after", b"1") in caught.value.headers
    assert store.settled == []


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"requests": "1/day", "tokens": "1/day"},
        {"requests": "-1/day"},
        {"requests": "1/decade"},
        {"spend": "1/day"},
        {"concurrency": -1},
        {"requests": "1/day", "per": "user"},
        {"requests": "1/day", "mode": "off"},
        {"requests": "1/day", "burst": 3},
    ],
)
def test_what_is_no_quota(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        quota.Quota.model_validate(wrong)


def test_a_quota_as_a_rule() -> None:
    [rule] = rules({"requests": "10/minute", "model": "m", "per": "key", "mode": "shadow"}, model="m-1")
    assert rule == Rule(Unit.REQUESTS, 10, WINDOWS["minute"], "10/minute", per_key=True, model="m-1", shadow=True)
    assert rule.name == "requests 10/minute per key, model m-1"
