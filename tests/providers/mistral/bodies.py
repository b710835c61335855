"""Hypothesis strategies for chat requests: what the OpenAI types allow, what clients send besides, and any JSON."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from proxy.core.model import Model

MODELS = (
    Model("mistral-small-2603", known=True, efforts=("none", "high")),
    Model("mistral-large-2512", known=True),
    Model("zai-glm-5-3", known=True, efforts=("low", "high", "max")),
    Model("ft:mine"),
)

any_json: SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
words = st.text(max_size=12)
names = st.from_regex(r"[a-zA-Z0-9_-]{1,20}", fullmatch=True)


def fields(must: dict[str, Any], may: dict[str, Any]) -> SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(must, optional=may)


def const(value: Any) -> SearchStrategy[Any]:
    return st.just(value)


breakpoint_ = {"prompt_cache_breakpoint": const({"mode": "explicit"}), "cache_control": const({"type": "ephemeral"})}
text_part = fields({"type": const("text"), "text": words}, breakpoint_)
image_part = fields(
    {
        "type": const("image_url"),
        "image_url": fields({"url": words}, {"detail": st.sampled_from(["auto", "low", "high", "original"])}),
    },
    breakpoint_,
)
audio_part = fields({"type": const("input_audio"), "input_audio": const({"data": "QUJD", "format": "wav"})}, {})
data_url = const("data:application/pdf;base64,QUJD")
file_part = fields({"type": const("file"), "file": fields({"file_data": data_url}, {"filename": words})}, {})
refusal_part = fields({"type": const("refusal"), "refusal": words}, {})
thinking_part = const({"type": "thinking", "thinking": [{"type": "text", "text": "hm"}], "closed": True})

texts = words | st.lists(text_part, max_size=3)
parts = words | st.lists(text_part | image_part | audio_part | file_part, max_size=3)
said = words | st.lists(text_part | refusal_part | thinking_part, max_size=3)

ids = st.sampled_from(["call_1", "call_2", "abcDEF123", "123456789", "", "null", "call_with_a_long_name"])
called = fields({"name": names, "arguments": st.sampled_from(["", "{}", '{"a": 1}'])}, {})
calls = st.lists(fields({"id": ids, "type": const("function"), "function": called}, {"index": const(0)}), max_size=3)

author = {"name": names}
developer = fields({"role": st.sampled_from(["developer", "system"]), "content": texts}, author)
user = fields({"role": const("user"), "content": parts}, author)
assistant = fields(
    {"role": const("assistant")},
    {
        "content": st.none() | said,
        "refusal": st.none() | words,
        "tool_calls": calls,
        "function_call": st.none() | called,
        "audio": st.none() | const({"id": "audio_1"}),
        "annotations": const([]),
        "reasoning_content": st.none() | words,
        "reasoning": st.none() | words,
        "prefix": st.booleans(),
    }
    | author,
)
tool = fields({"role": const("tool"), "content": texts, "tool_call_id": ids}, {"name": names | words})
function = fields({"role": const("function"), "content": st.none() | words, "name": names}, {})


@st.composite
def turn(draw: Any) -> list[dict[str, Any]]:
    """What an agent does: a question, calls, their results in any order, perhaps with something in between or amiss."""
    asked = draw(st.lists(ids, min_size=1, max_size=3))
    made = [{"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}} for id in asked]
    answered = draw(st.permutations(asked))
    results = [{"role": "tool", "tool_call_id": id, "content": "r"} for id in answered]
    results = results[draw(st.integers(0, 1)) :] + draw(st.lists(tool | user | developer, max_size=1))
    return [*draw(st.lists(user, max_size=1)), {"role": "assistant", "content": None, "tool_calls": made}, *results]


loose = st.lists(developer | user | assistant | tool | function, max_size=8)
agentic = st.lists(turn() | loose, max_size=4).map(lambda turns: [message for turn in turns for message in turn])
conversations = (loose | agentic).filter(lambda said: any(message["role"] != "assistant" for message in said))
"""Every order of every role, with results that fit their calls and results that do not."""

definition = fields(
    {"name": names},
    {"description": words, "parameters": const({"type": "object"}), "strict": st.none() | st.booleans()},
)
function_tools = st.lists(fields({"type": const("function"), "function": definition}, {}), max_size=3)

OPTIONAL: dict[str, SearchStrategy[Any]] = {
    "frequency_penalty": st.none() | st.floats(-2, 2),
    "presence_penalty": st.none() | st.floats(-2, 2),
    "temperature": st.none() | st.floats(0, 2) | const(0),
    "top_p": st.none() | st.floats(0, 1) | const(0),
    "logprobs": st.none() | st.booleans(),
    "top_logprobs": st.none() | st.integers(0, 20),
    "max_completion_tokens": st.none() | st.integers(1, 9999),
    "max_tokens": st.none() | st.integers(1, 9999),
    "metadata": st.none() | st.dictionaries(words, words, max_size=2),
    "modalities": st.none() | const(["text"]),
    "moderation": st.none() | const({"model": "omni-moderation-latest"}),
    "n": st.none() | st.integers(1, 4),
    "parallel_tool_calls": st.booleans(),
    "prediction": st.none() | fields({"type": const("content"), "content": texts}, {}),
    "prompt_cache_key": st.none() | words,
    "prompt_cache_options": const({"ttl": "30m"}),
    "prompt_cache_retention": st.none() | st.sampled_from(["in_memory", "24h"]),
    "reasoning_effort": st.none() | st.sampled_from(["none", "minimal", "low", "medium", "high", "xhigh", "max"]),
    "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}])
    | const({"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}, "strict": None}}),
    "safety_identifier": st.none() | words,
    "seed": st.none() | st.integers(-(2**63), 2**63 - 1),
    "service_tier": st.none() | st.sampled_from(["auto", "default", "flex", "scale", "priority", "fast"]),
    "stop": st.none() | words | st.lists(words, max_size=4),
    "store": st.none() | st.booleans(),
    "tools": function_tools,
    "tool_choice": st.sampled_from(["none", "auto", "required", {"type": "function", "function": {"name": "f"}}]),
    "user": words,
    "verbosity": st.none() | st.sampled_from(["low", "medium", "high"]),
    "web_search_options": const({"search_context_size": "low"}),
}
"""What the OpenAI types allow and the proxy supports."""

ELSE: dict[str, SearchStrategy[Any]] = {
    "audio": const({"format": "wav", "voice": "alloy"}),
    "function_call": st.sampled_from(["none", "auto", {"name": "f"}]),
    "functions": st.lists(definition, max_size=2),
    "logit_bias": st.none() | st.dictionaries(st.sampled_from(["1", "2"]), st.integers(-100, 100), max_size=2),
    "stream": st.booleans(),
    "stream_options": st.none() | fields({}, {"include_usage": st.booleans(), "include_obfuscation": st.booleans()}),
    "guardrails": const([{"block_on_error": True}]),
    "prompt_mode": const("reasoning"),
    "random_seed": st.integers(0, 9),
    "safe_prompt": st.booleans(),
    "min_tokens": st.integers(0, 9),
    "repetition_penalty": st.floats(1, 2),
    "top_k": st.integers(1, 9),
    "document_image_limit": st.integers(0, 9),
}
"""What may be refused (not supported, or not together with the rest), and what only Mistral knows."""

accepted = fields({"model": const("m"), "messages": conversations}, OPTIONAL)
models = st.sampled_from(MODELS)


SPOILT = {name: strategy | any_json for name, strategy in (OPTIONAL | ELSE).items()}


@st.composite
def damaged(draw: Any) -> dict[str, Any]:
    """A plausible body in which any JSON value stands at any place, or an unknown key."""
    body: dict[str, Any] = deepcopy(draw(fields({"model": const("m"), "messages": conversations}, SPOILT)))
    for _ in range(draw(st.integers(0, 3))):
        place: Any = body
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = draw(st.sampled_from(keys)) if keys else None
            if key is None or not isinstance(place[key], dict | list) or not place[key] or draw(st.integers(0, 3)) == 0:
                break
            place = place[key]
        if isinstance(place, dict) and (key is None or draw(st.booleans())):
            key = draw(st.text(max_size=4) | st.sampled_from(["name", "index", "id", "content", "prefix", "strict"]))
        if key is not None:
            place[key] = draw(any_json)
    return body
