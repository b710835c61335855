from __future__ import annotations

import struct
from base64 import b64decode
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core import json
from proxy.core.endpoint import Batch
from proxy.core.errors import (
    BadRequest,
    InvalidType,
    MissingParameter,
    ProxyError,
    UnsupportedParameter,
    UnsupportedValue,
    UpstreamFailed,
    UpstreamRefusal,
)
from proxy.core.model import Model
from proxy.core.table import Context, Table
from proxy.providers.mistral.embeddings import EMBEDDINGS, MOST_AT_ONCE
from proxy.providers.mistral.errors import refusal

CODESTRAL = Model("codestral-embed", names=("codestral-embed-2505",))
MISTRAL = Model("mistral-embed-2312", names=("mistral-embed",))
assert EMBEDDINGS.request
assert EMBEDDINGS.batch
REQUEST: Table = EMBEDDINGS.request
BATCH: Batch = EMBEDDINGS.batch


def translated(asked: dict[str, Any], *, model: Model = CODESTRAL, strict: bool = False) -> tuple[Any, Context]:
    asked = {"model": model.id, **asked}
    context = Context(model=model, asked=asked, strict=strict, notes={"asked": model.id})
    return REQUEST.translate(asked, context), context


def refused(asked: dict[str, Any], **more: Any) -> ProxyError:
    with pytest.raises(ProxyError) as raised:
        translated(asked, **more)
    return raised.value


def answered(*vectors: list[Any], **more: Any) -> dict[str, Any]:
    """As recorded from api.mistral.ai."""
    data = [{"object": "embedding", "embedding": vector, "index": at} for at, vector in enumerate(vectors)]
    usage = {"prompt_tokens": 5, "total_tokens": 5, "completion_tokens": 0, "prompt_tokens_details": None}
    return {
        **{"id": "0191f3", "object": "list", "data": data, "model": "codestral-embed", "usage": usage},
        **more,
    }


# the request


@pytest.mark.parametrize("text", ["hi", ["hi"], ["hi", "ho"], " "])
@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_text_is_sent_and_numbers_are_asked_for(text, encoding):
    body, _ = translated({"input": text, "user": "u", **encoding})
    assert body == {"model": "codestral-embed", "input": text, "encoding_format": "float"}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ([], BadRequest),
        ("", BadRequest),
        (["a", ""], BadRequest),
        (["a"] * 2049, BadRequest),
        ([1, 2, 3], UnsupportedValue),
        ([1] * 3000, UnsupportedValue),
        ([[1, 2], [3]], UnsupportedValue),
        (5, InvalidType),
        ({"text": "a"}, InvalidType),
        (["a", 1], InvalidType),
        ([True], InvalidType),
        ([["a"]], InvalidType),
        (None, MissingParameter),
    ],
)
def test_input_that_is_no_text(text, kind):
    error = refused({"input": text})
    assert type(error) is kind
    assert error.param == "input"


def test_token_ids_are_refused_with_the_way_out():
    error = refused({"input": [[1212, 318]]})
    assert error.code == "unsupported_value"
    assert "check_embedding_ctx_length=False" in error.message


def test_openais_own_number_of_inputs_is_taken():
    body, _ = translated({"input": ["a"] * 2048})
    assert len(body["input"]) == 2048


@pytest.mark.parametrize("name", ["dimensions", "output_dimension"])
def test_dimensions(name):
    body, context = translated({"input": "hi", name: 512})
    assert body["output_dimension"] == 512
    assert list(context.rewrites) == (["rename:dimensions>output_dimension"] if name == "dimensions" else [])


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_spellings_of_dimensions_openais_counts(order):
    body, context = translated({"input": "hi", **dict([("dimensions", 512), ("output_dimension", 256)][::order])})
    assert body["output_dimension"] == 512
    assert sorted(context.rewrites) == ["drop:output_dimension", "rename:dimensions>output_dimension"]


