"""What is refused with 400, on the three families of tokenizers that hosted models have."""

from typing import Any

import pytest

from proxy.simulator.errors import Refusal
from proxy.simulator.models import BY_NAME
from proxy.simulator.rules import check_chat, check_embeddings, model_for

from .conftest import body, tool

FAMILIES = {11: "ministral-3b-latest", 13: "mistral-large-latest", 15: "mistral-small-latest"}
USER, SYSTEM = {"role": "user", "content": "u"}, {"role": "system", "content": "s"}
SAID = {"role": "assistant", "content": "a"}


def called(*ids: str, name: str = "f", **fields: Any) -> dict[str, Any]:
    calls = [{"id": one, "type": "function", "function": {"name": name, "arguments": "{}"}} for one in ids]
    return {"role": "assistant", "content": "", "tool_calls": calls, **fields}


def result(call_id: str | None, content: Any = "r", **fields: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content, **fields}


def refusal(model: str, **fields: Any) -> tuple[str, str] | None:
    switches = {key: fields.pop(key) for key in ("legacy_order", "strict_pair") if key in fields}
    try:
        check_chat(body(model=model, **fields), BY_NAME[model], **switches)
    except Refusal as error:
        return error.code, error.message
    return None


@pytest.fixture(params=FAMILIES, ids=lambda family: f"v{family}")
def family(request: pytest.FixtureRequest) -> int:
    return request.param


A, B = "abcdefgh1", "abcdefgh2"


@pytest.mark.parametrize(
    "messages",
    [
        [USER],
        [SYSTEM],
        [SYSTEM, SYSTEM, USER, USER],
        [USER, SYSTEM],
        [USER, SAID, USER],
        [USER, {**SAID, "prefix": True}],
        [USER, called(A, B), result(B), result(A), SAID, USER],
        [USER, called(A), result(A), USER],
        [USER, called(A, content="also said"), result(A)],
        [USER, called(A), result(A), called(A), result(A)],
        [called(A, B), result(A), result(B), USER],  # recorded: a conversation may begin with calls
    ],
)
def test_good_conversations(family: int, messages: list[dict[str, Any]]) -> None:
    assert refusal(FAMILIES[family], messages=messages) is None


@pytest.mark.parametrize(
    ("messages", "code", "text"),
    [
        ([], "3230", "Conversation must have at least one message"),
        ([{**SAID, "prefix": True}], "3230", "Conversation must start with a user message or system message"),
        ([USER, SAID], "3230", "Expected last role User or Tool (or Assistant with prefix True) for serving but got"),
        ([USER, SAID, SYSTEM, USER], "3230", "Unexpected role 'system' after role 'assistant'"),
        ([USER, called(A), result(A), SYSTEM, USER], "3230", "Unexpected role 'system' after role 'tool'"),
        ([USER, result(A)], "3230", "Unexpected role 'tool' after role 'user'"),
        ([USER, called(A, B), result(A), USER], "3230", "Not the same number of function calls and responses"),
        ([USER, called(A), USER], "3230", "Not the same number of function calls and responses"),
        ([USER, called(A), SAID, USER], "3230", "Not the same number of function calls and responses"),
        ([USER, called(A), result(B)], "3230", f"Unexpected tool call id {B} in tool results"),
        ([USER, called(A), result(None)], "3230", "Unexpected tool call id None in tool results"),
        ([USER, called(A, B), result(A), result(A)], "3230", f"Duplicate tool call id {A} in tool results"),
        ([USER, called(A, A), result(A)], "3230", f"Duplicate tool call id {A} in assistant message"),
        ([USER, {"role": "assistant", "content": ""}, USER], "3240", "Assistant message must have either content or"),
        ([USER, {"role": "assistant", "content": None, "tool_calls": []}, USER], "3240", "Assistant message must"),
        ([USER, {**SAID, "prefix": True}, USER], "3240", "Assistant message with prefix True must be last message"),
        ([USER, called(A, name="a.b"), result(A)], "3280", "Function name was a.b but must be a-z"),
        ([USER, called("null"), result("null")], "3280", "Tool call id"),
        ([USER, called(A), result(A, name="a b")], "3051", "Function name was a b but must be a-z"),
    ],
)
def test_bad_conversations(family: int, messages: list[dict[str, Any]], code: str, text: str) -> None:
    found = refusal(FAMILIES[family], messages=messages)
    assert found is not None
    assert found[0] == code
    assert found[1].startswith(text)


def test_only_v11_insists_on_nine_characters(family: int) -> None:
    messages = [USER, called("call_123"), result("call_123")]
    expected = ("3280", "Tool call id was call_123 but must be a-z, A-Z, 0-9, with a length of 9.")
    assert refusal(FAMILIES[family], messages=messages) == (expected if family == 11 else None)


def test_only_v15_takes_more_than_text_from_a_tool(family: int) -> None:
    image = [{"type": "image_url", "image_url": "data:image/png;base64,"}]
    found = refusal(FAMILIES[family], messages=[USER, called(A), result(A, image)])
    assert (found is None) == (family == 15)


