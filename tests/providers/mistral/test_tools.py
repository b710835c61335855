"""Tools, choices, the older functions, calls in the history, and the ids of calls."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.errors import BadRequest, InvalidType, MissingParameter, UnsupportedValue
from proxy.core.json import Json
from proxy.core.model import Model
from proxy.core.table import Context
from proxy.providers.mistral.chat import CHAT_REQUEST
from proxy.providers.mistral.tools import CALL, distinct_ids, fits, short_id

MODEL = Model("mistral-small-2603", known=True)


def tool(name: str) -> Json:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


def translated(fields: Json, *, strict: bool = False) -> tuple[Json, Context]:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    context = Context(MODEL, body, strict)
    out = CHAT_REQUEST.translate(body, context)
    del out["model"], out["messages"]
    return out, context


def refused(fields: Json, *, strict: bool = False) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        translated(fields, strict=strict)
    return caught.value


# Tools.


def test_a_function_without_parameters_takes_none():
    function = {"name": "f", "description": None, "strict": None}
    out, _ = translated({"tools": [{"type": "function", "function": function}]}, strict=True)
    assert out["tools"] == [
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    ]


def test_keys_that_mistral_does_not_know_are_left_out():
    given = {
        "type": "function",
        "function": {"name": "f", "parameters": {}, "strict": True, "description": "d", "x": 1},
        "cache_control": {"type": "ephemeral"},
    }
    out, context = translated({"tools": [given]})
    assert out["tools"] == [
        {"type": "function", "function": {"name": "f", "parameters": {}, "strict": True, "description": "d"}}
    ]
    assert list(context.rewrites) == ["drop:tools.function.x", "drop:tools.cache_control"]


@pytest.mark.parametrize(
    "native",
    [
        {"type": "image_generation"},
        {"type": "document_library", "library_ids": ["1"], "tool_configuration": {"include": ["a"]}},
        {"type": "connector", "connector_id": "c", "authorization": {"type": "api-key", "value": "v"}},
    ],
)
def test_mistrals_own_tools_pass(native):
    assert translated({"tools": [native]}, strict=True)[0] == {"tools": [native]}


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"tools": {}}, InvalidType, "tools"),
        ({"tools": [None]}, InvalidType, "tools[0]"),
        ({"tools": [{}]}, MissingParameter, "tools[0].type"),
        ({"tools": [{"type": "custom", "custom": {"name": "c"}}]}, UnsupportedValue, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, MissingParameter, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {}}]}, MissingParameter, "tools[0].function.name"),
        ({"tools": [tool("a.b")]}, BadRequest, "tools[0].function.name"),
        ({"tools": [tool("a"), tool("a" * 65)]}, BadRequest, "tools[1].function.name"),
        ({"tools": [tool("a\n")]}, BadRequest, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
            InvalidType,
            "tools[0].function.parameters",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "strict": "yes"}}]},
            InvalidType,
            "tools[0].function.strict",
        ),
        ({"tools": [tool("f")] * 129}, BadRequest, "tools"),
        ({"functions": [{"name": "f"}] * 129}, BadRequest, "functions"),
        ({"tools": [{"type": "document_library", "library_ids": []}]}, BadRequest, "tools[0].library_ids"),
        ({"tools": [tool("f")], "parallel_tool_calls": 1}, InvalidType, "parallel_tool_calls"),
        ({"tools": [tool("f")], "tool_choice": "always"}, UnsupportedValue, "tool_choice"),
        ({"tools": [tool("f")], "tool_choice": 5}, InvalidType, "tool_choice"),
        ({"tools": [tool("f")], "tool_choice": {"type": "custom"}}, UnsupportedValue, "tool_choice.type"),
        ({"tools": [tool("f")], "tool_choice": {"type": "function"}}, MissingParameter, "tool_choice.function"),
    ],
)
def test_what_is_wrong_with_tools_is_named(fields, kind, param):
    error = refused(fields)
    assert type(error) is kind
    assert error.param == param


def test_128_tools_are_not_too_many():
    assert len(translated({"tools": [tool("f")] * 128})[0]["tools"]) == 128


# Choices.


@pytest.mark.parametrize("choice", ["none", "auto", "required", "any", {"type": "function", "function": {"name": "f"}}])
def test_choices_that_both_sides_have_pass(choice):
    fields = {"tools": [tool("f")], "tool_choice": choice}
    out, context = translated(fields, strict=True)
    assert out == fields
    assert not context.rewrites


def allowed(mode: str, *names: str) -> Json:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_allowed_tools_are_the_only_ones_sent(mode):
    fields = {"tool_choice": allowed(mode, "a", "c"), "tools": [tool("a"), tool("b"), tool("c")]}
    out, context = translated(fields, strict=True)
    assert out == {"tools": [tool("a"), tool("c")], "tool_choice": mode}
    assert list(context.rewrites) == ["value:tool_choice"]


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        (allowed("auto", "z"), "tool_choice.allowed_tools.tools"),
        (allowed("any", "a"), "tool_choice.allowed_tools.mode"),
        ({"type": "allowed_tools"}, "tool_choice.allowed_tools"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto"}}, "tool_choice.allowed_tools.tools"),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "mcp"}]}},
            "tool_choice.allowed_tools.tools[0].type",
        ),
    ],
)
def test_allowed_tools_that_allow_nothing_known_are_refused(choice, param):
    assert refused({"tools": [tool("a")], "tool_choice": choice}).param == param


# Functions, the older spelling.


def test_functions_become_tools_and_the_answer_is_asked_back_in_kind():
    out, context = translated({"functions": [{"name": "f"}], "function_call": {"name": "f"}}, strict=True)
    assert out == {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": False,
    }
    assert context.notes == {"functions": True}


@pytest.mark.parametrize("choice", ["none", "auto"])
def test_function_call_words_are_tool_choices(choice):
    assert translated({"functions": [{"name": "f"}], "function_call": choice})[0]["tool_choice"] == choice


def test_function_call_without_functions_says_nothing():
    out, context = translated({"function_call": "auto", "functions": []}, strict=True)
    assert out == {}
    assert context.notes == {}
    assert list(context.rewrites) == ["drop:function_call"]


@pytest.mark.parametrize("choice", ["none", {"name": "a"}])
def test_function_call_is_no_choice_of_tools(choice):
    fields = {"tools": [tool("a")], "function_call": choice}
    out, context = translated(fields)
    assert set(out) == {"tools"}
    assert list(context.rewrites) == ["drop:function_call"]
    assert refused(fields, strict=True).param == "function_call"
    assert "function_call" not in translated(fields | {"function_call": "auto"}, strict=True)[0]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"functions": [{"name": "f"}], "tools": [tool("f")]}, "functions"),
        ({"functions": [{"name": "f"}], "function_call": "required"}, "function_call"),
        ({"functions": [{"name": "f"}], "function_call": {}}, "function_call.name"),
        ({"functions": [{"name": "f"}], "function_call": 5}, "function_call"),
    ],
)
def test_what_is_wrong_with_functions_is_named(fields, param):
    assert refused(fields).param == param


# Calls in the history.


def call(function: Json, **more: Any) -> Json:
    given = {"type": "function", "function": function, **more}
    return CALL.translate(given, Context(MODEL, {}), "messages[0].tool_calls[0]")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [("", "{}"), ('{"a":1}', '{"a":1}'), ({"a": 1}, '{"a":1}'), (None, "{}"), ("half a js", "half a js")],
)
def test_arguments_are_sent_as_text(arguments, expected):
    assert call({"name": "f", "arguments": arguments})["function"] == {"name": "f", "arguments": expected}


def test_a_calls_type_may_be_missing():
    assert CALL.translate({"function": {"name": "f"}}, Context(MODEL, {}))["type"] == "function"


def test_the_sdks_own_copy_of_the_arguments_is_left_out():
    given = {"name": "f", "arguments": "{}", "parsed_arguments": {}}
    assert call(given, index=0, id="x") == {
        "type": "function",
        "function": {"name": "f", "arguments": "{}"},
        "index": 0,
        "id": "x",
    }


def nested(depth: int) -> Json:
    value: Json = {}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("function", "more", "param"),
    [
        ({"name": "a.b"}, {}, "function.name"),
        ({"name": "f", "arguments": 5}, {}, "function.arguments"),
        ({"name": "f", "arguments": nested(100_000)}, {}, "function.arguments"),
        ({"name": "f"}, {"type": "custom"}, "type"),
        ({"name": "f"}, {"id": 5}, "id"),
    ],
)
def test_what_is_wrong_with_a_call_is_named(function, more, param):
    with pytest.raises(BadRequest) as caught:
        call(function, **more)
    assert caught.value.param == f"messages[0].tool_calls[0].{param}"


# Ids.


def test_a_short_id_is_the_same_in_every_release():
    assert short_id("call_1") == "RWu906W5H"
    assert short_id("call_2") != short_id("call_1")


@given(st.text())
def test_every_short_id_fits(name):
    assert fits(short_id(name))


@pytest.mark.parametrize("id", ["", "12345678", "1234567890", "call_1234", "ünïcödééé", "12345678\n", "null"])
def test_what_does_not_fit(id):
    assert not fits(id)


def test_an_id_that_fits_stays_and_others_are_hashed():
    assert distinct_ids(["abcDEF123", "call_1"], 4) == ["abcDEF123", short_id("call_1")]


@pytest.mark.parametrize("order", [1, -1])
def test_an_id_equal_to_a_neighbours_hash_stays_and_the_neighbour_yields(order):
    asked = ["call_1", short_id("call_1")][::order]
    sent = distinct_ids(list(asked), 0)
    assert len(set(sent)) == 2
    assert sent[asked.index(short_id("call_1"))] == short_id("call_1")


def test_an_id_equal_to_what_a_second_use_is_hashed_from_yields():
    sent = distinct_ids(["call_1", "call_1", "call_1#1"], 0)
    assert sent[:2] == [short_id("call_1"), short_id("call_1#1")]
    assert sent[2] not in sent[:2]


def test_missing_ids_come_from_the_place():
    assert distinct_ids([None, None], 3) == [short_id("3.0"), short_id("3.1")]


@given(st.lists(st.none() | st.sampled_from(["call_1", "abcDEF123", short_id("call_1"), "0.1"]) | st.text()))
def test_ids_of_one_message_are_distinct_fit_and_repeatable(asked):
    sent = distinct_ids(asked, 0)
    assert len(set(sent)) == len(asked)
    assert all(map(fits, sent))
    assert sent == distinct_ids(asked, 0)
    kept = [id for id in dict.fromkeys(asked) if id is not None and fits(id)]
    assert [id for id in sent if id in kept] == kept


def test_many_equal_ids_cost_one_hash_each(monkeypatch):
    hashed: list[str] = []

    def count(name: str) -> str:
        hashed.append(name)
        return short_id(name)

    monkeypatch.setattr("proxy.providers.mistral.tools.short_id", count)
    distinct_ids(["call_1"] * 1000, 0)
    assert len(hashed) == 1000
