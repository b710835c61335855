"""Writes docs/reliability.md: what goes wrong, what is seen then, and the tests that show it.

python -m tests.docs.reliability > docs/reliability.md

Tests are found by their names, limits and counts are read from the code: the page cannot say anything else.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.docs.reliability_numbers import counts, limits
from tests.docs.reliability_rows import LEFT_OUT, ROWS, SECTIONS, Row

ROOT = Path(__file__).parents[2]

_NAMED = re.compile(r"^ *(?:async )?def (test_((?:[a-l]\d+_)+)\w+)", re.MULTILINE)

HEAD = """\
# Reliability

Whatever reaches either side of the proxy, every request ends in the right answer or a clear error, nothing hangs,
nothing leaks, and no other caller notices. This page is the list of what that means, row by row, and of the tests that
show it: over real sockets wherever a socket has a part in it, with http1 and httpx. What is closed is the client's
connection; *the error frame* is the last event of a stream that has begun ([errors.md](errors.md#in-a-stream)).

This page is written by `python -m tests.docs.reliability`; a test compares the two. To run the tests of a row:
`scripts/test -k a12_`.

"""


def tests_by_row() -> dict[str, list[str]]:
    """Row → `file::name` of its tests, in the order of the files. A name may begin with several rows."""
    found: dict[str, list[str]] = defaultdict(list)
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for match in _NAMED.finditer(file.read_text("utf-8")):
            for row in match[2].upper().rstrip("_").split("_"):
                found[f"{row[0]}{int(row[1:])}"].append(f"{file.relative_to(ROOT).as_posix()}::{match[1]}")
    return found


def page() -> str:
    """The whole page."""
    return HEAD + "\n".join([*_numbers(), *_sections(), *_left_out()])


def _numbers() -> Iterator[str]:
    yield "## Limits\n\n| what | limit |\n|---|---|"
    yield from (f"| {what} | {limit} |" for what, limit in limits())
    yield "\n## What every run of the tests does\n"
    yield from (f"- {what}" for what in counts())
    yield ""


def _sections() -> Iterator[str]:
    tests = tests_by_row()
    for letter, title in SECTIONS.items():
        yield f"## {letter}. {title}\n"
        yield "| row | what goes wrong | what is seen | shown by |\n|---|---|---|---|"
        yield from (_line(row, tests[row.id]) for row in ROWS if row.id[0] == letter)
        yield ""


def _line(row: Row, tests: list[str]) -> str:
    fault, seen = (text.replace("|", r"\|") for text in (row.fault, row.seen))
    return f"| {row.id} | {fault} | {seen} | {'<br>'.join(f'`{test}`' for test in dict.fromkeys(tests))} |"


def _left_out() -> Iterator[str]:
    yield "## Not shown by a test\n\n| row | what, and why |\n|---|---|"
    yield from (f"| {row} | {why} |" for row, why in LEFT_OUT.items())
    yield ""


if __name__ == "__main__":
    print(page(), end="")
