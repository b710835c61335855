from __future__ import annotations

from typing import Any

import pytest

from proxy.core.errors import InvalidType, UnsupportedParameter
from proxy.core.model import Model
from proxy.core.table import Context
from proxy.providers.openai.messages import messages

TEXT = {"type": "text", "text": "so"}
THINKING = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}], "closed": True}


def sent(*said: Any, strict: bool = False) -> tuple[list[Any], list[str]]:
    context = Context(Model("m"), {}, strict)
    return messages(list(said), context, "messages"), list(context.rewrites)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [TEXT, {"type": "image_url", "image_url": {"url": "u", "detail": "low"}}]},
        {"role": "developer", "content": "x", "name": None},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "call_1", "function": {"arguments": ""}}]},
        {"role": "assistant", "content": "x", "reasoning_content": "hm", "refusal": None, "audio": {"id": "a"}},
        {"role": "assistant", "content": [TEXT, {"type": "refusal", "refusal": "no"}]},
        {"role": "user", "content": [THINKING], "prefix": True},
        {"role": "x"},
        {},
        "text",
        None,
    ],
)
def test_what_is_not_mistrals_is_not_even_copied(message):
    said = [message, message]
    context = Context(Model("m"), {}, strict=True)
    assert messages(said, context, "messages") is said
    assert not context.rewrites


def test_the_prefix_is_left_out_and_reported():
    first, last = {"role": "user", "content": "x"}, {"role": "assistant", "content": "On", "prefix": True}
    out, rewrites = sent(first, last)
    assert out == [first, {"role": "assistant", "content": "On"}]
    assert out[0] is first
    assert last["prefix"] is True
    assert rewrites == ["drop:messages.prefix"]


def test_strict_mode_refuses_a_prefix():
    with pytest.raises(UnsupportedParameter) as caught:
        sent({"role": "assistant", "content": "On", "prefix": True}, strict=True)
    assert caught.value.param == "messages[0].prefix"


@pytest.mark.parametrize("nothing", [False, None])
def test_a_prefix_that_asks_for_nothing_is_left_out(nothing):
    out, rewrites = sent({"role": "assistant", "content": "On", "prefix": nothing}, strict=True)
    assert out == [{"role": "assistant", "content": "On"}]
    assert rewrites == []


@pytest.mark.parametrize(
    ("content", "left"), [([THINKING, TEXT], [TEXT]), ([TEXT, THINKING, TEXT], [TEXT, TEXT]), ([THINKING], "")]
)
def test_thoughts_are_left_out(content, left):
    out, rewrites = sent({"role": "assistant", "content": content, "reasoning_content": "hm"})
    assert out == [{"role": "assistant", "content": left, "reasoning_content": "hm"}]
    assert rewrites == ["drop:messages.content.thinking"]
    assert content.count(THINKING) == 1


@pytest.mark.parametrize("wrong", ["x", {}, 5])
def test_messages_are_an_array(wrong):
    with pytest.raises(InvalidType):
        messages(wrong, Context(Model("m"), {}), "messages")
