"""How the text of a scalar becomes a value, once the wanted type is known.

YAML 1.2's core schema, narrowed to what has one reading: `0123` and `0x1F` are no integers, `yes` is no boolean.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})(\.[0-9]{1,18})?([eE][-+]?[0-9]{1,3})?")
_BOOLEAN = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


@dataclass(frozen=True, slots=True)
class Type:
    """`parse` takes the text, None for null, and raises ValueError when it is not `expected` ("an integer")."""

    expected: str
    parse: Callable[[str | None], Any]
    quotes: bool = False


def _integer(text: str | None) -> int:
    if text is None or not _INTEGER.fullmatch(text):
        raise ValueError
    return int(text)


def _number(text: str | None) -> float:
    if text is None or not _NUMBER.fullmatch(text) or not math.isfinite(number := float(text)):
        raise ValueError
    return number


def _boolean(text: str | None) -> bool:
    if text not in _BOOLEAN:
        raise ValueError
    return _BOOLEAN[text]


def _line(text: str | None) -> str:
    # Such text ends up in headers and log lines.
    if not text or not text.isprintable():
        raise ValueError
    return text


def _short(text: str | None) -> str:
    # Nothing longer is meant, and a number of hundreds of digits becomes infinity.
    return text if text and len(text) <= 20 else ""


TYPES = {
    int: Type("an integer", _integer),
    float: Type("a number", _number),
    bool: Type("true or false", _boolean),
    str: Type("one line of text", _line, quotes=True),
}
WRITTEN = Type("a value", _short, quotes=True)
"""For a type that reads the text itself and says what it expects: a duration, a size."""
