"""POST /v1/embeddings.

OpenAI's SDKs ask for base64 by default. Mistral's schema lists that word but types the answer as numbers and tells no
byte layout, so numbers are asked for and packed here, as OpenAI packs them: float32, little-endian.
"""

from __future__ import annotations

import sys
from array import array
from binascii import b2a_base64
from collections.abc import Iterator
from itertools import count
from typing import Any

from proxy.core.endpoint import Batch, Cache, Endpoint, Meter, ModelFrom, Retry, Stream
from proxy.core.errors import BadRequest, UnsupportedParameter, UnsupportedValue, UpstreamFailed, UpstreamRefusal
from proxy.core.json import Json
from proxy.core.table import (
    ABSENT,
    Context,
    Table,
    compute,
    drop,
    gives_way,
    integer,
    keep,
    mapping,
    text,
    text_or_texts,
    values,
    verify,
)
from proxy.providers.mistral.answer import is_count, refuse_error
from proxy.providers.reserved import RESERVED

MOST_INPUTS = 2048
"""Texts in one request: OpenAI's limit."""

MOST_AT_ONCE = 256
"""Texts in one call. Mistral API: 257 are refused with code 3210, "Too many inputs in request"."""

MOST_DIMENSIONS = 1 << 16
"""More than any model's vectors have: a number above it is a mistake."""

MOST_VALUES = MOST_AT_ONCE * 8192
"""Values in one call's answer: more dimensions than any model of today has, in as many vectors as there can be."""

PACKED = "embeddings_packed"
"""Note of the context: the client asked for base64."""

_TOKENS = (
    "'input' must be text: token ids belong to OpenAI's tokenizer and mean nothing to this model. "
    "(LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False) sends text.)"
)


def _input(value: Any, context: Context, path: str) -> Any:
    if value == []:
        raise BadRequest(f"'{path}' must not be an empty array.", param=path)
    if _is_tokens(value) or (isinstance(value, list) and all(map(_is_tokens, value))):
        raise UnsupportedValue(_TOKENS, param=path)
    verify(text_or_texts, value, path)
    if value == "":
        raise BadRequest(f"'{path}' must not be an empty string.", param=path)
    if isinstance(value, list) and "" in value:
        raise BadRequest(f"'{path}' must not hold an empty string, as item {value.index('')} is.", param=path)
    if isinstance(value, list) and len(value) > MOST_INPUTS:
        raise BadRequest(f"'{path}' must have at most {MOST_INPUTS} items, not {len(value)}.", param=path)
    return value


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _encoding(value: Any, context: Context, path: str) -> Any:
    if value not in ("float", "base64"):
        raise UnsupportedValue(f"Unsupported value for '{path}'. Supported values: 'float', 'base64'.", param=path)
    if value == "base64":
        context.notes[PACKED] = True
    return ABSENT  # `_ask_for_numbers` decides, for every request


def _dimensions(value: Any, context: Context, path: str) -> Any:
    verify(integer(1, MOST_DIMENSIONS), value, path)
    # The one model that is known to have no choice. Another that has none says so itself.
    if any(name.startswith("mistral-embed") for name in (context.model.id, *context.model.names)):
        raise UnsupportedParameter(
            f"'{path}' is not supported: the vectors of mistral-embed have 1024 dimensions.", param=path
        )
    if path != "output_dimension":
        context.report("rename", f"{path}>output_dimension")
    return value


def _ask_for_numbers(body: Json, context: Context) -> None:
    if context.notes.get(PACKED) and body.get("output_dtype", "float") != "float":
        raise UnsupportedValue(
            "base64 holds float32 only: with output_dtype, ask for encoding_format 'float'.", param="encoding_format"
        )
    body["encoding_format"] = "float"


# Answers.

_WRONG = "The provider's answer was not a list of embeddings."


def _answer(answer: Any, context: Context) -> Json:
    """{object, data: [{object, index, embedding}], model, usage}. Raises UpstreamFailed for any other shape."""
    if not isinstance(answer, dict):
        raise UpstreamFailed(_WRONG)
    refuse_error(answer)
    items = answer.get("data")
    if not isinstance(items, list) or not items:
        raise UpstreamFailed(_WRONG)
    packed = bool(context.notes.get(PACKED))
    data = [_item(item, at, packed) for at, item in enumerate(items)]
    # A vector must not reach the client as that of another text.
    if sorted(item["index"] for item in data) != list(range(len(data))):
        raise UpstreamFailed(_WRONG)
    if not all(item["embedding"] for item in data) or any(item.get("error") for item in items):
        context.spoiled = True
    data.sort(key=lambda item: item["index"])
    return {"object": "list", "data": data, "model": answer.get("model"), **_usage([answer])}


