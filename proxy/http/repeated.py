"""A head that is the same as the one before on its connection says the same, and need not be read again; pure.

An SDK keeps its connections, and sends the same head with each request but for the length of its body, and for what
names this one request. To parse a head and to check it is most of what a server does for a request. Here nothing is
parsed: two heads are the same when their bytes are, all but the values of VARYING that the first was found to have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.types import Scope

from proxy.core.head import LENGTH, Head, of

LARGEST: Final = 2 << 10
"""Bytes of a head that is remembered, for as long as its connection is open."""

VARYING: Final[Mapping[bytes, bytes]] = {
    LENGTH: rb"[0-9]{1,10}",
    b"traceparent": rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}",
    b"x-request-id": rb"[A-Za-z0-9._-]{1,128}",
}
"""Headers that may have another value each time, in these forms: nothing in them ends a line, or is white space. No
stage may keep what it reads of them (`Head.once`)."""

_VALUES: Final = {name: re.compile(form) for name, form in VARYING.items()}
_LINES: Final = {
    name: re.compile(rb"\r\n%b:[ \t]*(%b)[ \t]*\r\n" % (name, form), re.I) for name, form in VARYING.items()
}
_END: Final = b"\r\n\r\n"
_NEVER: Final = frozenset((b"expect", b"transfer-encoding"))
"""With these there is more to do than to hand on a body."""


@dataclass(slots=True, repr=False)
class Repeated:
    """The head of one request, which was right: its bytes before the first value that varies, each of these with the
    bytes behind it, and what the head came to."""

    _before: bytes
    _spots: list[tuple[bytes, re.Pattern[bytes], bytes]]
    _values: dict[bytes, bytes]
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
        at, values = self._first, {}
        for name, form, behind in self._spots:
            found = form.match(data, at)
            if found is None:
                return None
            end = found.end()
            if not data.startswith(behind, end):
                return None
            values[name], at = data[at:end], end + len(behind)
        if len(data) - at != int(values[LENGTH]):
            return None
        if values != self._values:
            self._head, self._values = self._head.but(values), values
            self._scope["headers"] = self._head.headers
        return self._scope.copy(), self._head, data[at:]


def remembered(data: bytes, scope: Scope) -> Repeated | None:
    """The head of a request that is all of `data` and came to this scope, if it may be remembered."""
    end, head = data.find(_END, 0, LARGEST) + len(_END), of(scope)
    lines = [(name, line.search(data, 0, end - 2)) for name, line in _LINES.items() if len(head.values(name)) == 1]
    found = sorted([(line.start(1), line.end(1), name) for name, line in lines if line])
    values = {name: data[start:stop] for start, stop, name in found}
    if end < len(_END) or LENGTH not in values or not _NEVER.isdisjoint(head.first):
        return None
    target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
    line = b"%b %b HTTP/1.1\r\n" % (scope["method"].encode(), target)
    if not data.startswith(line) or len(data) != end + int(values[LENGTH]):
        return None
    ends = [*(start for start, _, _ in found[1:]), end]
    spots = [(name, _VALUES[name], data[stop:last]) for (_, stop, name), last in zip(found, ends, strict=True)]
    kept = {name: value for name, value in scope.items() if name not in ("state", "extensions")}
    return Repeated(data[: found[0][0]], spots, values, head, kept)
