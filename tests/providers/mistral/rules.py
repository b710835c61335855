"""What Mistral accepts, written down a second time: the keys of its closed schemas and its rules of message order.

Sources: Mistral API description, ChatCompletionRequest, and mistral-common's validators (tokenizers 11 and 15). The
simulator has its own account of the same; the tests ask both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

LEAF = None


def keys(names: str, **nested: Any) -> dict[str, Any]:
    return dict.fromkeys(names.split()) | nested


def by(tag: str, shapes: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda value: shapes.get(value.get(tag, ""), {})


def in_list(shape: Any) -> Callable[[Any], Any]:
    """The shape of a list's items; a plain string in its place is a leaf."""
    return lambda value: [shape] if isinstance(value, list) else LEAF


def in_object(shape: Any) -> Callable[[Any], Any]:
    return lambda value: shape if isinstance(value, dict) else LEAF


TEXT = keys("type text")
REFERENCE = keys("type reference_ids")
TOOL_REFERENCE = keys("type tool title url favicon description")
THOUGHTS = by("type", {"text": TEXT, "reference": REFERENCE, "tool_reference": TOOL_REFERENCE})
THINKING = keys("type signature closed", thinking=[THOUGHTS])
SYSTEM_CHUNKS = {"text": TEXT, "thinking": THINKING}
CHUNKS = SYSTEM_CHUNKS | {
    "image_url": keys("type", image_url=in_object(keys("url detail"))),
    "document_url": keys("type document_url document_name"),
    "reference": REFERENCE,
    "file": keys("type file_id"),
    "input_audio": keys("type input_audio"),
}
CONTENT = in_list(by("type", CHUNKS))
CALL = keys("id type index", function=keys("name arguments"))
MESSAGES = {
    "system": keys("role", content=in_list(by("type", SYSTEM_CHUNKS))),
    "user": keys("role", content=CONTENT),
    "assistant": keys("role prefix", content=CONTENT, tool_calls=[CALL]),
    "tool": keys("role tool_call_id name", content=CONTENT),
}
CONFIGURATION = keys("include exclude requires_confirmation")
TOOLS = {
    "function": keys("type", function=keys("name description strict parameters")),
    "image_generation": keys("type", tool_configuration=CONFIGURATION),
    "document_library": keys("type library_ids", tool_configuration=CONFIGURATION),
    "connector": keys("type connector_id", authorization=keys("type value"), tool_configuration=CONFIGURATION),
}
BODY = keys(
    "model temperature top_p max_tokens min_tokens stream stop random_seed metadata presence_penalty frequency_penalty"
    " repetition_penalty top_k n logprobs top_logprobs parallel_tool_calls reasoning_effort guardrails"
    " prompt_cache_key service_tier safe_prompt",
    messages=[by("role", MESSAGES)],
    tools=[by("type", TOOLS)],
    tool_choice=in_object(keys("type", function=keys("name"))),
    response_format=keys("type", json_schema=keys("name description schema strict")),
    prediction=keys("type content"),
)


def foreign(value: Any, shape: Any = BODY, path: str = "") -> Iterator[str]:
    """The keys that Mistral would answer with 422 `extra_forbidden`, and every null."""
    if value is None:
        yield f"{path} is null"
    while callable(shape):
        shape = shape(value)
    if isinstance(shape, list):
        for i, item in enumerate(value):
            yield from foreign(item, shape[0], f"{path}[{i}]")
    elif isinstance(shape, dict):
        for key, item in value.items():
            if key in shape:
                yield from foreign(item, shape[key], f"{path}.{key}")
            else:
                yield f"{path}.{key}"


AFTER = {
    "system": {"user", "assistant", "system"},
    "user": {"assistant", "system", "user"},
    "assistant": {"assistant", "user", "tool"},
    "tool": {"assistant", "tool", "user"},
}
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")


def disorder(messages: list[dict[str, Any]], tokenizer: int) -> Iterator[str]:
    """Why mistral-common refuses the conversation, for models of that tokenizer version (11, 13 or 15)."""
    roles = [message["role"] for message in messages]
    if len(roles) < 2 and roles not in (["user"], ["system"]):
        yield f"a conversation of {roles}"
    elif roles[-1] == "assistant" and not messages[-1].get("prefix"):
        yield "the last message is the assistant's"
    elif roles[-1] == "system" and set(roles) != {"system"}:
        yield "the last message is a system message (reported from the API, not a rule of the library)"
    yield from (f"{after} after {before}" for before, after in pairwise(roles) if after not in AFTER[before])
    yield from unpaired(messages)
    for at, message in enumerate(messages):
        yield from flaws(message, tokenizer, at == len(messages) - 1)


def unpaired(messages: list[dict[str, Any]]) -> Iterator[str]:
    called: set[str] = set()
    answered: set[str] = set()
    # The library looks at no calls of the first message.
    for message in messages[1:]:
        if message["role"] == "tool":
            id = message["tool_call_id"]
            if id in answered or id not in called:
                yield f"unexpected result {id}"
            answered.add(id)
        elif message["role"] == "assistant":
            if called != answered:
                yield f"{called - answered} not answered"
            ids = [call["id"] for call in message.get("tool_calls", ())]
            called, answered = set(ids), set()
            if len(called) < len(ids):
                yield f"duplicate ids in {ids}"
    if called != answered:
        yield f"{called - answered} not answered"


def flaws(message: dict[str, Any], tokenizer: int, last: bool) -> Iterator[str]:
    if message["role"] == "assistant":
        if not message.get("content") and not message.get("tool_calls"):
            yield "an empty assistant message"
        if message.get("prefix") and not last:
            yield "a prefix that is not last"
        for call in message.get("tool_calls", ()):
            yield from flaws_of_id(call["id"], tokenizer)
            if not NAME.fullmatch(call["function"]["name"]):
                yield f"function name {call['function']['name']!r}"
    if message["role"] == "tool":
        yield from flaws_of_id(message["tool_call_id"], tokenizer)
        if not NAME.fullmatch(message.get("name", "none")):
            yield f"tool name {message['name']!r}"


def flaws_of_id(id: str, tokenizer: int) -> Iterator[str]:
    right = SHORT_ID.fullmatch(id) if tokenizer < 13 else id not in ("", "null")
    if not right:
        yield f"tool call id {id!r}"
