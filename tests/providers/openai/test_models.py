from __future__ import annotations

from typing import Any

import pytest

from proxy.core.errors import UpstreamFailed
from proxy.core.model import Model
from proxy.core.table import Context
from proxy.providers.openai.models import MODEL, MODELS

MINI = {"id": "gpt-4o-mini", "object": "model", "created": 1721172741, "owned_by": "system"}
LLAMA = {"id": "llama", "object": "model", "owned_by": "vllm", "root": "llama", "max_model_len": 8192, "parent": None}


def context(**notes: Any) -> Context:
    return Context(model=Model("m"), asked={}, notes=notes)


def test_the_list_passes_as_it_is():
    answer = {"object": "list", "data": [MINI, LLAMA], "has_more": False}
    assert MODELS.answer(answer, context()) == answer
    assert MODELS.answer(answer, context(visible=None)) == answer


def test_a_team_sees_the_models_it_may_use():
    answer = {"object": "list", "data": [MINI, LLAMA]}
    seen = MODELS.answer(answer, context(visible=lambda name: name == "llama"))
    assert seen == {"object": "list", "data": [LLAMA]}


def test_one_model_has_the_name_it_was_asked_for_by():
    assert MODEL.answer(LLAMA, context(asked="openai/llama")) == LLAMA | {"id": "openai/llama"}
    assert MODEL.answer(LLAMA, context(asked=None)) == LLAMA
    assert MODEL.answer(LLAMA, context()) == LLAMA


WRONG: list[Any] = [None, "x", [], {}, {"id": 5}, {"error": {"message": "x"}}]


@pytest.mark.parametrize("answer", WRONG)
def test_an_answer_of_another_shape(answer):
    for endpoint, wrong in ((MODEL, answer), (MODELS, answer), (MODELS, {"data": [MINI, answer]})):
        with pytest.raises(UpstreamFailed) as raised:
            endpoint.answer(wrong, context())
        assert raised.value.message == "The provider's answer was not a description of models."
