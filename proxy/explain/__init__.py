"""What would become of a request: its own stages decide, of services that only look, and nothing is moved by it.

asked.py     what an admin asks: which team, which request
looking.py   the services that the stages are given
notes.py     what is noted on the way, of each model that would be asked
report.py    the answer
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.admin import Resource, query
from proxy.core import json
from proxy.core.endpoint import Endpoint
from proxy.core.errors import ProxyError
from proxy.core.exchange import Exchange, exchange_of
from proxy.core.head import Head
from proxy.core.services import Services
from proxy.core.success import send_json
from proxy.explain.asked import Asked, Asking
from proxy.explain.looking import Glimpse, only_looking
from proxy.explain.notes import RECORD, Each, End, Notes
from proxy.explain.report import Reports
from proxy.pipeline import Configs, explaining
from proxy.stages import auth, fallback

PATH = "/admin/explain"


def resource(configs: Configs, services: Services, endpoints: Iterable[Endpoint]) -> Resource:
    """`services` are those of the requests that are explained; of the `endpoints` those that take a body can be."""
    looking, catalogue = only_looking(services), services.catalogue
    glimpse = Glimpse(configs.cache.config.cadence, looking.drainables, services.wall, services.monotonic)
    rows = {row.path: row for row in endpoints if row.request is not None}
    apps = {
        path: explaining(configs, row, looking, glimpse, Each, End(configs.translate.rows(row)))
        for path, row in rows.items()
    }
    asking = Asking(auth.callers(configs.auth, catalogue), partial(_key_ids, configs.auth), rows)
    reports = Reports(
        configs.quota.rules, fallback.chains_by_id(configs.fallbacks, catalogue), catalogue, services.wall
    )
    return Resource(PATH, ("POST",), Explain(asking, apps, reports, services), reads=True)


def _key_ids(config: auth.Config, team: str) -> Sequence[str]:
    """Of the keys that a team has: those of the configuration, and those that were issued."""
    issued = config.issued
    return [*(key.id for key in config.teams[team].keys), *(issued.ids(team) if issued else ())]


class Explain:
    """`apps` decide about requests to an endpoint, by its path."""

    def __init__(self, asking: Asking, apps: Mapping[str, ASGIApp], reports: Reports, services: Services) -> None:
        self._asking = asking
        self._apps = apps
        self._reports = reports
        self._clock = services.monotonic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        query(scope, frozenset())
        outer = exchange_of(scope)
        asked, outer.raw = self._asking.read(outer.raw or b""), None
        exchange = self._exchange(outer, asked)
        record, error = await self._run(exchange, receive)
        report = self._reports.report(exchange, record, error)
        await send_json(send, json.encode(report), (b"cache-control", b"no-store"))

    def _exchange(self, outer: Exchange, asked: Asked) -> Exchange:
        """As that of the request would be when its body is there."""
        row = asked.endpoint
        exchange = Exchange(outer.request_id, row.method, row.path, Head(asked.headers), outer.client, self._clock())
        exchange.team, exchange.key_id, exchange.raw = asked.team, asked.key_id, asked.body
        return exchange

    async def _run(self, exchange: Exchange, receive: Receive) -> tuple[list[Notes], ProxyError | None]:
        scope: dict[str, Any] = {"type": "http", "method": exchange.method, "path": exchange.path}
        scope |= {"headers": exchange.head.headers, "query_string": b"", "path_params": {}}
        exchange.keep_in(scope)
        record: list[Notes] = []
        before = RECORD.set(record)
        try:
            await self._apps[exchange.path](scope, receive, _nobody)
        except ProxyError as error:
            return record, error
        finally:
            RECORD.reset(before)
        return record, None


async def _nobody(message: Message) -> None:
    """Is answered."""
