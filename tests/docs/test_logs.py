"""docs/logs.md has every event that the code logs, with its levels and fields, and none that it does not.

Told by the calls themselves: `log("level", "event", field=…)`. Where a call does not say which event, its file is
listed here, so that a new one is noticed.
"""

from __future__ import annotations

import ast
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from proxy.core import circuit
from proxy.core.exchange import Exchange
from proxy.core.head import Head
from proxy.logs import LEVELS
from proxy.stages.access_log import Line

PROXY = Path("proxy")
PAGE = Path("docs/logs.md").read_text("utf-8")
ALWAYS = {"time", "level", "event"}

LOGGING = {"log", "_log", "_report", "ready"}
IDS = set(Exchange("", "", "", Head(()), "", 0.0).ids)
"""What every line about a request begins with."""

APART = {"proof", "simulator"}
"""Programs of their own."""

INDIRECT = {
    "core/circuit.py": {name for _, name in circuit._LOGGED.values()},
    "serving/current.py": {"reload_failed", "config_warning"},
    "store/cache/redis.py": {"cache_entry_rejected", "cache_entry_not_kept"},
}
"""Where a call has its event from elsewhere, and which events those are."""


@dataclass
class Logged:
    """What the calls of one event say. `more`: they have fields that are not written in the call."""

    levels: set[str] = field(default_factory=set)
    fields: set[str] = field(default_factory=set)
    more: bool = False

    def add(self, call: ast.Call) -> None:
        self.levels |= {one for one in strings(call.args) if one in LEVELS}
        self.fields |= {keyword.arg for keyword in call.keywords if keyword.arg}
        inside = [node for arg in call.args for node in ast.walk(arg) if isinstance(node, ast.Dict)]
        self.fields |= {one.value for node in inside for one in node.keys}  # type: ignore
        others = [ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg is None]
        self.fields |= IDS if any(one.endswith("exchange.ids") for one in others) else set()
        self.more |= any(not one.endswith("exchange.ids") for one in others)
        self.more |= isinstance(call.func, ast.Attribute) and call.func.attr == "ready"  # they are JSON already


def strings(nodes: list[ast.expr]) -> Iterator[str]:
    """The texts among the arguments of a call, also those of `a if … else b`."""
    for node in nodes:
        if isinstance(node, ast.IfExp):
            yield from strings([node.body, node.orelse])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    """The calls that log: by their name, by the log that they are given, or as the log itself adds a line."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        to_one = name == "report" and ast.unparse(node.args[0]).endswith("log")
        if name in LOGGING or to_one or (name == "_add" and not LEVELS.keys().isdisjoint(strings(node.args))):
            yield node


def collected() -> tuple[dict[str, Logged], set[str]]:
    """Every event, and the files with a call that does not name its own."""
    events: dict[str, Logged] = defaultdict(Logged)
    indirect: dict[str, list[ast.Call]] = defaultdict(list)
    for file in sorted(PROXY.rglob("*.py")):
        name = str(file.relative_to(PROXY))
        if file.parts[1] in APART:
            continue
        for call in calls(ast.parse(file.read_text("utf-8"))):
            named = [one for one in strings(call.args) if one not in LEVELS]
            for event in named:
                events[event].add(call)
            if not named and len(call.args) > 1 and name != "logs.py":  # which passes on what others say
                indirect[name].append(call)
    for name, made in indirect.items():
        for event in INDIRECT.get(name, set()):
            for call in made:
                events[event].add(call)
    for level, event in circuit._LOGGED.values():
        events[event].levels.add(level)
    return events, set(indirect)


EVENTS, FILES = collected()


@dataclass(frozen=True)
class Row:
    levels: set[str]
    fields: set[str]


def listed(text: str) -> set[str]:
    return set(re.findall(r"`([a-z_]+)`", text))


ROWS = {
    event: Row({level.strip() for level in levels.split(",")}, listed(fields))
    for events, levels, fields in re.findall(
        r"^\| (`[a-z_`, ]+`) \| ([a-z, ]+) \|([^|]*)\|[^|]+\|$", PAGE, re.MULTILINE
    )
    for event in listed(events)
}
REQUEST = re.search(r"^\| field of `request` .*?\n\n", PAGE, re.MULTILINE | re.DOTALL)
assert REQUEST
FIELDS = {name for row in REQUEST[0].strip().splitlines()[2:] for name in listed(row.split("|")[1])}


def test_the_page_has_exactly_the_events():
    assert set(ROWS) == set(EVENTS)
    assert len(ROWS) > 45


def test_a_call_that_does_not_name_its_event_is_known():
    assert set(INDIRECT) == FILES


@pytest.mark.parametrize("event", sorted(set(EVENTS) - {"request"}))
def test_the_page_has_the_fields_of_an_event(event):
    logged, fields = EVENTS[event], ROWS[event].fields
    assert logged.fields <= fields if logged.more else logged.fields == fields


@pytest.mark.parametrize("event", sorted(EVENTS))
def test_the_page_has_the_levels_of_an_event(event):
    assert ROWS[event].levels == (EVENTS[event].levels or ROWS[event].levels)
    assert ROWS[event].levels <= set(LEVELS)


def test_the_page_has_exactly_the_fields_of_a_request():
    assert set(Line.__struct_fields__) == FIELDS
    assert EVENTS["request"].fields <= FIELDS


def test_the_lines_that_the_page_shows_could_be_real():
    shown = re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert shown
    for line in map(json.loads, shown[1].splitlines()):
        row = ROWS[line["event"]]
        fields = set(line) - ALWAYS
        assert line["level"] in row.levels
        assert fields <= FIELDS if line["event"] == "request" else fields == row.fields
