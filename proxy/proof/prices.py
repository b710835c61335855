"""What tokens cost, multiplied once more from the text of config/models.yaml: no code that the proxy charges with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Any

NANO_PER_TOKEN = 1000
"""nano-USD of one token at a price of one USD per million."""


@dataclass(frozen=True, slots=True)
class Prices:
    """USD per million tokens of a prompt and of an answer, by all names of a model."""

    of: Mapping[str, tuple[Decimal, Decimal]]
    factor: Decimal = Decimal(1)

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Prices:
        """`data` is the parsed models.yaml, whose prices are text."""
        found: dict[str, tuple[Decimal, Decimal]] = {}
        for row in data["models"]:
            if "input" in row:
                pair = Decimal(row["input"]), Decimal(row.get("output", "0"))
                found |= dict.fromkeys((row["id"], *row.get("names", ())), pair)
        return cls(found)

    def times(self, factor: Decimal) -> Prices:
        """The same models at so many times the price."""
        return Prices({name: (one * factor, other * factor) for name, (one, other) in self.of.items()}, factor)

    def cost(self, model: str, prompt: int, completion: int) -> int:
        """In nano-USD, rounded up once."""
        paid, said = self.of[model]
        return int(((prompt * paid + completion * said) * NANO_PER_TOKEN).to_integral_value(ROUND_CEILING))
