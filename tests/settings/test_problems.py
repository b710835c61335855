from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from proxy.core.config import Duration, Strict
from proxy.settings.problems import Place, Problem, SettingsError, describe, dotted, hint, one_of, problem


@pytest.mark.parametrize(
    ("place", "path", "text"),
    [
        (Place("proxy.yaml", 7), ("teams", "research", "keys", 0), "proxy.yaml:7: teams.research.keys[0]: wrong"),
        (Place("proxy.yaml", 1), (), "proxy.yaml:1: wrong"),
        (Place("proxy.yaml"), (), "proxy.yaml: wrong"),
        (Place("environment", variable="DEFAULT_MODEL"), ("models", "default"), "environment: DEFAULT_MODEL: wrong"),
    ],
)
def test_one_line_per_problem(place, path, text):
    assert str(problem(place, path, "wrong")) == text


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("models", "aliases", "gpt-3.5-turbo"), "models.aliases.gpt-3.5-turbo"),
        (("teams", "a b"), "teams.'a b'"),
        (("a\nb: c", "x"), "'a\\nb: c'.x"),
        (("\x1b[31m", "ü\u202e"), "'\\x1b[31m'.'\\xfc\\u202e'"),
        (("x" * 100,), "'" + "x" * 64 + "'"),
        (("",), "''"),
    ],
)
def test_a_path_is_one_harmless_line(path, text):
    assert dotted(path) == text


def test_problems_come_in_the_order_of_the_file():
    problems = [Problem("f", line, "", "") for line in (None, 3, 1, None, 2)]
    assert [problem.line for problem in SettingsError(problems).problems] == [1, 2, 3, None, None]
    assert str(SettingsError([Problem("f", 2, "b", "y"), Problem("f", 1, "a", "x")])) == "f:1: a: x\nf:2: b: y"


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("timeout", " (did you mean 'timeouts'?)"),
        ("SERVER", " (did you mean 'server'?)"),
        ("zzz", ""),
        ("", ""),
        ("s" * 10**6, ""),
    ],
)
def test_hint(word, near):
    assert hint(word, ["server", "timeouts"]) == near


def test_one_of():
    assert one_of(("a", "b")) == "expected one of: a, b"
    assert one_of(("a",)) == "expected a"


@pytest.mark.parametrize(
    ("kind", "context", "reason"),
    [
        ("greater_than", {"gt": 0.0}, "must be more than 0"),
        ("greater_than_equal", {"ge": 1}, "must be at least 1"),
        ("less_than_equal", {"le": 1_000_000}, "must be at most 1000000"),
        ("less_than_equal", {"le": 1.5}, "must be at most 1.5"),
        ("too_short", {"min_length": 1}, "the list must have at least 1"),
        ("anything else", {"input": "sk-secret"}, "not a valid value"),
    ],
)
def test_pydantic_in_plain_words(kind, context, reason):
    assert describe(kind, context) == reason


def test_a_library_does_not_choose_our_words():
    class Own(Strict):
        wait: Duration

    try:
        Own.model_validate({"wait": "soon"})
    except ValueError as raised:
        ours = raised.errors()[0]  # type: ignore[attr-defined]
    assert describe(ours["type"], ours["ctx"]) == "expected a duration such as 250ms, 30s, 5m, 1h or 7d"

    with pytest.raises(ValueError, match="sk-secret") as foreign:
        urlsplit("https://[sk-secret]")
    assert describe("value_error", {"error": foreign.value}) == "not a valid value"
