"""Whether the team may: every rule that a request falls under is checked and reserved in one step, or none.

A refused request has consumed nothing, anywhere. One that was let in holds the most it can use until it has ended, and
then what it did use; what it held beyond that is free again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core.config import ModelName, Strict
from proxy.core.endpoint import Endpoint, Meter
from proxy.core.errors import ModelNotAllowed, StoreUnavailable
from proxy.core.exchange import Exchange, exchange_of
from proxy.core.quota import Rule, StoreGone, Unit
from proxy.core.quota_refusal import refusal
from proxy.core.quota_sheet import Sheet, Sheets
from proxy.core.rate import Rate, rate, spend
from proxy.core.services import Middleware, Services


def _rate(value: object) -> Rate:
    return value if isinstance(value, Rate) else rate(str(value))


def _spend(value: object) -> Rate:
    return value if isinstance(value, Rate) else spend(str(value))


class Quota(Strict):
    """One item of `teams.<name>.quotas`: one limit, and to what it applies."""

    requests: Annotated[Rate, BeforeValidator(_rate)] | None = None
    tokens: Annotated[Rate, BeforeValidator(_rate)] | None = None
    spend: Annotated[Rate, BeforeValidator(_spend)] | None = None
    concurrency: int | None = Field(None, ge=0, le=1_000_000)
    model: ModelName | None = None
    per: Literal["team", "key"] = "team"
    mode: Literal["enforce", "shadow"] = "enforce"

    @model_validator(mode="after")
    def _one_limit(self) -> Quota:
        given = [unit for unit in Unit if getattr(self, unit.value) is not None]
        if len(given) != 1:
            raise ValueError("one item has one limit: requests, tokens, spend or concurrency")
        return self

    def rule(self, model: str | None) -> Rule:
        """`model` is the catalogue's id of the one that it is about."""
        unit = next(unit for unit in Unit if getattr(self, unit.value) is not None)
        limit: Rate | int = getattr(self, unit.value)
        amount, window, text = (
            (limit.limit, limit.window, limit.text) if isinstance(limit, Rate) else (limit, None, str(limit))
        )
        return Rule(unit, amount, window, text, self.per == "key", model, self.mode == "shadow")


@dataclass(frozen=True, slots=True)
class Config:
    """The rules of each team."""

    rules: Mapping[str, Sequence[Rule]]


def build(config: Config, endpoint: Endpoint, services: Services) -> Middleware:
    metered = endpoint.meter is not Meter.NOTHING
    apply = frozenset(Unit) if metered else frozenset((Unit.REQUESTS, Unit.CONCURRENCY))
    teams = {team: Sheets(team, [rule for rule in rules if rule.unit in apply]) for team, rules in config.rules.items()}

    def middleware(app: ASGIApp) -> ASGIApp:
        return Quotas(app, teams, services)

    return middleware


class Quotas:
    """`teams`: the rules of each, of those that this endpoint falls under."""

    def __init__(self, app: ASGIApp, teams: Mapping[str, Sheets], services: Services) -> None:
        self._app = app
        self._teams = teams
        self._store = services.quotas
        self._model = services.catalogue.model

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        assert exchange.team
        assert exchange.key_id
        sheet = self._sheet(exchange, exchange.team.name)
        if sheet is None:
            await self._app(scope, receive, send)
            return
        claims = sheet.claims(exchange.key_id, exchange.estimate)
        try:
            verdict = await self._store.reserve(exchange.call, claims)
        except StoreGone:
            exchange.forgo()
            raise StoreUnavailable("Quotas cannot be checked at the moment. Send the request again later.") from None
        written = True
        try:
            exchange.stand = partial(sheet.stand, verdict.standings)
            exchange.quota_headers = sheet.headers(verdict.standings)
            if sheet.shadows:
                exchange.shadow_refusals += sheet.shadow_refusals(verdict.standings)
            if not verdict.granted:
                exchange.forgo()
                raise refusal(exchange.team.name, [line.rule for line in sheet.lines], claims, verdict.standings)
            await self._app(scope, receive, send)
        except StoreUnavailable:
            written = False  # its row cannot be: it is not let in after all, and has used nothing
            raise
        finally:
            if verdict.granted:
                used = sheet.used(exchange.charge) if written else [0] * len(claims)
                self._store.settle(exchange.call, claims, used)

    def _sheet(self, exchange: Exchange, team: str) -> Sheet | None:
        """The rules that the request falls under, if there are any. Raises ModelNotAllowed if its price is needed and
        unknown."""
        sheets = self._teams.get(team)
        if sheets is None:
            return None
        sheet = sheets.sheet(self._model(exchange.model).id if exchange.model else None)
        if exchange.estimate and exchange.estimate.cost is None:
            if sheet.spends:
                exchange.forgo()
                raise ModelNotAllowed(
                    f"The price of the model '{exchange.model}' is not known, and this team's spending is limited: "
                    "whoever runs the proxy can give one in models.prices.",
                    param="model",
                )
            sheet = sheet.unpriced
        return sheet if sheet.lines else None
