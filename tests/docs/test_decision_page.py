"""docs/decision-header.md names every member of the header, and its example is one."""

from __future__ import annotations

import re
from pathlib import Path

from proxy.core import decision
from proxy.core.errors import CircuitOpen
from proxy.core.exchange import Failed, Stand, Team
from tests.asgi import exchange
from tests.core.test_decision import Dictionary

PAGE = (Path(__file__).parents[2] / "docs" / "decision-header.md").read_text("utf-8")
ROWS = {
    name: set(re.findall(r"`(\w+)`(?=[:,])", parameters))
    for name, parameters in re.findall(r"^\| `(\w+)` \| .* \| (.*?) ?\|$", PAGE, re.MULTILINE)
}


def test_each_member_and_parameter_is_on_the_page_and_no_other() -> None:
    found = exchange(
        team=Team("research", lambda model: True), key_id="k", stand=lambda: Stand('"r"', "1", "2", "3"),
        cache="hit", age=1, circuit="open", upstream="mistral/m", in_vain=(Failed("mistral", 1, "e"),),
        rewrites={"drop:user": None}, error=CircuitOpen("no", wait=1),
    )  # fmt: skip
    told = Dictionary(dict(decision.headers(found, 0.0))[b"x-proxy-decision"].decode()).parse()
    assert {name: set(parameters) for name, (_, parameters) in told.items()} == ROWS


def test_the_example_is_one() -> None:
    [example] = re.findall(r"x-proxy-decision: (.*?)\nserver-timing", PAGE, re.DOTALL)
    told = Dictionary(re.sub(r"\n +", " ", example)).parse()
    assert set(told) == set(ROWS) - {"fault"}
    assert decision.MOST_CAUSES == 8
    assert "at most eight" in PAGE
