from __future__ import annotations

from pathlib import Path

from tests.docs import compatibility

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"


def test_the_page_is_what_the_tables_say() -> None:
    assert PAGE.read_text() == compatibility.page(), "run: python -m tests.docs.compatibility > docs/compatibility.md"