def test_older_deployments() -> None:
    model = FAMILIES[15]
    order = refusal(model, messages=[USER, called(A), result(A), USER], legacy_order=True)
    pair = refusal(model, messages=[USER, called(A, content="x"), result(A)], strict_pair=True)
    assert order == ("3230", "Unexpected role 'user' after role 'tool'")
    assert pair == ("3240", "Assistant message must have either content or tool_calls, but not both.")


THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "t"}]}
LEVELS = "reasoning_effort='low' is not supported for this model. Must be one of (none, high)"


@pytest.mark.parametrize(
    ("model", "fields", "text"),
    [
        ("mistral-small-latest", {"reasoning_effort": "low"}, LEVELS),
        ("mistral-large-4", {"reasoning_effort": "high"}, None),
        ("zai-glm-5-3", {"reasoning_effort": "max"}, None),
        ("ministral-3b-latest", {"reasoning_effort": "none"}, "reasoning_effort is not enabled for this model"),
        (
            "mistral-small-latest",
            {"prompt_mode": "reasoning"},
            "Reasoning prompt mode is not enabled for this model",
        ),
        ("mistral-small-latest", {"n": 10**9}, "n must be at most 128"),
        ("mistral-small-latest", {"logprobs": True}, "Logprobs are not enabled for this model"),
        ("mistral-small-latest", {"logprobs": False}, None),
        ("mistral-small-latest", {"temperature": 0}, None),
        ("mistral-small-latest", {"temperature": 0, "top_p": 0.5}, "top_p must be 1 when using greedy sampling."),
        (
            "mistral-small-latest",
            {"temperature": 0, "reasoning_effort": "high"},
            "top_p must be 1 when using greedy sampling.",
        ),
        ("mistral-small-latest", {"temperature": 0, "reasoning_effort": "high", "top_p": 1}, None),
        ("mistral-small-latest", {"messages": [USER, {"role": "assistant", "content": [THOUGHT]}, USER]}, None),
        (
            "ministral-3b-latest",
            {"messages": [USER, {"role": "assistant", "content": [THOUGHT]}, USER]},
            "Reasoning input is not enabled for this model",
        ),
        (
            "codestral-latest",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:"}]}]},
            "Image input is not enabled for this model",
        ),
        (
            "voxtral-small-latest",
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": "UklG"}]}]},
            None,
        ),
        (
            "voxtral-small-latest",
            {"messages": [{"role": "user", "content": "x" * 140_000}]},
            "Prompt contains 35001 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
        ),
        ("mistral-small-latest", {"tools": [tool("a b")]}, "Function name was a b but must be a-z, A-Z, 0-9, or"),
        (
            "mistral-small-latest",
            {"tools": [tool("f", x={"type": "text"})]},
            "Invalid tool schema: 'text' is not valid under any of the given schemas",
        ),
        (
            "mistral-small-latest",
            {"tools": [tool("f")], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "Tool choice g is not among the tools.",
        ),
    ],
)
def test_what_a_model_cannot_do(model: str, fields: dict[str, Any], text: str | None) -> None:
    found = refusal(model, **fields)
    if text is None:
        assert found is None
    else:
        assert found is not None
        assert found[0] == "3051"
        assert found[1].startswith(text)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("mistral-unknown", "chat"), ("mistral-embed", "chat"), ("mistral-small-latest", "embeddings")],
)
def test_a_model_that_does_not_serve_the_endpoint_is_unknown(name: str, kind: str) -> None:
    with pytest.raises(Refusal, match=f"Invalid model: {name}") as caught:
        model_for(name, kind)
    assert caught.value.code == "1500"


@pytest.mark.parametrize(
    ("model", "fields", "found"),
    [
        ("mistral-embed", {"input": ["a"] * 256}, None),
        ("mistral-embed", {"input": ["a"] * 257}, ("3210", "Too many inputs in request, split into more batches.")),
        (
            "mistral-embed",
            {"input": ["a" * 400] * 200},
            ("3210", "Too many tokens overall, split into more batches."),
        ),
        (
            "mistral-embed",
            {"input": "a", "output_dimension": 256},
            ("3051", "This model does not support output_dimension."),
        ),
        (
            "mistral-embed",
            {"input": "a", "output_dtype": "int8"},
            ("3051", "This model does not support output_dtype."),
        ),
        ("codestral-embed", {"input": "a", "output_dimension": 3072, "output_dtype": "int8"}, None),
        (
            "codestral-embed",
            {"input": "a", "output_dimension": 3073},
            ("3051", "output_dimension must be at most 3072 for this model."),
        ),
    ],
)
def test_embeddings(model: str, fields: dict[str, Any], found: tuple[str, str] | None) -> None:
    try:
        check_embeddings({"model": model, **fields}, BY_NAME[model])
        raised = None
    except Refusal as error:
        raised = (error.code, error.message)
    assert raised == found
