from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.context_window import ANSWER, LEAST, _tokens, fit
from proxy.core.prompt import measure

Message = dict[str, Any]
SYSTEM = {"role": "system", "content": "s" * 35}  # 10 + 4 tokens


def said(role: str, tokens: int = 100) -> Message:
    return {"role": role, "content": "x" * (7 * (tokens - 4) // 2)}


def call(*ids: str) -> Message:
    calls = [{"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}} for id in ids]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def result(id: str, tokens: int = 100) -> Message:
    return {"role": "tool", "tool_call_id": id, "content": "x" * (7 * (tokens - 4) // 2)}


def kept(messages: list[Message], room: int, **fields: Any) -> list[Message]:
    """What stays of them where so many tokens are there besides those of the answer."""
    found = fit({"messages": messages} | fields, room + ANSWER)
    if found is None:
        return messages
    stays, gone = found
    assert len(stays) + gone == len(messages)
    return stays


def test_a_message_has_so_many_tokens() -> None:
    assert _tokens({"role": "user", "content": ""}) == 4
    assert _tokens({"role": "user", "content": "abcd"}) == 4 + 2
    assert _tokens({"role": "user", "content": "abcdefg"}) == 4 + 2
    assert _tokens({"role": "user", "content": [{"type": "text", "text": "abcdefgh"}]}) == 4 + 3
    assert _tokens(said("user")) == 100
    assert _tokens({"role": "user", "content": [{"type": "image_url", "image_url": "data:" + "x" * 10**6}]}) < 10_000
    assert _tokens(call("a")) > 20


def test_what_fits_stays_as_it_is() -> None:
    assert fit({"messages": [SYSTEM, said("user"), said("assistant"), said("user")]}, 314 + ANSWER) is None


def test_the_newest_stay_and_what_the_system_says() -> None:
    spoken = [said("user" if n % 2 == 0 else "assistant") for n in range(9)]
    messages = [SYSTEM, *spoken, {**SYSTEM, "role": "developer"}]
    assert kept(messages, 427) == [messages[0], *messages[7:]]
    assert kept(messages, 428) == [messages[0], *messages[6:]]
    assert kept(messages, 528) == [messages[0], *messages[5:]]


def test_a_gap_is_never_left() -> None:
    messages = [said("user", 10), said("assistant", 500), said("user", 50), said("assistant", 50)]
    assert kept(messages, 200) == messages[2:]


def test_a_call_and_its_results_stay_or_go_together() -> None:
    messages = [said("user"), call("a", "b"), result("a"), result("b"), said("assistant"), said("user")]
    assert kept(messages, 420) == messages[4:]
    whole = sum(map(_tokens, messages[1:]))
    assert kept(messages, whole - 1) == messages[4:]
    assert kept(messages, whole) == messages[1:]


def test_a_result_that_comes_late_belongs_to_its_call() -> None:
    messages = [call("a"), said("user"), call("b"), result("b"), result("a"), said("user")]
    late = 100 + _tokens(messages[0]) + 100
    assert kept(messages, late) == [messages[0], messages[4], messages[5]]
    assert kept(messages, late - 1) == [messages[0], messages[4], messages[5]]  # two are the least, and it is one thing
    assert kept(messages, 2 * late) == [messages[0], *messages[2:]]


def test_a_result_without_an_id_belongs_to_the_latest_call() -> None:
    called = {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}
    messages = [said("user"), called, {"role": "function", "name": "f", "content": "r"}, said("user")]
    assert kept(messages, 100 + _tokens(called) + _tokens(messages[2])) == messages[1:]
    assert kept(messages, 100) == messages[1:]  # two messages are the least, and this one does not come alone


def test_two_stay_whatever_their_size() -> None:
    messages = [SYSTEM, said("user"), said("assistant", 9_000), said("user", 9_000)]
    assert kept(messages, 10) == [SYSTEM, *messages[2:]]
    assert fit({"messages": messages[2:]}, 10) is None


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_answer_has_its_room(name: str) -> None:
    messages = [said("user") for _ in range(10)]
    found = fit({"messages": messages, name: 200}, 700)
    assert found
    assert len(found[0]) == 5
    assert fit({"messages": messages, name: 200}, 1_200) is None
    assert fit({"messages": messages}, 2_000, 1_000) is None
    found = fit({"messages": messages}, 2_000, 1_001)
    assert found
    assert found[1] == 1


def test_tools_take_room_too() -> None:
    messages = [said("user") for _ in range(10)]
    assert len(kept(messages, 1_000, tools=[{"x": "y" * 343}])) == 8


def test_what_the_newest_message_belongs_to_is_the_newest() -> None:
    messages = [call("a"), *(said("user") for _ in range(6)), result("a")]
    assert kept(messages, sum(_tokens(messages[n]) for n in (0, 6, 7))) == [messages[0], *messages[-2:]]


@pytest.mark.parametrize("text", ["7" * 8_000, "長" * 4_000, "word " * 1_600])
def test_dense_text_is_as_large_as_it_counts_against_limits(text: str) -> None:
    message = {"role": "user", "content": text}
    assert _tokens(message) >= measure({"messages": [message]}, None).tokens - 8


@pytest.mark.parametrize("role", [None, 7, ["x"], {"x": "y"}, ""])
def test_a_role_that_is_none(role: Any) -> None:
    messages = [{"role": role, "content": "x" * 700} for _ in range(9)]
    assert len(kept(messages, 450)) == 2


@pytest.mark.parametrize(
    "messages", [None, "x", {}, [], ["x"], [None], [{"role": "user", "content": "x" * 99_999}, 7], [[]], 5]
)
def test_what_has_no_such_shape_is_left_to_those_who_say_so(messages: Any) -> None:
    assert fit({"messages": messages}, 100) is None


IDS = st.sampled_from(["a", "b", "c"])
ANY = st.one_of(
    st.builds(said, st.sampled_from(["user", "assistant", "system", "developer", "odd"]), st.integers(4, 300)),
    st.builds(lambda ids: call(*ids), st.lists(IDS, min_size=1, max_size=2)),
    st.builds(result, IDS, st.integers(4, 300)),
    st.fixed_dictionaries({}, optional={"role": st.none(), "content": st.integers(), "tool_calls": st.just([7])}),
)


@given(st.lists(ANY, max_size=30), st.integers(0, 4_000))
def test_whatever_is_said(messages: list[Message], room: int) -> None:
    """In order, never more than there is room for but what always stays, and never half of a call."""
    for n, message in enumerate(messages):
        message["n"] = n
    stays = kept(messages, room)
    places = [message["n"] for message in stays]
    assert places == sorted(places)
    always = [message for message in messages if message.get("role") in ("system", "developer")]
    assert all(message in stays for message in always)
    others = [message for message in stays if message not in always]
    assert len(others) >= min(LEAST, len(messages) - len(always))
    if len(stays) == len(messages):
        return
    calls = {call["id"]: at for at, one in enumerate(messages) for call in one.get("tool_calls") or [] if call != 7}
    for at, message in enumerate(messages):
        before = calls.get(message.get("tool_call_id"))
        latest = max((at for at in calls.values()), default=None)
        if message.get("role") == "tool" and before is not None and before < at and before == latest:
            assert (at in places) is (before in places)
    assert kept(stays, room) == stays  # once is enough
