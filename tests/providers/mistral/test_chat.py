"""The chat request: every row of the table, and properties over what OpenAI's types allow and over any JSON."""

from __future__ import annotations

from copy import deepcopy
from typing import get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from proxy.core.errors import (
    BadRequest,
    InvalidType,
    MissingParameter,
    NumberOutOfRange,
    ProxyError,
    UnsupportedParameter,
    UnsupportedValue,
)
from proxy.core.json import Json
from proxy.core.model import Model
from proxy.core.table import Context
from proxy.providers.mistral.chat import CHAT_REQUEST
from proxy.simulator.schemas import CHAT
from tests.providers.mistral.bodies import accepted, damaged, models
from tests.providers.mistral.rules import disorder, foreign

SMALL = Model("mistral-small-2603", known=True, efforts=("none", "high"))
LARGE = Model("mistral-large-2512", known=True)
GLM = Model("zai-glm-5-3", known=True, efforts=("low", "high", "max"))
UNKNOWN = Model("ft:mine")

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def translated(fields: Json, model: Model = SMALL, *, strict: bool = False) -> tuple[Json, Context]:
    """The upstream body for `fields` beside a model and one message, without these two, and the context."""
    body = {"model": "m", "messages": [USER], **fields}
    context = Context(model, body, strict)
    out = CHAT_REQUEST.translate(body, context)
    assert (out.pop("model"), out.pop("messages")) == ("m", [USER])
    return out, context


def sent(fields: Json, model: Model = SMALL) -> Json:
    return translated(fields, model)[0]


def refused(fields: Json, model: Model = SMALL, *, strict: bool = False) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        translated(fields, model, strict=strict)
    return caught.value


def test_every_key_of_the_openai_types_has_a_row():
    assert set(get_type_hints(CompletionCreateParamsBase)) | {"stream"} <= set(CHAT_REQUEST.rows)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.3},
        {"temperature": 1.5},
        {"top_p": 0.5},
        {"n": 2},
        {"max_tokens": 5},
        {"stop": "x"},
        {"stop": ["x", "y"]},
        {"presence_penalty": -2, "frequency_penalty": 2},
        {"stream": True},
        {"response_format": {"type": "text"}},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": True}}},
        {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
        {"logprobs": True, "top_logprobs": 3},
        {"metadata": {"a": "b"}},
        {"prediction": {"type": "content", "content": "text"}},
        {"prompt_cache_key": "key"},
        {"random_seed": 5},
        {"safe_prompt": True},
        {"min_tokens": 1, "top_k": 5, "repetition_penalty": 1.1},
        {"guardrails": [{"block_on_error": True}]},
        {"service_tier": "standard_only"},
    ],
)
def test_what_both_sides_have_passes_unchanged_and_unreported(fields):
    out, context = translated(fields, strict=True)
    assert out == fields
    assert not context.rewrites


