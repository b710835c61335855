"""The head of an HTTP/1.1 request, and what may stand in one: nothing that would end its line, or the head, early."""

from __future__ import annotations

from functools import lru_cache
from itertools import chain
from typing import Final
from urllib.parse import quote, urlsplit

from proxy.upstream.transport import Headers

_OPENINGS = 64
"""Beginnings of heads that are remembered: of each endpoint and key there is one, or two."""
_WITH_LENGTH = ("POST", "PUT", "PATCH")
_PORTS: Final = {"http": 80, "https": 443}
_OF_A_PATH = "/%:@!$&'()*+,;=~"
"""Beside letters and digits, what a path may hold as it is."""


# Both raise ValueError. A caller lets nothing through that gets here; if one does, it is not sent.


def check_headers(headers: Headers) -> None:
    text = "".join(chain.from_iterable(headers))
    if "\n" in text or "\r" in text or "\0" in text:
        raise ValueError("a header of the request holds a line end")


def check_path(path: str) -> None:
    if not path.isascii() or not path.isprintable() or " " in path:
        raise ValueError("the path of the request is not percent-encoded")


class Origin:
    """Where the requests of a base URL go: `host` and `port` to connect to, over TLS if it `is_https`."""

    def __init__(self, base_url: str) -> None:
        parts = urlsplit(base_url)
        self.host = parts.hostname or ""
        self.port = parts.port or _PORTS[parts.scheme]
        self.is_https = parts.scheme == "https"
        named = f"[{self.host}]" if ":" in self.host else self.host
        self._host = named if self.port == _PORTS[parts.scheme] else f"{named}:{self.port}"
        self._prefix = quote(parts.path.rstrip("/"), safe=_OF_A_PATH)
        self._opening = lru_cache(_OPENINGS)(self._write_opening)

    def head(self, method: str, path: str, headers: Headers, more: Headers, body: bytes) -> bytes:
        """The head of a request with this body. What many of them begin with, all but `more`, is written once. Raises
        ValueError for what may not stand in it."""
        opening = self._opening(method, path, tuple(headers))
        check_headers(more)
        lines = [opening, *map(": ".join, more)]
        if body or method in _WITH_LENGTH:
            lines.append(f"Content-Length: {len(body)}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _write_opening(self, method: str, path: str, headers: Headers) -> str:
        check_path(path)
        check_headers(headers)
        return "\r\n".join(
            (
                f"{method} {self._prefix}{path} HTTP/1.1",
                f"Host: {self._host}",
                *(f"{name}: {value}" for name, value in headers),
            )
        )
