"""The tables of facts: what Mistral takes, where null is allowed, which ranges hold."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.simulator.schemas import CHAT, EMBEDDINGS

from .conftest import body, tool

IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
CALL = {"id": "abcdefgh1", "type": "function", "index": 0, "function": {"name": "f", "arguments": "{}"}}


def found(value: Any) -> list[tuple[str, str]]:
    """(type, dotted loc without the labels of unions)"""
    entries = CHAT.check(value, ())
    return [(entry["type"], ".".join(str(key) for key in entry["loc"] if "[" not in str(key))) for entry in entries]


def said(role: str, **fields: Any) -> dict[str, Any]:
    return body(messages=[{"role": role, **fields}])


@pytest.mark.parametrize(
    "request_body",
    [
        body(temperature=0, top_p=1, max_tokens=0, stream=True, stop="x", random_seed=0, n=1, safe_prompt=True),
        body(temperature=None, top_p=None, max_tokens=None, stop=None, random_seed=None, n=None, tools=None),
        body(presence_penalty=-2, frequency_penalty=2, stop=["a"], metadata={"a": 1}, service_tier="auto"),
        body(reasoning_effort="max", prompt_cache_key="k", prediction={"type": "content", "content": "c"}),
        body(min_tokens=1, repetition_penalty=1.1, top_k=3, logprobs=True, top_logprobs=2),
        body(tools=[tool("f")], tool_choice="required", parallel_tool_calls=False),
        body(tools=[tool("f")], tool_choice={"type": "function", "function": {"name": "f"}}),
        body(response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": True}}),
        said("system", content=[{"type": "text", "text": "s"}]),
        said("user", content=[IMAGE, {"type": "image_url", "image_url": "data:"}, {"type": "text", "text": "t"}]),
        said("user", content=[{"type": "input_audio", "input_audio": "UklGRg=="}]),
        said("user", content=[{"type": "document_url", "document_url": "data:", "document_name": "a.pdf"}]),
        said("assistant", tool_calls=[CALL], prefix=False),
        said("assistant", content=[{"type": "thinking", "thinking": [{"type": "text", "text": "t"}], "closed": True}]),
        said("tool", content=None, tool_call_id="abcdefgh1", name="f"),
    ],
)
def test_what_mistral_takes(request_body: dict[str, Any]) -> None:
    assert found(request_body) == []


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"temperature": 1.6}, ("less_than_equal", "temperature")),
        ({"temperature": -0.1}, ("greater_than_equal", "temperature")),
        ({"top_p": 0}, ("greater_than", "top_p")),
        ({"n": 0}, ("greater_than_equal", "n")),
        ({"random_seed": -1}, ("greater_than_equal", "random_seed")),
        ({"max_tokens": -1}, ("greater_than_equal", "max_tokens")),
        ({"presence_penalty": 2.1}, ("less_than_equal", "presence_penalty")),
        ({"stream": None}, ("bool_type", "stream")),
        ({"tool_choice": "sometimes"}, ("enum", "tool_choice.ToolChoiceEnum")),
        ({"parallel_tool_calls": None}, ("bool_type", "parallel_tool_calls")),
        ({"response_format": None}, ("model_attributes_type", "response_format")),
        ({"prediction": None}, ("model_attributes_type", "prediction")),
        ({"safe_prompt": None}, ("bool_type", "safe_prompt")),
        ({"reasoning_effort": "extreme"}, ("enum", "reasoning_effort")),
        ({"service_tier": "default"}, ("enum", "service_tier")),
        ({"seed": 1}, ("extra_forbidden", "seed")),
        ({"stream_options": {}}, ("extra_forbidden", "stream_options")),
        ({"user": "u"}, ("extra_forbidden", "user")),
        ({"store": False}, ("extra_forbidden", "store")),
        ({"max_completion_tokens": 5}, ("extra_forbidden", "max_completion_tokens")),
        ({"logit_bias": {}}, ("extra_forbidden", "logit_bias")),
        ({"tools": [{"function": {"name": "f", "parameters": {}}}]}, ("union_tag_not_found", "tools.0")),
        ({"tools": [{"type": "custom"}]}, ("union_tag_invalid", "tools.0")),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            ("missing", "tools.0.function.function.parameters"),
        ),
        (
            {"tools": [{"type": "document_library", "library_ids": []}]},
            ("too_short", "tools.0.document_library.library_ids"),
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            ("missing", "response_format.json_schema.schema"),
        ),
    ],
)
def test_what_mistral_refuses(fields: dict[str, Any], problem: tuple[str, str]) -> None:
    assert problem in found(body(**fields))


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({"role": "developer", "content": "d"}, ("union_tag_invalid", "0")),
        ({"content": "d"}, ("union_tag_not_found", "0")),
        ({"role": "user", "content": "u", "name": "n"}, ("extra_forbidden", "0.user.name")),
        ({"role": "user"}, ("missing", "0.user.content")),
        ({"role": "system", "content": None}, ("string_type", "0.system.content.str")),
        ({"role": "system", "content": [IMAGE]}, ("union_tag_invalid", "0.system.content.0")),
        ({"role": "assistant", "content": "a", "refusal": None}, ("extra_forbidden", "0.assistant.refusal")),
        ({"role": "assistant", "reasoning_content": "r"}, ("extra_forbidden", "0.assistant.reasoning_content")),
        (
            {"role": "user", "content": [{"type": "text", "text": "t", "cache_control": {}}]},
            ("extra_forbidden", "0.user.content.0.text.cache_control"),
        ),
        (
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]},
            ("string_type", "0.user.content.0.input_audio.input_audio"),
        ),
        (
            {"role": "user", "content": [{"type": "file", "file_id": "file-abc"}]},
            ("uuid_parsing", "0.user.content.0.file.file_id"),
        ),
        (
            {"role": "assistant", "tool_calls": [{**CALL, "custom": {}}]},
            ("extra_forbidden", "0.assistant.tool_calls.0.custom"),
        ),
    ],
)
def test_what_mistral_refuses_in_messages(message: dict[str, Any], problem: tuple[str, str]) -> None:
    kind, loc = problem
    assert (kind, f"messages.{loc}") in found(body(messages=[message]))


@pytest.mark.parametrize(
    ("fields", "kinds"),
    [
        ({"input": "a"}, []),
        ({"input": ["a", "b"], "output_dimension": 5, "output_dtype": "int8", "encoding_format": "base64"}, []),
        ({"input": [1, 2]}, ["string_type", "string_type", "string_type"]),
        ({"input": "a", "dimensions": 5}, ["extra_forbidden"]),
        ({"input": "a", "output_dimension": 0}, ["greater_than"]),
        ({"input": "a", "encoding_format": "hex"}, ["enum"]),
        ({}, ["missing"]),
    ],
)
def test_embeddings(fields: dict[str, Any], kinds: list[str]) -> None:
    assert [entry["type"] for entry in EMBEDDINGS.check({"model": "mistral-embed", **fields}, ())] == kinds


JSON = st.recursive(
    st.sampled_from([None, True, 0, -1, 1.5, "", "text", "user", "function"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["role", "type", "content", "function", "text", "extra"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*CHAT.fields, "extra"]), JSON, max_size=4))
def test_any_json_is_checked_without_failing(value: dict[str, Any]) -> None:
    problems = list(CHAT.check(value, ("body",)))
    assert {"model", "messages"} <= set(value) or any(entry["type"] == "missing" for entry in problems)
