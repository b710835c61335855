"""Mistral's own client is content with the simulator."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from mistralai.client import Mistral
from mistralai.client.errors import HTTPValidationError, SDKError
from mistralai.client.models import BaseModelCard

from proxy.simulator.server import RunningServer

from .conftest import tool

USER: list[Any] = [{"role": "user", "content": "Hello there"}]


@pytest.fixture
async def mistral(sim: RunningServer) -> AsyncIterator[Mistral]:
    async with Mistral(api_key="sk-sim", server_url=sim.url) as client:
        yield client


async def test_chat(mistral: Mistral) -> None:
    answer = await mistral.chat.complete_async(model="mistral-small-latest", messages=USER)
    assert answer.choices[0].message is not None
    assert answer.choices[0].message.content == "You said: Hello there"
    assert answer.usage.total_tokens == 7


async def test_tools(mistral: Mistral) -> None:
    tools: list[Any] = [tool("weather", city={"type": "string"})]
    answer = await mistral.chat.complete_async(model="ministral-3b-latest", messages=USER, tools=tools)
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message is not None
    calls = answer.choices[0].message.tool_calls
    assert calls
    assert (calls[0].function.name, calls[0].function.arguments) == ("weather", '{"city":"city"}')


@pytest.mark.parametrize("model", ["mistral-small-latest", "mistral-large-4", "zai-glm-5-3"])
async def test_streams_of_every_dialect(mistral: Mistral, model: str) -> None:
    stream = await mistral.chat.stream_async(model=model, messages=USER, reasoning_effort="high")
    text, thoughts, finish = "", "", None
    async for event in stream:
        choice = event.data.choices[0]
        finish = choice.finish_reason or finish
        parts = choice.delta.content or []
        for part in [parts] if isinstance(parts, str) else parts:
            if isinstance(part, str):
                text += part
            elif part.type == "text":
                text += part.text
            elif part.type == "thinking":
                thoughts += "".join(inner.text for inner in part.thinking if inner.type == "text")
    assert (text, finish) == ("You said: Hello there", "stop")
    assert thoughts.startswith("The user wants")


async def test_embeddings(mistral: Mistral) -> None:
    answer = await mistral.embeddings.create_async(model="codestral-embed", inputs=["a", "b"], output_dimension=8)
    assert [len(row.embedding or []) for row in answer.data] == [8, 8]


async def test_models(mistral: Mistral) -> None:
    listed = await mistral.models.list_async()
    card = await mistral.models.retrieve_async(model_id="codestral-latest")
    rows = [row for row in listed.data or [] if isinstance(row, BaseModelCard)]
    assert "mistral-large-latest" in {row.id for row in rows}
    assert isinstance(card, BaseModelCard)
    assert card.name == "codestral-2508"


async def test_errors(mistral: Mistral) -> None:
    with pytest.raises(HTTPValidationError, match="less_than_equal"):
        await mistral.chat.complete_async(model="mistral-small-latest", messages=USER, temperature=2)
    with pytest.raises(SDKError, match="1500"):
        await mistral.chat.complete_async(model="mistral-unknown", messages=USER)
