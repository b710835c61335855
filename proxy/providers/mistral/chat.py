"""POST /v1/chat/completions: the request, with every field of OpenAI's, then Mistral's own; and the endpoint's row.

Sources: Mistral API, ChatCompletionRequest (a closed schema: one unknown key is a 422) and the `mistralai` SDK 3.7,
which knows more fields than the published description; OpenAI SDK 3.51, CompletionCreateParamsBase.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from proxy.core.charge import MOST_CHOICES, MOST_COMPLETION
from proxy.core.endpoint import Cache, Endpoint, Meter, ModelFrom, Retry, Stream
from proxy.core.errors import BadRequest, MissingParameter, UnsupportedParameter
from proxy.core.json import Json
from proxy.core.table import (
    ABSENT,
    Context,
    Table,
    boolean,
    compute,
    drop,
    gives_way,
    inside,
    integer,
    keep,
    mapping,
    number,
    refuse,
    rename,
    text,
    text_or_texts,
    unsupported,
    values,
    verify,
)
from proxy.providers.mistral.answer import chat_answer
from proxy.providers.mistral.messages import TEXT, messages
from proxy.providers.mistral.stream import ChatStream
from proxy.providers.mistral.tools import (
    function_call,
    functions,
    functions_as_tools,
    keep_allowed_tools,
    texts,
    tool_choice,
    tools,
    without_tools,
)
from proxy.providers.reserved import RESERVED

# Sampling.

HIGHEST_TEMPERATURE = 1.5
LOWEST_TOP_P = 1e-6
"""Mistral's top_p is above 0; at this value one token is left to choose from, as at OpenAI's 0."""

LARGEST_SEED = 2**63 - 1
"""OpenAI API: seed is an int64."""

_TEMPERATURE = number(0, 2)
_TOP_P = number(0, 1)
_SEED = integer(-LARGEST_SEED - 1, LARGEST_SEED)


def _temperature(value: Any, context: Context, path: str) -> Any:
    verify(_TEMPERATURE, value, path)
    if value <= HIGHEST_TEMPERATURE:
        return value
    context.worse("clamp", path, f"the provider's highest temperature is {HIGHEST_TEMPERATURE}")
    return HIGHEST_TEMPERATURE


def _top_p(value: Any, context: Context, path: str) -> Any:
    verify(_TOP_P, value, path)
    if value >= LOWEST_TOP_P:
        return value
    context.report("clamp", path)
    return LOWEST_TOP_P


def _greedy(out: Json, context: Context) -> None:
    """Mistral API: "top_p must be 1 when using greedy sampling.", which temperature 0 is; there top_p has no effect."""
    if out.get("temperature") == 0:
        if out.get("top_p", 1) != 1:
            context.report("value", "top_p")
        out["top_p"] = 1


def _seed(value: Any, context: Context, path: str) -> int:
    """Mistral API: random_seed is at least 0."""
    verify(_SEED, value, path)
    context.report("rename", f"{path}>random_seed")
    seed: int = value
    if seed < 0:
        context.report("value", path)
    return seed if seed >= 0 else seed % 2**31


def _logprobs(value: Any, context: Context, path: str) -> Any:
    verify(boolean, value, path)
    return value or ABSENT


def _top_logprobs(value: Any, context: Context, path: str) -> Any:
    verify(integer(0, 20), value, path)
    if context.asked.get("logprobs"):
        return value
    context.report("drop", path)
    return ABSENT


# Reasoning.

_EFFORTS = {
    word: strength for strength, word in enumerate(("none", "minimal", "low", "medium", "high", "xhigh", "max"))
}


def _reasoning_effort(value: Any, context: Context, path: str) -> Any:
    """The model's least effort that is not below the asked one, or else its greatest."""
    verify(text, value, path)
    if value not in _EFFORTS:
        raise unsupported(path, _EFFORTS)
    accepted = context.model.efforts
    if value in accepted or not (accepted or context.model.known):
        return value
    if not accepted:
        return _no_effort(value, context, path)
    context.worse("value", path, f"this model takes {', '.join(accepted)}")
    strongest_last = sorted(accepted, key=_EFFORTS.__getitem__)
    enough = (word for word in strongest_last if _EFFORTS[word] >= _EFFORTS[value])
    return next(enough, strongest_last[-1])


def _no_effort(value: str, context: Context, path: str) -> Any:
    if value == "none":
        context.report("drop", path)
    else:
        context.worse("drop", path, "this model does not reason")
    return ABSENT


# The form of the answer.

_JSON_SCHEMA = Table(
    keep("name", text),
    keep("schema", mapping),
    keep("description", text),
    keep("strict", boolean),
    required=("name", "schema"),
)

_RESPONSE_FORMAT = Table(
    values("type", {"text": "text", "json_object": "json_object", "json_schema": "json_schema"}),
    inside("json_schema", _JSON_SCHEMA),
    required=("type",),
)


def _response_format(value: Any, context: Context, path: str) -> Json:
    form = _RESPONSE_FORMAT.translate(value, context, path)
    if form["type"] == "json_schema" and "json_schema" not in form:
        raise MissingParameter(f"Missing required parameter: '{path}.json_schema'.", param=f"{path}.json_schema")
    return form


def _modalities(value: Any, context: Context, path: str) -> Any:
    verify(texts, value, path)
    if "audio" in value:
        raise UnsupportedParameter(f"'{path}' is not supported: the provider answers no audio on chat.", param=path)
    context.report("drop", path)
    return ABSENT


