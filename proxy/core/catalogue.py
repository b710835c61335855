"""Which models there are, and which one a name means.

Built from the parsed config/models.yaml and the aliases of proxy.yaml. A name is resolved in two steps: `resolve` turns
what the client wrote into the name that is sent to Mistral, `model` gives the facts behind a Mistral name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from itertools import chain
from types import MappingProxyType
from typing import Any, Final

from proxy.core.json import Json
from proxy.core.model import Model

_NO_ALIASES: Final[Mapping[str, str]] = MappingProxyType({})
_TOKEN_PRICES: Final = {"input": "input_price", "output": "output_price", "cached": "cached_price"}
_HIGHEST_PRICE: Final = 1_000_000


class Catalogue:
    """`data` is the parsed models.yaml, `aliases` are those of proxy.yaml, which go before the shipped ones: a pattern
    such as `gpt-*` given there also replaces what is shipped for `gpt-4o`.

    `models` are in the order of the file, `aliases` are all that hold, `as_of` is the day of the facts (YYYY-MM-DD).
    Nothing is remembered about the names that clients invent. Raises ValueError, naming the row, for bad data.
    """

    def __init__(self, data: Json, aliases: Mapping[str, str] = _NO_ALIASES) -> None:
        self.as_of: str = data["as_of"]
        retired = ({"state": "retired"} | row for row in data["retired"])
        self.models: tuple[Model, ...] = tuple(_model(row) for row in chain(data["models"], retired))
        self._by_name = _by_name(self.models)
        shipped: dict[str, str] = data["aliases"]
        self._layers = (_Layer(aliases), _Layer(shipped))
        self.aliases: Mapping[str, str] = MappingProxyType(
            dict(aliases) | {name: target for name, target in shipped.items() if name not in aliases}
        )
        # Every name that can be known beforehand is decided now, so that a request pays one look-up.
        self._decided = {name: self._decide(name) for name in chain(self._by_name, self.aliases)}

    def resolve(self, name: str) -> str:
        """The name to send to Mistral for the one the client asked for. Applied once: the target of an alias is not
        looked up again. A name that no alias matches is its own answer.
        """
        return self._decided.get(name) or self._decide(name)

    def model(self, name: str) -> Model:
        """The facts behind a Mistral name; `Model(id=name)` for an unknown one. A fine-tune (`ft:<base>:…`) has the
        facts of its base but no price, because Mistral prices it apart.
        """
        return self._by_name.get(name) or self._fine_tune(name) or Model(id=name)

    def _decide(self, name: str) -> str:
        for layer in self._layers:
            if target := layer.find(name):
                return target
        return name

    def _fine_tune(self, name: str) -> Model | None:
        kind, _, rest = name.partition(":")
        base = self._by_name.get(rest.partition(":")[0]) if kind == "ft" else None
        if base is None:
            return None
        unpriced: dict[str, Any] = dict.fromkeys(_TOKEN_PRICES.values())
        return replace(base, id=name, names=(), known=False, unit_prices=MappingProxyType({}), **unpriced)


class Pattern:
    """A name in which `*` stands for any characters; nothing else is special. Matches in time linear in the name."""

    __slots__ = ("_first", "_last", "_middle")

    def __init__(self, text: str) -> None:
        self._first, *rest = text.split("*")
        self._last = rest.pop() if rest else None
        self._middle = rest

    def matches(self, name: str) -> bool:
        if self._last is None:
            return name == self._first
        at, end = len(self._first), len(name) - len(self._last)
        if at > end or not name.startswith(self._first) or not name.endswith(self._last):
            return False
        for piece in self._middle:
            found = name.find(piece, at, end)
            if found < 0:
                return False
            at = found + len(piece)
        return True


class _Layer:
    """Aliases of one origin: exact names first, then patterns, the longest first."""

    def __init__(self, aliases: Mapping[str, str]) -> None:
        self._exact = aliases
        patterns = sorted((name for name in aliases if "*" in name), key=len, reverse=True)
        self._patterns = [(Pattern(pattern), aliases[pattern]) for pattern in patterns]

    def find(self, name: str) -> str | None:
        if name in self._exact:
            return self._exact[name]
        return next((target for pattern, target in self._patterns if pattern.matches(name)), None)


def micro_usd(price: str | int | float) -> int:
    """An amount in USD as micro-USD, exactly: "0.15" is 150000. Raises ValueError when that is no whole number."""
    try:
        amount = Decimal(str(price))
    except InvalidOperation:
        raise ValueError(f"{price!r} is not an amount in USD") from None
    if not (amount.is_finite() and 0 <= amount <= _HIGHEST_PRICE):
        raise ValueError(f"{price!r} is not a price in USD")
    numerator, denominator = amount.as_integer_ratio()
    micro, rest = divmod(numerator * 1_000_000, denominator)
    if rest:
        raise ValueError(f"{price!r} is finer than a millionth of a USD")
    return micro


def _model(row: Mapping[str, Any]) -> Model:
    facts = {"state": "active", **row}
    try:
        prices: dict[str, Any] = {
            field: micro_usd(facts.pop(key)) for key, field in _TOKEN_PRICES.items() if key in facts
        }
        units = {unit: micro_usd(price) for unit, price in facts.pop("per", {}).items()}
        return Model(
            known=True,
            names=tuple(facts.pop("names", ())),
            capabilities=frozenset(facts.pop("capabilities", ())),
            efforts=tuple(facts.pop("efforts", ())),
            unit_prices=MappingProxyType(units),
            **prices,
            **facts,
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"model {row.get('id', '?')}: {error}") from None


def _by_name(models: Iterable[Model]) -> dict[str, Model]:
    index: dict[str, Model] = {}
    for model in models:
        for name in (model.id, *model.names):
            if index.setdefault(name, model) is not model:
                raise ValueError(f"model {model.id}: the name {name} belongs to {index[name].id} already")
    return index
