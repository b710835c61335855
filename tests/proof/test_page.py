"""docs/proof.md shows what the command prints, and names every line of it."""

from __future__ import annotations

import re
from pathlib import Path

from proxy.commands import table
from proxy.commands.prove_quota import prove_quota
from proxy.proof.plan import Options, Plan
from proxy.proof.recount import verdict
from proxy.proof.report import end, head, rows
from proxy.proof.run import Proved
from tests.proof.evidence import PRICES, money, requests, slots

PAGE = Path("docs/proof.md")


def proved() -> Proved:
    evidence = [money(), requests(), slots()]
    plan = Plan(Options(workers=2, replicas=2), PRICES, "0", [one.trial for one in evidence])
    return Proved(plan, [(one, verdict(one, PRICES)) for one in evidence], 1, {})


def form(text: str) -> list[str]:
    """Its words, whatever the numbers and the spaces between them."""
    text = re.sub(r"redis://\S+:", "redis:", text)
    text = re.sub(r"[0-9][0-9.]*( USD)?((,| to) [0-9][0-9.]*( USD)?)*", "#", text)
    return [" ".join(line.split()) for line in text.strip().splitlines()]


def test_the_example_has_the_form_of_the_real_one() -> None:
    example = PAGE.read_text().partition("```\nredis://")[2].partition("\n```")[0]
    real = f"{head(proved(), 'redis://127.0.0.1:6379/0')}\n\n{table(rows(proved()))}\n\n{end(proved())}"
    assert form(f"redis://{example}") == form(real)


def test_every_line_is_explained() -> None:
    page = PAGE.read_text()
    explained = {name for line in page.splitlines() if line.startswith("| `") for name in re.findall("`([^`]+)`", line)}
    names = {row[0] for row in rows(proved())[1:]}
    assert names - explained == {"trials", "clients at once, at most", "limit", "seconds"}


def test_every_option_is_there() -> None:
    page = PAGE.read_text()
    options = {name for option in prove_quota.params for name in (*option.opts, *option.secondary_opts)}
    assert {name for name in options if name not in page} == {"--kills"}