@pytest.mark.parametrize("model", [MISTRAL, Model("mistral-embed"), Model("x", names=("mistral-embed-2312",))])
@pytest.mark.parametrize("name", ["dimensions", "output_dimension"])
def test_mistral_embed_has_no_choice_of_dimensions(model, name):
    error = refused({"input": "hi", name: 512}, model=model)
    assert type(error) is UnsupportedParameter
    assert error.param == name


@pytest.mark.parametrize("value", [0, -1, 1.5, "512", True, 10**9, 2**53 + 1])
def test_dimensions_that_are_none(value):
    assert refused({"input": "hi", "dimensions": value}).param == "dimensions"


@pytest.mark.parametrize("value", ["hex", 5, ["float"]])
def test_an_unknown_encoding(value):
    error = refused({"input": "hi", "encoding_format": value})
    assert (error.code, error.param) == ("unsupported_value", "encoding_format")


@pytest.mark.parametrize("dtype", ["float", "int8", "uint8", "binary", "ubinary"])
def test_mistrals_own_number_types(dtype):
    body, _ = translated({"input": "hi", "output_dtype": dtype})
    assert body["output_dtype"] == dtype


def test_base64_holds_float32_only():
    for asked in (
        {"output_dtype": "int8", "encoding_format": "base64"},
        {"encoding_format": "base64", "output_dtype": "int8"},
    ):
        error = refused({"input": "hi", **asked})
        assert (error.code, error.param) == ("unsupported_value", "encoding_format")
    body, _ = translated({"input": "hi", "output_dtype": "float", "encoding_format": "base64"})
    assert body["output_dtype"] == "float"


CLOSED = {"model", "metadata", "input", "output_dimension", "output_dtype", "encoding_format"}
ANYTHING = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.text(max_size=3), max_size=3)
ASKED = st.fixed_dictionaries(
    {"input": st.text(min_size=1, max_size=5) | st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=3)},
    optional={
        "encoding_format": st.sampled_from([None, "float", "base64"]),
        "dimensions": st.none() | st.integers(1, 3072),
        "output_dimension": st.none() | st.integers(1, 3072),
        "output_dtype": st.sampled_from([None, "float", "int8"]),
        "metadata": st.none() | st.dictionaries(st.text(max_size=3), ANYTHING, max_size=2),
        "user": ANYTHING,
        "extra": ANYTHING,
        "stream": ANYTHING,
    },
)


@given(ASKED, st.booleans())
def test_nothing_outside_mistrals_closed_schema_is_sent(asked, strict):
    with suppress(UnsupportedParameter, UnsupportedValue):  # strict mode; base64 of int8
        body, _ = translated(asked, strict=strict)
        assert set(body) <= CLOSED
        assert None not in body.values()
        assert body["encoding_format"] == "float"


# the answer


def test_the_answer_has_openais_keys_only():
    _, context = translated({"input": "hi"})
    assert EMBEDDINGS.answer(answered([0.5, -1]), context) == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -1]}],
        "model": "codestral-embed",
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    }


def test_base64_is_little_endian_float32():
    _, context = translated({"input": "hi", "encoding_format": "base64"})
    packed = EMBEDDINGS.answer(answered([0.5, -1, 0]), context)["data"][0]["embedding"]
    assert b64decode(packed) == struct.pack("<3f", 0.5, -1, 0)


def test_a_big_endian_machine_sends_the_same(monkeypatch):
    # What `array` would hold there is made by hand: on this machine the swap itself is what can be seen.
    monkeypatch.setattr("sys.byteorder", "big")
    _, context = translated({"input": "hi", "encoding_format": "base64"})
    packed = EMBEDDINGS.answer(answered([0.5]), context)["data"][0]["embedding"]
    assert b64decode(packed) == struct.pack("=f", 0.5)[::-1]


@pytest.fixture(scope="module")
def sdk() -> Iterator[Any]:
    """The OpenAI SDK, answered by our translation of whatever Mistral is said to answer."""
    said: dict[str, Any] = {}

    def answer(request: httpx2.Request) -> httpx2.Response:
        _, context = translated(json.decode(request.content))
        return httpx2.Response(200, content=json.encode(EMBEDDINGS.answer(said["answer"], context)))

    with openai.OpenAI(
        api_key="k", base_url="http://proxy/v1", http_client=httpx2.Client(transport=httpx2.MockTransport(answer))
    ) as client:

        def ask(vectors: list[list[float]], **asked: Any) -> list[list[float]]:
            said["answer"] = answered(*vectors)
            made = client.embeddings.create(model="codestral-embed", input=["x"] * len(vectors), **asked)
            return [item.embedding for item in made.data]

        yield ask


