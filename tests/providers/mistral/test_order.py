"""Message-order repairs: each of them, and properties over every order of every role."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from proxy.core.errors import BadRequest
from proxy.core.json import Json
from proxy.core.model import Model
from proxy.core.table import Context
from proxy.providers.mistral.messages import messages
from proxy.providers.mistral.order import NO_RESULT, NOT_SHOWN
from proxy.providers.mistral.tools import short_id
from proxy.simulator.models import BY_NAME
from proxy.simulator.rules import check_chat
from tests.providers.mistral.bodies import conversations
from tests.providers.mistral.rules import disorder

MODEL = Model("mistral-small-2603", known=True, efforts=("none", "high"))


def system(text: str) -> Json:
    return {"role": "system", "content": text}


def user(text: str) -> Json:
    return {"role": "user", "content": text}


def assistant(text: str = "", *ids: str | None, **more: Any) -> Json:
    calls = [{"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}} for id in ids]
    return {"role": "assistant", "content": text} | ({"tool_calls": calls} if ids else {}) | more


def result(id: str | None, text: str = "r", role: str = "tool") -> Json:
    return {"role": role, "content": text} | ({} if id is None else {"tool_call_id": id})


def translated(*said: Json, strict: bool = False) -> tuple[list[Json], Context]:
    context = Context(MODEL, {}, strict)
    return messages(deepcopy(list(said)), context, "messages"), context


def in_order(said: list[Json]) -> bool:
    return not [flaw for tokenizer in (11, 13, 15) for flaw in disorder(said, tokenizer)]


A, B = "aaaaaaaaa", "bbbbbbbbb"


@pytest.mark.parametrize(
    "said",
    [
        [user("1")],
        [system("s")],
        [system("s"), system("t")],
        [system("s"), user("1"), user("2"), assistant("a"), assistant("b"), user("3")],
        [user("1"), system("s"), user("2")],
        [user("1"), system("s"), assistant("a"), user("2")],
        [assistant("a"), user("1")],
        [user("1"), assistant("", A, B), result(B), result(A), assistant("a"), user("2")],
        [user("1"), assistant("a", A), result(A)],
        [user("1"), assistant("", A), result(A), user("2")],
        [user("1"), assistant("", A), result(A), assistant("", A), result(A)],
        [user("1"), assistant("a", prefix=True)],
    ],
)
def test_what_mistral_accepts_stays_as_it_is(said):
    out, context = translated(*said, strict=True)
    assert out == said
    assert not context.rewrites
    assert not context.notes


REPAIRS = [
    ("empty", [user("1"), assistant(""), user("2")], [user("1"), user("2")]),
    ("empty", [user("1"), assistant("", content=None), user("2")], [user("1"), user("2")]),
    ("empty", [user("1"), assistant("", reasoning_content="hm"), user("2")], [user("1"), user("2")]),
    ("empty", [user("1"), assistant("", content=[{"type": "text", "text": ""}]), user("2")], [user("1"), user("2")]),
    ("system", [user("1"), assistant("a"), system("s")], [user("1"), assistant("a"), user("s")]),
    (
        "system",
        [user("1"), assistant("a"), system("s"), system("t"), user("2")],
        [user("1"), assistant("a"), user("s"), user("t"), user("2")],
    ),
    (
        "system",
        [user("1"), assistant("", A), result(A), system("s"), assistant("a"), user("2")],
        [user("1"), assistant("", A), result(A), user("s"), assistant("a"), user("2")],
    ),
    ("system", [system("s"), user("1"), system("t")], [system("s"), user("1"), user("t")]),
    ("orphan_result", [user("1"), result(A)], [user("1"), user("Tool result:\nr")]),
    (
        "orphan_result",
        [user("1"), assistant("a"), result(A)],
        [user("1"), assistant("a"), user("Tool result:\nr")],
    ),
    (
        "surplus_result",
        [user("1"), assistant("", A), result(A, "first"), result(A, "second")],
        [user("1"), assistant("", A), result(A, "first")],
    ),
    (
        "missing_result",
        [user("1"), assistant("", A, B), result(B), user("2")],
        [user("1"), assistant("", A, B), result(B), result(A, NO_RESULT), user("2")],
    ),
    ("missing_result", [user("1"), assistant("", A)], [user("1"), assistant("", A), result(A, NO_RESULT)]),
    (
        "order",
        [user("1"), assistant("", A, B), result(A), user("2"), result(B)],
        [user("1"), assistant("", A, B), result(A), result(B), user("2")],
    ),
    ("start", [assistant("", A), result(A)], [user(NOT_SHOWN), assistant("", A), result(A)]),
    ("prefix", [user("1"), assistant("a", prefix=True), user("2")], [user("1"), assistant("a"), user("2")]),
    ("prefix", [user("1"), assistant("a")], [user("1"), assistant("a", prefix=True)]),
    ("prefix", [user("1"), assistant("a", prefix=False)], [user("1"), assistant("a", prefix=True)]),
]


@pytest.mark.parametrize(("what", "said", "expected"), REPAIRS)
def test_a_repair_is_made_and_reported(what, said, expected):
    out, context = translated(*said)
    assert out == expected
    assert [rewrite for rewrite in context.rewrites if rewrite.startswith("repair")] == [f"repair:messages.{what}"]
    assert in_order(out)


@pytest.mark.parametrize(("what", "said", "expected"), REPAIRS)
def test_no_repair_is_made_in_strict_mode(what, said, expected):
    with pytest.raises(BadRequest) as caught:
        translated(*said, strict=True)
    assert caught.value.param == "messages"


def test_an_orphan_result_in_parts_keeps_its_parts():
    parts = [{"type": "text", "text": "r"}]
    out, _ = translated(user("1"), {"role": "tool", "tool_call_id": A, "content": parts})
    assert out[1] == {"role": "user", "content": [{"type": "text", "text": "Tool result:\n"}, *parts]}


@pytest.mark.parametrize("said", [[], [assistant("")], [assistant("a")], [assistant("", A)], [assistant("a")] * 2])
def test_a_conversation_of_the_assistant_alone_asks_nothing(said):
    with pytest.raises(BadRequest) as caught:
        translated(*said)
    assert caught.value.param == "messages"


def test_the_last_words_of_the_assistant_are_noted_as_a_prefix():
    assert translated(user("1"), assistant("a"))[1].notes == {"prefix": "a"}
    parts = [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]
    assert translated(user("1"), assistant("", content=parts, reasoning="hm"))[1].notes == {"prefix": "ab"}


# Ids.


def call_ids(said: list[Json]) -> list[str]:
    return [call["id"] for message in said for call in message.get("tool_calls", ())]


def result_ids(said: list[Json]) -> list[str]:
    return [message["tool_call_id"] for message in said if message["role"] == "tool"]


def test_an_id_is_rewritten_alike_on_call_and_result_and_allowed_in_strict_mode():
    out, context = translated(user("1"), assistant("", "call_1", A), result(A), result("call_1"), strict=True)
    assert call_ids(out) == [short_id("call_1"), A]
    assert result_ids(out) == [A, short_id("call_1")]
    assert list(context.rewrites) == ["value:messages.tool_calls.id"]


@pytest.mark.parametrize("missing", [None, "", "null"])
def test_a_missing_id_is_made_from_the_place(missing):
    out, _ = translated(user("1"), assistant("", missing, missing), result(missing, "x"), result(missing, "y"))
    assert call_ids(out) == [short_id("1.0"), short_id("1.1")]
    assert result_ids(out) == call_ids(out)
    assert [message["content"] for message in out[2:]] == ["x", "y"]


def test_a_result_without_id_answers_the_first_call_that_waits():
    out, _ = translated(user("1"), assistant("", A, B), result(A), result(None))
    assert result_ids(out) == [A, B]


def test_equal_ids_of_one_message_are_told_apart_and_answered_in_order():
    out, context = translated(user("1"), assistant("", A, A), result(A, "x"), result(A, "y"))
    assert call_ids(out) == [A, short_id(f"{A}#1")]
    assert result_ids(out) == call_ids(out)
    assert "repair:messages.duplicate_id" in context.rewrites


def test_the_older_function_call_and_its_result_get_the_same_id():
    called = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    answered = {"role": "function", "name": "f", "content": "r"}
    out, _ = translated(user("1"), called, answered, called, answered, strict=True)
    assert call_ids(out) == result_ids(out) == [short_id("1.0"), short_id("3.0")]
    assert in_order(out)


# Properties.


def plain(said: list[Json]) -> list[Json]:
    """Without images and thoughts: what a model cannot take is not a matter of order."""
    return [{**message, "content": "x" if message["content"] else ""} for message in said]


@settings(deadline=None, max_examples=200)
@given(conversations)
def test_every_conversation_comes_into_order(said):
    out, _ = translated(*said)
    assert in_order(out)
    for name in ("ministral-3b-latest", "mistral-large-latest", "mistral-small-latest"):
        check_chat({"model": name, "messages": plain(out)}, BY_NAME[name])


@settings(deadline=None, max_examples=200)
@given(conversations)
def test_what_is_in_order_needs_no_repair(said):
    once, _ = translated(*said)
    again, context = translated(*once, strict=True)
    assert again == once
    assert not context.rewrites


@settings(deadline=None, max_examples=200)
@given(conversations, st.sampled_from([user("1"), result("call_1"), result(A)]), conversations)
def test_a_longer_conversation_repeats_the_shorter_one(said, last, more):
    part, context = translated(*said, last)
    # A result that is moved from the end, or left out there, leaves another last message.
    assume("repair:messages.order" not in context.rewrites)
    assume(part[-1]["role"] == last["role"])
    whole, _ = translated(*said, last, assistant("a"), *more)
    assert whole[: len(part)] == part


@settings(deadline=None, max_examples=200)
@given(conversations, st.data())
def test_ids_of_calls_do_not_depend_on_what_follows(said, data):
    shorter = said[: data.draw(st.integers(1, len(said)))]
    assume(any(message["role"] != "assistant" for message in shorter))
    part, _ = translated(*shorter)
    whole, _ = translated(*said)
    assert call_ids(whole)[: len(call_ids(part))] == call_ids(part)


def test_twenty_thousand_calls_are_no_attack():
    """Quadratic work here would take minutes."""
    ids = [f"call_{n % 3}" for n in range(20_000)]
    out, _ = translated(user("1"), assistant("", *ids), *[result(None if n % 2 else id) for n, id in enumerate(ids)])
    assert sorted(call_ids(out)) == sorted(result_ids(out))
