"""GET /v1/models and GET /v1/models/{id}. The cards stay as they are: servers say more than OpenAI does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from proxy.core.endpoint import Cache, Endpoint, Meter, ModelFrom, Retry, Stream
from proxy.core.errors import UpstreamFailed
from proxy.core.json import Json
from proxy.core.table import Context

MOST_VALUES = 1 << 17
"""Values in an answer. OpenRouter describes each of 500 models with about 100, OpenAI with 4."""

_WRONG = "The provider's answer was not a description of models."


def _list(answer: Any, context: Context) -> Json:
    """The models that the team may use. Note `visible`: its allow-list as a predicate of a name, which may be missing.
    Raises UpstreamFailed for any other shape."""
    cards = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(cards, list):
        raise UpstreamFailed(_WRONG)
    visible: Callable[[str], bool] = context.notes.get("visible") or (lambda name: True)
    return {**answer, "data": [card for card in map(_card, cards) if visible(card["id"])]}


def _one(answer: Any, context: Context) -> Json:
    """The model, under the name that the client used (note `asked`)."""
    card = _card(answer)
    return card | {"id": context.notes.get("asked") or card["id"]}


def _card(card: Any) -> Json:
    if not isinstance(card, dict) or not isinstance(card.get("id"), str):
        raise UpstreamFailed(_WRONG)
    return card


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
