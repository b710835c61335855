"""The ledger stage: one row for each request that was let in, and how it says that it ended."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.types import ASGIApp

from proxy import data
from proxy.core.catalogue import Catalogue
from proxy.core.charge import Charge, Estimate
from proxy.core.errors import ProxyError, StoreUnavailable, UpstreamFailed
from proxy.core.exchange import Exchange, Team, exchange_of
from proxy.core.ledger import Intent, LedgerFull, Outcome
from proxy.providers.mistral.chat import CHAT
from proxy.stages import ledger
from tests.asgi import call, exchange, ok, services

CATALOGUE = Catalogue(data.read("models.yaml"))


@dataclass
class Rows:
    full: bool = False
    intents: list[Intent] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)

    def open(self, intent: Intent) -> None:
        if self.full:
            raise LedgerFull
        self.intents.append(intent)

    def close(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


async def keep(rows: Rows, app: ASGIApp = ok, **fields: Any) -> Exchange:
    known: dict[str, Any] = {
        "team": Team("research", lambda name: True), "key_id": "k1", "call": "owner-1", "model_asked": "gpt-4o-mini",
        "model": "mistral-small-latest", "body": {"stream": True}, "estimate": Estimate(10, 90, 100, cost=5),
    }  # fmt: skip
    found = exchange(**(known | fields))
    stage = ledger.build(CHAT, services(catalogue=CATALOGUE, ledger=rows, wall=lambda: 1_700_000_000_000))
    assert stage
    await call(stage(app), exchange=found)
    return found


async def test_the_row_is_begun_before_the_provider_is_called() -> None:
    rows = Rows()

    async def looks(scope: Any, receive: Any, send: Any) -> None:
        assert (len(rows.intents), len(rows.outcomes)) == (1, 0)
        await ok(scope, receive, send)

    await keep(rows, looks)
    assert rows.intents == [
        Intent(
            call="owner-1", request_id="id-1", opened=1_700_000_000_000, team="research", key_id="k1",
            operation="chat.create", provider="mistral", model_asked="gpt-4o-mini", model="mistral-small-latest",
            priced_as="mistral-small-2603", price_version=CATALOGUE.price_version, stream=True,
            prompt=10, tokens=100, cost=5,
        )
    ]  # fmt: skip


async def test_the_row_ends_with_what_it_cost() -> None:
    rows = Rows()

    async def charged(scope: Any, receive: Any, send: Any) -> None:
        found = exchange_of(scope)
        found.charge = Charge(12, 4, 30, 20, 7, 2, cost=99, estimated=True)
        found.attempts, found.status, found.first_byte = 2, 200, 0.25
        await ok(scope, receive, send)

    await keep(rows, charged)
    [row] = rows.outcomes
    assert (row.call, row.status, row.http_status, row.error) == ("owner-1", "settled", 200, None)
    assert (row.prompt, row.cached, row.completion, row.reasoning) == (12, 4, 30, 20)
    assert (row.audio_seconds, row.pages, row.cost, row.estimated) == (7, 2, 99, True)
    assert (row.attempts, row.first_byte, row.latency) == (2, 250_000, 1_000_000)


@pytest.mark.parametrize(
    ("error", "status", "http_status", "code"),
    [
        (UpstreamFailed("x"), "failed", 502, "upstream_error"),
        (ProxyError("x"), "failed", 500, "internal_error"),
        (RuntimeError("x"), "failed", 500, "internal_error"),
        (asyncio.CancelledError(), "cancelled", None, "draining"),
    ],
)
async def test_it_says_what_ended_it(error: BaseException, status: str, http_status: int, code: str) -> None:
    async def ends(scope: Any, receive: Any, send: Any) -> None:
        raise error

    rows = Rows()
    with pytest.raises(type(error)):
        await keep(rows, ends)
    [row] = rows.outcomes
    assert (row.status, row.http_status, row.error) == (status, http_status, code)


async def test_a_stream_that_broke_has_failed_though_its_status_is_200() -> None:
    async def breaks(scope: Any, receive: Any, send: Any) -> None:
        exchange_of(scope).status, exchange_of(scope).error = 200, UpstreamFailed("x")

    rows = Rows()
    await keep(rows, breaks)
    [row] = rows.outcomes
    assert (row.status, row.http_status, row.error) == ("failed", 200, "upstream_error")


async def test_a_client_that_left_has_cancelled_it() -> None:
    async def left(scope: Any, receive: Any, send: Any) -> None:
        exchange_of(scope).client_gone = True

    rows = Rows()
    await keep(rows, left)
    [row] = rows.outcomes
    assert (row.status, row.http_status, row.error) == ("cancelled", None, "client_gone")


async def test_what_cannot_be_written_down_is_not_begun() -> None:
    rows, called = Rows(full=True), []

    async def counts(scope: Any, receive: Any, send: Any) -> None:
        called.append(1)

    about = exchange(team=Team("research", lambda name: True), key_id="k1", call="owner-1", cache="hit", age=3)
    with pytest.raises(StoreUnavailable):
        await call(ledger.build(CHAT, services(catalogue=CATALOGUE, ledger=rows))(counts), exchange=about)  # type: ignore[misc]
    assert (about.cache, about.age) == (None, None)  # nothing comes of it
    assert (called, rows.outcomes) == ([], [])


async def test_a_request_without_a_model_has_a_row_too() -> None:
    rows = Rows()
    await keep(rows, model=None, model_asked=None, body=None, estimate=None)
    [row] = rows.intents
    assert (row.model, row.priced_as, row.stream, row.tokens, row.cost) == (None, None, False, 0, 0)


@pytest.mark.parametrize("name", ["sk-mp-0123456789abcdef", "openai/sk-mp-0123456789abcdef"])
async def test_a_key_in_the_place_of_a_models_name_is_not_kept(name: str) -> None:
    rows = Rows()
    await keep(rows, model_asked=name, model=name)
    [row] = rows.intents
    assert row.model_asked == row.model == row.priced_as == name.replace("sk-mp-0123456789abcdef", "[redacted:api-key]")


def test_without_a_ledger_there_is_no_such_stage() -> None:
    assert ledger.build(CHAT, services(catalogue=CATALOGUE)) is None
