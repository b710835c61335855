from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.providers.mistral import mending
from proxy.providers.mistral.refused import Issue, Refused
from tests.providers.mistral.rules import foreign

CALL = {"id": "abcDEF123", "type": "function", "function": {"name": "f", "arguments": "{}"}}
THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
TEXT = {"type": "text", "text": "yes"}


def refused(*locs: tuple[str | int, ...], kind: str = "extra_forbidden") -> Refused:
    issues = tuple(Issue(kind, loc, "") for loc in locs)
    return Refused(422, lambda name: None, None, None, "", issues, None)


def chat(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages), **more}


def user(content: Any = "hi", **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def assistant(content: Any = "yes", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


TOOL = {"role": "tool", "content": "42", "tool_call_id": "abcDEF123"}


@pytest.mark.parametrize(
    ("locs", "body", "mended"),
    [
        ([("store",)], chat(store=True), chat()),
        ([("messages", 1, "user", "name")], chat(user(), user(name="bob")), chat(user(), user())),
        ([("messages", 0, "name")], chat(user(name="bob")), chat(user())),
        (
            [("messages", 0, "user", "content", "list[tagged-union[…]]", 0, "text", "cache_control")],
            chat(user([{**TEXT, "cache_control": {}}])),
            chat(user([TEXT])),
        ),
        (  # the branch of the union is also a key: first it is taken for the key, then skipped
            [("messages", 0, "user", "content", "list[…]", 0, "image_url", "extra")],
            chat(user([{"type": "image_url", "image_url": {"url": "u"}, "extra": 1}])),
            chat(user([{"type": "image_url", "image_url": {"url": "u"}}])),
        ),
        (
            [("messages", 0, "user", "content", "list[…]", 0, "image_url", "image_url", "detail")],
            chat(user([{"type": "image_url", "image_url": {"url": "u", "detail": "original"}}])),
            chat(user([{"type": "image_url", "image_url": {"url": "u"}}])),
        ),
        ([("store",), ("user",), ("gone",)], chat(store=True, user="u"), chat()),
        (
            [("messages", 0, "name"), ("messages", 1, "name")],
            chat(user(name="a"), user(name="b")),
            chat(user(), user()),
        ),
        ([("gone",)], chat(), None),
        ([("messages", 5, "name")], chat(user()), None),
        ([("messages", 0)], chat(user()), None),
        ([()], chat(), None),
        ([], chat(), None),
    ],
)
def test_unknown_keys_are_taken_out(locs, body, mended):
    assert mending.without_unknown_keys(refused(*locs), body) == mended


def test_other_problems_take_nothing_out():
    assert mending.without_unknown_keys(refused(("store",), kind="missing"), chat(store=True)) is None


def test_reasoning_effort_is_taken_out():
    assert mending.without_effort(refused(), chat(reasoning_effort="low")) == chat()
    assert mending.without_effort(refused(), chat()) is None


def test_greedy_sampling_gets_the_top_p_it_needs():
    assert mending.with_full_top_p(refused(), chat(temperature=0)) == chat(temperature=0, top_p=1)
    assert mending.with_full_top_p(refused(), chat(top_p=0.5)) == chat(top_p=1)
    assert mending.with_full_top_p(refused(), chat(top_p=1.0)) is None


@pytest.mark.parametrize(
    ("messages", "left"),
    [
        ([assistant([THOUGHT, TEXT])], [assistant([TEXT])]),
        ([user(), assistant([THOUGHT]), user()], [user(), user()]),
        ([assistant([THOUGHT], tool_calls=[CALL])], [assistant("", tool_calls=[CALL])]),
        ([assistant([THOUGHT]), assistant("")], [assistant("")]),
        ([{"role": "system", "content": [THOUGHT]}], [{"role": "system", "content": ""}]),
        ([user([TEXT]), assistant("yes"), assistant(None, tool_calls=[CALL])], None),
    ],
)
def test_thinking_is_taken_out(messages, left):
    mended = mending.without_thinking(refused(), chat(*messages))
    assert mended == (None if left is None else chat(*left))


def test_calls_stand_alone():
    mended = mending.with_calls_alone(
        refused(), chat(assistant("let me see", tool_calls=[CALL]), assistant("yes"), user("hi"))
    )
    assert mended == chat(assistant("", tool_calls=[CALL]), assistant("yes"), user("hi"))
    assert mending.with_calls_alone(refused(), chat(assistant("", tool_calls=[CALL]))) is None


def test_an_assistant_speaks_between_a_tool_and_the_user():
    mended = mending.with_bridges(refused(), chat(TOOL, TOOL, user(), user(), TOOL, user()))
    ok = assistant("OK")
    assert mended == chat(TOOL, TOOL, ok, user(), user(), TOOL, ok, user())
    assert mending.with_bridges(refused(), chat(TOOL, assistant(), user())) is None


def test_a_body_without_messages_has_none_to_mend():
    for mend in (mending.with_bridges, mending.with_calls_alone, mending.without_thinking):
        assert mend(refused(), {"model": "m", "input": "x"}) is None


CONTENTS = st.text(max_size=5) | st.lists(st.sampled_from([THOUGHT, TEXT]), max_size=3)
MESSAGES = st.lists(
    st.builds(user, st.text(max_size=5) | st.just([TEXT]))
    | st.builds(assistant, CONTENTS)
    | st.builds(assistant, CONTENTS, tool_calls=st.just([CALL]))
    | st.just(TOOL),
    max_size=6,
)
BODIES = st.builds(
    lambda messages, more: chat(*deepcopy(messages), **more),
    MESSAGES,
    st.fixed_dictionaries(
        {}, optional={"top_p": st.floats(0.1, 1), "reasoning_effort": st.just("high"), "temperature": st.just(0)}
    ),
)
STEPS = st.sampled_from(["messages", "content", "user", "assistant", "tool_calls", "function", "name", "type", "text"])
LOCS = st.lists(STEPS | st.integers(-1, 3), max_size=6).map(tuple)
REPAIRS = (
    mending.with_bridges,
    mending.with_calls_alone,
    mending.with_full_top_p,
    mending.without_effort,
    mending.without_thinking,
)


@pytest.mark.parametrize("name", sorted(mending.KEPT))
def test_what_bounds_the_cost_stays(name):
    assert mending.without_unknown_keys(refused(("body", name)), chat(**{name: 3})) is None
    assert mending.without_unknown_keys(refused(("body", name), ("body", "x")), chat(**{name: 3}, x=1)) == chat(
        **{name: 3}
    )


@given(st.sampled_from([*REPAIRS, mending.without_unknown_keys]), st.lists(LOCS, max_size=3), BODIES)
def test_what_was_refused_is_never_changed_and_nothing_foreign_comes_in(mend, locs, body):
    before = deepcopy(body)
    mended = mend(refused(*locs), body)
    assert body == before
    if mended is not None:
        assert mended != before
        assert list(foreign(mended)) == []


@given(st.sampled_from(REPAIRS), BODIES)
def test_a_repair_leaves_nothing_to_repair(mend, body):
    mended = mend(refused(), body)
    assert mend(refused(), body if mended is None else mended) is None
