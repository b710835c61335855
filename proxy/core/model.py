"""What is known about a model: one row of config/models.yaml."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from proxy.core.prompt import MOST_IMAGE


def _no_prices() -> Mapping[str, int]:
    return MappingProxyType({})


_NAME = re.compile(r"(?!.*\.\.)(?=.*[A-Za-z0-9])[!-~]{1,256}")
_ID = re.compile(r"(?!.*\.\.)(?=.*[A-Za-z0-9])[A-Za-z0-9._:@+=~-]{1,256}")


def is_name(text: str) -> bool:
    """Whether `text` can be a model's name: it goes into a header, a log line and a URL's path, so it is visible ASCII,
    bounded, and has no way up a path."""
    return _NAME.fullmatch(text) is not None


def is_id(text: str) -> bool:
    """Whether `text` can stand for `{id}` in a URL's path. Narrower than a name: of the marks only those that mean
    nothing to any reader of URLs. A model of another kind of name can be used, and seen in the list."""
    return _ID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Price:
    """What proxy.yaml says of one model, in micro-USD per million tokens: of the prompt, of the answer (None: it gives
    none, as with embeddings), and of prompt tokens found in the provider's cache (None: as the others). `context` is
    how many tokens it takes (None: as the catalogue has it), `priority` what the priority tier costs, in percent of
    these prices (None: as Mistral's; at another provider nobody knows)."""

    input: int
    output: int | None = None
    cached: int | None = None
    context: int | None = None
    priority: int | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """Facts that translation, routing and the `models` command read. A model that is not in the catalogue (a fine-tune,
    a name newer than this release) is passed through with these defaults.

    `id` is the name pinned to this version (at another provider: its name, after that of the provider), `names` its
    other names at Mistral; `known` is whether the catalogue has this very name. `context` is in tokens. Token prices
    are micro-USD per million tokens, None when unknown or not by token; `unit_prices` are micro-USD per one page,
    annotated_page, audio_minute or character. In the priority tier all of them are `priority` percent; None: nobody
    knows. `most_image` is the most tokens that it makes of an image. `efforts` are the accepted values of
    reasoning_effort; empty means the model takes none. `state` is active, preview, experimental, retired or unknown;
    `retirement` a date (YYYY-MM-DD), `replacement` an id.
    """

    id: str
    names: tuple[str, ...] = ()
    known: bool = False
    context: int | None = None
    capabilities: frozenset[str] = frozenset()
    efforts: tuple[str, ...] = ()
    input_price: int | None = None
    output_price: int | None = None
    cached_price: int | None = None
    unit_prices: Mapping[str, int] = field(default_factory=_no_prices, hash=False)
    priority: int | None = 100
    most_image: int = MOST_IMAGE
    state: str = "unknown"
    retirement: str | None = None
    replacement: str | None = None

    @property
    def is_deprecated(self) -> bool:
        """Whether it has ended, or the day is known on which it will."""
        return self.retirement is not None or self.state == "retired"

    @property
    def reasons(self) -> bool:
        """Whether thinking may be sent to it and asked of it."""
        return bool(self.efforts) or "reasoning" in self.capabilities

    def price_of(
        self, *, prompt: int, completion: int, cached: int = 0, audio_seconds: int = 0, priority: bool = False
    ) -> int | None:
        """What so much costs in nano-USD, rounded up once; None when there is no price for it. `cached` tokens are a
        part of the `prompt`; without a price of their own they cost as much as the others. Sound costs by the second
        where the model has such a price, and is part of the prompt's tokens where it has none.
        """
        paid, said, percent = self.input_price, self.output_price, self.priority if priority else 100
        if paid is None or (said is None and completion) or percent is None:
            return None
        kept = paid if self.cached_price is None else self.cached_price
        # A micro-USD per million tokens is a pico-USD per token.
        pico = (prompt - cached) * paid + cached * kept + completion * (said or 0)
        if not audio_seconds:
            return _up(pico * percent, 100_000) if priority else _up(pico, 1000)
        by_minute = audio_seconds * self.unit_prices.get("audio_minute", 0) * 1_000_000
        return _up((pico * 60 + by_minute) * percent, 60 * 100_000)


def _up(number: int, by: int) -> int:
    return -(-number // by)
