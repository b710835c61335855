"""The catalogue as text, for `mistral-proxy models`."""

from __future__ import annotations

from collections.abc import Iterable

from proxy.core.catalogue import Catalogue
from proxy.core.model import Model

_HEAD = ("MODEL", "CONTEXT", "USD/1M IN", "USD/1M OUT", "CAPABILITIES", "STATE", "ALSO CALLED")


def table(catalogue: Catalogue, *, everything: bool) -> str:
    """One line per model, then the aliases. Retired models only with `everything`."""
    shown = [model for model in catalogue.models if everything or model.state != "retired"]
    rows = [_HEAD, *(_row(model) for model in shown)]
    aliases = [("ALIAS", "SERVED BY"), *sorted(catalogue.aliases.items())]
    return "\n".join([*_columns(rows), "", *_columns(aliases)])


def _row(model: Model) -> tuple[str, ...]:
    state = f"{model.state} {model.retirement}" if model.retirement else model.state
    if model.replacement:
        state += f", use {model.replacement}"
    return (
        model.id,
        str(model.context or "-"),
        _usd(model.input_price),
        _usd(model.output_price),
        ",".join(sorted(model.capabilities)) or "-",
        state,
        ",".join(model.names) or "-",
    )


def _usd(micro: int | None) -> str:
    return "-" if micro is None else f"{micro // 1_000_000}.{micro % 1_000_000:06d}".rstrip("0").rstrip(".")


def _columns(rows: Iterable[tuple[str, ...]]) -> list[str]:
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
