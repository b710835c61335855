"""What a request may say of the cache: `Cache-Control`, as RFC 9111 (section 5.2.1) has it."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from proxy.core.head import Head

_DIRECTIVE: Final = re.compile(rb'([!#$%&\'*+.^_`|~0-9A-Za-z-]+)(?:=(?:"((?:[^"\\]|\\.)*)"|([^",;\s]*)))?')

_MOST_AGE: Final = 2**31
"""Seconds; whatever is more means as much (RFC 9111, section 1.2.2)."""


class Wishes(msgspec.Struct, frozen=True, gc=False):
    """`no_store`: neither looked for nor kept. `no_cache`: made anew. `max_age`: no older than so many seconds.
    `only_if_cached`: not made at all. Other directives are not understood, and do not matter."""

    no_store: bool = False
    no_cache: bool = False
    only_if_cached: bool = False
    max_age: int | None = None


NONE: Final = Wishes()


def wishes(head: Head) -> Wishes:
    """Of all the Cache-Control headers together. A `max-age` that is no number is 0: what cannot be understood gets
    nothing old."""
    values = head.values(b"cache-control")
    return _read(b",".join(values)) if values else NONE


def _read(value: bytes) -> Wishes:
    found = [(match[1].lower(), match[2] or match[3] or b"") for match in _DIRECTIVE.finditer(value)]
    names = {name for name, _ in found}
    return Wishes(
        no_store=b"no-store" in names,
        no_cache=b"no-cache" in names,
        only_if_cached=b"only-if-cached" in names,
        # Of several the strictest: whoever says two things gets nothing older than either.
        max_age=min((_seconds(text) for name, text in found if name == b"max-age"), default=None),
    )


def _seconds(text: bytes) -> int:
    if not text.isdigit():
        return 0
    digits = text.lstrip(b"0") or b"0"
    return min(int(digits), _MOST_AGE) if len(digits) < 12 else _MOST_AGE