@pytest.mark.parametrize(
    ("fields", "expected", "rewrites"),
    [
        ({"seed": 5}, {"random_seed": 5}, ["rename:seed>random_seed"]),
        ({"seed": -1}, {"random_seed": 2**31 - 1}, ["rename:seed>random_seed", "value:seed"]),
        ({"seed": 1, "random_seed": 2}, {"random_seed": 1}, ["rename:seed>random_seed", "drop:random_seed"]),
        ({"max_completion_tokens": 5}, {"max_tokens": 5}, ["rename:max_completion_tokens>max_tokens"]),
        (
            {"max_tokens": 9, "max_completion_tokens": 5},
            {"max_tokens": 5},
            ["drop:max_tokens", "rename:max_completion_tokens>max_tokens"],
        ),
        (
            {"max_completion_tokens": 5, "max_tokens": 9},
            {"max_tokens": 5},
            ["rename:max_completion_tokens>max_tokens", "drop:max_tokens"],
        ),
        ({"max_completion_tokens": None, "max_tokens": 9}, {"max_tokens": 9}, []),
        ({"top_p": 0}, {"top_p": 1e-6}, ["clamp:top_p"]),
        ({"temperature": 0}, {"temperature": 0, "top_p": 1}, []),
        ({"temperature": 0.0, "top_p": 0.5}, {"temperature": 0.0, "top_p": 1}, ["value:top_p"]),
        ({"top_p": 0, "temperature": 0}, {"temperature": 0, "top_p": 1}, ["clamp:top_p", "value:top_p"]),
        ({"service_tier": "priority"}, {"service_tier": "auto"}, ["value:service_tier"]),
        ({"service_tier": "fast"}, {"service_tier": "auto"}, ["value:service_tier"]),
        *[({"service_tier": tier}, {}, ["drop:service_tier"]) for tier in ("auto", "default", "flex", "scale")],
        ({"logprobs": False}, {}, []),
        ({"top_logprobs": 2}, {}, ["drop:top_logprobs"]),
        ({"logit_bias": {}}, {}, ["drop:logit_bias"]),
        ({"modalities": ["text"]}, {}, ["drop:modalities"]),
        ({"verbosity": "medium"}, {}, ["drop:verbosity"]),
        ({"prompt_cache_key": "schlüssel"}, {}, ["drop:prompt_cache_key"]),
        (
            {
                "prediction": {
                    "type": "content",
                    "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                }
            },
            {"prediction": {"type": "content", "content": "ab"}},
            [],
        ),
        *[
            ({name: "x"}, {}, [f"drop:{name}"])
            for name in ("user", "safety_identifier", "store", "prompt_cache_retention", "prompt_cache_options")
        ],
        ({"tools": []}, {}, []),
        ({"tool_choice": "auto", "parallel_tool_calls": True}, {}, ["drop:tool_choice", "drop:parallel_tool_calls"]),
    ],
)
def test_what_is_said_otherwise_is_reported_and_allowed_in_strict_mode(fields, expected, rewrites):
    for strict in (False, True):
        out, context = translated(fields, strict=strict)
        assert out == expected
        assert list(context.rewrites) == rewrites


@pytest.mark.parametrize(
    ("fields", "expected", "rewrite"),
    [
        ({"temperature": 1.8}, {"temperature": 1.5}, "clamp:temperature"),
        ({"verbosity": "low"}, {}, "drop:verbosity"),
        ({"web_search_options": {}}, {}, "drop:web_search_options"),
        ({"moderation": {"model": "x"}}, {}, "drop:moderation"),
        ({"prompt_mode": "reasoning"}, {}, "drop:prompt_mode"),
        ({"document_image_limit": 8}, {}, "drop:document_image_limit"),
        ({"document_page_limit": 8}, {}, "drop:document_page_limit"),
        ({"no_such_thing": 8}, {}, "drop:no_such_thing"),
        ({"reasoning_effort": "low"}, {"reasoning_effort": "high"}, "value:reasoning_effort"),
    ],
)
def test_what_may_be_worse_is_reported_or_in_strict_mode_refused(fields, expected, rewrite):
    out, context = translated(fields)
    assert out == expected
    assert list(context.rewrites) == [rewrite]
    error = refused(fields, strict=True)
    assert isinstance(error, UnsupportedParameter)
    assert error.param == next(iter(fields))


@pytest.mark.parametrize(
    "fields", [{"audio": {"voice": "x"}}, {"logit_bias": {"1": 5}}, {"modalities": ["text", "audio"]}]
)
def test_what_would_change_the_answers_shape_is_refused(fields):
    error = refused(fields)
    assert isinstance(error, UnsupportedParameter)
    assert error.param == next(iter(fields))


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"model": 5}, InvalidType, "model"),
        ({"messages": "hi"}, InvalidType, "messages"),
        ({"messages": None}, MissingParameter, "messages"),
        ({"temperature": "0.5"}, InvalidType, "temperature"),
        ({"temperature": True}, InvalidType, "temperature"),
        ({"temperature": 2.1}, BadRequest, "temperature"),
        ({"temperature": -0.1}, BadRequest, "temperature"),
        ({"top_p": 1.1}, BadRequest, "top_p"),
        ({"n": 0}, BadRequest, "n"),
        ({"n": 1.5}, InvalidType, "n"),
        *(({"max_tokens": value}, BadRequest, "max_tokens") for value in (-1, 0, 10_000_001, 10**9)),
        *(({"max_tokens": value}, InvalidType, "max_tokens") for value in (1.5, "10", True, [1], {"a": 1})),
        *(
            ({name: 2**53 + 1}, NumberOutOfRange, name)
            for name in ("max_tokens", "max_completion_tokens", "n", "top_k")
        ),
        ({"max_completion_tokens": 0}, BadRequest, "max_completion_tokens"),
        ({"min_tokens": 10**9}, BadRequest, "min_tokens"),
        ({"n": 1000}, BadRequest, "n"),
        ({"max_completion_tokens": "5"}, InvalidType, "max_completion_tokens"),
        ({"seed": 0.5}, InvalidType, "seed"),
        ({"seed": 2**63}, NumberOutOfRange, "seed"),
        ({"random_seed": 2**63}, NumberOutOfRange, "random_seed"),
        ({"random_seed": -1}, BadRequest, "random_seed"),
        ({"stop": [1]}, InvalidType, "stop"),
        ({"presence_penalty": 2.5}, BadRequest, "presence_penalty"),
        ({"frequency_penalty": -2.5}, BadRequest, "frequency_penalty"),
        *(({"stream": value}, InvalidType, "stream") for value in ("yes", "true", 1, 0, [1])),
        ({"metadata": []}, InvalidType, "metadata"),
        ({"logprobs": 1}, InvalidType, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, BadRequest, "top_logprobs"),
        ({"service_tier": "gold"}, UnsupportedValue, "service_tier"),
        ({"modalities": "text"}, InvalidType, "modalities"),
        ({"prompt_cache_key": 5}, InvalidType, "prompt_cache_key"),
        ({"reasoning_effort": "huge"}, UnsupportedValue, "reasoning_effort"),
        ({"reasoning_effort": 5}, InvalidType, "reasoning_effort"),
        ({"response_format": "json"}, InvalidType, "response_format"),
        ({"response_format": {}}, MissingParameter, "response_format.type"),
        ({"response_format": {"type": "xml"}}, UnsupportedValue, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, MissingParameter, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            MissingParameter,
            "response_format.json_schema.schema",
        ),
        ({"prediction": {"type": "content"}}, MissingParameter, "prediction.content"),
        ({"prediction": {"type": "content", "content": [5]}}, InvalidType, "prediction.content[0]"),
        ({"prediction": {"type": "content", "content": 5}}, InvalidType, "prediction.content"),
        ({"stream_options": {"include_usage": True}}, BadRequest, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, InvalidType, "stream_options.include_usage"),
        ({"stream": True, "stream_options": True}, InvalidType, "stream_options"),
        ({"guardrails": [5]}, InvalidType, "guardrails"),
        ({"top_k": 0.5}, InvalidType, "top_k"),
    ],
)
def test_a_wrong_type_or_range_is_our_400_and_names_the_field(fields, kind, param):
    body = {"model": "m", "messages": [USER], **fields}
    with pytest.raises(BadRequest) as caught:
        CHAT_REQUEST.translate(body, Context(SMALL, body))
    assert type(caught.value) is kind
    assert caught.value.param == param


