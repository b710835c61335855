"""docs/operations.md names every header of an answer that is ours."""

from __future__ import annotations

import re
from pathlib import Path

from proxy.stages.cors import EXPOSED

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text("utf-8")


def test_every_header_is_on_the_page_and_no_other() -> None:
    section = PAGE.partition("## Headers of an answer")[2].partition("\n## ")[0]
    named = re.findall(r"`([a-z-]+)`", "".join(re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)))
    assert len(named) == len(set(named))
    assert set(named) == {*EXPOSED.decode().split(", "), "server-timing"}  # which a page reads by other means
