"""What the head of a request must be like before anything runs for it, and the answer to one that is not; all pure.

The parser (llhttp) already refuses bare line feeds, folded lines, bytes that are no token and lengths that are no
number. What is checked here is what it lets through: a missing or second Host, `gzip, chunked`, HTTP/1.0 with chunks,
HTTP/0.9 and 2.0, targets that name another server, and any size. Two readers of one byte string must not find two
different requests in it (RFC 9112, sections 3.2, 6.1 and 11.2), so nothing is mended here: it is right or refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus

from proxy.core import decision
from proxy.core.errors import BadFraming, Headers, HeadersTooLarge, MethodNotAllowed, ProxyError, UriTooLong, render


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection may ask of us. Sizes are in bytes, times in seconds."""

    request_line: int = 8 << 10
    header_block: int = 32 << 10
    headers: int = 100
    padding: int = 1 << 10
    """Bytes of one body between its chunks that are no size in its shortest form: extensions, zeros, trailers."""
    head: float = 10.0
    """For a whole head: since the connection was opened or, on one that was used before, since the first byte."""
    write_stall: float = 60.0
    """For a client that reads nothing of what is waiting for it."""
    linger: float = 5.0
    """For a client that goes on sending after its last answer."""
    waiting: int = 4
    """Requests behind the one that is answered on the same connection."""
    send_buffer: int = 128 << 10
    """Of the kernel, for one connection. Linux grows it to 4 MB otherwise, all for a client that does not read."""
    connections: int = 1 << 30
    """Open at the same time; a request on one more is told so."""
    most_connections: int = 1 << 30
    """Beyond these one is closed without a word: the oldest that has sent no request yet."""


HOST = re.compile(rb"(?P<name>[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
"""A name or an address, and a port. What other servers take beyond that (user@, zones, %-escapes) no client sends."""

_VERSIONS = ("1.1", "1.0")
_FRAGMENT = ord("#")
_ONCE = {
    b"host": (HOST, "The request must have one valid Host header."),
    b"content-length": (re.compile(rb"[0-9]{1,18}"), "Content-Length must be one decimal number."),
    b"transfer-encoding": (re.compile(rb"chunked", re.I), "The only Transfer-Encoding that is understood is chunked."),
}
"""Headers that decide where a request ends or whom it is for: at most one of each, and in this form only."""


def check(method: bytes, target: bytes, version: str, headers: Headers, limits: Limits, most: int) -> bool:
    """Whether the body comes in chunks, if the head is right. Header names are in lower case; the head has `most` bytes
    or fewer.

    Raises BadFraming, MethodNotAllowed (CONNECT), UriTooLong or HeadersTooLarge.
    """
    if most > limits.request_line and line_size(method, target) > limits.request_line:
        raise uri_too_long(limits)
    if method == b"CONNECT":
        raise MethodNotAllowed("This is no tunnel: CONNECT is not allowed.", headers=[(b"allow", b"")])
    if target[:1] != b"/" or _FRAGMENT in target:
        raise BadFraming("The target of a request must be a path that begins with `/`.")
    if version not in _VERSIONS:
        raise BadFraming("The HTTP version must be 1.1 or 1.0.")
    if len(headers) > limits.headers or (most > limits.header_block and block_size(headers) > limits.header_block):
        raise headers_too_large(limits)
    named = _check_once(headers)
    if b"host" not in named:
        raise BadFraming(_ONCE[b"host"][1])
    chunked = b"transfer-encoding" in named
    if chunked and (b"content-length" in named or version != "1.1"):
        raise BadFraming("Transfer-Encoding goes neither with Content-Length nor with HTTP/1.0.")
    return chunked


def _check_once(headers: Headers) -> dict[bytes, bytes]:
    """The headers by their names, when those of _ONCE are right."""
    named = dict(headers)
    for name, (form, message) in _ONCE.items():
        value = named.get(name)
        if value is not None and not form.fullmatch(value):
            raise BadFraming(message)
    if len(named) < len(headers):  # some come more than once
        names = [name for name, _ in headers]
        for name, (_, message) in _ONCE.items():
            if names.count(name) > 1:
                raise BadFraming(message)
    return named


def line_size(method: bytes, target: bytes) -> int:
    """Bytes of the request line, with its end."""
    return len(method) + len(target) + len("  HTTP/1.1\r\n")


def block_size(headers: Headers) -> int:
    """Bytes of the headers, with their end."""
    return sum(len(name) + len(value) + len(": \r\n") for name, value in headers) + len("\r\n")


def uri_too_long(limits: Limits) -> UriTooLong:
    return UriTooLong(f"The request line is longer than {limits.request_line} bytes.")


def headers_too_large(limits: Limits) -> HeadersTooLarge:
    return HeadersTooLarge(
        f"There are more than {limits.headers} headers, or more than {limits.header_block} bytes of them."
    )


def peer(address: str) -> str:
    """The address of a client as people write it: a socket for both protocols shows IPv4 ones as ::ffff:192.0.2.7."""
    return address.removeprefix("::ffff:")


def refusal(error: ProxyError, request_id: str, always: Headers) -> tuple[bytes, bytes]:
    """Head and body of an answer that ends its connection; `always` are headers that every answer has."""
    body = render(error)
    headers = [
        *always,
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"connection", b"close"),
        (b"x-request-id", request_id.encode()),
        (b"x-proxy-decision", decision.of_no_request(error)),
        *error.headers,
    ]
    line = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n".encode()
    return line + b"".join(b"%b: %b\r\n" % header for header in headers) + b"\r\n", body
