"""Limits as they are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.money import NANO, decimal, usd
from proxy.core.quota import WINDOWS
from proxy.core.rate import MOST, rate, spend


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("written", ["60/{}", "60/{}s", "60 / {}", "60 per {}", "60/1 {}"])
def test_a_rate_in_each_window(window: str, written: str) -> None:
    read = rate(written.format(window))
    assert (read.limit, read.window, read.text) == (60, WINDOWS[window], written.format(window))


@pytest.mark.parametrize("window", WINDOWS)
def test_an_amount_in_each_window(window: str) -> None:
    read = spend(f"50 USD/{window}")
    assert (read.limit, read.window, read.text) == (50 * NANO, WINDOWS[window], f"50 USD/{window}")


@pytest.mark.parametrize(
    ("text", "nano"),
    [("0 USD/day", 0), ("0.5USD/day", NANO // 2), ("1.000000001 USD per day", NANO + 1), ("1000000 USD/day", MOST)],
)
def test_amounts_are_exact(text: str, nano: int) -> None:
    assert spend(text).limit == nano


@pytest.mark.parametrize(
    "text",
    ["", "60", "/minute", "-1/minute", "1.5/minute", "60/fortnight", "60/year", "60/2 minutes", "60/minute x",
     "60/minute;10/day", "5 USD/month", "1e3/day", f"{MOST + 1}/day"],
)  # fmt: skip
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match="limit"):
        rate(text)


@pytest.mark.parametrize(
    "text", ["", "5/month", "5 EUR/month", "-5 USD/month", "5 USD", "5 USD/2 days", "1e3 USD/day", "5 USD/1/day"]
)
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        spend(text)


def test_more_than_can_be_counted_is_no_limit() -> None:
    with pytest.raises(ValueError, match="as high as this"):
        spend("1000000.000000001 USD/day")


@given(st.integers(0, MOST))
def test_money_is_written_and_read_without_loss(nano: int) -> None:
    assert spend(f"{usd(nano)}/day").limit == nano


def test_money_in_words() -> None:
    assert [decimal(nano) for nano in (0, 1, 150, NANO, -NANO // 2, 12_500_000_000)] == [
        "0", "0.000000001", "0.00000015", "1", "-0.5", "12.5",
    ]  # fmt: skip
