"""docs/reliability.md: every row has a test or a reason, every test a row, and every code exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxy.core import errors
from tests.docs import reliability
from tests.docs.reliability_rows import LEFT_OUT, ROWS, SECTIONS

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
TESTS = reliability.tests_by_row()
CODES = {kind.code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ProxyError)}
# Codes that come from the provider's table of errors, one that a log line has, and names of other things.
OTHERS = {
    "upstream_auth_failed",
    "insufficient_quota",
    "usage_anomaly",
    "finish_reason",
    "max_tokens",
    "stream_options",
}
FIELDS = OTHERS | {"base_url"}


def test_the_page_is_what_the_rows_and_the_tests_say():
    assert PAGE.read_text("utf-8") == reliability.page(), "run: python -m tests.docs.reliability > docs/reliability.md"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_row_has_a_test(row):
    assert TESTS.get(row.id), f"no test is named test_{row.id.lower()}_…"
    assert row.id not in LEFT_OUT


def test_a_row_that_is_left_out_has_no_test():
    assert [row for row in LEFT_OUT if row in TESTS] == []


def test_a_test_that_names_a_row_names_one_that_exists():
    assert set(TESTS) - {row.id for row in ROWS} == set()


def test_rows_are_in_order_and_none_is_forgotten():
    everything = [(row[0], int(row[1:])) for row in (*(row.id for row in ROWS), *LEFT_OUT)]
    assert [(row.id[0], int(row.id[1:])) for row in ROWS] == sorted((row.id[0], int(row.id[1:])) for row in ROWS)
    for letter, last in zip(SECTIONS, (24, 18, 24, 26, 18, 17, 17, 11, 10, 11, 18, 6), strict=True):
        assert sorted(number for section, number in everything if section == letter) == list(range(1, last + 1))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_code_on_the_page_is_one_that_clients_get(row):
    assert set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", row.seen)) <= CODES | FIELDS
