"""The tables of docs/models.md are those of config/models.yaml. `python -m tests.docs.test_models_page` writes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path

import yaml

from proxy.core.catalogue import Catalogue
from proxy.core.model import Model

PAGE = Path("docs/models.md")


def usd(micro: int | None) -> str:
    return "" if micro is None else f"{Decimal(micro).scaleb(-6).normalize():f}"


def code(words: Iterable[str]) -> str:
    return " ".join(f"`{word}`" for word in words)


def prices(model: Model) -> str:
    """The prices in USD: `input / output / cached` by token, and each other unit by name."""
    by_token = (model.input_price, model.output_price, model.cached_price)
    told = [" / ".join(usd(price) or "–" for price in by_token)] if model.input_price is not None else []
    told += [f"{usd(price)} per {unit.replace('_', ' ')}" for unit, price in model.unit_prices.items()]
    return ", ".join(told)


def served(catalogue: Catalogue) -> Iterator[str]:
    yield "| model | also called | state | context | USD: in / out / cached | `reasoning_effort` | capabilities |"
    yield "|---|---|---|--:|---|---|---|"
    for model in catalogue.models:
        if model.state != "retired":
            facts = [code([model.id]), code(model.names), model.state, str(model.context or ""), prices(model)]
            yield f"| {' | '.join([*facts, ', '.join(model.efforts), ', '.join(sorted(model.capabilities))])} |"


def retired(catalogue: Catalogue) -> Iterator[str]:
    yield "| model | since | successor | last price, USD: in / out / cached |"
    yield "|---|---|---|---|"
    for model in catalogue.models:
        if model.state == "retired":
            names, successor = code([model.id, *model.names]), code([model.replacement or ""])
            yield f"| {names} | {model.retirement or ''} | {successor} | {prices(model)} |"


def aliases(catalogue: Catalogue) -> Iterator[str]:
    yield "| Mistral's name | OpenAI's names |"
    yield "|---|---|"
    for target in dict.fromkeys(catalogue.aliases.values()):
        yield f"| {code([target])} | {code(name for name, to in catalogue.aliases.items() if to == target)} |"


def written(page: str, catalogue: Catalogue) -> str:
    """The page with its tables made of the catalogue."""
    for name, rows in (("models", served), ("retired", retired), ("aliases", aliases)):
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, _, rest = page.partition(start)
        _, found, after = rest.partition(end)
        assert found, f"docs/models.md has no place for the table of {name}"
        page = before + "\n".join([start, *rows(catalogue), end]) + after
    return page


def shipped() -> Catalogue:
    return Catalogue(yaml.safe_load(Path("config/models.yaml").read_text()))


def test_the_page_says_what_the_catalogue_says() -> None:
    page = PAGE.read_text()
    assert page == written(page, shipped()), "run: python -m tests.docs.test_models_page"


def test_the_page_has_every_name_and_price() -> None:
    rows = {row.split("`")[1]: row for row in PAGE.read_text().splitlines() if row.startswith("| `")}
    for model in shipped().models:
        assert all(f"`{name}`" in rows[model.id] for name in model.names)
    assert "0.15 / 0.6 / 0.015" in rows["mistral-small-2603"]
    assert "0.000016 per character" in rows["voxtral-mini-tts-2603"]
    assert "0.1 / – / –" in rows["mistral-embed-2312"]
    assert "0.1 / 0.4 / 0.01, 0.004 per audio minute" in rows["voxtral-small-2507"]
    assert "2.7 / 8.1 / –" in rows["mistral-medium-2312"]


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(), shipped()))
