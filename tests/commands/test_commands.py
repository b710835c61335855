"""What the commands share: durations, times, tables."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from proxy.commands import Milliseconds, moment, table


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("250ms", 250),
        ("30s", 30_000),
        ("1.5h", 5_400_000),
        ("90d", 7_776_000_000),
        ("0s", 0),
        ("36525d", 36525 * 86_400_000),
    ],
)
def test_a_duration_is_written_as_in_the_configuration(text: str, milliseconds: int) -> None:
    assert Milliseconds().convert(text, None, None) == milliseconds


@pytest.mark.parametrize("text", ["", "90", "90 d", "d", "-1d", "1w", "1e3s", "nan", "999999999d", "36601d", "٣d"])
def test_what_is_no_duration_is_a_wrong_usage(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Milliseconds().convert(text, None, None)


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_800_000_000_999, "2027-01-15T08:00:00Z"),
        (1_800_000_000_000 + 100 * 366 * 86_400_000, "2127-04-01T08:00:00Z"),
    ],
)
def test_a_moment_is_written_in_utc(at: int, text: str) -> None:
    assert moment(at) == text


def test_columns_are_as_wide_as_they_must_be() -> None:
    rows = [("TEAM", "REQUESTS", "NOTE"), ("a", "1", ""), ("research", "12345678901", "x")]
    assert table(rows, frozenset({1})).splitlines() == [
        "TEAM         REQUESTS  NOTE",
        "a                   1",
        "research  12345678901  x",
    ]
    assert table(rows[:1]) == "TEAM  REQUESTS  NOTE"


def test_whoever_does_not_use_them_does_not_wait_for_what_they_import() -> None:
    code = (
        "import proxy.commands.cache, proxy.commands.keys, proxy.commands.usage, sys; "
        "print(*{'sqlalchemy', 'pydantic', 'httpx2', 'redis'} & sys.modules.keys())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
