"""POST /v1/embeddings. The request goes on as it came: arrays of tokens and base64 are OpenAI's own.

Source: OpenAI API reference, create embeddings.
"""

from __future__ import annotations

from typing import Any

from proxy.core.endpoint import Cache, Endpoint, Meter, ModelFrom, Retry, Stream
from proxy.core.errors import UpstreamFailed
from proxy.core.json import Json
from proxy.core.table import Context, Table, keep, text
from proxy.providers.openai.answer import refuse_error, with_clean_usage
from proxy.providers.openai.routing import ROUTING
from proxy.providers.reserved import RESERVED

MOST_VALUES = 1 << 21
"""Values in an answer. A vector in base64, which the SDKs ask for, is one; as numbers there is room for a thousand
vectors of 2,048 dimensions."""

_WRONG = "The provider's answer was not a list of embeddings."
_COUNTS = ("prompt_tokens",)


def _answer(answer: Any, context: Context) -> Json:
    """The answer. Raises UpstreamFailed unless it has one embedding for each input: one too few, or two with the same
    index, would give a text the vector of another."""
    if not isinstance(answer, dict):
        raise UpstreamFailed(_WRONG)
    refuse_error(answer)
    items = answer.get("data")
    if not isinstance(items, list) or not items or not all(map(_is_embedding, items)):
        raise UpstreamFailed(_WRONG)
    if sorted(item["index"] for item in items) != list(range(_inputs(context.asked.get("input")))):
        raise UpstreamFailed(_WRONG)
    if not all(map(_is_whole, items)):
        context.spoiled = True
    return with_clean_usage(answer, _COUNTS)


def _is_embedding(item: Any) -> bool:
    """A vector, as numbers or in base64, and whose it is."""
    return isinstance(item, dict) and type(item.get("index")) is int and type(item.get("embedding")) in (list, str)


def _is_whole(item: Json) -> bool:
    vector = item["embedding"]
    if type(vector) is list:
        try:
            sum(vector)  # the cheapest look at each of a thousand numbers
        except (TypeError, OverflowError):
            return False
    return bool(vector) and not item.get("error")


def _inputs(asked: Any) -> int:
    """How many embeddings were asked for: a text is one, and so is an array of tokens."""
    if not isinstance(asked, list) or (asked and all(type(token) is int for token in asked)):
        return 1
    return len(asked)


EMBEDDINGS = Endpoint(
    operation="embeddings",
    span="embeddings.create",
    method="POST",
    path="/v1/embeddings",
    upstream="/v1/embeddings",
    model=ModelFrom.BODY,
    stream=Stream.NEVER,
    meter=Meter.TOKENS,
    cache=Cache.EXACT,
    retry=Retry.SAFE,
    most_values=MOST_VALUES,
    request=Table(
        keep("model", text, "aliases become the provider's names"),
        keep("input", note="texts or arrays of tokens"),
        *ROUTING,
        *RESERVED,
        required=("input",),
        open=True,
    ),
    answer=_answer,
    inert=frozenset(("user",)),
)