def _item(item: Any, at: int, packed: bool) -> Json:
    vector = item.get("embedding") if isinstance(item, dict) else None
    index = item.get("index", at) if isinstance(item, dict) else None
    if not isinstance(vector, list) or not set(map(type, vector)) <= {float, int} or type(index) is not int:
        raise UpstreamFailed(_WRONG)
    return {"object": "embedding", "index": index, "embedding": _pack(vector) if packed else vector}


def _pack(vector: list[float]) -> str:
    try:
        numbers = array("f", vector)
    except OverflowError:
        raise UpstreamFailed(_WRONG) from None
    if sys.byteorder == "big":
        numbers.byteswap()
    return b2a_base64(numbers, newline=False).decode()


def _usage(answers: list[Json]) -> Json:
    """{"usage": the sum}, or nothing when one of them has no count that can be believed: none is made up."""
    counts = [_counts(answer.get("usage")) for answer in answers]
    if not all(counts):
        return {}
    return {"usage": {name: sum(count[name] for count in counts) for name in _COUNTS}}


_COUNTS = ("prompt_tokens", "total_tokens")


def _counts(usage: Any) -> Json:
    found = {name: usage.get(name) for name in _COUNTS} if isinstance(usage, dict) else {}
    return found if all(map(is_count, found.values())) else {}


# More than one call.


def _split(body: Json) -> list[Json]:
    texts = body["input"]
    return [body] if isinstance(texts, str) else list(_cut(body, MOST_AT_ONCE))


def _halve(refusal: UpstreamRefusal, body: Json) -> list[Json]:
    """Mistral takes about 16,384 tokens at once, and only its tokenizer can tell how many there are."""
    upstream = refusal.detail.get("upstream", {})
    too_large = upstream.get("code") == "3210" or refusal.message.startswith(("Too many inputs", "Too many tokens"))
    texts = body["input"]
    if not too_large or isinstance(texts, str) or len(texts) < 2:
        return []
    return list(_cut(body, (len(texts) + 1) // 2))


def _cut(body: Json, most: int) -> Iterator[Json]:
    texts = body["input"]
    for start in range(0, len(texts), most):
        yield body | {"input": texts[start : start + most]}


def _merge(parts: list[tuple[Json, Json]]) -> Json:
    """One answer of several, in order; each holds its own items as 0, 1, 2 …"""
    # One vector too few would give every later text the vector of another.
    if any(len(answer["data"]) != _texts(body) for body, answer in parts):
        raise UpstreamFailed(_WRONG)
    answers = [answer for _, answer in parts]
    if len(answers) == 1:
        return answers[0]
    number = count()
    data = [item | {"index": next(number)} for answer in answers for item in answer["data"]]
    return {"object": "list", "data": data, "model": answers[0]["model"], **_usage(answers)}


def _texts(body: Json) -> int:
    return 1 if isinstance(body["input"], str) else len(body["input"])


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
        keep("model", text, "aliases of proxy.yaml and of the shipped list are resolved"),
        compute("input", _input, f"text only; more than {MOST_AT_ONCE} texts are sent in several calls"),
        compute("encoding_format", _encoding, "base64 is packed by the proxy"),
        compute("dimensions", _dimensions, "refused for mistral-embed", to="output_dimension"),
        gives_way("dimensions", compute("output_dimension", _dimensions, "Mistral's own name for dimensions")),
        values(
            "output_dtype",
            {name: name for name in ("float", "int8", "uint8", "binary", "ubinary")},
            "Mistral's own; not together with base64",
        ),
        keep("metadata", mapping, "Mistral's own"),
        drop("user", "Mistral stores no end-user id"),
        *RESERVED,
        required=("input",),
        then=(_ask_for_numbers,),
    ),
    answer=_answer,
    batch=Batch(split=_split, halve=_halve, merge=_merge),
    inert=frozenset(("metadata",)),
)
