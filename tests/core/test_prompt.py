"""Estimates and bounds of prompts, against what translation makes of the same bodies."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.errors import ProxyError
from proxy.core.model import Model
from proxy.core.prompt import (
    DOCUMENT,
    IMAGE,
    MARKS,
    MOST_ADDED,
    MOST_IMAGE,
    MOST_IMAGE_ELSEWHERE,
    MOST_MARKS,
    UNKNOWN_CONTEXT,
    Prompt,
    measure,
)
from proxy.core.table import Context
from proxy.providers.mistral.chat import CHAT_REQUEST
from tests.providers.mistral.bodies import ELSE, OPTIONAL, any_json, conversations, damaged, fields, models

SAFE_PROMPT = 192  # bytes


def asks(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages)} | more


def says(content: Any, role: str = "user", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content} | more


# The estimate


@pytest.mark.parametrize(
    ("content", "size", "tokens"),
    [("", 0, 0), ("a" * 4, 4, 1), ("a" * 5, 5, 2), ("é", 2, 1), ("🌍" * 3, 12, 6), ([], 0, 0), (None, 0, 0), (5, 1, 1),
     ("7" * 9, 9, 9), ("ab 12", 5, 3)],
)  # fmt: skip
def test_four_bytes_are_a_token_and_so_is_a_digit_at_most_each_byte(content: Any, size: int, tokens: int) -> None:
    expected = Prompt(tokens + 2 * MARKS, size + MOST_MARKS + MOST_ADDED)
    assert measure(asks(says(content)), None) == expected
    assert measure(asks(says(content, name=None)), None) == expected  # not by the short way


def test_parts_of_text_are_text() -> None:
    parts = [{"type": "text", "text": "abcd"}, {"type": "text", "text": "efgh"}]
    whole = measure(asks({"content": "abcdefgh"}), None)
    assert measure(asks({"content": parts}), None).tokens == whole.tokens + 2 * MARKS


def test_a_definition_counts_as_the_json_it_is() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    none, one = measure(asks(), None), measure(asks(tools=[tool]), None)
    size = len(json.dumps(tool, separators=(",", ":"))) + 2
    assert one.tokens - none.tokens == -(-size // 4) + MARKS
    assert one.most - none.most == 2 * size + MOST_MARKS


@pytest.mark.parametrize("name", ["tools", "functions", "response_format", "prediction"])
def test_what_is_not_there_costs_nothing(name: str) -> None:
    assert measure(asks(**{name: None}), None) == measure(asks(), None)


IMAGES = [
    {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}},
    {"type": "image_url", "image_url": "https://example.com/a.png"},
]


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_counts_as_one_whatever_its_size(image: Any) -> None:
    none, one = measure(asks(says([])), None), measure(asks(says([image])), None)
    assert one.tokens - none.tokens == IMAGE + MARKS
    assert one.most - none.most == MOST_IMAGE + MOST_MARKS


@pytest.mark.parametrize(
    ("sound", "seconds"),
    [
        ({"data": "", "format": "wav"}, 30),
        ({"data": "A" * 64_000}, 40),
        ("A" * 64_000, 40),
        ("https://example.com/a.mp3", 30),
        ({"data": 5}, 30),
    ],
)
def test_sound_counts_by_its_size_and_at_most_by_what_the_model_can_hear(sound: Any, seconds: int) -> None:
    found = measure(asks(says([{"type": "input_audio", "input_audio": sound}])), 32_768)
    assert (found.seconds, found.tokens) == (seconds, seconds * 25 // 2 + 3 * MARKS)
    assert (found.most, found.most_seconds) == (32_768, 2622)


@pytest.mark.parametrize(
    ("part", "size"),
    [
        ({"type": "document_url", "document_url": "https://example.com/a.pdf"}, 0),
        ({"type": "document_url", "document_url": "A" * 3_200}, 100),
        ({"type": "file", "file": {"file_data": "A" * 3_200}}, 100),
        ({"type": "file", "file": {"file_id": "x"}}, 0),
        ({"type": "file", "file_id": "x"}, 0),
    ],
)
def test_nothing_but_the_context_bounds_a_document(part: Any, size: int) -> None:
    found = measure(asks(says([part])), 100_000)
    assert found == Prompt(DOCUMENT + size + 3 * MARKS, 100_000)
    assert measure(asks(says([part])), None).most == UNKNOWN_CONTEXT


def test_a_prompt_is_not_longer_than_the_context() -> None:
    assert measure(asks(says("a" * 100_000)), 8192) == Prompt(8192, 8192)
    assert measure(asks(says([{"type": "input_audio", "input_audio": "A" * 10**7}])), 100) == Prompt(100, 100, 9, 9)


def test_texts_to_embed_have_a_context_each() -> None:
    text = "a" * 20_000
    assert measure({"input": text}, 8192).most == 8192
    assert measure({"input": [text] * 10}, 8192).most == 81_920
    assert measure({"input": ["abcd", "efgh"]}, None) == Prompt(2 + 3 * MARKS, 8 + 2 * MOST_MARKS + MOST_ADDED)


@pytest.mark.parametrize("tokens", [[7] * 500, [[7] * 500], [[7] * 250, [9] * 250]])
def test_tokens_to_embed_are_counted_one_by_one(tokens: Any) -> None:
    found = measure({"input": tokens}, None)
    assert found.tokens >= 500
    assert found.most >= 500 + MOST_ADDED


@pytest.mark.parametrize("name", ["documents", "chat_template", "web_search_options", "no_one_knows"])
def test_what_is_not_known_to_be_harmless_counts(name: str) -> None:
    """A provider whose table is open gets it, and may make a prompt of it."""
    bare = measure(asks(says("a")), None)
    found = measure(asks(says("a"), **{name: ["b" * 1000]}), None)
    assert found.most >= bare.most + 1000
    assert found.tokens >= bare.tokens + 250


def test_what_is_at_an_address_may_be_as_much_as_the_model_takes() -> None:
    video = asks(says([{"type": "video_url", "video_url": {"url": "https://x/a.mp4"}}]))
    assert measure(video, 128_000).most == 128_000
    assert measure(asks(says([{"type": "thinking", "thinking": "hm"}])), 128_000).most < 1_000


def test_another_provider_may_make_more_of_an_image() -> None:
    image = asks(says([{"type": "image_url", "image_url": "https://x/a.png"}]))
    here, elsewhere = measure(image, None), measure(image, None, MOST_IMAGE_ELSEWHERE)
    assert elsewhere.most - here.most == MOST_IMAGE_ELSEWHERE - MOST_IMAGE


# The bound


def spelled(value: Any) -> int:
    """Bytes of JSON as Python writes it."""
    return len(json.dumps(value, ensure_ascii=False).encode())


def rendered(message: dict[str, Any]) -> int:
    """Bytes of a message as it is put before a model; its images and files are counted apart."""
    content = message.get("content") or ""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    size = sum(len(part["text"].encode()) for part in parts if part["type"] == "text")
    size += sum(spelled(part["thinking"]) for part in parts if part["type"] == "thinking")
    for call in message.get("tool_calls", ()):
        text = call["function"]["arguments"]
        size += len(call["function"]["name"]) + len(call["id"]) + spelled(json.loads(text) if text else {})
    return size + len(message.get("tool_call_id", "") + message.get("name", ""))


@given(fields({"model": st.just("m"), "messages": conversations}, OPTIONAL | ELSE), models)
def test_translation_makes_no_more_of_a_prompt_than_its_bound(body: dict[str, Any], model: Model) -> None:
    try:
        sent = CHAT_REQUEST.translate(body, Context(model, body, notes={"model": "m"}))
    except ProxyError:
        return
    bound = measure(body, None)
    assert bound.tokens <= bound.most
    forms = [sent[name] for name in ("tools", "response_format", "prediction") if name in sent]
    size = sum(map(rendered, sent["messages"])) + sum(map(spelled, forms)) + SAFE_PROMPT
    # A message has at most four marks of its own: where it begins and ends, and the same for what is in it.
    assert size + 4 * len(sent["messages"]) <= bound.most


def test_arguments_that_grow_when_they_are_written_again() -> None:
    text = f"[{','.join(['1e15'] * 1000)}]"
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": text}}
    grown = spelled(json.loads(text))
    assert grown > 3 * len(text)
    assert measure(asks(says(None, "assistant", tool_calls=[call])), None).most > grown


# Bodies of any shape


@given(damaged() | st.fixed_dictionaries({}, optional={"messages": any_json, "input": any_json, "tools": any_json}))
def test_no_body_is_too_odd_to_be_measured(body: dict[str, Any]) -> None:
    for context in (None, 1, 8192):
        found = measure(body, context)
        assert 0 <= found.tokens <= found.most
        assert 0 <= found.seconds <= found.most_seconds


@pytest.mark.parametrize("number", [2**64 - 1, -(2**64) + 1, 1e308])
def test_the_largest_numbers_can_be_measured(number: float) -> None:
    assert measure(asks(tools=[number]), None).tokens > 0


@given(st.text(max_size=50), st.text(max_size=50))
def test_more_text_is_not_a_smaller_prompt(text: str, more: str) -> None:
    short, long = measure(asks(says(text)), None), measure(asks(says(text + more)), None)
    assert short.tokens <= long.tokens
    assert short.most <= long.most
