"""An offer to upgrade the connection, ignored as it may be (RFC 9110, section 7.8): the same head without it."""

from __future__ import annotations

from proxy.core.errors import Headers

_OFFER = (b"upgrade", b"http2-settings", b"connection")


def declined(method: bytes, target: bytes, version: str, headers: Headers) -> bytes:
    """The bytes of the head with all but the offer; of `Connection` only `close` is left."""
    lines = [b"%b %b HTTP/%b" % (method, target, version.encode())]
    lines += [b"%b: %b" % header for header in headers if header[0] not in _OFFER]
    if any(name == b"connection" and b"close" in _tokens(value) for name, value in headers):
        lines.append(b"connection: close")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _tokens(value: bytes) -> list[bytes]:
    """Those of a list, in lower case."""
    return [token.strip() for token in value.lower().split(b",")]
