"""Which models there are, and which one a name means.

Built from the parsed config/models.yaml and the aliases and prices of proxy.yaml. A name is resolved in two steps:
`resolve` turns what the client wrote into the name by which the proxy knows the model, `model` gives the facts behind
that. `place` says where it is: a name that begins with another provider's is that one's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import astuple, replace
from decimal import Decimal, InvalidOperation
from hashlib import sha256
from itertools import chain
from types import MappingProxyType
from typing import Any, Final

from proxy.core.json import Json
from proxy.core.model import Model, Price, is_name
from proxy.core.prompt import MOST_IMAGE_ELSEWHERE
from proxy.core.provider import MAIN

_NO_ALIASES: Final[Mapping[str, str]] = MappingProxyType({})
_NO_PRICES: Final[Mapping[str, Price]] = MappingProxyType({})
_TOKEN_PRICES: Final = {"input": "input_price", "output": "output_price", "cached": "cached_price"}
_HIGHEST_PRICE: Final = 1_000_000


class Catalogue:
    """`data` is the parsed models.yaml, `aliases` are those of proxy.yaml, which go before the shipped ones: a pattern
    such as `gpt-*` given there also replaces what is shipped for `gpt-4o`. So do its `prices`, by any name of a model
    or by one that the catalogue does not know, such as a fine-tune's or one at another of the `providers`. `named` are
    further models that the configuration names.

    `models` are in the order of the file, `aliases` are all that hold, `as_of` is the day of the facts (YYYY-MM-DD).
    `price_version` tells one set of prices from another. Nothing is remembered about the names that clients invent.
    Raises ValueError, naming the row, for bad data.
    """

    def __init__(
        self,
        data: Json,
        aliases: Mapping[str, str] = _NO_ALIASES,
        prices: Mapping[str, Price] = _NO_PRICES,
        providers: Collection[str] = (MAIN,),
        named: Collection[str] = (),
    ) -> None:
        self.as_of: str = data["as_of"]
        self.price_version = _version(self.as_of, prices)
        self.providers = frozenset(providers)
        self._priority = _percent(data["priority"])
        retired = ({"state": "retired"} | row for row in data["retired"])
        shipped = [self._row(row) for row in chain(data["models"], retired)]
        self.models: tuple[Model, ...] = tuple(_priced(shipped, prices))
        self._by_name = _by_name(self.models)
        targets: dict[str, str] = data["aliases"]
        self._layers = (_Layer(aliases), _Layer(targets))
        self.aliases: Mapping[str, str] = MappingProxyType(
            dict(aliases) | {name: target for name, target in targets.items() if name not in aliases}
        )
        # Every name that can be known beforehand is decided now, so that a request pays one look-up.
        self._decided = {name: self._decide(name) for name in chain(self._by_name, self.aliases)}
        self._named = frozenset(chain(self._decided, prices, map(self.resolve, chain(aliases.values(), named))))
        self._others = {name: self._other(name, price) for name, price in prices.items() if name not in self._by_name}

    def resolve(self, name: str) -> str:
        """The name of the model that the client means. Applied once: the target of an alias is not looked up again. A
        name that no alias matches is its own answer; `mistral/` before one says nothing new.
        """
        return self._decided.get(name) or self._decide(name)

    def has(self, name: str) -> bool:
        """Whether this very name is one of the catalogue or of the configuration: then no client has made it up."""
        return name in self._named

    def place(self, name: str) -> tuple[str, str]:
        """The provider of a model, and the name that it has there. A name with a slash begins with a provider's: it may
        be that of none of the `providers`."""
        if "/" not in name:
            return MAIN, name
        provider, _, rest = name.partition("/")
        return provider, rest

    def model(self, name: str) -> Model:
        """The facts behind a resolved name; `Model(id=name)` for an unknown one. A fine-tune (`ft:<base>:…`) has the
        facts of its base but no price, because Mistral prices it apart: proxy.yaml may give one.
        """
        return self._by_name.get(name) or self._others.get(name) or self._fine_tune(name) or Model(id=name)

    def _row(self, row: Mapping[str, Any]) -> Model:
        return replace(_model(row), priority=self._priority)

    def _other(self, name: str, price: Price) -> Model:
        """A model that only proxy.yaml knows a price of."""
        target = self.resolve(name)
        if target != name:
            raise ValueError(f"prices: {name} is never sent, it is an alias of {target}")
        model = self._fine_tune(name) or Model(id=name)
        if self.place(name)[0] == MAIN:
            return _with(replace(model, priority=self._priority), name, price)
        return _with(replace(model, priority=None, most_image=MOST_IMAGE_ELSEWHERE), name, price)

    def _decide(self, name: str) -> str:
        for layer in self._layers:
            if target := layer.find(name):
                return _short(target)
        return _short(name)

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


def _percent(factor: str) -> int:
    """ "1.75" as 175."""
    percent, rest = divmod(micro_usd(factor), 10_000)
    if rest:
        raise ValueError(f"{factor!r} is finer than a hundredth")
    return percent


def _version(as_of: str, prices: Mapping[str, Price]) -> str:
    if not prices:
        return as_of
    own = repr(sorted((name, astuple(price)) for name, price in prices.items()))
    return f"{as_of}+{sha256(own.encode()).hexdigest()[:8]}"


def _priced(models: Iterable[Model], prices: Mapping[str, Price]) -> Iterator[Model]:
    for model in models:
        given = [name for name in (model.id, *model.names) if name in prices]
        if len(given) > 1:
            raise ValueError(f"prices: {' and '.join(given)} are one model")
        yield _with(model, given[0], prices[given[0]]) if given else model


def _with(model: Model, name: str, price: Price) -> Model:
    # What is reserved for a request is reckoned without the cache.
    if price.cached is not None and price.cached > price.input:
        raise ValueError(f"prices: {name}: cached tokens cost more than others")
    return replace(
        model,
        input_price=price.input,
        output_price=price.output,
        cached_price=price.cached,
        context=model.context if price.context is None else price.context,
        priority=model.priority if price.priority is None else price.priority,
    )


def _short(name: str) -> str:
    rest = name.removeprefix(f"{MAIN}/")
    return rest if is_name(rest) and "/" not in rest else name


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
