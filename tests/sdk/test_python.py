"""The official OpenAI SDK for Python, unmodified, against the real proxy and the simulated Mistral.

test_python_2.py runs this same file once more with the last openai 2.x.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import struct
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from tests.conftest import Proxy, Simulator
from tests.programs import until

MODEL = "mistral-small-latest"
HELLO: Any = [{"role": "user", "content": "Hello there, how are you today?"}]

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"enum": ["celsius", "fahrenheit"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
TIME: Any = {"type": "function", "function": {"name": "get_time"}}


class Person(BaseModel):
    name: str
    age: int
    mood: Literal["calm", "busy"]
    friends: list[str]


@pytest.fixture
def client(proxy: Proxy) -> Iterator[OpenAI]:
    with OpenAI(base_url=proxy.base_url, api_key=proxy.key, max_retries=0, timeout=20) as client:
        yield client


@pytest.fixture
async def aclient(proxy: Proxy):
    async with AsyncOpenAI(base_url=proxy.base_url, api_key=proxy.key, max_retries=0, timeout=20) as client:
        yield client


def test_this_is_the_version_that_was_meant() -> None:
    assert openai.__version__.split(".")[0] == os.environ.get("OPENAI_MAJOR", "3")


# Chat.


def test_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO)
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert "Hello there" in (choice.message.content or "")
    assert choice.message.refusal is None
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "stop"
    assert choice.logprobs is None
    assert answer.object == "chat.completion"
    assert answer.usage
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0


def test_an_openai_model_name_is_served_by_its_alias(client: OpenAI) -> None:
    answer = client.chat.completions.with_raw_response.create(model="gpt-4o", messages=HELLO)
    assert answer.headers["x-proxy-upstream"] == "mistral/mistral-large-latest"
    assert answer.headers["x-proxy-attempts"] == "1"
    assert answer.parse().model == "mistral-large-latest"


def test_what_the_provider_cannot_do_is_said_in_a_header(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=[{"role": "developer", "content": "Be brief."}, *HELLO], seed=7, user="me", store=True,
        max_completion_tokens=50, temperature=1.9, extra_body={"made_up": 1},
    )  # fmt: skip
    rewrites = raw.headers["x-proxy-rewrites"].split(", ")
    assert {"drop:user", "drop:store", "drop:made_up", "rename:seed>random_seed", "clamp:temperature"} <= set(rewrites)


def test_strict_mode_refuses_instead(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model=MODEL, messages=HELLO, verbosity="low", extra_headers={"x-proxy-translation": "strict"}
        )
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "verbosity")


def test_nothing_of_the_client_but_the_body_goes_upstream(client: OpenAI, proxy: Proxy, simulator: Simulator) -> None:
    client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "unique-7c1e"}],
        extra_headers={"x-mine": "1", "cookie": "a=b"},
    )
    call = _calls(simulator, "unique-7c1e")[-1]
    headers = dict(call["headers"])
    assert set(headers) == {
        "host", "content-length", "content-type", "accept", "accept-encoding", "user-agent", "authorization",
        "traceparent",
    }  # fmt: skip
    assert headers["authorization"] == f"Bearer {proxy.provider_key}"
    assert headers["accept-encoding"] == "identity"
    assert headers["user-agent"].startswith("mistral-proxy/")
    assert proxy.key not in json.dumps(call)


def test_several_choices(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


def test_an_answer_that_is_cut_by_max_tokens(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=2)
    assert answer.choices[0].finish_reason == "length"


def test_a_model_that_thinks(client: OpenAI) -> None:
    for effort in ("minimal", "high"):
        answer = client.chat.completions.create(model=MODEL, messages=HELLO, reasoning_effort=effort)
        message: Any = answer.choices[0].message
        assert isinstance(message.content, str)
        assert message.content
        assert isinstance(message.reasoning_content, str)
        assert message.reasoning_content


def test_parts_of_every_kind(client: OpenAI) -> None:
    pixel = "data:image/png;base64," + base64.b64encode(b"not really a picture").decode()
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[
            {
                "role": "user",
                "name": "anna",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image_url", "image_url": {"url": pixel, "detail": "low"}},
                    {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA", "filename": "a.pdf"}},
                ],
            }
        ],
    )
    assert "What is this?" in (answer.choices[0].message.content or "")


def test_audio_in(client: OpenAI) -> None:
    audio: Any = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
    answer = client.chat.completions.create(
        model="voxtral-small-latest", messages=[{"role": "user", "content": [audio]}]
    )
    assert answer.choices[0].finish_reason == "stop"


def test_an_assistant_message_to_go_on_from(client: OpenAI) -> None:
    messages: Any = [*HELLO, {"role": "assistant", "content": "Once upon a"}]
    answer = client.chat.completions.create(model=MODEL, messages=messages)
    assert not (answer.choices[0].message.content or "").startswith("Once upon a")
    streamed = "".join(
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(model=MODEL, messages=messages, stream=True)
    )
    assert streamed == answer.choices[0].message.content


# Streams.


def test_a_stream_says_what_the_whole_answer_says(client: OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=HELLO).choices[0].message.content
    chunks = list(client.chat.completions.create(model=MODEL, messages=HELLO, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop"
    assert all(chunk.choices for chunk in chunks)
    assert len(chunks) > 3


def test_usage_comes_in_a_chunk_of_its_own_when_asked_for(client: OpenAI) -> None:
    *chunks, last = client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    assert last.choices == []
    assert last.usage
    assert last.usage.total_tokens > 0
    assert all(chunk.usage is None for chunk in chunks)


def test_streamed_choices_interleave(client: OpenAI) -> None:
    texts = {0: "", 1: ""}
    for chunk in client.chat.completions.create(model=MODEL, messages=HELLO, stream=True, n=2):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert all(texts.values())


def test_the_stream_helper(client: OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=HELLO) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content


def test_the_stream_helper_with_thinking(client: OpenAI) -> None:
    for model in (MODEL, "mistral-large-4"):
        with client.chat.completions.stream(model=model, messages=HELLO, reasoning_effort="high") as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_completion()
        assert "content.delta" in kinds
        assert isinstance(final.choices[0].message.content, str)


@pytest.mark.parametrize(
    "fault",
    ["fragment=1", "fragment=7", "coalesce", "crlf", "comments", "crlf+fragment=3", "no_done", "comments+coalesce"],
)
def test_however_a_stream_is_cut_into_pieces_it_says_the_same(client: OpenAI, fault: str) -> None:
    text: Any = [{"role": "user", "content": "Grüße aus Zürich – 東京 🗼"}]
    whole = client.chat.completions.create(model=MODEL, messages=text).choices[0].message.content
    for model in (MODEL, f"{MODEL}+{fault}"):
        with client.chat.completions.stream(model=model, messages=text) as stream:
            assert stream.get_final_completion().choices[0].message.content == whole


@pytest.mark.parametrize(
    "fault", ["cut_events=3", "eof_events=3", "error_events=3", "garbage_events=3", "stall_events=3"]
)
def test_a_stream_that_breaks_raises_and_never_ends_as_a_success(client: OpenAI, fault: str) -> None:
    seen = []
    with pytest.raises(openai.APIError) as caught:
        for chunk in client.chat.completions.create(model=f"{MODEL}+{fault}+events=20", messages=HELLO, stream=True):
            seen.append(chunk)  # noqa: PERF402 (what came before the error counts)
    assert caught.value.code == ("upstream_timeout" if "stall" in fault else "upstream_error")
    assert 1 <= len(seen) <= 3
    assert all(chunk.choices[0].finish_reason is None for chunk in seen)


def test_an_error_before_the_first_event_is_an_ordinary_error(client: OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model=f"{MODEL}+status=503", messages=HELLO, stream=True)
    assert caught.value.status_code == 503


# Tools.


def test_tools_over_several_turns(client: OpenAI, simulator: Simulator) -> None:
    messages: Any = [{"role": "user", "content": "Use both tools for all of Paris."}]
    first = client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER, TIME])
    assert first.choices[0].finish_reason == "tool_calls"
    calls = first.choices[0].message.tool_calls or []
    assert [call.function.name for call in calls if call.type == "function"] == ["get_weather", "get_time"]
    assert first.choices[0].message.content is None
    messages.append(first.choices[0].message.model_dump(exclude_none=True))
    for call in calls:
        messages.append({"role": "tool", "tool_call_id": call.id, "content": f"result of {call.id}"})
    second = client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER, TIME])
    assert all(call.id in (second.choices[0].message.content or "") for call in calls)
    messages.append(second.choices[0].message.model_dump(exclude_none=True))
    messages.append({"role": "user", "content": "Use it again"})
    third = client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER], tool_choice="required")
    assert third.choices[0].message.tool_calls
    sent = [call["body"] for call in simulator.calls() if call["path"] == "/v1/chat/completions"][-2:]
    assert _ids(sent[1])[: len(_ids(sent[0]))] == _ids(sent[0])


def _ids(body: dict[str, Any]) -> list[str]:
    return [call["id"] for message in body["messages"] for call in message.get("tool_calls") or ()]


def test_ids_of_another_provider_are_made_to_fit_both_model_families(client: OpenAI) -> None:
    call: Any = {
        "id": "call_abcDEF1234567890abcdefgh",
        "type": "function",
        "function": {"name": "get_time", "arguments": ""},
    }
    messages: Any = [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "noon"},
        {"role": "user", "content": "Thanks"},
    ]
    for model in ("ministral-8b-latest", MODEL, "mistral-large-latest"):
        answer = client.chat.completions.create(model=model, messages=messages)
        assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("model", [MODEL, f"{MODEL}+bare_tools", f"{MODEL}+object_args", "zai-glm-5-3"])
def test_tools_in_a_stream(client: OpenAI, model: str) -> None:
    with client.chat.completions.stream(
        model=model, messages=[{"role": "user", "content": "Use both"}], tools=[WEATHER, TIME]
    ) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_completion()
    calls = final.choices[0].message.tool_calls or []
    assert events.count("tool_calls.function.arguments.done") == 2
    assert [call.function.name for call in calls] == ["get_weather", "get_time"]
    assert set(json.loads(calls[0].function.arguments)) == {"city", "unit"}


def test_a_choice_among_allowed_tools(client: OpenAI) -> None:
    allowed: Any = {"mode": "required", "tools": [{"type": "function", "function": {"name": "get_time"}}]}
    answer = client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        tools=[WEATHER, TIME],
        tool_choice={"type": "allowed_tools", "allowed_tools": allowed},
    )
    [call] = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_time"


def test_the_older_functions(client: OpenAI) -> None:
    older: Any = client.chat.completions
    messages: Any = [{"role": "user", "content": "The weather?"}]
    function: Any = {key: value for key, value in WEATHER["function"].items() if key != "strict"}
    answer = older.create(model=MODEL, messages=messages, functions=[function], function_call={"name": "get_weather"})
    [choice] = answer.choices
    assert choice.finish_reason == "function_call"
    assert choice.message.function_call
    assert choice.message.function_call.name == "get_weather"
    messages += [
        choice.message.model_dump(exclude_none=True),
        {"role": "function", "name": "get_weather", "content": "sun"},
    ]
    after = older.create(model=MODEL, messages=messages, functions=[function])
    assert "sun" in (after.choices[0].message.content or "")
    name = arguments = ""
    for chunk in older.create(model=MODEL, messages=messages[:1], functions=[function], stream=True):
        if call := chunk.choices[0].delta.function_call:
            name += call.name or ""
            arguments += call.arguments or ""
    assert name == "get_weather"
    assert json.loads(arguments)


# Structured output.


def test_parse(client: OpenAI) -> None:
    answer = client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=Person)
    assert isinstance(answer.choices[0].message.parsed, Person)


def test_parse_in_a_stream(client: OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=HELLO, response_format=Person) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Person)


def test_parse_of_tool_arguments(client: OpenAI) -> None:
    tool = openai.pydantic_function_tool(Person, name="remember")
    answer = client.chat.completions.parse(model=MODEL, messages=HELLO, tools=[tool])
    [call] = answer.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Person)


def test_parse_of_an_answer_that_is_too_long_says_so(client: OpenAI) -> None:
    for model in (f"{MODEL}+finish=model_length", f"{MODEL}+finish=length"):
        with pytest.raises(openai.LengthFinishReasonError):
            client.chat.completions.parse(model=model, messages=HELLO, response_format=Person)


# Embeddings.


def test_embeddings_in_base64_which_the_sdk_asks_for_by_itself(client: OpenAI) -> None:
    default = client.embeddings.create(model="text-embedding-3-small", input="a text")
    floats = client.embeddings.create(model="mistral-embed", input="a text", encoding_format="float")
    packed: Any = client.embeddings.create(model="mistral-embed", input="a text", encoding_format="base64")
    assert len(default.data[0].embedding) == 1024
    assert default.data[0].embedding == pytest.approx(floats.data[0].embedding, abs=1e-6)
    assert struct.unpack("<1024f", base64.b64decode(packed.data[0].embedding)) == pytest.approx(
        floats.data[0].embedding, abs=1e-6
    )


def test_more_embeddings_than_the_provider_takes_at_once(client: OpenAI) -> None:
    texts = [f"text {i} of the Python SDK" for i in range(600)]
    answer = client.embeddings.with_raw_response.create(model="mistral-embed", input=texts)
    assert answer.headers["x-proxy-attempts"] == "3"
    found = answer.parse()
    assert [item.index for item in found.data] == list(range(600))
    alone = client.embeddings.create(model="mistral-embed", input=texts[-1])
    assert found.data[599].embedding == pytest.approx(alone.data[0].embedding, abs=1e-6)
    assert found.usage.total_tokens >= 600


def test_embeddings_whose_tokens_are_too_many_at_once_are_halved(client: OpenAI) -> None:
    texts = [f"{i} " + "word " * 400 for i in range(100)]
    answer = client.embeddings.create(model="mistral-embed", input=texts)
    assert [item.index for item in answer.data] == list(range(100))


def test_dimensions(client: OpenAI) -> None:
    answer = client.embeddings.create(model="codestral-embed", input="a", dimensions=256)
    assert len(answer.data[0].embedding) == 256
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="mistral-embed", input="a", dimensions=256)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "dimensions")


def test_token_arrays_are_refused_with_the_way_out(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="mistral-embed", input=[[1, 2, 3]])
    assert caught.value.param == "input"


# Models.


def test_models(client: OpenAI) -> None:
    names = {model.id for model in client.models.list()}
    assert {MODEL, "mistral-embed", "house-model"} <= names
    assert client.models.retrieve(MODEL).id == MODEL
    assert client.models.retrieve("gpt-4o").id == "gpt-4o"


def test_a_team_sees_what_it_may_use(proxy: Proxy) -> None:
    with OpenAI(base_url=proxy.base_url, api_key=proxy.other_key, max_retries=0) as narrow:
        names = {model.id for model in narrow.models.list()}
        assert "mistral-embed" in names
        assert all(name.startswith("codestral-") or name == "mistral-embed" for name in names)
        with pytest.raises(openai.PermissionDeniedError) as caught:
            narrow.chat.completions.create(model="house-model", messages=HELLO)
        assert (caught.value.code, caught.value.param) == ("model_not_allowed", "model")
        with pytest.raises(openai.PermissionDeniedError):
            narrow.models.retrieve(MODEL)


# Errors.


def test_a_wrong_key(proxy: Proxy) -> None:
    with (
        OpenAI(base_url=proxy.base_url, api_key="sk-wrong", max_retries=0) as wrong,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        wrong.chat.completions.create(model=MODEL, messages=HELLO)
    assert caught.value.code == "invalid_api_key"
    assert caught.value.request_id
    assert "sk-wrong" not in str(caught.value)


@pytest.mark.parametrize(
    ("fault", "kind", "code", "param"),
    [
        ("status=401", openai.InternalServerError, "upstream_auth_failed", None),
        ("code=1500", openai.NotFoundError, "model_not_found", "model"),
        ("code=1910", openai.PermissionDeniedError, "model_not_available", None),
        ("code=1920", openai.BadRequestError, "content_filter", None),
        ("status=422+loc=body.temperature", openai.BadRequestError, None, "temperature"),
        ("status=422+body=wrapped+loc=body.random_seed", openai.BadRequestError, None, "seed"),
        ("status=429", openai.RateLimitError, "rate_limit_exceeded", None),
        ("limit=0", openai.RateLimitError, "insufficient_quota", None),
        ("code=3505", openai.RateLimitError, "rate_limit_exceeded", None),
        ("status=500", openai.InternalServerError, None, None),
        ("status=503", openai.InternalServerError, None, None),
        ("status=502+body=html", openai.InternalServerError, None, None),
        ("status=504+body=empty", openai.InternalServerError, None, None),
        ("cut_headers", openai.InternalServerError, "upstream_error", None),
        ("html", openai.InternalServerError, "upstream_error", None),
        ("redirect", openai.InternalServerError, "upstream_error", None),
        ("stall", openai.InternalServerError, "upstream_timeout", None),
    ],
)
def test_errors_have_the_class_and_the_names_that_openais_have(
    client: OpenAI, fault: str, kind: type[openai.APIStatusError], code: str | None, param: str | None
) -> None:
    with pytest.raises(kind) as caught:
        client.chat.completions.create(model=f"{MODEL}+{fault}", messages=HELLO)
    error = caught.value
    assert error.request_id
    assert isinstance(error.body, dict)
    assert error.body["message"]
    if code:
        assert error.code == code
    if param:
        assert error.param == param


def test_an_unknown_model(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="no-such-model", messages=HELLO)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "hologram"}]}]}, "messages[0].content[0].type"),
        ({"max_tokens": "10"}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"stream": "yes"}, "stream"),
        ({"n": 0}, "n"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"audio": {"voice": "x", "format": "wav"}}, "audio"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"tools": [{"type": "function", "function": {"name": "no dots."}}]}, "tools[0].function.name"),
    ],
)
def test_bad_input_names_its_field(client: OpenAI, body: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**({"model": MODEL, "messages": HELLO} | body))
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_too_long_for_the_model(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="voxtral-small-latest", messages=[{"role": "user", "content": "word " * 40_000}]
        )
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


def test_a_refusal_that_can_be_mended_is_sent_once_more(client: OpenAI) -> None:
    answer = client.chat.completions.with_raw_response.create(
        model=f"{MODEL}+strict_pair",
        messages=[
            *HELLO,
            {
                "role": "assistant",
                "content": "Let me look.",
                "tool_calls": [
                    {"id": "123456789", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
                ],
            },
            {"role": "tool", "tool_call_id": "123456789", "content": "noon"},
        ],
    )
    assert answer.headers["x-proxy-attempts"] == "2"
    assert "mend:" in answer.headers["x-proxy-rewrites"]


# Leaving.


def test_a_client_timeout_ends_the_upstream_call(proxy: Proxy, simulator: Simulator) -> None:
    simulator.clear()  # of the run over the other transport
    model = f"{MODEL}+latency=1.5"
    with OpenAI(base_url=proxy.base_url, api_key=proxy.key, max_retries=0, timeout=0.2) as hurried:
        with pytest.raises(openai.APITimeoutError):
            hurried.chat.completions.create(model=model, messages=[{"role": "user", "content": "timeout-51d2"}])
    _left(simulator, "timeout-51d2")


@pytest.mark.parametrize("fault", ["latency=1.5", "stall", "first_event=1.5", "events=200+delay=0.02"])
async def test_a_cancelled_request_ends_the_upstream_call(
    aclient: AsyncOpenAI, simulator: Simulator, fault: str
) -> None:
    await asyncio.to_thread(simulator.clear)  # of the run over the other transport
    mark = f"cancel-{fault}"
    messages: Any = [{"role": "user", "content": mark}]

    async def ask() -> None:
        async for _ in await aclient.chat.completions.create(model=f"{MODEL}+{fault}", messages=messages, stream=True):
            pass

    task = asyncio.create_task(ask())
    await asyncio.to_thread(until, lambda: _calls(simulator, mark), "the call")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(_left, simulator, mark)


def _calls(simulator: Simulator, mark: str) -> list[dict[str, Any]]:
    return [call for call in simulator.calls() if mark in json.dumps(call["body"])]


def _left(simulator: Simulator, mark: str) -> None:
    until(lambda: [call for call in _calls(simulator, mark) if call["ended"] == "client_gone"], f"the end of {mark}")


async def test_many_at_once(aclient: AsyncOpenAI) -> None:
    answers = await asyncio.gather(
        *(
            aclient.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": f"number {i}"}])
            for i in range(50)
        )
    )
    assert [f"number {i}" in (answer.choices[0].message.content or "") for i, answer in enumerate(answers)] == [
        True
    ] * 50
