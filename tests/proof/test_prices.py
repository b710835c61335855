"""The second multiplication agrees with the one that the proxy charges by, which it does not share a line with."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import data
from proxy.core.catalogue import Catalogue
from proxy.core.model import Price
from proxy.proof.prices import Prices

DATA = data.read("models.yaml")
PRICES = Prices.read(DATA)
COUNTS = st.integers(0, 10**6)


@given(st.sampled_from(sorted(PRICES.of)), COUNTS, COUNTS)
def test_shipped_prices(name: str, prompt: int, completion: int) -> None:
    model = Catalogue(DATA).model(name)
    said = completion if model.output_price is not None else 0
    assert PRICES.cost(name, prompt, said) == model.price_of(prompt=prompt, completion=said)


@given(st.integers(1, 10**7), COUNTS, COUNTS)
def test_other_prices_are_rounded_up_once(thousandths: int, prompt: int, completion: int) -> None:
    prices = PRICES.times(Decimal(thousandths) / 1000)
    paid, said = (int(price * 10**6) for price in prices.of["mistral-medium-latest"])
    model = Catalogue(DATA, prices={"mistral-medium-latest": Price(paid, said)}).model("mistral-medium-latest")
    assert prices.cost("mistral-medium-latest", prompt, completion) == model.price_of(
        prompt=prompt, completion=completion
    )


def test_a_model_without_a_price_has_none() -> None:
    with pytest.raises(KeyError):
        PRICES.cost("mistral-ocr-latest", 1, 0)
