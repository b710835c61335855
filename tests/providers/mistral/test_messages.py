"""Roles and content parts, one message at a time."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionContentPartParam,
    ChatCompletionMessageParam,
)

from proxy.core.errors import BadRequest, InvalidType, MissingParameter, UnsupportedParameter, UnsupportedValue
from proxy.core.json import Json
from proxy.core.model import Model
from proxy.core.table import Context, each
from proxy.providers.mistral.messages import ASSISTANT, PARTS, ROLES, messages
from proxy.providers.mistral.order import arrange

REASONING = Model("mistral-small-2603", known=True, efforts=("none", "high"))
PLAIN = Model("mistral-large-2512", known=True)
UNKNOWN = Model("ft:mine")

THINKING = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}], "closed": True}
CALL = {"id": "abcDEF123", "type": "function", "function": {"name": "f", "arguments": "{}"}}
UUID = "3f2b8a52-6c1e-4d7a-9b0e-2f6c1d8e4a90"


def one(message: Json, model: Model = REASONING, *, strict: bool = False) -> tuple[Json, Context]:
    context = Context(model, {}, strict)
    return ROLES.translate(message, context, "messages[0]"), context


def user(*parts: Any, model: Model = REASONING, strict: bool = False) -> tuple[Any, Context]:
    message, context = one({"role": "user", "content": list(parts)}, model, strict=strict)
    return message["content"], context


def refused(message: Any, *, strict: bool = False) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        messages([message], Context(REASONING, {}, strict), "messages")
    return caught.value


def test_every_role_and_part_of_the_openai_types_has_a_table():
    roles = {get_args(get_type_hints(message)["role"])[0] for message in get_args(ChatCompletionMessageParam)}
    assert roles <= set(ROLES.shapes)
    parts = {get_args(get_type_hints(part)["type"])[0] for part in get_args(ChatCompletionContentPartParam)}
    assert parts | {"refusal"} <= set(PARTS.shapes)
    assert set(get_type_hints(ChatCompletionAssistantMessageParam)) <= set(ASSISTANT.rows)


# Roles.

ROLE = st.sampled_from([*ROLES.shapes, "User", "", None, 1, ["user"]])
CONTENT = st.sampled_from(["", "Hello", "\ud800", None, 1, True, [], [{"type": "text", "text": "x"}], {"text": "x"}])
OTHERS = st.dictionaries(st.sampled_from(["name", "refusal", "tool_calls", "tool_call_id", "x"]), CONTENT, max_size=1)


@given(st.fixed_dictionaries({}, optional={"role": ROLE, "content": CONTENT}), OTHERS, st.booleans())
def test_a_plain_message_is_what_its_table_makes_of_it(message: Json, others: Json, strict: bool) -> None:
    outcomes: list[Any] = []
    for translate in (
        lambda asked, context: messages(asked, context, "messages"),
        lambda asked, context: arrange(each(ROLES, asked, context, "messages"), context),
    ):
        context, asked = Context(REASONING, {}, strict), [{"role": "user", "content": "Hello"}, message | others]
        try:
            outcomes.append(([list(one.items()) for one in translate(asked, context)], context.rewrites))
        except BadRequest as error:
            outcomes.append((str(error), error.param, error.code))
    assert outcomes[0] == outcomes[1]


def test_what_the_client_has_sent_is_left_as_it_is() -> None:
    asked = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hel"}]
    context = Context(REASONING, {"messages": asked})
    sent = messages(asked, context, "messages")
    assert not any(one is other for one in sent for other in asked)
    assert asked == [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hel"}]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "system", "content": "s"},
        {"role": "system", "content": [{"type": "text", "text": "s"}]},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": "a", "tool_calls": [CALL]},
        {"role": "assistant", "content": "a", "prefix": True},
        {"role": "tool", "content": "t", "tool_call_id": "abcDEF123", "name": "f"},
        {"role": "tool", "content": [{"type": "text", "text": "t"}], "tool_call_id": "abcDEF123"},
    ],
)
def test_what_both_sides_have_passes_unchanged_and_unreported(message):
    out, context = one(message, strict=True)
    assert out == message
    assert not context.rewrites


def test_developer_is_system():
    out, context = one({"role": "developer", "content": "d"}, strict=True)
    assert out == {"role": "system", "content": "d"}
    assert list(context.rewrites) == ["value:messages.role"]


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant"])
def test_names_are_dropped_and_in_strict_mode_refused(role):
    message = {"role": role, "content": "c", "name": "ann"}
    out, context = one(message)
    assert "name" not in out
    assert "drop:messages.name" in context.rewrites
    assert refused(message, strict=True).param == "messages[0].name"


def test_tool_calls_need_no_content():
    out, _ = one({"role": "assistant", "content": None, "tool_calls": [CALL]}, strict=True)
    assert out == {"role": "assistant", "content": "", "tool_calls": [CALL]}


def test_no_tool_calls_are_none():
    assert one({"role": "assistant", "content": "a", "tool_calls": []})[0] == {"role": "assistant", "content": "a"}


def test_an_answer_of_the_sdk_can_be_sent_back_as_it_is():
    message: Json = {
        "content": "a",
        "refusal": None,
        "role": "assistant",
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
        "parsed": {"x": 1},
    }
    assert one(message, strict=True)[0] == {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no"),
        ("", "no"),
        ("a", [{"type": "text", "text": "a"}, {"type": "text", "text": "no"}]),
        ([{"type": "text", "text": "a"}], [{"type": "text", "text": "a"}, {"type": "text", "text": "no"}]),
    ],
)
def test_a_refusal_is_text(content, expected):
    assert one({"role": "assistant", "content": content, "refusal": "no"})[0]["content"] == expected


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_replayed_reasoning_is_a_thinking_chunk(field):
    out, _ = one({"role": "assistant", "content": "a", field: "hm"}, strict=True)
    assert out == {"role": "assistant", "content": [THINKING, {"type": "text", "text": "a"}]}


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_spellings_of_replayed_reasoning_one_counts(order):
    said = [("reasoning_content", "hm"), ("reasoning", "other")][::order]
    out, context = one({"role": "assistant", "content": "a", **dict(said)}, strict=True)
    assert out == {"role": "assistant", "content": [THINKING, {"type": "text", "text": "a"}]}
    assert list(context.rewrites) == ["drop:messages.reasoning"]


@pytest.mark.parametrize("model", [PLAIN, UNKNOWN])
def test_replayed_reasoning_is_dropped_for_models_that_do_not_reason(model):
    out, context = one({"role": "assistant", "content": "a", "reasoning_content": "hm"}, model, strict=True)
    assert out == {"role": "assistant", "content": "a"}
    assert list(context.rewrites) == ["drop:messages.reasoning_content"]


def test_reasoning_beside_calls_stays_beside_them():
    out, _ = one({"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": [CALL]})
    assert out == {"role": "assistant", "content": [THINKING], "tool_calls": [CALL]}


def test_a_function_call_is_a_tool_call():
    out, _ = one({"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": ""}}, strict=True)
    expected = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert out == {"role": "assistant", "content": "", "tool_calls": [expected]}


def test_tool_calls_go_before_a_function_call():
    out, _ = one({"role": "assistant", "function_call": {"name": "g"}, "tool_calls": [CALL]})
    assert out["tool_calls"] == [CALL]


def test_a_function_message_is_a_tool_message():
    assert one({"role": "function", "name": "f", "content": None})[0] == {"role": "tool", "name": "f", "content": ""}


def test_a_tools_name_that_mistral_would_refuse_is_left_out():
    out, context = one({"role": "tool", "content": None, "tool_call_id": "1", "name": "a.b"}, strict=True)
    assert out == {"role": "tool", "content": "", "tool_call_id": "1"}
    assert list(context.rewrites) == ["drop:messages.name"]


@pytest.mark.parametrize(
    ("message", "kind", "param"),
    [
        (None, InvalidType, "messages[0]"),
        ("hi", InvalidType, "messages[0]"),
        ({}, MissingParameter, "messages[0].role"),
        ({"role": 5}, InvalidType, "messages[0].role"),
        ({"role": ["user"]}, InvalidType, "messages[0].role"),
        ({"role": "critic", "content": "c"}, UnsupportedValue, "messages[0].role"),
        ({"role": "user"}, MissingParameter, "messages[0].content"),
        ({"role": "user", "content": None}, MissingParameter, "messages[0].content"),
        ({"role": "user", "content": 5}, InvalidType, "messages[0].content"),
        ({"role": "user", "content": {"type": "text", "text": "t"}}, InvalidType, "messages[0].content"),
        ({"role": "system", "content": None}, MissingParameter, "messages[0].content"),
        (
            {"role": "system", "content": [{"type": "image_url", "image_url": "u"}]},
            UnsupportedValue,
            "messages[0].content[0].type",
        ),
        ({"role": "assistant", "content": "a", "prefix": 1}, InvalidType, "messages[0].prefix"),
        ({"role": "assistant", "tool_calls": {}}, InvalidType, "messages[0].tool_calls"),
        (
            {"role": "assistant", "tool_calls": [CALL, {"type": "custom", "custom": {}}]},
            UnsupportedValue,
            "messages[0].tool_calls[1].type",
        ),
        (
            {"role": "assistant", "function_call": {"name": "a.b"}},
            BadRequest,
            "messages[0].function_call.name",
        ),
        ({"role": "assistant", "content": "a", "refusal": 5}, InvalidType, "messages[0].refusal"),
        ({"role": "tool", "content": "t", "tool_call_id": 5}, InvalidType, "messages[0].tool_call_id"),
        ({"role": "user", "content": ["hi"]}, InvalidType, "messages[0].content[0]"),
        ({"role": "user", "content": [{"text": "t"}]}, MissingParameter, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "video"}]}, UnsupportedValue, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, MissingParameter, "messages[0].content[0].text"),
        (
            {"role": "user", "content": [{"type": "text", "text": "t"}, {"type": "image_url", "image_url": 5}]},
            InvalidType,
            "messages[0].content[1].image_url",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"detail": "low"}}]},
            MissingParameter,
            "messages[0].content[0].image_url.url",
        ),
        (
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {"format": "wav"}}]},
            MissingParameter,
            "messages[0].content[0].input_audio.data",
        ),
        ({"role": "user", "content": [{"type": "file"}]}, MissingParameter, "messages[0].content[0].file"),
        (
            {"role": "user", "content": [{"type": "file", "file": {"filename": "a.pdf"}}]},
            MissingParameter,
            "messages[0].content[0].file.file_data",
        ),
        (
            {"role": "user", "content": [{"type": "file", "file": {"file_data": "QUJD"}}]},
            BadRequest,
            "messages[0].content[0].file.file_data",
        ),
        (
            {"role": "user", "content": [{"type": "file", "file": {"file_id": "file-abc"}}]},
            BadRequest,
            "messages[0].content[0].file.file_id",
        ),
        (
            {"role": "user", "content": [{"type": "file", "file_id": "file-abc"}]},
            BadRequest,
            "messages[0].content[0].file_id",
        ),
        (
            {"role": "user", "content": [{"type": "reference", "reference_ids": [True]}]},
            InvalidType,
            "messages[0].content[0].reference_ids",
        ),
        (
            {"role": "user", "content": [{"type": "thinking", "thinking": "hm"}]},
            InvalidType,
            "messages[0].content[0].thinking",
        ),
    ],
)
def test_what_is_wrong_with_a_message_is_named(message, kind, param):
    error = refused(message)
    assert type(error) is kind
    assert error.param == param


# Content parts.


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": "t"},
        {"type": "image_url", "image_url": {"url": "u", "detail": "high"}},
        {"type": "image_url", "image_url": "u"},
        {"type": "input_audio", "input_audio": "QUJD"},
        {"type": "file", "file_id": UUID},
        {"type": "document_url", "document_url": "u", "document_name": "n"},
        {"type": "reference", "reference_ids": [1, "a"]},
        THINKING,
        {
            "type": "thinking",
            "thinking": [
                {"type": "reference", "reference_ids": [1]},
                {"type": "tool_reference", "tool": "web_search", "title": "t", "url": "u"},
            ],
            "signature": "s",
        },
    ],
)
def test_parts_of_both_sides_and_mistrals_own_pass(part):
    content, context = user(part, strict=True)
    assert content == [part]
    assert not context.rewrites


@pytest.mark.parametrize(
    ("part", "expected", "rewrites"),
    [
        (
            {"type": "text", "text": "t", "cache_control": {}, "prompt_cache_breakpoint": {}, "annotations": []},
            {"type": "text", "text": "t"},
            ["cache_control", "prompt_cache_breakpoint", "annotations"],
        ),
        (
            {"type": "image_url", "image_url": {"url": "u", "detail": "original"}},
            {"type": "image_url", "image_url": {"url": "u"}},
            ["image_url.detail"],
        ),
        (
            {"type": "input_audio", "input_audio": {"data": "QUJD", "format": "wav"}},
            {"type": "input_audio", "input_audio": "QUJD"},
            ["input_audio.format"],
        ),
        (
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,QUJD", "filename": "a.pdf"}},
            {"type": "document_url", "document_url": "data:application/pdf;base64,QUJD", "document_name": "a.pdf"},
            [],
        ),
        (
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,QUJD"}},
            {"type": "document_url", "document_url": "data:application/pdf;base64,QUJD"},
            [],
        ),
        ({"type": "file", "file": {"file_id": UUID}}, {"type": "file", "file_id": UUID}, []),
    ],
)
def test_parts_that_mistral_spells_otherwise(part, expected, rewrites):
    content, context = user(part, strict=True)
    assert content == [expected]
    assert list(context.rewrites) == [f"drop:messages.content.{what}" for what in rewrites]


def test_a_refusal_part_is_text():
    assert user({"type": "refusal", "refusal": "no"})[0] == [{"type": "text", "text": "no"}]


def test_thinking_is_dropped_for_a_model_known_not_to_reason():
    text = {"type": "text", "text": "t"}
    content, context = user(THINKING, text, model=PLAIN, strict=True)
    assert content == [text]
    assert list(context.rewrites) == ["drop:messages.content.thinking"]
    assert user(THINKING, text, model=UNKNOWN)[0] == [THINKING, text]


def test_content_without_parts_is_an_empty_text():
    assert user()[0] == ""
    assert user(THINKING, model=PLAIN)[0] == ""


def test_an_unknown_key_is_dropped_and_in_strict_mode_refused():
    part = {"type": "text", "text": "t", "colour": "red"}
    content, context = user(part)
    assert content == [{"type": "text", "text": "t"}]
    assert list(context.rewrites) == ["drop:messages.content.colour"]
    error = refused({"role": "user", "content": [part]}, strict=True)
    assert isinstance(error, UnsupportedParameter)
    assert error.param == "messages[0].content[0].colour"
