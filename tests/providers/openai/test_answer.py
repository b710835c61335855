from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from proxy.core import json
from proxy.core.errors import UpstreamFailed, render
from proxy.core.model import Model
from proxy.core.table import Context
from proxy.providers.openai.answer import chat_answer
from tests.providers.openai.test_chat import JSON

# As api.openai.com answers (gpt-4o-mini).
USAGE: dict[str, Any] = {
    "prompt_tokens": 19,
    "completion_tokens": 10,
    "total_tokens": 29,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {
        **{"reasoning_tokens": 0, "audio_tokens": 0},
        **{"accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0},
    },
}
CHOICE: dict[str, Any] = {
    "index": 0,
    "message": {"role": "assistant", "content": "Hello!", "refusal": None, "annotations": []},
    "logprobs": None,
    "finish_reason": "stop",
}
ANSWER: dict[str, Any] = {
    "id": "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT",
    "object": "chat.completion",
    "created": 1741569952,
    "model": "gpt-4o-mini-2024-07-18",
    "choices": [CHOICE],
    "usage": USAGE,
    "service_tier": "default",
    "system_fingerprint": "fp_06737a9306",
}


def answered(answer: Any) -> Any:
    return chat_answer(answer, Context(Model("m"), {}))


@pytest.mark.parametrize(
    "answer",
    [
        ANSWER,
        {"choices": [{}]},
        ANSWER | {"error": None, "choices": [CHOICE | {"finish_reason": "eos", "native_finish_reason": "x"}]},
        ANSWER | {"usage": {"prompt_tokens": 1, "completion_tokens": 2}},
        ANSWER | {"usage": USAGE | {"prompt_tokens_details": None, "cost": 0.00014}},
        ANSWER | {"usage": USAGE | {"completion_tokens_details": {"reasoning_tokens": None}}},
    ],
)
def test_an_answer_passes_as_it_is(answer):
    assert answered(answer) is answer


@pytest.mark.parametrize(
    "usage",
    [
        None,
        "x",
        {},
        {"prompt_tokens": 1},
        USAGE | {"completion_tokens": None},
        USAGE | {"prompt_tokens": -1},
        USAGE | {"prompt_tokens": 1.0},
        USAGE | {"prompt_tokens": True},
        USAGE | {"completion_tokens": 10**9 + 1},
        USAGE | {"total_tokens": "29"},
    ],
)
def test_usage_that_cannot_be_believed_is_left_out(usage):
    answer = ANSWER | {"usage": usage}
    assert answered(answer) == {key: value for key, value in ANSWER.items() if key != "usage"}
    assert answer["usage"] == usage


@pytest.mark.parametrize("name", ["prompt_tokens_details", "completion_tokens_details"])
@pytest.mark.parametrize("details", ["x", {"cached_tokens": -1}, {"reasoning_tokens": "many"}])
def test_details_that_are_no_counts_are_left_out(name, details):
    expected = {key: value for key, value in USAGE.items() if key != name}
    assert answered(ANSWER | {"usage": USAGE | {name: details}})["usage"] == expected


@pytest.mark.parametrize("answer", [None, "x", [], 5, {}, {"choices": None}, {"choices": []}, {"choices": [None]}])
def test_an_answer_without_choices_is_none(answer):
    with pytest.raises(UpstreamFailed) as caught:
        answered(answer)
    assert caught.value.message == "The upstream sent something that is not a chat completion."
    assert caught.value.billed


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"error": {"message": "SECRET", "code": 502, "metadata": {"raw": "SECRET"}}}, "502"),
        ({"object": "error", "message": "SECRET", "code": 400}, "400"),
        ({"error": {"message": "SECRET", "code": "server_error"}, "choices": [CHOICE]}, "server_error"),
        ({"error": {"message": "SECRET", "code": "SECRET text"}}, None),
        ({"error": "SECRET"}, None),
    ],
)
def test_an_error_with_status_200_is_one_and_costs_nothing(body, code):
    with pytest.raises(UpstreamFailed) as caught:
        answered(body)
    assert not caught.value.billed
    assert caught.value.detail == ({"upstream": {"provider": "openai", "code": code}} if code else {})
    assert b"SECRET" not in render(caught.value)


@given(JSON)
def test_whatever_comes_is_an_answer_or_an_error(body):
    for answer in (body, {"choices": body}, ANSWER | {"usage": body}, {"choices": [CHOICE], "error": body}):
        try:
            assert answered(answer)["choices"]
        except UpstreamFailed as error:
            assert json.decode(render(error))["error"]["code"] == "upstream_error"


@pytest.mark.parametrize(
    ("reason", "is_one"),
    [("stop", True), ("length", True), ("tool_calls", True), ("content_filter", False), ("error", False),
     ("eos", False), (None, False), ([], False)],
)  # fmt: skip
def test_an_answer_that_ended_otherwise_is_not_what_the_next_one_need_be(reason, is_one):
    context = Context(Model("m"), {"n": 2})
    chat_answer(ANSWER | {"choices": [CHOICE, CHOICE | {"index": 1, "finish_reason": reason}]}, context)
    assert context.spoiled is not is_one


@pytest.mark.parametrize(
    "choices",
    [[CHOICE], [CHOICE] * 3, [CHOICE] * 2,
     [CHOICE, CHOICE | {"message": None}], [CHOICE, {"index": 1, "finish_reason": "stop"}],
     [CHOICE, CHOICE | {"error": {"message": "no"}}]],
)  # fmt: skip
def test_an_answer_that_has_not_all_that_was_asked_for_is_not_kept(choices):
    context = Context(Model("m"), {"n": 2})
    chat_answer(ANSWER | {"choices": choices}, context)
    assert context.spoiled
