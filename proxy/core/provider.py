"""What a provider is: its endpoint rows, and how its refusals are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from proxy.core.endpoint import Endpoint
from proxy.core.errors import Headers, ProxyError
from proxy.core.json import Json
from proxy.core.table import Context

MAIN: Final = "mistral"
"""The provider of every model whose name does not begin with another one's (`openai/gpt-4o`)."""

Header = Callable[[str], str | None]
"""The first value of an answer's header, by lower-case name."""


class Left(msgspec.Struct, frozen=True, gc=False):
    """What an account may still ask of a model within a minute, as its provider says: None where it does not."""

    requests: int | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Provider:
    """`refusal(status, header, body, context)` reads an answer that is no success. `mend(error, body)` gives a
    corrected body to send once more and a word for `x-proxy-rewrites`, or None. `answer_headers(header)` names the few
    headers of an answer that clients may see, `left(header)` what they say of the account's limits.
    """

    name: str
    endpoints: tuple[Endpoint, ...]
    refusal: Callable[[int, Header, bytes, Context], ProxyError]
    mend: Callable[[ProxyError, Json], tuple[Json, str] | None]
    answer_headers: Callable[[Header], Headers]
    left: Callable[[Header], Left]
