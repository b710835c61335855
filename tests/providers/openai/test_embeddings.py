from __future__ import annotations

from typing import Any

import pytest

from proxy.core.errors import MissingParameter, UnsupportedParameter, UpstreamFailed
from proxy.core.model import Model
from proxy.core.table import Context
from proxy.providers.openai.embeddings import EMBEDDINGS

USAGE = {"prompt_tokens": 8, "total_tokens": 8}
BASE64 = "AAAAAAAAgD8="


def request(asked: dict[str, Any]) -> dict[str, Any]:
    assert EMBEDDINGS.request
    return EMBEDDINGS.request.translate(asked, Context(Model("m"), asked, strict=True))


def answer(*indexes: Any, vector: Any = BASE64, **more: Any) -> dict[str, Any]:
    data = [{"object": "embedding", "index": index, "embedding": vector} for index in indexes]
    return {"object": "list", "data": data, "model": "text-embedding-3-small", "usage": USAGE} | more


def answered(asked: Any, body: Any) -> Any:
    return EMBEDDINGS.answer(body, Context(Model("m"), {"input": asked}))


@pytest.mark.parametrize("given", ["hi", ["hi", "ho"], [1, 2, 3], [[1, 2], [3]], "", []])
def test_the_request_goes_on_as_it_came(given):
    body = {"model": "m", "input": given, "encoding_format": "base64", "dimensions": 256, "user": "u", "truncate": 1}
    assert request(body) == body


def test_something_is_embedded():
    with pytest.raises(MissingParameter):
        request({"model": "m"})


@pytest.mark.parametrize("name", ["api_key", "models", "provider"])
def test_a_request_chooses_no_provider(name):
    with pytest.raises(UnsupportedParameter):
        request({"model": "m", "input": "x", name: "y"})


@pytest.mark.parametrize(
    ("asked", "body"),
    [
        ("hi", answer(0)),
        (["hi"], answer(0, vector=[0.5, 1])),
        (["hi", "ho"], answer(0, 1)),
        (["hi", "ho"], answer(1, 0)),
        ([1, 2, 3], answer(0)),
        ([[1, 2], [3]], answer(0, 1)),
        ("hi", answer(0, id="x", usage={"prompt_tokens": 1})),
    ],
)
def test_one_embedding_for_each_input_passes_as_it_is(asked, body):
    assert answered(asked, body) is body


@pytest.mark.parametrize(
    ("asked", "body"),
    [
        ("hi", answer(0, 1)),
        ("hi", answer(1)),
        (["hi", "ho"], answer(0)),
        (["hi", "ho"], answer(0, 0)),
        (["hi", "ho"], answer(0, 2)),
        (["hi", "ho"], answer(-1, 0)),
        ([1, 2, 3], answer(0, 1, 2)),
        ([True, False], answer(0)),
        ("hi", answer(None)),
        ("hi", answer("0")),
        ("hi", answer(False)),
        ("hi", answer(0, vector=None)),
        ("hi", answer()),
        ([], answer()),
        ([], answer(0)),
        ("hi", {"data": [None]}),
        ("hi", []),
        ("hi", None),
    ],
)
def test_a_text_never_has_the_vector_of_another(asked, body):
    with pytest.raises(UpstreamFailed) as caught:
        answered(asked, body)
    assert caught.value.message == "The provider's answer was not a list of embeddings."


@pytest.mark.parametrize("body", [{}, answer(0)])
@pytest.mark.parametrize("error", [{"error": {"message": "x"}}, {"object": "error"}])
def test_an_answer_that_is_an_error(body, error):
    with pytest.raises(UpstreamFailed) as caught:
        answered("hi", body | error)
    assert caught.value.message == "The upstream reported an error instead of an answer."


@pytest.mark.parametrize(
    ("body", "is_one"),
    [(answer(0), True), (answer(0, vector=[0]), True), (answer(0, vector=[]), False), (answer(0, vector=""), False),
     (answer(0, vector=[0.5, 1, -2e-3]), True), (answer(0, vector=[0.5, None]), False),
     (answer(0, vector=["0.5"]), False), (answer(0, vector=[[0.5]]), False),
     (answer(0, vector=[0.5, 10**400]), False),
     ({"data": [{"index": 0, "embedding": [1], "error": "no"}]}, False)],
)  # fmt: skip
def test_a_vector_that_is_none_is_not_what_the_next_one_need_be(body, is_one):
    context = Context(Model("m"), {"input": "hi"})
    EMBEDDINGS.answer(body, context)
    assert context.spoiled is not is_one


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": -1}, {"prompt_tokens": 1, "total_tokens": "1"}])
def test_usage_that_cannot_be_believed_is_left_out(usage):
    assert "usage" not in answered("hi", answer(0, usage=usage))
