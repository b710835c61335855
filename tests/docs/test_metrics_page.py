"""docs/metrics.md names every metric, every label and every value of a closed set, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from proxy import scrape
from proxy.core.cache import Outcome
from proxy.core.errors import Fault
from proxy.core.metrics import board
from proxy.core.metrics.families import FAMILIES, Family, Kind, Over
from proxy.core.overhead import STAGES
from proxy.core.provider import MAIN
from proxy.core.quota import Unit
from proxy.providers import PROVIDERS
from proxy.stages import admin
from tests.docs.promql import check

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text("utf-8")
ROWS = {
    name: (kind, set(re.findall(r"`(\w+)`", labels)), rest)
    for name, kind, labels, rest in re.findall(
        r"^\| `(mistral_\w+)` \| (\w+) \| ?([^|]*?) ?\| (.*) \|$", PAGE, re.MULTILINE
    )
}
LABELS = {
    name: text
    for names, text in re.findall(
        r"^\| ((?:`[a-z_]+`(?:, )?)+) \| (.*) \|$", PAGE.split("### What requests")[0], re.MULTILINE
    )
    for name in re.findall(r"`(\w+)`", names)
}

each = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@each
def test_a_metric_has_its_row(family: Family) -> None:
    kind, labels, _ = ROWS[family.name]
    assert (kind, labels) == (family.kind.value, set(family.labels))


def test_there_is_nothing_else() -> None:
    assert set(ROWS) == {family.name for family in FAMILIES}
    assert set(LABELS) == {label for family in FAMILIES for label in family.labels}


@each
def test_how_several_workers_add_up(family: Family) -> None:
    told = ROWS[family.name][2].rpartition("| ")[2]
    if told in {one.value for one in Over}:
        assert told == family.over.value
    else:
        assert family.over is Over.SUM


@pytest.mark.parametrize(
    ("label", "values"),
    [
        ("fault", {fault.value for fault in Fault}),
        ("outcome", set(get_args(Outcome))),
        ("stage", set(STAGES)),
        ("limit_type", {unit.value for unit in Unit}),
        ("mode", {"enforce", "shadow"}),
        ("direction", {"input", "output"}),
        ("state", {"in_use", "idle"}),
        ("retryable", {"true", "false"}),
    ],
)
def test_the_values_of_a_closed_set_are_all_there(label: str, values: set[str]) -> None:
    assert set(re.findall(r"`([a-z_]+)`", LABELS[label])) == values


def test_operations_are_all_there() -> None:
    named = set(re.findall(r"`([a-z._]+)`", LABELS["method"])) - {"_stream"}
    assert named == {row.span for row in PROVIDERS[MAIN].endpoints} | {"health", "metrics", "admin", "other"}


@pytest.mark.parametrize("fault", Fault)
def test_each_fault_and_each_stage_is_explained(fault: Fault) -> None:
    assert re.search(rf"^\| `{fault.value}` \| \w", PAGE, re.MULTILINE)
    assert [name for name in STAGES if not re.search(rf"^\| `{name}` \| \w", PAGE, re.MULTILINE)] == []


@pytest.mark.parametrize("family", [one for one in FAMILIES if one.kind is Kind.HISTOGRAM], ids=lambda one: one.name)
def test_buckets_are_told(family: Family) -> None:
    [told] = re.findall(rf"of\s+`{family.name}`: ([\d. ]+)[;.]", PAGE)
    assert [float(bound) for bound in told.rstrip(". ").split()] == list(family.bounds)


def expressions() -> list[str]:
    """Of the questions, and of the alerts."""
    questions = re.findall(r"```promql\n(.*?)```", PAGE, re.DOTALL)[0]
    found = [re.sub(r"^#.*\n", "", one) for one in questions.split("\n\n")]
    return [*found, *(rule["expr"] for rule in alerts())]


def alerts() -> list[dict[str, Any]]:
    [group] = yaml.safe_load(re.findall(r"```yaml\n(groups:.*?)```", PAGE, re.DOTALL)[0])["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_names_what_exists(expression: str) -> None:
    check(expression)


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_it_is_about(rule: dict[str, Any]) -> None:
    grouped = re.findall(r"\bby \(([^)]*)\)", rule["expr"])
    kept = set(grouped[0].replace(" ", "").split(",")) if grouped else {"team", "rule"}
    assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= kept


def test_numbers_are_those_of_the_code() -> None:
    assert scrape.ALIVE == 5
    assert PAGE.count("five seconds") == 2
    assert (board._NAMES, board._CELLS // 8) == (1 << 20, 131_072)
    assert "131,072 numbers" in PAGE


def test_headers_of_whoever_asks_for_others_are_named() -> None:
    rows = re.findall(
        r"^\| (?:the same through a reverse proxy there|a page in a browser there) \((.*?)\)", PAGE, re.MULTILINE
    )
    assert set(re.findall(r"`([a-z-]+)`", " ".join(rows))) == {name.decode() for name in admin._FOR_OTHERS}
