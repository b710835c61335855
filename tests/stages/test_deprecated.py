from __future__ import annotations

from typing import Any

import pytest

from proxy import data
from proxy.core.catalogue import Catalogue
from proxy.core.exchange import Team
from proxy.core.notices import MILLISECONDS_A_DAY
from proxy.providers.mistral.chat import CHAT
from proxy.providers.mistral.models import MODEL, MODELS
from proxy.stages import deprecated
from tests.asgi import Log, call, exchange, ok, services

ROW = {"capabilities": ["completion_chat"], "input": "1", "output": "1"}
CATALOGUE = Catalogue(
    data.read("models.yaml")
    | {
        "models": [
            {"id": "new-1", **ROW},
            {"id": "going-1", "names": ["going-latest"], "retirement": "2027-01-31", "replacement": "new-1", **ROW},
        ],
        "retired": [{"id": "gone-1", "names": ["gone-latest"], "replacement": "new-1"}],
        "aliases": {"gpt-x": "going-latest"},
    }
)


class Setting:
    def __init__(self, **more: Any) -> None:
        self.log, self.now = Log(), 0
        self.services = services(self.log, CATALOGUE, wall=lambda: self.now, **more)

    async def ask(self, model: str | None, team: str = "a", row: Any = CHAT) -> None:
        stage = deprecated.build("info", row, self.services)
        assert stage
        answer = await call(stage(ok), exchange=exchange(team=Team(team, lambda name: True), model=model))
        assert answer.body == b"ok"

    def told(self) -> list[tuple[str, str]]:
        return [(fields["team"], fields["model"]) for _, _, fields in self.log.lines]


async def test_who_asks_a_model_that_ends_is_told_when_and_what_follows_it() -> None:
    setting = Setting()
    await setting.ask("going-latest")
    assert setting.log.lines == [
        (
            "warning",
            "model_deprecated",
            {
                "request_id": "id-1", "trace_id": "", "team": "a", "model": "going-latest", "retirement": "2027-01-31",
                "replacement": "new-1",
            },
        )
    ]  # fmt: skip


async def test_it_is_told_once_a_day_to_each_team_by_whatever_name_and_endpoint() -> None:
    setting = Setting()
    for team in ("a", "b", "a"):
        for row in (CHAT, MODEL):
            for name in ("going-1", "going-latest", "gone-1"):
                await setting.ask(name, team, row)
    told = [("a", "going-1"), ("a", "gone-1"), ("b", "going-1"), ("b", "gone-1")]
    assert setting.told() == told
    setting.now = MILLISECONDS_A_DAY
    await setting.ask("going-1")
    assert setting.told() == [*told, ("a", "going-1")]


@pytest.mark.parametrize("model", ["new-1", "gone-2", "gone-1 ", "ft:gone-1:x", "openai/gone-1", "", None])
async def test_of_no_other_model_anything_is_told(model: str | None) -> None:
    setting = Setting()
    await setting.ask(model)
    assert not setting.log.lines


def test_where_no_model_is_named_or_nobody_would_see_it_there_is_no_stage() -> None:
    made = services(catalogue=CATALOGUE)
    assert deprecated.build("info", MODELS, made) is None
    assert deprecated.build("error", CHAT, made) is None
    assert deprecated.build("warning", CHAT, made) is not None
