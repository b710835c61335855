"""A head that is the same as the one before on its connection says the same, and need not be read again; pure.

An SDK keeps its connections, and sends the same head with each request but for the length of its body. To parse one and
to check it is most of what a server does for a request. Here nothing is parsed: two heads are the same when their bytes
are, all but the digits of the one length that the first was found to have.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.types import Scope

from proxy.core.head import LENGTH, Head, of

LARGEST: Final = 2 << 10
"""Bytes of a head that is remembered, for as long as its connection is open."""

_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,10})[ \t]*\r\n", re.I)
_MOST_DIGITS: Final = 10
_END: Final = b"\r\n\r\n"
_NEVER: Final = frozenset((b"expect", b"transfer-encoding"))
"""With these there is more to do than to hand on a body."""


@dataclass(slots=True, repr=False)
class Repeated:
    """The head of one request, which was right: what stands before the digits of its length and behind them, and what
    the head came to."""

    _before: bytes
    _behind: bytes
    _digits: bytes
    _head: Head
    _scope: dict[str, Any]
    _first: int = field(init=False)

    def __post_init__(self) -> None:
        self._first = len(self._before)

    def read(self, data: bytes) -> tuple[Scope, Head, bytes] | None:
        """Scope, head and body of a request with the same head, if it is all of what came. Whoever uses the scope has
        to give it what is one request's own."""
        if not data.startswith(self._before):
            return None
        first = self._first
        last = data.find(b"\r", first, first + _MOST_DIGITS + 1)
        digits = data[first:last]
        if last < 0 or not digits.isdigit() or not data.startswith(self._behind, last):
            return None
        body = data[last + len(self._behind) :]
        if len(body) != int(digits):
            return None
        if digits != self._digits:
            self._head, self._digits = self._head.with_length(digits), digits
            self._scope["headers"] = self._head.headers
        return self._scope.copy(), self._head, body


def remembered(data: bytes, scope: Scope) -> Repeated | None:
    """The head of a request that is all of `data` and came to this scope, if it may be remembered."""
    end = data.find(_END, 0, LARGEST)
    found = _LENGTH.search(data, 0, end + 2) if end > 0 else None
    head = of(scope)
    if found is None or len(head.values(LENGTH)) != 1 or not _NEVER.isdisjoint(head.first):
        return None
    target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
    line = b"%b %b HTTP/1.1\r\n" % (scope["method"].encode(), target)
    digits = found[1]
    if not data.startswith(line) or len(data) != end + len(_END) + int(digits):
        return None
    kept = {name: value for name, value in scope.items() if name not in ("state", "extensions")}
    before, behind = data[: found.start(1)], data[found.end(1) : end + len(_END)]
    return Repeated(before, behind, digits, head, kept)
