"""config/grafana.json shows what there is to see, by names that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs.promql import BY_NAME, check, parts

DASHBOARD: dict[str, Any] = json.loads((Path(__file__).parents[2] / "config" / "grafana.json").read_text("utf-8"))
NOT_SHOWN: frozenset[str] = frozenset()
"""Families that no panel is about, on purpose."""


def panels() -> Iterator[dict[str, Any]]:
    yield from (panel for panel in DASHBOARD["panels"] if panel["type"] != "row")


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


@pytest.mark.parametrize("expression", expressions())
def test_what_an_expression_names_exists(expression: str) -> None:
    check(expression)


@pytest.mark.parametrize("panel", list(panels()), ids=lambda panel: panel["title"])
def test_a_legend_names_labels_that_the_expression_keeps(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            kept = re.findall(r"\bby \(([^)]*)\)", target["expr"])
            labels = {name for _, family, _ in parts(target["expr"]) for name in family.labels}
            known = {name for one in kept for name in one.replace(" ", "").split(",")} if kept else labels
            assert label in known | ({"instance"} if not kept else set()), target


def test_every_metric_is_shown_or_left_out_on_purpose() -> None:
    shown = {family.name for expression in expressions() for _, family, _ in parts(expression)}
    assert shown | NOT_SHOWN == set(BY_NAME)
    assert not shown & NOT_SHOWN


def test_whoever_imports_it_chooses_where_the_data_is() -> None:
    [source, *variables] = DASHBOARD["templating"]["list"]
    assert (source["type"], source["query"]) == ("datasource", "prometheus")
    everything = [*panels(), *variables, *(target for panel in panels() for target in panel["targets"])]
    assert {json.dumps(one["datasource"]) for one in everything} == {
        json.dumps({"type": "prometheus", "uid": "${datasource}"})
    }
    for variable in variables:
        match = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"])
        assert match
        assert match[2] == variable["name"]
        assert match[2] in BY_NAME[match[1]].labels


def test_variables_that_are_used_are_there() -> None:
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$(\w+)", " ".join(expressions()))) - {"__rate_interval", "__range"}
    assert used == names - {"datasource"}


def test_rows_and_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    assert DASHBOARD["schemaVersion"] >= 39
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    places = [
        (panel["gridPos"]["x"] + column, panel["gridPos"]["y"] + line)
        for panel in DASHBOARD["panels"]
        for column in range(panel["gridPos"]["w"])
        for line in range(panel["gridPos"]["h"])
    ]
    assert len(set(places)) == len(places)
    assert all(0 <= column < 24 for column, _ in places)
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == [
        "Traffic", "Money", "Errors, by whose fault they are", "Latency and the first token", "Cache", "Quotas",
        "Providers", "The proxy itself",
    ]  # fmt: skip
