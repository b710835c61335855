"""What outlives a request and is handed to whatever is built at start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.types import ASGIApp

from proxy.core.catalogue import Catalogue
from proxy.core.redact import Redactor

Middleware = Callable[[ASGIApp], ASGIApp]
"""What a stage's `build` returns: the stage, waiting for what comes after it."""


class Log(Protocol):
    """One structured line per call. Values are numbers, booleans, None or text that is already fit to be seen."""

    def __call__(self, level: str, event: str, **fields: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class Services:
    """`monotonic` gives seconds for durations, `redact` makes text from outside fit for a log."""

    monotonic: Callable[[], float]
    log: Log
    redact: Redactor
    catalogue: Catalogue
    simulated: bool = False