FLOATS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=8)


@settings(max_examples=30)
@given(st.lists(FLOATS, min_size=1, max_size=4))
def test_the_sdk_reads_from_base64_what_mistral_said(sdk, vectors):
    assert sdk(vectors) == vectors
    assert sdk(vectors, encoding_format="float") == vectors


def test_vectors_come_in_the_order_of_the_texts():
    _, context = translated({"input": ["a", "b"]})
    answer = answered([1], [2])
    answer["data"].reverse()
    assert [item["embedding"] for item in EMBEDDINGS.answer(answer, context)["data"]] == [[1], [2]]


def test_without_indexes_the_order_is_that_of_the_answer():
    _, context = translated({"input": ["a", "b"]})
    answer = answered([1], [2])
    for item in answer["data"]:
        del item["index"]
    assert [item["index"] for item in EMBEDDINGS.answer(answer, context)["data"]] == [0, 1]


WRONG: list[Any] = [
    *(None, 5, "x", [], {}, {"data": None}, {"data": []}, {"data": [None]}, {"data": [{}]}),
    answered(["1"]),
    answered([None]),
    answered([True]),
    answered([[1]]),
    answered([0.5], data=[{"embedding": "AAAA", "index": 0}]),
    answered([0.5], data=[{"embedding": [1], "index": 1}]),
    answered([0.5], data=[{"embedding": [1], "index": 0}, {"embedding": [1], "index": 0}]),
    answered([0.5], data=[{"embedding": [1], "index": "0"}]),
    answered([0.5], data=[{"embedding": [1], "index": None}]),
]


@pytest.mark.parametrize("answer", WRONG)
@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_an_answer_of_another_shape(answer, encoding):
    _, context = translated({"input": "hi", "encoding_format": encoding})
    with pytest.raises(UpstreamFailed) as raised:
        EMBEDDINGS.answer(answer, context)
    assert raised.value.message == "The provider's answer was not a list of embeddings."


@pytest.mark.parametrize("error", [{"object": "error", "message": "no", "code": "3000"}, {"error": {"message": "no"}}])
@pytest.mark.parametrize("data", [{}, answered([1])])
def test_an_answer_that_is_an_error(error, data):
    _, context = translated({"input": "hi"})
    with pytest.raises(UpstreamFailed) as raised:
        EMBEDDINGS.answer(data | error, context)
    assert raised.value.message == "The upstream reported an error instead of an answer."


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_a_vector_that_is_none_is_not_what_the_next_one_need_be(encoding):
    def is_spoiled(*data: Any) -> bool:
        _, context = translated({"input": ["hi", "ho"], "encoding_format": encoding})
        EMBEDDINGS.answer(answered(data=list(data)), context)
        return context.spoiled

    good = {"embedding": [0.5], "index": 0}
    assert not is_spoiled(good, {"embedding": [0], "index": 1})
    assert is_spoiled(good, {"embedding": [], "index": 1})
    assert is_spoiled(good, {"embedding": [1], "index": 1, "error": "no"})


def test_what_is_the_same_said_or_not_leaves_no_note():
    """Else they would not have the same answer."""
    assert translated({"input": "hi"})[1].notes == translated({"input": "hi", "encoding_format": "float"})[1].notes
    assert translated({"input": "hi"})[1].notes != translated({"input": "hi", "encoding_format": "base64"})[1].notes


