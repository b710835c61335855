"""What the error tables of all providers are made of: a row, and how it is told to a client."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Set
from dataclasses import dataclass
from typing import Any, Final, Protocol

from proxy.core.errors import Elsewhere, Headers, KeyFault
from proxy.core.json import Json
from proxy.core.provider import Header

MOST_TEXT: Final = 500
"""Characters of a provider's own words."""

_ZERO = re.compile(r"\s*0+(\.0*)?\s*")
_INVISIBLE = re.compile(r"[^!-~]")


class Refused(Protocol):
    """A refusal as it was worded; `marks` are what a row can know it by, beside its text."""

    @property
    def status(self) -> int: ...
    @property
    def header(self) -> Header: ...
    @property
    def text(self) -> str: ...
    @property
    def marks(self) -> Set[str | None]: ...


@dataclass(frozen=True, slots=True)
class Row:
    """Which refusals it is about, then the error they become.

    It fits when the HTTP status is among `on` (None: any), one of the headers `zero` is there and 0, and, where either
    is given, one of the refusal's own marks is among `marks` or its message matches `text`.

    `status` None keeps the provider's. `param` is its name of the field, None the one that the body names. `message`
    None is the provider's own text. `again` is after how many seconds a repeat may succeed if the provider does not
    say; 0: nothing is known; None: never. `mend` corrects the body. `key` is what it says of the key that was used,
    `elsewhere` whether another model or provider may do it.
    """

    on: Container[int] | None
    marks: tuple[str, ...] = ()
    text: str = ""
    zero: tuple[str, ...] = ()
    status: int | None = None
    type: str = "invalid_request_error"
    code: str = "invalid_value"
    param: str | None = None
    message: str | None = None
    again: int | None = None
    mend: Callable[[Any, Json], Json | None] | None = None
    key: KeyFault = KeyFault.NONE
    elsewhere: Elsewhere = Elsewhere.NO

    def fits(self, refused: Refused) -> bool:
        if self.on is not None and refused.status not in self.on:
            return False
        if self.zero and not any(_ZERO.fullmatch(refused.header(name) or "") for name in self.zero):
            return False
        if not self.marks and not self.text:
            return True
        named = not refused.marks.isdisjoint(self.marks)
        return named or bool(self.text and re.search(self.text, refused.text, re.IGNORECASE))


def one_line(text: str) -> str:
    """At most MOST_TEXT characters of it that can be printed."""
    cut = text if len(text) <= MOST_TEXT else text[:MOST_TEXT] + "…"
    return "".join(char if char.isprintable() else " " for char in cut).strip()


def visible(header: Header, names: tuple[tuple[str, bytes], ...]) -> Headers:
    """The headers of an answer that clients may see, from the provider's name to theirs: visible ASCII. What is longer
    than 128 bytes is left out: half of a secret would not be recognised as one."""
    found: Headers = []
    for theirs, name in names:
        told = header(theirs)
        if told and 0 < len(value := _INVISIBLE.sub("", told)) <= 128:
            found.append((name, value.encode()))
    return found
