"""What clients are told of their limits."""

from __future__ import annotations

import pytest

from proxy.core.quota import WINDOWS, Rule, Standing, Unit
from proxy.core.rate_headers import Shown, span


def rule(unit: Unit, limit: int, *, shadow: bool = False) -> Rule:
    return Rule(unit, limit, WINDOWS["minute"], f"{limit}/minute", shadow=shadow)


def shown(*pairs: tuple[Rule, Standing]) -> dict[str, str]:
    found = Shown([one for one, _ in pairs]).headers([standing for _, standing in pairs])
    return {name.decode().removeprefix("x-ratelimit-"): value.decode() for name, value in found}


def test_the_rule_that_leaves_the_least() -> None:
    assert shown(
        (rule(Unit.REQUESTS, 60), Standing(10, 5, 30_000)),
        (rule(Unit.REQUESTS, 20), Standing(3, 2, 1_500)),
        (rule(Unit.TOKENS, 1000), Standing(0, 400, 360_000)),
    ) == {
        "limit-requests": "20", "remaining-requests": "15", "reset-requests": "1.5s",
        "limit-tokens": "1000", "remaining-tokens": "600", "reset-tokens": "6m0s",
    }  # fmt: skip


def test_nothing_is_less_than_none() -> None:
    """A limit may be lowered below what was used."""
    assert shown((rule(Unit.TOKENS, 10), Standing(500, 0, 1)))["remaining-tokens"] == "0"


@pytest.mark.parametrize("unit", [Unit.SPEND, Unit.CONCURRENCY])
def test_what_clients_have_no_name_for(unit: Unit) -> None:
    assert shown((rule(unit, 5), Standing(1, 1, 1))) == {}


def test_a_shadow_is_not_seen() -> None:
    assert shown((rule(Unit.REQUESTS, 5, shadow=True), Standing(9, 9, 9))) == {}


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0, "0ms"), (999, "999ms"), (1000, "1s"), (7660, "7.66s"), (60_000, "1m0s"), (360_500, "6m0.5s"),
     (3_600_000, "1h0m0s"), (90_061_001, "25h1m1.001s")],
)  # fmt: skip
def test_times_as_openai_writes_them(milliseconds: int, text: str) -> None:
    assert span(milliseconds) == text