def test_a_number_that_is_too_large_to_pack():
    _, context = translated({"input": "hi", "encoding_format": "base64"})
    with pytest.raises(UpstreamFailed):
        EMBEDDINGS.answer(answered([10**400]), context)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        5,
        {},
        {"prompt_tokens": 5},
        {"prompt_tokens": "5", "total_tokens": 5},
        {"prompt_tokens": -1, "total_tokens": 1},
    ],
)
def test_a_usage_that_cannot_be_believed_is_left_out(usage):
    _, context = translated({"input": "hi"})
    answer = EMBEDDINGS.answer(answered([1], usage=usage), context)
    assert answer["data"]
    assert "usage" not in answer


# several calls


def vector(text: str) -> list[float]:
    return [float(len(text)), float(ord(text[0]))]


def call(body: dict[str, Any], context: Context) -> Any:
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    tokens = sum(map(len, texts))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return EMBEDDINGS.answer(answered(*map(vector, texts), usage=usage), context)


def too_large(message: str, code: str | None = "3210") -> UpstreamRefusal:
    body = {"object": "error", "message": message, "type": "invalid_request_prompt", "code": code}
    error = refusal(400, lambda name: None, json.encode(body), Context(CODESTRAL, {"input": "x"}))
    assert isinstance(error, UpstreamRefusal)
    return error


TOO_MANY = too_large("Too many tokens overall, split into more batches.")


def in_parts(body: dict[str, Any], context: Context, most_tokens: int) -> list[Any]:
    """As dispatch does it: a part that is refused is halved for as long as that gives something."""
    if len(body["input"]) == 1 or sum(map(len, body["input"])) <= most_tokens:
        return [(body, call(body, context))]
    return [one for half in BATCH.halve(TOO_MANY, body) for one in in_parts(half, context, most_tokens)]


@settings(max_examples=30)
@given(st.integers(1, 600), st.sampled_from(["float", "base64"]), st.integers(50, 2000))
def test_many_calls_answer_as_one(many, encoding, most_tokens):
    texts = ["x" * (1 + at % 7) for at in range(many)]
    body, context = translated({"input": texts, "encoding_format": encoding})
    parts = BATCH.split(body)
    assert [text for part in parts for text in part["input"]] == texts
    assert all(len(part["input"]) <= MOST_AT_ONCE for part in parts)
    assert all(part | {"input": texts} == body for part in parts)
    answers = [one for part in parts for one in in_parts(part, context, most_tokens)]
    assert BATCH.merge(answers) == call(body, context)
    without_last = answers[-1][1] | {"data": answers[-1][1]["data"][:-1]}
    with pytest.raises(UpstreamFailed):
        BATCH.merge([*answers[:-1], (answers[-1][0], without_last)])


@pytest.mark.parametrize(("many", "calls"), [(1, [1]), (256, [256]), (257, [256, 1]), (600, [256, 256, 88])])
def test_256_texts_go_into_one_call(many, calls):
    body, _ = translated({"input": ["a"] * many})
    assert [len(part["input"]) for part in BATCH.split(body)] == calls


def test_one_text_is_one_call():
    body, _ = translated({"input": "a" * 1000})
    assert BATCH.split(body) == [body]
    assert BATCH.halve(TOO_MANY, body) == []


@pytest.mark.parametrize(
    ("message", "code", "halved"),
    [
        ("Too many tokens overall, split into more batches.", "3210", [["a", "b"], ["c"]]),
        ("Too many inputs in request, split into more batches.", None, [["a", "b"], ["c"]]),
        ("In other words", "3210", [["a", "b"], ["c"]]),
        ("This model does not support output_dimension.", "3051", []),
    ],
)
def test_a_refusal_for_size_is_answered_by_halves(message, code, halved):
    refusal_ = too_large(message, code)
    assert [half["input"] for half in BATCH.halve(refusal_, {"input": ["a", "b", "c"]})] == halved
    assert BATCH.halve(refusal_, {"input": ["a"]}) == []


def test_usage_is_left_out_of_the_sum_of_answers_when_one_has_none():
    _, context = translated({"input": ["a", "b"]})
    answers = [
        ({"input": ["a"]}, EMBEDDINGS.answer(answered([1], usage=usage), context))
        for usage in ({"prompt_tokens": 1, "total_tokens": 1}, None)
    ]
    assert "usage" not in BATCH.merge(answers)
