"""GET /v1/models and GET /v1/models/{id}.

Mistral lists every alias of a model as a row of its own, as OpenAI's clients expect. The rows keep what Mistral says
beyond OpenAI's fields (capabilities, max_context_length, aliases …): SDKs ignore it and people like to see it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from proxy.core.endpoint import Cache, Endpoint, Meter, ModelFrom, Retry, Stream
from proxy.core.errors import UpstreamFailed
from proxy.core.json import Json
from proxy.core.table import Context

MOST_VALUES = 1 << 16
"""Values in an answer. A model is described with about 40."""

_WRONG = "The provider's answer was not a description of models."


def _list(answer: Any, context: Context) -> Json:
    """The models that the team may use, then the aliases of proxy.yaml that lead to one of them.

    Notes: `visible`, the team's allow-list as a predicate; `aliases`, alias -> target. Both may be missing.
    """
    cards = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(cards, list):
        raise UpstreamFailed(_WRONG)
    visible: Callable[[str], bool] = context.notes.get("visible") or (lambda name: True)
    rows = {row["id"]: row for row in map(_row, cards) if visible(row["id"])}
    return {"object": "list", "data": [*rows.values(), *_aliases(rows, context.notes.get("aliases") or {})]}


def _aliases(rows: Mapping[str, Json], aliases: Mapping[str, str]) -> list[Json]:
    """A row for each alias that is a name, not a pattern."""
    named = {alias: target for alias, target in aliases.items() if "*" not in alias and alias not in rows}
    return [rows[target] | {"id": alias} for alias, target in named.items() if target in rows]


def _one(answer: Any, context: Context) -> Json:
    """The model, under the name that the client used (note `asked`)."""
    row = _row(answer)
    return row | {"id": context.notes.get("asked") or row["id"]}


def _row(card: Any) -> Json:
    if not isinstance(card, dict) or not isinstance(card.get("id"), str):
        raise UpstreamFailed(_WRONG)
    created, owner, end = card.get("created"), card.get("owned_by"), card.get("deprecation")
    return card | {
        "object": "model",
        "created": created if type(created) is int else 0,
        "owned_by": owner if isinstance(owner, str) else "mistralai",
        # A date and a time at Mistral, a date at OpenAI.
        "shutdown_date": end[:10] if isinstance(end, str) else None,
    }


MODELS = Endpoint(
    operation="models",
    span="models.list",
    method="GET",
    path="/v1/models",
    upstream="/v1/models",
    model=ModelFrom.NOWHERE,
    stream=Stream.NEVER,
    meter=Meter.NOTHING,
    cache=Cache.NEVER,
    retry=Retry.SAFE,
    most_values=MOST_VALUES,
    answer=_list,
)

MODEL = Endpoint(
    operation="model",
    span="models.retrieve",
    method="GET",
    path="/v1/models/{id}",
    upstream="/v1/models/{id}",
    model=ModelFrom.PATH,
    stream=Stream.NEVER,
    meter=Meter.NOTHING,
    cache=Cache.NEVER,
    retry=Retry.SAFE,
    most_values=MOST_VALUES,
    answer=_one,
)
