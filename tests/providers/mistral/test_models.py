from __future__ import annotations

from typing import Any

import pytest

from proxy.core.errors import UpstreamFailed
from proxy.core.model import Model
from proxy.core.table import Context
from proxy.providers.mistral.models import MODEL, MODELS

# A row as api.mistral.ai gives it (August 2026), shortened.
CARD: dict[str, Any] = {
    "id": "mistral-small-latest",
    "object": "model",
    "created": 1756746619,
    "owned_by": "mistralai",
    "capabilities": {"completion_chat": True},
    "name": "mistral-small-2603",
    "max_context_length": 262144,
    "aliases": ["mistral-small-2603"],
    "deprecation": None,
}


def listed(*cards: Any, **notes: Any) -> list[dict[str, Any]]:
    answer = MODELS.answer({"object": "list", "data": list(cards)}, context(**notes))
    assert set(answer) == {"object", "data"}
    assert answer["object"] == "list"
    data: list[dict[str, Any]] = answer["data"]
    return data


def context(**notes: Any) -> Context:
    return Context(model=Model("m"), asked={}, notes=notes)


def test_a_row_has_openais_fields_and_keeps_the_rest():
    assert listed(CARD) == [CARD | {"shutdown_date": None}]


def test_the_shutdown_date_is_a_date():
    [row] = listed(CARD | {"deprecation": "2026-08-31T12:00:00Z"})
    assert row["shutdown_date"] == "2026-08-31"
    assert row["deprecation"] == "2026-08-31T12:00:00Z"


@pytest.mark.parametrize("created", [None, "now", True, 1.5])
def test_what_openai_requires_is_there_even_if_mistral_leaves_it_out(created):
    [row] = listed({"id": "m", "created": created, "object": "card", "owned_by": None, "deprecation": 5})
    assert row == {
        **{"id": "m", "object": "model", "created": 0, "owned_by": "mistralai"},
        **{"deprecation": 5, "shutdown_date": None},
    }


def test_a_team_sees_the_models_it_may_use():
    rows = listed(CARD, {"id": "codestral-latest"}, visible=lambda name: name.startswith("codestral"))
    assert [row["id"] for row in rows] == ["codestral-latest"]


def test_aliases_of_listed_models_are_listed():
    aliases = {
        "gpt-4o": "mistral-small-latest",
        "gpt-4": "openai/gpt-4o",
        "fast": "codestral-latest",
        "codestral-2508": "mistral-small-latest",
    }
    cards = (CARD, {"id": "codestral-latest"}, {"id": "codestral-2508"})
    rows = listed(*cards, visible=lambda name: name != "codestral-latest", aliases=aliases)
    assert [row["id"] for row in rows] == ["mistral-small-latest", "codestral-2508", "gpt-4o"]
    assert rows[2] == rows[0] | {"id": "gpt-4o"}


def test_without_notes_all_models_are_listed():
    assert [row["id"] for row in listed(CARD, visible=None, aliases=None)] == ["mistral-small-latest"]


def test_one_model_has_the_name_it_was_asked_for_by():
    assert MODEL.answer(CARD, context(asked="gpt-4o")) == CARD | {"id": "gpt-4o", "shutdown_date": None}
    assert MODEL.answer(CARD, context(asked=None))["id"] == "mistral-small-latest"
    assert MODEL.answer(CARD, context())["id"] == "mistral-small-latest"


NO_CARDS: list[Any] = [None, "x", [], {}, {"id": 5}, {"object": "error", "message": "Internal error"}]


@pytest.mark.parametrize("answer", NO_CARDS)
def test_an_answer_of_another_shape(answer):
    for endpoint, wrong in ((MODEL, answer), (MODELS, answer), (MODELS, {"data": [CARD, answer]})):
        with pytest.raises(UpstreamFailed) as raised:
            endpoint.answer(wrong, context())
        assert raised.value.message == "The provider's answer was not a description of models."
