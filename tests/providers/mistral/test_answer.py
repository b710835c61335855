from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion

from proxy.core import json
from proxy.core.errors import UpstreamFailed, render
from proxy.core.model import Model
from proxy.core.table import Context
from proxy.providers.mistral.answer import MOST_TOKENS, chat_answer

USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
CALL = {"id": "a1B2c3D4e", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}


def context(**notes: Any) -> Context:
    return Context(Model("mistral-small-latest"), {}, notes=notes)


def answer(message: Any = None, finish: Any = "stop", **more: Any) -> dict[str, Any]:
    """What Mistral sends for plain text, with these differences."""
    plain = {"role": "assistant", "content": "Hello.", "tool_calls": None}
    return {
        "id": "0123456789abcdef0123456789abcdef",
        "object": "chat.completion",
        "created": 1787000000,
        "model": "mistral-small-latest",
        "choices": [{"index": 0, "finish_reason": finish, "message": plain | (message or {})}],
        "usage": dict(USAGE),
    } | more


def message(source: dict[str, Any], **notes: Any) -> dict[str, Any]:
    """The OpenAI message made of the Mistral message."""
    result: dict[str, Any] = chat_answer(answer(source), context(**notes))["choices"][0]["message"]
    return result


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def thinking(*values: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": [text(value) for value in values], "closed": True}


def test_a_plain_answer_gets_what_openai_always_has_and_loses_the_null():
    assert chat_answer(answer(), context()) == {
        "id": "0123456789abcdef0123456789abcdef",
        "object": "chat.completion",
        "created": 1787000000,
        "model": "mistral-small-latest",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "logprobs": None,
                "message": {"role": "assistant", "content": "Hello.", "refusal": None},
            }
        ],
        "usage": USAGE,
    }


def test_what_came_is_not_changed():
    source = answer({"content": [text("a")], "tool_calls": [CALL | {"index": 0}]}, usage=USAGE | {"service_tier": "x"})
    before = copy.deepcopy(source)
    chat_answer(source, context())
    assert source == before


def test_unknown_keys_are_kept():
    out = chat_answer(answer({"metadata": 1}, guardrails=[{"name": "g"}]), context())
    assert out["guardrails"] == [{"name": "g"}]
    assert out["choices"][0]["message"]["metadata"] == 1


@pytest.mark.parametrize(
    ("content", "becomes"),
    [
        ("text", "text"),
        ("", ""),
        (None, None),
        ([text("one "), text("two")], "one two"),
        (["bare ", text("text")], "bare text"),
        ([], ""),
        ([text("see "), {"type": "reference", "reference_ids": [1]}, text("there")], "see there"),
        ({"type": "text", "text": "alone"}, "alone"),
        (7, ""),
        ([{"type": "text", "text": 7}, None], ""),
    ],
)
def test_content_is_text(content, becomes):
    out = message({"content": content})
    assert out["content"] == becomes
    assert "reasoning_content" not in out


def test_parts_that_have_no_place_are_reported():
    seen = context()
    chat_answer(answer({"content": [{"type": "tool_file", "file_id": "f"}, {"type": "image_url"}, text("x")]}), seen)
    assert list(seen.rewrites) == ["drop:content.tool_file", "drop:content.image_url"]


@pytest.mark.parametrize("kind", ["any-word", "", 7, None, [], {}])
def test_a_report_has_no_word_of_the_upstreams(kind):
    seen = context()
    chat_answer(answer({"content": [{"type": kind}, text("x")]}), seen)
    assert list(seen.rewrites) == ["drop:content"]


@pytest.mark.parametrize(
    ("content", "becomes", "reasoning"),
    [
        ([thinking("Let ", "me see."), text("Four.")], "Four.", "Let me see."),
        ([thinking("One. "), text("a"), thinking("Two."), text("b")], "ab", "One. Two."),
        ([thinking("cut off")], "", "cut off"),
        ([{"type": "thinking", "thinking": "bare"}, text("a")], "a", "bare"),
        ([{"type": "thinking", "thinking": None}, text("a")], "a", ""),
        ([thinking("Add.\n<response>\nFour.\n</response>\n")], "Four.", "Add.\n"),
        ([thinking("About <response>"), text("a")], "a", "About <response>"),
        ([thinking("About </response>")], "", "About </response>"),
        ([thinking("<response>x</response> and on")], "", "<response>x</response> and on"),
    ],
)
def test_thinking_is_reasoning_content(content, becomes, reasoning):
    out = message({"content": content})
    assert (out["content"], out["reasoning_content"]) == (becomes, reasoning)


