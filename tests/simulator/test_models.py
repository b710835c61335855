"""The list of models."""

import httpx2
import pytest

from proxy.simulator.models import BY_NAME, MODELS


async def test_every_name_has_a_row(http: httpx2.AsyncClient) -> None:
    answer = (await http.get("/v1/models")).json()
    rows = {row["id"]: row for row in answer["data"]}
    assert answer["object"] == "list"
    assert set(rows) == {name for model in MODELS for name in model.names}
    row = rows["mistral-small-latest"]
    assert row["name"] == "mistral-small-2603"
    assert row["aliases"] == ["mistral-small-2603", "mistral-vibe-cli-fast", "magistral-small-latest"]
    assert row["capabilities"]["reasoning"] is True
    assert row["capabilities"]["completion_fim"] is False
    assert len(row["capabilities"]) == 14
    assert (row["object"], row["type"], row["max_context_length"]) == ("model", "base", 262_144)


async def test_one_model(http: httpx2.AsyncClient) -> None:
    listed = (await http.get("/v1/models")).json()["data"]
    assert (await http.get("/v1/models/codestral-latest")).json() in listed


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mistral-huge", "Model mistral-huge was not found."),
        ("devstral-2512", "Model devstral-2512 is deprecated."),
        ("a/b", "Model a/b was not found."),
    ],
)
async def test_other_models(http: httpx2.AsyncClient, name: str, message: str) -> None:
    answer = await http.get(f"/v1/models/{name}")
    assert (answer.status_code, answer.json()) == (404, {"message": message})


def test_each_family_of_rules_has_a_model() -> None:
    assert {model.family for model in MODELS if model.can("completion_chat")} == {11, 13, 15}
    assert sum(len(model.names) for model in MODELS) == len(BY_NAME)