def _joined(value: Any, context: Context, path: str) -> str:
    """Mistral API: Prediction.content is a string."""
    if type(value) is str:
        return value
    verify(_text_or_parts, value, path)
    return "".join(TEXT.translate(part, context, f"{path}[{i}]")["text"] for i, part in enumerate(value))


def _text_or_parts(value: Any) -> str | None:
    return None if type(value) is list else "a string or an array of text parts"


_PREDICTION = Table(values("type", {"content": "content"}), compute("content", _joined), required=("type", "content"))


# The stream.


def _include_usage(value: Any, context: Context, path: str) -> Any:
    verify(boolean, value, path)
    if value:
        context.notes["include_usage"] = True
    return ABSENT


_STREAM_OPTIONS = Table(
    compute("include_usage", _include_usage), drop("include_obfuscation", "Mistral pads its streams by itself")
)


def _stream_options(value: Any, context: Context, path: str) -> Any:
    """Kept by the proxy: `notes["include_usage"]` is for the stream's translation, the upstream sends usage anyway."""
    _STREAM_OPTIONS.translate(value, context, path)
    if context.asked.get("stream") is not True:
        raise BadRequest("The 'stream_options' parameter is only allowed when 'stream' is enabled.", param=path)
    return ABSENT


# Bookkeeping.


def _ascii(value: Any, context: Context, path: str) -> Any:
    verify(text, value, path)
    if value.isascii():
        return value
    context.report("drop", path)
    return ABSENT


def _objects(value: Any) -> str | None:
    right = type(value) is list and all(type(item) is dict for item in value)
    return None if right else "an array of objects"


def _defaults(out: Json, context: Context) -> None:
    """`notes["defaults"]`: what the operator sets for requests that say nothing, in Mistral's names."""
    for name, value in context.notes.get("defaults", _NOTHING).items():
        out.setdefault(name, value)


_NOTHING: Json = {}


def _is(same: Any) -> Callable[[Any], bool]:
    return lambda value: bool(value == same)


CHAT_REQUEST = Table(
    keep("model", text, "aliases such as gpt-4o become Mistral's names"),
    compute("messages", messages, "roles, content parts, tool ids and their order as Mistral takes them"),
    compute("temperature", _temperature, "above 1.5 it is sent as 1.5"),
    compute("top_p", _top_p, "0 is sent as a tiny value; with temperature 0 it is sent as 1"),
    keep("n", integer(1, MOST_CHOICES)),
    rename("max_completion_tokens", "max_tokens", integer(1, MOST_COMPLETION)),
    gives_way("max_completion_tokens", keep("max_tokens", integer(1, MOST_COMPLETION))),
    compute("seed", _seed, "a negative seed is taken modulo 2^31", to="random_seed"),
    keep("stop", text_or_texts),
    keep("presence_penalty", number(-2, 2)),
    keep("frequency_penalty", number(-2, 2)),
    keep("stream", boolean),
    compute("stream_options", _stream_options, "answered by the proxy"),
    compute("response_format", _response_format),
    compute("tools", tools, "function tools; missing parameters are sent as none"),
    compute("tool_choice", tool_choice, "allowed_tools: only those tools are sent; without tools it is left out"),
    keep("parallel_tool_calls", boolean, "without tools it is left out"),
    compute("functions", functions, "sent as tools; the answer is translated back"),
    compute("function_call", function_call, "sent as tool_choice"),
    compute("reasoning_effort", _reasoning_effort, "the model's nearest effort that is not below"),
    compute("logprobs", _logprobs),
    compute("top_logprobs", _top_logprobs),
    keep("metadata", mapping),
    values(
        "service_tier",
        {
            "auto": None,
            "default": None,
            "flex": None,
            "scale": None,
            "priority": "auto",
            "fast": "auto",
            "standard_only": "standard_only",
        },
        "Mistral's auto is OpenAI's priority: at a higher price, so it is never sent unasked",
    ),
    inside("prediction", _PREDICTION, "text parts are joined"),
    compute("prompt_cache_key", _ascii, "dropped unless it is ASCII"),
    refuse("logit_bias", "the provider has no such control", unless=_is({})),
    refuse("audio", "the provider answers no audio on chat"),
    compute("modalities", _modalities, "text alone"),
    drop("verbosity", "Mistral has no such control", worse=True, unless=_is("medium")),
    drop("web_search_options", "Mistral's chat does not search the web", worse=True),
    drop("moderation", "Mistral's guardrails mean something else", worse=True),
    drop("user", "Mistral stores no end user's id"),
    drop("safety_identifier", "Mistral stores no end user's id"),
    drop("store", "Mistral stores no completions"),
    drop("prompt_cache_retention", "Mistral decides"),
    drop("prompt_cache_options", "Mistral decides"),
    # Mistral's own.
    gives_way("seed", keep("random_seed", integer(0, LARGEST_SEED))),
    keep("safe_prompt", boolean),
    keep("min_tokens", integer(0, MOST_COMPLETION)),
    keep("repetition_penalty", number()),
    keep("top_k", integer(-1, 2**31 - 1)),
    keep("guardrails", _objects),
    drop("prompt_mode", "Mistral refuses it for every current model; reasoning_effort replaces it", worse=True),
    drop("document_image_limit", "Mistral's API description does not know it", worse=True),
    drop("document_page_limit", "Mistral's API description does not know it", worse=True),
    *RESERVED,
    then=(_defaults, functions_as_tools, keep_allowed_tools, without_tools, _greedy),
    required=("messages",),
)
"""Leaves in `context.notes`: "include_usage" (true) when the client wants a usage chunk, "functions" (true) when it
speaks the older functions, "prefix" (str) when the answer repeats that text."""

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
    inert=frozenset(("metadata", "prompt_cache_key")),
)