@pytest.mark.parametrize("content", ["", None, []])
def test_calls_without_text_have_null_content(content):
    assert message({"content": content, "tool_calls": [CALL]})["content"] is None


def test_calls_beside_text_and_thinking():
    out = message({"content": [thinking("hm"), text("Looking.")], "tool_calls": [CALL]})
    assert (out["content"], out["reasoning_content"]) == ("Looking.", "hm")
    assert out["tool_calls"] == [CALL | {"type": "function"}]


@pytest.mark.parametrize(
    "call", [CALL, CALL | {"index": 1}, CALL | {"type": None}, CALL | {"type": "function", "index": 0}]
)
def test_a_call_has_a_type_and_no_index(call):
    assert message({"tool_calls": [call]})["tool_calls"] == [CALL | {"type": "function"}]


@pytest.mark.parametrize(
    ("arguments", "becomes"),
    [
        ({"city": "Zürich", "n": [1]}, '{"city":"Zürich","n":[1]}'),
        ({}, "{}"),
        (None, "{}"),
        ('{"city": "Par', '{"city": "Par'),
        ("", ""),
    ],
)
def test_arguments_are_json_in_a_string(arguments, becomes):
    call = {"id": "a1B2c3D4e", "function": {"name": "weather", "arguments": arguments}}
    assert message({"tool_calls": [call]})["tool_calls"][0]["function"]["arguments"] == becomes


@pytest.mark.parametrize("calls", [None, [], "nonsense", [None, 3]])
def test_no_calls_no_field(calls):
    assert "tool_calls" not in message({"tool_calls": calls})


@pytest.mark.parametrize(
    ("reason", "becomes"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("tool_calls", "tool_calls"),
        ("model_length", "length"),
        ("something_new", "something_new"),
        (None, None),
        (["stop"], ["stop"]),
    ],
)
def test_finish_reason(reason, becomes):
    seen = context()
    assert chat_answer(answer(finish=reason), seen)["choices"][0]["finish_reason"] == becomes
    assert not seen.rewrites


@pytest.mark.parametrize(
    ("reason", "spoiled"),
    [
        ("stop", False), ("length", False), ("model_length", False), ("tool_calls", False),
        ("error", True), ("content_filter", True), ("something_new", True), (None, True), (["stop"], True),
    ],
)  # fmt: skip
def test_an_answer_that_ended_otherwise_is_not_what_the_next_one_need_be(reason, spoiled):
    seen = context()
    chat_answer(answer(finish=reason), seen)
    assert seen.spoiled is spoiled


def test_an_answer_that_has_not_all_that_was_asked_for_is_not_kept():
    seen = Context(Model("mistral-small-latest"), {"n": 2})
    chat_answer(answer(), seen)
    assert seen.spoiled


def test_finish_reason_error_is_reported():
    seen = context()
    assert chat_answer(answer(finish="error"), seen)["choices"][0]["finish_reason"] == "stop"
    assert list(seen.rewrites) == ["value:finish_reason"]


def test_the_older_functions_are_answered_in_kind():
    seen = context(functions=True)
    source = answer({"content": "", "tool_calls": [CALL, CALL | {"id": "second"}]}, finish="tool_calls")
    (choice,) = chat_answer(source, seen)["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "function_call": CALL["function"],
    }
    assert choice["finish_reason"] == "function_call"
    assert list(seen.rewrites) == ["drop:tool_calls"]


def test_the_older_functions_without_a_call():
    (choice,) = chat_answer(answer(), context(functions=True))["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", "Hello.")


@pytest.mark.parametrize(
    ("content", "becomes"),
    [
        ("Once upon a time", " a time"),
        ("Once upon", ""),
        ("Once", "Once"),
        ("Twice, Once upon", "Twice, Once upon"),
        ([text("Once "), text("upon a"), text(" time")], " a time"),
        (None, None),
    ],
)
def test_the_prefix_is_taken_off_if_it_is_there(content, becomes):
    assert message({"content": content}, prefix="Once upon")["content"] == becomes


def test_the_prefix_is_taken_off_every_choice():
    choices = [{"index": i, "message": {"content": f"Once {i}"}, "finish_reason": "stop"} for i in (0, 1)]
    out = chat_answer(answer(choices=choices), context(prefix="Once "))
    assert [choice["message"]["content"] for choice in out["choices"]] == ["0", "1"]


