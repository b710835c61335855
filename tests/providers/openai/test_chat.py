"""The chat request: what is an exception has its row, and everything else goes on as it came."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.errors import (
    BadRequest,
    InvalidType,
    MissingParameter,
    NumberOutOfRange,
    UnsupportedParameter,
)
from proxy.core.json import Json
from proxy.core.model import Model
from proxy.core.table import Context
from proxy.providers.openai.chat import CHAT_REQUEST

USER = {"role": "user", "content": "hi"}

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def translated(fields: Json, *, strict: bool = False, **notes: Any) -> tuple[Json, Context]:
    """The upstream body for `fields` beside a model and one message, without these two, and the context."""
    body = {"model": "gpt-4o", "messages": [USER], **fields}
    context = Context(Model("gpt-4o"), body, strict, notes=notes)
    out = CHAT_REQUEST.translate(body, context)
    assert (out.pop("model"), out.pop("messages")) == ("gpt-4o", [USER])
    return out, context


def refused(fields: Json, *, strict: bool = False) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        translated(fields, strict=strict)
    return caught.value


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 2, "top_p": 0, "seed": -1, "stop": ["x"], "user": "u", "store": False},
        {"max_tokens": 5},
        {"max_completion_tokens": 5, "n": 128},
        {"reasoning_effort": "minimal", "verbosity": "low"},
        {"tools": [{"type": "custom", "custom": {"name": "c"}}], "tool_choice": "auto"},
        {"functions": [{"name": "f"}], "function_call": "auto"},
        {"logit_bias": {"1": -100}, "logprobs": True, "top_logprobs": 2},
        {"audio": {"voice": "alloy", "format": "wav"}, "modalities": ["text", "audio"]},
        {"service_tier": "priority", "metadata": {"api_key": "plain text"}, "prediction": {"content": [{"a": None}]}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"default": None}}}},
        {"min_tokens": 1, "repetition_penalty": 1.1, "top_k": -1, "guided_json": {}, "chat_template_kwargs": {"a": 1}},
        {"stream": False},
    ],
)
def test_openais_own_passes_unchanged_and_unreported(fields):
    out, context = translated(fields, strict=True)
    assert out == fields
    assert not context.rewrites


ELSE = st.dictionaries(
    st.text(max_size=12).filter(lambda name: name not in CHAT_REQUEST.rows),
    JSON.filter(lambda value: value is not None),
)


@given(ELSE, st.lists(JSON, max_size=3), st.booleans())
def test_any_json_that_no_row_names_is_sent_on(fields, said, strict):
    """Whatever the messages are: what is wrong with them is for the provider to tell."""
    body = {"model": "m", **fields, "messages": [*said, USER]}
    before = deepcopy(body)
    context = Context(Model("m"), body, strict)
    assert CHAT_REQUEST.translate(body, context) == before
    assert body == before
    assert not context.rewrites


def test_null_is_the_same_as_absent():
    assert translated({"stop": None, "n": None, "guardrails": None, "stream": None})[0] == {}


@pytest.mark.parametrize(
    ("fields", "expected", "rewrites"),
    [
        ({"random_seed": 5}, {"seed": 5}, ["rename:random_seed>seed"]),
        ({"random_seed": 5, "seed": None}, {"seed": 5}, ["rename:random_seed>seed"]),
        ({"random_seed": 5, "seed": 7}, {"seed": 7}, ["drop:random_seed"]),
        ({"seed": 7, "random_seed": 5}, {"seed": 7}, ["drop:random_seed"]),
        ({"safe_prompt": False}, {}, ["drop:safe_prompt"]),
        ({"guardrails": []}, {}, ["drop:guardrails"]),
        ({"prompt_mode": "reasoning"}, {}, ["drop:prompt_mode"]),
        ({"document_image_limit": 8}, {}, ["drop:document_image_limit"]),
        ({"document_page_limit": 8}, {}, ["drop:document_page_limit"]),
        ({"max_tokens": 9, "max_completion_tokens": 5}, {"max_completion_tokens": 5}, ["drop:max_tokens"]),
        ({"max_completion_tokens": 5, "max_tokens": 9}, {"max_completion_tokens": 5}, ["drop:max_tokens"]),
        ({"max_completion_tokens": None, "max_tokens": 9}, {"max_tokens": 9}, []),
    ],
)
def test_mistrals_own_is_translated_and_reported(fields, expected, rewrites):
    out, context = translated(fields)
    assert out == expected
    assert list(context.rewrites) == rewrites


@pytest.mark.parametrize("name", ["prompt_mode", "document_image_limit", "document_page_limit"])
def test_strict_mode_refuses_what_would_be_missing(name):
    error = refused({name: 1}, strict=True)
    assert isinstance(error, UnsupportedParameter)
    assert error.param == name


@pytest.mark.parametrize(
    "fields", [{"safe_prompt": True}, {"guardrails": [{"block_on_error": True}]}, {"guardrails": {"a": 1}}]
)
def test_a_request_for_safety_never_runs_without(fields):
    error = refused(fields)
    assert isinstance(error, UnsupportedParameter)
    assert error.param in fields
    assert "safety" in error.message


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"n": 0}, BadRequest),
        ({"n": 129}, BadRequest),
        ({"n": True}, InvalidType),
        ({"n": "2"}, InvalidType),
        ({"n": 2**60}, NumberOutOfRange),
        ({"max_tokens": 0}, BadRequest),
        ({"max_tokens": 10_000_001}, BadRequest),
        ({"max_tokens": 1.0}, InvalidType),
        ({"max_tokens": 0, "max_completion_tokens": 5}, BadRequest),
        ({"max_completion_tokens": 10_000_001}, BadRequest),
        ({"max_completion_tokens": "5"}, InvalidType),
        ({"stream": "true"}, InvalidType),
        ({"stream": 1}, InvalidType),
        ({"random_seed": "x"}, InvalidType),
        ({"random_seed": -1}, BadRequest),
        ({"model": 5}, InvalidType),
    ],
)
def test_what_is_counted_on_is_checked(fields, kind):
    error = refused(fields)
    assert type(error) is kind
    assert error.param in fields


@pytest.mark.parametrize("messages", [None, ...])
def test_there_are_messages(messages):
    body = {"model": "m"} if messages is ... else {"model": "m", "messages": messages}
    with pytest.raises(MissingParameter) as caught:
        CHAT_REQUEST.translate(body, Context(Model("m"), body))
    assert caught.value.param == "messages"


@pytest.mark.parametrize("name", ["models", "preset", "route", "provider", "fallbacks", "api_key", "base_url"])
def test_a_request_chooses_neither_provider_nor_a_second_model(name):
    error = refused({name: ["other/model"]})
    assert isinstance(error, UnsupportedParameter)
    assert error.param == name


# The stream.


@pytest.mark.parametrize(
    ("options", "sent", "noted"),
    [
        (None, {"include_usage": True}, False),
        ({}, {"include_usage": True}, False),
        ({"include_usage": False}, {"include_usage": True}, False),
        ({"include_usage": True}, {"include_usage": True}, True),
        ({"include_obfuscation": False}, {"include_obfuscation": False, "include_usage": True}, False),
    ],
)
def test_usage_is_always_asked_for_and_the_wish_is_noted(options, sent, noted):
    out, context = translated({"stream": True, "stream_options": options}, strict=True)
    assert out == {"stream": True, "stream_options": sent}
    assert ("include_usage" in context.notes) is noted
    assert not context.rewrites


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": False, "stream_options": {}}, "stream_options"),
        ({"stream": True, "stream_options": "x"}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ],
)
def test_options_of_a_stream_belong_to_a_stream(fields, param):
    assert refused(fields).param == param


def test_the_options_of_the_client_are_not_changed():
    body = {"model": "m", "messages": [USER], "stream": True, "stream_options": {"include_usage": False}}
    before = deepcopy(body)
    CHAT_REQUEST.translate(body, Context(Model("m"), body))
    assert body == before


# What the operator sets.


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"max_completion_tokens": 100, "temperature": 0.5}),
        ({"max_tokens": 9}, {"max_tokens": 9, "temperature": 0.5}),
        ({"max_tokens": None}, {"max_completion_tokens": 100, "temperature": 0.5}),
        ({"max_completion_tokens": 9, "temperature": 0}, {"max_completion_tokens": 9, "temperature": 0}),
    ],
)
def test_the_operators_defaults_are_for_requests_that_say_nothing(fields, expected):
    assert translated(fields, defaults={"max_tokens": 100, "temperature": 0.5})[0] == expected