def test_null_is_the_same_as_absent():
    fields = dict.fromkeys(set(CHAT_REQUEST.rows) - {"model", "messages"})
    out, context = translated(fields, strict=True)
    assert out == {}
    assert not context.rewrites


def test_the_body_must_be_an_object():
    with pytest.raises(InvalidType) as caught:
        CHAT_REQUEST.translate([], Context(SMALL, {}))
    assert caught.value.param is None


@pytest.mark.parametrize(
    ("model", "asked", "expected"),
    [
        *[(SMALL, effort, "high") for effort in ("minimal", "low", "medium", "high", "xhigh", "max")],
        (SMALL, "none", "none"),
        (GLM, "none", "low"),
        (GLM, "minimal", "low"),
        (GLM, "low", "low"),
        (GLM, "medium", "high"),
        (GLM, "xhigh", "max"),
        (GLM, "max", "max"),
        (UNKNOWN, "medium", "medium"),
        (LARGE, "high", None),
        (LARGE, "none", None),
    ],
)
def test_reasoning_effort_is_the_models_nearest_not_below(model, asked, expected):
    assert sent({"reasoning_effort": asked}, model).get("reasoning_effort") == expected


def test_no_reasoning_asked_of_a_model_that_does_not_reason_is_what_it_does():
    assert translated({"reasoning_effort": "none"}, LARGE, strict=True)[0] == {}
    assert refused({"reasoning_effort": "low"}, LARGE, strict=True).param == "reasoning_effort"


@pytest.mark.parametrize(
    ("options", "notes"),
    [
        ({}, {}),
        ({"include_usage": True, "include_obfuscation": False}, {"include_usage": True}),
        ({"include_usage": False}, {}),
    ],
)
def test_stream_options_stay_in_the_proxy(options, notes):
    out, context = translated({"stream": True, "stream_options": options}, strict=True)
    assert out == {"stream": True}
    assert context.notes == notes


# Properties.


@settings(deadline=None, max_examples=150)
@given(accepted, models)
def test_what_openai_accepts_is_translated_into_what_mistral_accepts(body, model):
    out = CHAT_REQUEST.translate(body, Context(model, body))
    assert list(foreign(out)) == []
    assert list(CHAT.check(out, ())) == []
    for tokenizer in (11, 15):
        assert list(disorder(out["messages"], tokenizer)) == []


@settings(deadline=None, max_examples=250)
@given(damaged(), models, st.booleans())
def test_any_json_is_translated_into_the_closed_schema_or_refused_by_name(body, model, strict):
    before = deepcopy(body)
    try:
        out = CHAT_REQUEST.translate(body, Context(model, body, strict)) | {"model": "m"}  # as the stage does
    except ProxyError as error:
        assert error.status == 400
        assert error.param is not None  # "" is a name, too
    else:
        assert list(foreign(out)) == []
        assert list(CHAT.check(out, ())) == []
        assert not list(disorder(out["messages"], 11))
    assert body == before


@settings(deadline=None, max_examples=50)
@given(accepted, models)
def test_translating_again_gives_the_same(body, model):
    first = CHAT_REQUEST.translate(body, Context(model, body))
    assert CHAT_REQUEST.translate(deepcopy(body), Context(model, body)) == first
