"""The official OpenAI SDK for Python cannot tell a hit from the miss that it repeats: every object is equal, every
chunk of a stream is. The simulator gives no two answers the same id, so equal objects are one answer.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from openai import OpenAI

from tests.conftest import Proxy, Simulator
from tests.sdk.test_python import MODEL, WEATHER, Person

Ask = Callable[[OpenAI, str], Any]


@pytest.fixture
def client(proxy: Proxy) -> Iterator[OpenAI]:
    with OpenAI(base_url=proxy.base_url, api_key=proxy.key, max_retries=0, timeout=20) as client:
        yield client


def said(text: str) -> Any:
    return [{"role": "user", "content": text}]


def chat(client: OpenAI, mark: str, **more: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=said(mark), temperature=0, **more)


def stream(client: OpenAI, mark: str, **more: Any) -> list[Any]:
    return list(chat(client, mark, stream=True, **more))


def helper(client: OpenAI, mark: str) -> Any:
    """The stream helper's events, and what it has put together at the end."""
    with client.chat.completions.stream(model=MODEL, messages=said(mark), temperature=0) as events:
        return [event.model_dump() for event in events], events.get_final_completion()


def image(client: OpenAI, mark: str) -> Any:
    pixel = "data:image/png;base64,iVBORw0KGgo="
    content = [{"type": "text", "text": mark}, {"type": "image_url", "image_url": {"url": pixel}}]
    messages: Any = [{"role": "user", "content": content}]
    return client.chat.completions.create(model=MODEL, messages=messages, temperature=0)


CASES: dict[str, Ask] = {
    "chat": chat,
    "several choices": lambda client, mark: chat(client, mark, n=3),
    "tools": lambda client, mark: chat(client, mark, tools=[WEATHER], tool_choice="required"),
    "structured": lambda client, mark: client.chat.completions.parse(
        model=MODEL, messages=said(mark), temperature=0, response_format=Person
    ),
    "image": image,
    "reasoning": lambda client, mark: client.chat.completions.create(
        model="mistral-large-4", messages=said(mark), temperature=0, reasoning_effort="high"
    ),
    "stream": stream,
    "stream with usage": lambda client, mark: stream(client, mark, stream_options={"include_usage": True}),
    "stream of tools": lambda client, mark: stream(client, mark, tools=[WEATHER], tool_choice="required"),
    "stream helper": helper,
    "embeddings": lambda client, mark: client.embeddings.create(model="mistral-embed", input=[mark, "another"]),
    "embeddings as numbers": lambda client, mark: client.embeddings.create(
        model="mistral-embed", input=mark, encoding_format="float"
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_h8_a_hit_is_the_miss_once_more(client: OpenAI, simulator: Simulator, name: str) -> None:
    mark = f"cached-{uuid.uuid4()}"
    first, second, third = (CASES[name](client, mark) for _ in range(3))
    assert first == second == third
    calls = [call for call in simulator.calls() if mark in str(call["body"])]
    assert len(calls) == 1


def test_h8_it_says_so_in_its_headers(client: OpenAI) -> None:
    mark = f"cached-{uuid.uuid4()}"
    raw = [
        client.chat.completions.with_raw_response.create(model=MODEL, messages=said(mark), temperature=0)
        for _ in range(2)
    ]
    assert [one.headers["x-proxy-cache"] for one in raw] == ["miss", "hit"]
    assert raw[0].headers["x-proxy-cache-key"] == raw[1].headers["x-proxy-cache-key"]
    assert raw[0].parse() == raw[1].parse()
