"""What the simulated model says, outside a stream."""

from typing import Any

import jsonschema  # type: ignore[import-untyped]
import msgspec
import pytest

from .conftest import Ask, tool

TOOLS = [tool("weather", city={"type": "string"}), tool("clock", zone={"enum": ["UTC", "CET"]})]
JSON = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["name"]}


async def choice(ask: Ask, **fields: Any) -> dict[str, Any]:
    answer = await ask(**fields)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["choices"][0]
    return found


def user(text: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


async def test_the_whole_shape(ask: Ask) -> None:
    answer = (await ask()).json()
    assert len(answer.pop("id")) == 32
    assert answer == {
        "object": "chat.completion",
        "created": 1_795_000_000,
        "model": "mistral-small-latest",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "You said: Hello there", "tool_calls": None},
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 4,
            "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 0},
            "service_tier": "standard",
        },
    }


async def test_the_same_request_gets_the_same_words_and_another_id(ask: Ask) -> None:
    one, two = (await ask()).json(), (await ask()).json()
    assert one.pop("id") != two.pop("id")
    assert one == two


@pytest.mark.parametrize(
    ("fields", "content", "finish"),
    [
        ({"max_tokens": 2}, "You said:", "length"),
        ({"max_tokens": 4}, "You said: Hello there", "stop"),
        ({"max_tokens": 0}, "", "length"),
        ({"stop": " there"}, "You said: Hello", "stop"),
        ({"stop": ["there", "said"]}, "You ", "stop"),
        ({"stop": ["nowhere"]}, "You said: Hello there", "stop"),
        ({"messages": user([{"type": "text", "text": "in parts"}])}, "You said: in parts", "stop"),
        (
            {"messages": [*user("Hello"), {"role": "assistant", "content": "Well,", "prefix": True}]},
            "Well, You said: Hello",
            "stop",
        ),
    ],
)
async def test_text(ask: Ask, fields: dict[str, Any], content: str, finish: str) -> None:
    found = await choice(ask, **fields)
    assert (found["message"]["content"], found["finish_reason"]) == (content, finish)


async def test_several_choices_differ(ask: Ask) -> None:
    answer = (await ask(n=3)).json()
    assert [one["index"] for one in answer["choices"]] == [0, 1, 2]
    assert len({one["message"]["content"] for one in answer["choices"]}) == 3


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({}, ["weather"]),
        ({"tool_choice": "any"}, ["weather"]),
        ({"tool_choice": "none"}, []),
        ({"tool_choice": {"type": "function", "function": {"name": "clock"}}}, ["clock"]),
        ({"messages": user("Use both.")}, ["weather", "clock"]),
        ({"messages": user("Use both."), "parallel_tool_calls": False}, ["weather"]),
    ],
)
async def test_tool_calls(ask: Ask, fields: dict[str, Any], names: list[str]) -> None:
    found = await choice(ask, tools=TOOLS, **fields)
    calls = found["message"]["tool_calls"] or []
    assert [call["function"]["name"] for call in calls] == names
    assert found["finish_reason"] == ("tool_calls" if names else "stop")
    assert (found["message"]["content"] == "") == bool(names)
    for index, call in enumerate(calls):
        assert (call["type"], call["index"]) == ("function", index)
        assert len(call["id"]) == 9
        assert call["id"].isalnum()


async def test_arguments_meet_the_parameters(ask: Ask) -> None:
    found = await choice(ask, tools=TOOLS[1:])
    arguments = found["message"]["tool_calls"][0]["function"]["arguments"]
    assert msgspec.json.decode(arguments) == {"zone": "UTC"}


async def test_arguments_are_cut_by_max_tokens(ask: Ask) -> None:
    found = await choice(ask, tools=TOOLS, max_tokens=3)
    assert found["finish_reason"] == "length"
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(found["message"]["tool_calls"][0]["function"]["arguments"])