def test_choices_keep_their_index_and_get_one_if_they_have_none():
    choices = [{"index": 1, "message": {"content": "b"}}, {"message": {"content": "x"}}]
    out = chat_answer(answer(choices=choices), context())["choices"]
    assert [choice["index"] for choice in out] == [1, 1]


@pytest.mark.parametrize(
    ("usage", "becomes"),
    [
        (USAGE, USAGE),
        (USAGE | {"prompt_tokens_details": {"cached_tokens": 64}},) * 2,
        (
            USAGE | {"num_cached_tokens": 64},
            USAGE | {"prompt_tokens_details": {"cached_tokens": 64}},
        ),
        (
            USAGE | {"prompt_token_details": {"cached_tokens": 64}},
            USAGE | {"prompt_tokens_details": {"cached_tokens": 64}},
        ),
        (
            USAGE | {"prompt_tokens_details": {"cached_tokens": 64}, "num_cached_tokens": 128},
            USAGE | {"prompt_tokens_details": {"cached_tokens": 64}},
        ),
        (
            USAGE | {"prompt_tokens_details": None, "num_cached_tokens": 0},
            USAGE | {"prompt_tokens_details": {"cached_tokens": 0}},
        ),
        (USAGE | {"completion_tokens_details": {"reasoning_tokens": 3}},) * 2,
        (USAGE | {"prompt_audio_seconds": 4},) * 2,
        (USAGE | {"num_cached_tokens": None}, USAGE),
        (dict.fromkeys(USAGE, 0),) * 2,
        (dict.fromkeys(USAGE, MOST_TOKENS),) * 2,
    ],
)
def test_usage(usage, becomes):
    assert chat_answer(answer(usage=usage), context())["usage"] == becomes


COUNTS = [None, -1, 10**18, MOST_TOKENS + 1, "5", 5.0, 1e300, True, [5], {"n": 5}]


@pytest.mark.parametrize(
    "usage",
    [
        *(None, [], "many", {}, 5, True),
        *({name: 1 for name in USAGE if name != missing} for missing in USAGE),
        *(USAGE | {name: count} for name in USAGE for count in COUNTS),
    ],
)
def test_d15_usage_that_cannot_be_believed_is_left_out(usage):
    out = chat_answer(answer(usage=usage), context())
    assert "usage" not in out
    assert out["choices"]


@pytest.mark.parametrize("name", ["prompt_tokens_details", "completion_tokens_details"])
@pytest.mark.parametrize("details", [None, [], "x", {"cached_tokens": -1}, {"cached_tokens": "1"}, {"a": 10**18}])
def test_d15_details_that_cannot_be_believed_are_left_out(name, details):
    assert chat_answer(answer(usage=USAGE | {name: details}), context())["usage"] == USAGE


@pytest.mark.parametrize("cached", [-1, "64", 6.4, 10**18])
def test_d15_cached_tokens_that_cannot_be_believed_are_left_out(cached):
    assert chat_answer(answer(usage=USAGE | {"num_cached_tokens": cached}), context())["usage"] == USAGE


def test_d15_details_may_be_unknown():
    usage = USAGE | {"prompt_tokens_details": {"cached_tokens": None}}
    assert chat_answer(answer(usage=usage), context())["usage"] == usage


@pytest.mark.parametrize(("tier", "becomes"), [("standard", "default"), ("priority", "priority"), ("new", "new")])
def test_the_service_tier_is_at_the_top(tier, becomes):
    out = chat_answer(answer(usage=USAGE | {"service_tier": tier}), context())
    assert out["service_tier"] == becomes
    assert out["usage"] == USAGE


def test_logprobs_have_openais_shape():
    token = {"token": "Hi", "logprob": -0.1, "bytes": [72, 105]}
    source = answer()
    source["choices"][0]["logprobs"] = {
        "content": [
            token | {"token_id": 7, "top_logprobs": None},
            token | {"top_logprobs": [token | {"token_id": 8}]},
        ]
    }
    (choice,) = chat_answer(source, context())["choices"]
    assert choice["logprobs"] == {
        "refusal": None,
        "content": [token | {"top_logprobs": []}, token | {"top_logprobs": [token]}],
    }


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        "text",
        {},
        {"choices": None},
        {"choices": []},
        {"choices": {}},
        {"choices": [None]},
        {"choices": [{"index": 0}, "x"]},
        {"detail": "Invalid API Key"},
        {"message": "no Route matched with those values"},
        {"detail": [{"type": "missing", "loc": ["body", "model"], "msg": "Field required", "input": "SECRET"}]},
    ],
)
def test_no_choices_no_answer(body):
    with pytest.raises(UpstreamFailed) as caught:
        chat_answer(body, context())
    assert (caught.value.status, caught.value.code, caught.value.detail) == (502, "upstream_error", {})
    assert b"SECRET" not in render(caught.value)


