"""The frames of a streamed answer, in the three dialects."""

from typing import Any

import msgspec
import pytest

from .conftest import Ask, chunks, deltas, tool

TOOLS = [tool("weather", city={"type": "string"}), tool("clock", zone={"type": "string"})]


async def streamed(ask: Ask, **fields: Any) -> str:
    answer = await ask(stream=True, **fields)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    return answer.text


async def test_text(ask: Ask) -> None:
    first, *middle, last = chunks(await streamed(ask))
    assert first["choices"] == [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]
    assert [chunk["choices"][0]["delta"] for chunk in middle] == [
        {"content": "You"},
        {"content": " said:"},
        {"content": " Hello"},
        {"content": " there"},
    ]
    assert last["choices"] == [{"index": 0, "delta": {"content": ""}, "finish_reason": "stop"}]
    assert last["usage"]["total_tokens"] == 7
    assert "p" not in first
    assert all(1 <= len(chunk["p"]) <= 36 for chunk in [*middle, last])
    assert len({chunk["p"] for chunk in [*middle, last]}) > 1
    for chunk in (first, *middle):
        assert "usage" not in chunk
        assert (chunk["object"], chunk["model"]) == ("chat.completion.chunk", "mistral-small-latest")
        assert (chunk["id"], chunk["created"]) == (first["id"], 1_795_000_000)


async def test_a_stream_says_what_the_whole_answer_says(ask: Ask) -> None:
    fields: dict[str, Any] = {"messages": [{"role": "user", "content": "  Ünïcode\n and 🌍 spaces  "}]}
    whole = (await ask(**fields)).json()
    parts = chunks(await streamed(ask, **fields))
    assert (
        "".join(part["choices"][0]["delta"]["content"] for part in parts) == whole["choices"][0]["message"]["content"]
    )
    assert parts[-1]["usage"] == whole["usage"]


async def test_tool_calls_come_whole_in_one_chunk(ask: Ask) -> None:
    messages = [{"role": "user", "content": "Use all."}]
    _, last = chunks(await streamed(ask, tools=TOOLS, messages=messages))
    assert last["choices"][0]["finish_reason"] == "tool_calls"
    assert "usage" in last
    calls = last["choices"][0]["delta"]["tool_calls"]
    assert [(call["index"], call["function"]["name"]) for call in calls] == [(0, "weather"), (1, "clock")]
    assert all(msgspec.json.decode(call["function"]["arguments"]) for call in calls)


async def test_choices_take_turns_and_usage_comes_once(ask: Ask) -> None:
    parts = chunks(await streamed(ask, n=2))
    told = {0: "", 1: ""}
    for part in parts:
        told[part["choices"][0]["index"]] += part["choices"][0]["delta"]["content"]
    assert told == {0: "You said: Hello there", 1: "You said (2): Hello there"}
    assert [part["choices"][0]["index"] for part in parts[:4]] == [0, 1, 0, 1]
    assert sum(part["choices"][0]["finish_reason"] == "stop" for part in parts) == 2
    assert [part for part in parts if "usage" in part] == parts[-1:]


def thinking(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    chunks = [delta["content"][0] for delta in found if isinstance(delta["content"], list)]
    return [chunk for chunk in chunks if chunk["type"] == "thinking"]


async def test_thinking_comes_as_lists_then_text_as_strings(ask: Ask) -> None:
    found = deltas(await streamed(ask, reasoning_effort="high"))
    thoughts = thinking(found)
    assert "".join(chunk["thinking"][0]["text"] for chunk in thoughts[:-1]).startswith("The user wants")
    assert thoughts[-1]["thinking"] == []
    assert {chunk.get("closed") for chunk in thoughts} == {True, None}
    assert [delta["content"] for delta in found[-5:]] == ["You", " said:", " Hello", " there", ""]


async def test_large_4_sends_text_in_lists_too(ask: Ask) -> None:
    found = deltas(await streamed(ask, model="mistral-large-4", reasoning_effort="high"))
    assert {chunk["closed"] for chunk in thinking(found)} == {False}
    assert found[-2]["content"] == [{"type": "text", "text": " there"}]
    plain = deltas(await streamed(ask, model="mistral-large-4"))
    assert plain[-2]["content"] == " there"


async def test_glm_sends_fragments(ask: Ask) -> None:
    parts = chunks(await streamed(ask, model="zai-glm-5-3", tools=TOOLS[:1]))
    assert all("p" not in part and part["choices"][0]["delta"]["index"] == 0 for part in parts)
    calls = [part["choices"][0]["delta"]["tool_calls"][0] for part in parts[1:-1]]
    assert calls[0]["id"].startswith("chatcmpl-tool-")
    assert [call["function"]["name"] for call in calls] == ["weather", *[""] * (len(calls) - 1)]
    assert not any("id" in call for call in calls[1:])
    assert msgspec.json.decode("".join(call["function"]["arguments"] for call in calls)) == {"city": "city"}
    assert parts[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_thinking_cut_by_max_tokens(ask: Ask) -> None:
    parts = chunks(await streamed(ask, reasoning_effort="high", max_tokens=3))
    assert parts[-1]["choices"][0]["finish_reason"] == "length"
    assert parts[-1]["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("count", [0, 1, 50])
async def test_exactly_so_many_content_events(ask: Ask, count: int) -> None:
    found = deltas(await streamed(ask, model=f"mistral-small-latest+events={count}"))
    assert sum(bool(delta["content"]) for delta in found) == count
