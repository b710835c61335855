"""POST /v1/chat/completions: the request, of which only the exceptions have rows; and the endpoint's row.

Sources: OpenAI API reference, create chat completion; vLLM, ChatCompletionRequest, for the sampling parameters that it
shares with Mistral.
"""

from __future__ import annotations

from typing import Any

from proxy.core.charge import MOST_CHOICES, MOST_COMPLETION
from proxy.core.endpoint import Cache, Endpoint, Meter, ModelFrom, Retry, Stream
from proxy.core.errors import BadRequest
from proxy.core.json import Json
from proxy.core.table import (
    ABSENT,
    Context,
    Table,
    boolean,
    compute,
    drop,
    gives_way,
    integer,
    keep,
    refuse,
    rename,
    text,
    verify,
)
from proxy.providers.openai.answer import chat_answer
from proxy.providers.openai.messages import messages
from proxy.providers.openai.routing import ROUTING
from proxy.providers.openai.stream import ChatStream
from proxy.providers.reserved import RESERVED

LARGEST_SEED = 2**63 - 1
"""OpenAI API: seed is an int64. Mistral API: random_seed is at least 0."""


# The stream.


def _include_usage(value: Any, context: Context, path: str) -> Any:
    verify(boolean, value, path)
    if value:
        context.notes["include_usage"] = True
    return ABSENT  # `_ask_for_usage` decides, for every stream


_STREAM_OPTIONS = Table(compute("include_usage", _include_usage), open=True)


def _stream_options(value: Any, context: Context, path: str) -> Json:
    options = _STREAM_OPTIONS.translate(value, context, path)
    if context.asked.get("stream") is not True:
        raise BadRequest("The 'stream_options' parameter is only allowed when 'stream' is enabled.", param=path)
    return options


def _ask_for_usage(out: Json, context: Context) -> None:
    """Without it a stream tells no usage, and nothing could be metered. The client's wish is in the notes."""
    if out.get("stream") is True:
        out["stream_options"] = {**out.get("stream_options", _NOTHING), "include_usage": True}


# What the operator sets.


def _defaults(out: Json, context: Context) -> None:
    """`notes["defaults"]`: what the operator sets for requests that say nothing, under names that Mistral has too.
    OpenAI's reasoning models refuse `max_tokens`, and no model of its refuses the newer name."""
    for name, value in context.notes.get("defaults", _NOTHING).items():
        if name != "max_tokens":
            out.setdefault(name, value)
        elif "max_tokens" not in out:
            out.setdefault("max_completion_tokens", value)


_NOTHING: Json = {}


def _asks_for_nothing(value: Any) -> bool:
    return not value


_UNSAFE = "it is a safety setting of Mistral's, and this provider would answer without it"

CHAT_REQUEST = Table(
    keep("model", text, "aliases become the provider's names"),
    compute("messages", messages, "as they are, but for two things of Mistral's: prefix, and parts of thinking"),
    keep("n", integer(1, MOST_CHOICES)),
    keep("max_completion_tokens", integer(1, MOST_COMPLETION)),
    # Of the two limits the newer one is reserved for: a server that obeyed the older one would go beyond it.
    gives_way("max_completion_tokens", keep("max_tokens", integer(1, MOST_COMPLETION))),
    keep("stream", boolean),
    compute("stream_options", _stream_options, "usage is always asked for; a client that did not ask does not see it"),
    # Mistral's own.
    gives_way("seed", rename("random_seed", "seed", integer(0, LARGEST_SEED))),
    refuse("safe_prompt", _UNSAFE, unless=_asks_for_nothing),
    refuse("guardrails", _UNSAFE, unless=_asks_for_nothing),
    drop("prompt_mode", "Mistral's own; reasoning_effort replaces it", worse=True),
    drop("document_image_limit", "Mistral's own", worse=True),
    drop("document_page_limit", "Mistral's own", worse=True),
    keep("min_tokens", note="vLLM knows it; OpenAI refuses it"),
    keep("repetition_penalty", note="vLLM knows it; OpenAI refuses it"),
    keep("top_k", note="vLLM knows it; OpenAI refuses it"),
    *ROUTING,
    *RESERVED,
    then=(_defaults, _ask_for_usage),
    required=("messages",),
    open=True,
)
"""Reads `context.notes["defaults"]`: {"max_tokens": int, "temperature": float}, each of which may be missing. Leaves in
`context.notes` "include_usage" (true) when the client wants the usage chunk."""

MOST_VALUES = 1 << 20
"""Values in an answer. Log probabilities are the most of them: 100 for each token, with the 20 others that may be asked
for."""

CHAT = Endpoint(
    operation="chat.create",
    span="chat.create",
    method="POST",
    path="/v1/chat/completions",
    upstream="/v1/chat/completions",
    model=ModelFrom.BODY,
    stream=Stream.OPTIONAL,
    meter=Meter.TOKENS,
    cache=Cache.SAMPLED,
    retry=Retry.SAFE,
    most_values=MOST_VALUES,
    request=CHAT_REQUEST,
    answer=chat_answer,
    events=ChatStream,
    inert=frozenset(
        (
            "metadata",
            "prompt_cache_key",
            "prompt_cache_options",
            "prompt_cache_retention",
            "safety_identifier",
            "user",
        )
    ),
    beyond=frozenset(("plugins", "search_parameters", "store", "web_search_options")),  # OpenRouter, xAI, OpenAI
)