@pytest.mark.parametrize(
    ("body", "upstream"),
    [
        (
            {"object": "error", "message": "SECRET", "type": "internal_error", "code": "3000", "raw_status_code": 500},
            {"status": 500, "code": "3000"},
        ),
        ({"object": "Error", "message": ["SECRET"], "code": 3001}, {"code": "3001"}),
        ({"error": {"message": "SECRET", "code": "rate_limited"}}, {"code": "rate_limited"}),
        ({"object": "error", "message": {"detail": "SECRET"}, "code": None}, None),
        ({"object": "error", "code": "SECRET text", "raw_status_code": "SECRET"}, None),
        ({"object": "error", "code": {"SECRET": 1}, "raw_status_code": 10**30}, None),
        ({"object": "error", "code": True, "choices": [{"index": 0}]}, None),
        ({"error": "SECRET"}, None),
    ],
)
def test_an_error_with_status_200_is_an_error(body, upstream):
    with pytest.raises(UpstreamFailed) as caught:
        chat_answer(body, context())
    assert caught.value.detail == ({"upstream": {"provider": "mistral"} | upstream} if upstream else {})
    assert b"SECRET" not in render(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """An object that has each field or not, rightly typed or not; or something that is no object."""
    return st.fixed_dictionaries({}, optional={name: field | JSON for name, field in fields.items()}) | JSON


PART = some(
    type=st.sampled_from(["text", "thinking", "reference", "str"]),
    text=st.text(max_size=5),
    thinking=st.lists(some(type=st.just("text"), text=st.text(max_size=5)), max_size=2),
)
FUNCTION = some(name=st.text(max_size=5), arguments=st.text(max_size=5))
MESSAGE = some(
    role=st.just("assistant"),
    content=st.text(max_size=9) | st.lists(PART, max_size=3),
    tool_calls=st.lists(some(id=st.text(max_size=3), index=st.integers(), function=FUNCTION), max_size=3),
)
CHOICE = some(
    index=st.integers(0, 2),
    message=MESSAGE,
    finish_reason=st.sampled_from(["stop", "error", "model_length", "tool_calls"]),
    logprobs=some(content=st.lists(some(token_id=st.integers(), top_logprobs=st.lists(JSON, max_size=2)), max_size=2)),
)
ANSWER = some(
    choices=st.lists(CHOICE, min_size=1, max_size=3),
    usage=some(service_tier=st.text(max_size=3), num_cached_tokens=st.integers(), prompt_tokens_details=JSON),
    object=st.sampled_from(["chat.completion", "error"]),
)


@given(ANSWER, st.booleans(), st.sampled_from(["", "a"]))
def test_whatever_comes_is_translated_or_refused(source, functions, prefix):
    try:
        out = chat_answer(source, context(functions=functions, prefix=prefix))
    except UpstreamFailed:
        return
    assert json.decode(json.encode(out)) == out
    for choice in out["choices"]:
        assert type(choice["index"]) is int
        assert choice["message"]["content"] is None or isinstance(choice["message"]["content"], str)
        assert {"role", "refusal"} <= choice["message"].keys()
        assert "logprobs" in choice


def nested() -> Any:
    deep: Any = {}
    for _ in range(100_000):
        deep = {"a": deep}
    return deep


def test_deeply_nested_types_are_no_crash():
    assert message({"content": [{"type": nested()}, text("a")]})["content"] == "a"


def test_deeply_nested_arguments_are_no_crash():
    arguments = nested()
    with pytest.raises(UpstreamFailed):
        message({"tool_calls": [{"id": "x", "function": {"name": "f", "arguments": arguments}}]})


@pytest.mark.parametrize(
    "source",
    [
        answer(),
        answer({"content": [thinking("hm"), text("Four.")]}, usage=USAGE | {"service_tier": "standard"}),
        answer({"content": "", "tool_calls": [CALL]}, finish="tool_calls"),
        answer(finish="model_length"),
    ],
)
def test_the_openai_type_accepts_it(source):
    ChatCompletion.model_validate(chat_answer(source, context()), strict=True)
