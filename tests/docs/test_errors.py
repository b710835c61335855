"""docs/errors.md names every code that a client can get, and none that it cannot."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxy.core import errors
from proxy.providers.mistral.errors import TABLE
from proxy.providers.openai.error_table import TABLE as OPENAI_TABLE

PAGE = (Path(__file__).parents[2] / "docs" / "errors.md").read_text("utf-8")


TREE = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ProxyError)]
OURS = {kind.code for kind in TREE if kind.code}
MISTRALS = {row.code for row in (*TABLE, *OPENAI_TABLE)}


@pytest.mark.parametrize("code", sorted(OURS | MISTRALS))
def test_the_page_has_a_row_for_every_code(code):
    assert re.search(rf"^\|.*`{code}`", PAGE, re.MULTILINE)


def test_the_page_names_no_code_that_does_not_exist():
    rows = re.findall(r"^\| (?:[45][^|]*\| )?`([a-z_]+)` \|", PAGE, re.MULTILINE)
    assert set(rows) == OURS | MISTRALS


@pytest.mark.parametrize(
    "row",
    {row.mend.__name__: row for row in (*TABLE, *OPENAI_TABLE) if row.mend}.values(),
    ids=lambda row: row.text or row.param,
)
def test_the_page_names_every_word_of_a_mended_request(row):
    assert f"`mend:{row.param}`" in PAGE if row.param else "`mend:` and the field" in PAGE


@pytest.mark.parametrize("kind", sorted({row.type for row in (*TABLE, *OPENAI_TABLE)} | {kind.type for kind in TREE}))
def test_the_page_names_every_type(kind):
    assert f"`{kind}`" in PAGE