async def test_a_third_party_model_has_long_call_ids(ask: Ask) -> None:
    found = await choice(ask, model="zai-glm-5-3", tools=TOOLS)
    assert found["message"]["tool_calls"][0]["id"].startswith("chatcmpl-tool-")


async def test_after_tool_results_their_content_is_quoted(ask: Ask) -> None:
    called = (await choice(ask, tools=TOOLS, messages=user("Use both.")))["message"]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": text}
        for call, text in zip(called["tool_calls"], ["sunny", "noon"], strict=True)
    ]
    found = await choice(ask, tools=TOOLS, messages=[*user("Use both."), called, *results])
    assert found["message"]["content"] == "The tools answered: sunny, noon"
    assert found["message"]["tool_calls"] is None


async def test_structured_output_is_valid(ask: Ask) -> None:
    format_ = {"type": "json_schema", "json_schema": {"name": "person", "schema": JSON, "strict": True}}
    found = await choice(ask, response_format=format_)
    jsonschema.validate(msgspec.json.decode(found["message"]["content"]), JSON)


async def test_json_mode(ask: Ask) -> None:
    found = await choice(ask, response_format={"type": "json_object"})
    assert msgspec.json.decode(found["message"]["content"]) == {"answer": "Hello there"}


@pytest.mark.parametrize("fields", [{}, {"tools": TOOLS}])
async def test_thinking_comes_first(ask: Ask, fields: dict[str, Any]) -> None:
    found = await choice(ask, reasoning_effort="high", **fields)
    thinking, *rest = found["message"]["content"]
    assert (thinking["type"], thinking["closed"]) == ("thinking", True)
    assert thinking["thinking"][0]["text"].startswith("The user wants")
    assert rest == ([] if fields else [{"type": "text", "text": "You said: Hello there"}])


async def test_effort_none_is_a_plain_answer(ask: Ask) -> None:
    found = await choice(ask, reasoning_effort="none")
    assert found["message"]["content"] == "You said: Hello there"


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("words=3", lambda answer: answer["choices"][0]["message"]["content"] == "word0 word1 word2"),
        ("large=5000", lambda answer: len(answer["choices"][0]["message"]["content"]) == 5000),
        ("usage=none", lambda answer: "usage" not in answer),
        ("usage=odd", lambda answer: answer["usage"]["total_tokens"] > sum_of_parts(answer["usage"])),
        ("finish=model_length", lambda answer: answer["choices"][0]["finish_reason"] == "model_length"),
        ("echo_auth", lambda answer: "Bearer sk-sim" in answer["choices"][0]["message"]["content"]),
    ],
)
async def test_faults_of_content(ask: Ask, fault: str, check: Any) -> None:
    model = f"mistral-small-latest+{fault}"
    answer = (await ask(model=model)).json()
    assert answer["model"] == model
    assert check(answer)


def sum_of_parts(usage: dict[str, Any]) -> int:
    total: int = usage["prompt_tokens"] + usage["completion_tokens"]
    return total


async def test_older_forms_of_tool_calls(ask: Ask) -> None:
    bare = await choice(ask, model="mistral-small-latest+bare_tools", tools=TOOLS)
    assert set(bare["message"]["tool_calls"][0]) == {"id", "function"}
    parsed = await choice(ask, model="mistral-small-latest+object_args", tools=TOOLS)
    assert parsed["message"]["tool_calls"][0]["function"]["arguments"] == {"city": "city"}
    cut = await choice(ask, model="mistral-small-latest+object_args", tools=TOOLS, max_tokens=3)
    assert isinstance(cut["message"]["tool_calls"][0]["function"]["arguments"], str)


async def test_the_prompt_and_the_tools_are_counted(ask: Ask) -> None:
    short = (await ask()).json()["usage"]["prompt_tokens"]
    tools = (await ask(tools=TOOLS)).json()["usage"]["prompt_tokens"]
    image = user([{"type": "text", "text": "Hello there"}, {"type": "image_url", "image_url": "data:"}])
    seen = (await ask(messages=image)).json()["usage"]["prompt_tokens"]
    assert short < tools < seen == short + 256
