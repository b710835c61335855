"""Requests that somebody has tampered with: each hides a second one in what is its body, and then some byte is wrong.

`attacks(seed, count)` are the segments of so many of them, always the same. Whoever reads one as HTTP says it should be
read finds one request at most; only who reads it in another way finds the one that is hidden.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from random import Random

HIDDEN = "smuggled"
"""The last word of the path of every hidden request."""

Head = list[bytes]
"""The lines of a head, without their ends."""

LINES = (
    b"Content-Length: 0", b"Content-Length: 3", b"Content-Length: +3", b"Content-Length: 0x3", b"Content-Length: -1",
    b"Content-Length : 3", b"Content-Length: 3, 3", b"Content-Length:", b"Content_Length: 3", b"Content-Length\x00: 3",
    b"Content-Length: 99999999999999999999", b"\tContent-Length: 3", b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: Chunked", b"Transfer-Encoding : chunked", b"Transfer-Encoding:\tchunked",
    b"Transfer-Encoding: \x0bchunked", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding: identity", b"Transfer-Encoding: xchunked", b"Transfer-Encoding:",
    b" Transfer-Encoding: chunked",
    b"Transfer-Encoding\n : chunked", b"X: y\nTransfer-Encoding: chunked", b"X: y\rTransfer-Encoding: chunked",
    b"Transfer_Encoding: chunked", b"TE: trailers, chunked", b"Connection: close", b"Connection: Content-Length",
    b"Connection: Transfer-Encoding", b"Connection: upgrade\r\nUpgrade: h2c", b"Upgrade: websocket",
    b"Expect: 100-continue", b"Host: evil", b"Host:", b"X-Forwarded-For: 192.0.2.1", b"X-HTTP-Method-Override: POST",
    b" folded", b"no colon", b": no name", b"X: " + b"y" * 300, b"Trailer: Content-Length",
)  # fmt: skip
"""What has been used to make two readers disagree."""

FIRST_LINES = (
    b"GET /v1/models/x HTTP/1.0", b"GET /v1/models/x HTTP/1.9", b"GET /v1/models/x HTTP/2.0", b"GET /v1/models/x",
    b"GET /v1/models/x HTTP/0.9", b"GET http://localhost/v1/models/x HTTP/1.1", b"CONNECT localhost:80 HTTP/1.1",
    b"OPTIONS * HTTP/1.1", b"HEAD /v1/models/x HTTP/1.1", b"GET /v1/models/x?HTTP/1.1", b"PRI * HTTP/2.0",
    b"GET  /v1/models/x HTTP/1.1", b"GET\t/v1/models/x HTTP/1.1", b"GET /v1/models/x  HTTP/1.1", b"DELETE / HTTP/1.1",
)  # fmt: skip

BYTES = (
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\n\n",
    b"\x00",
    b" ",
    b"\t",
    b"\x0b",
    b":",
    b";",
    b",",
    b"0",
    b"\xff",
    b"\xa0",
)
"""What is put where it does not belong; a random byte would hardly ever be one of them."""


def hidden(host: str, key: str) -> bytes:
    """A request that would be served, if only somebody took it for one."""
    return (f"GET /v1/models/{HIDDEN} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\nX: y\r\n\r\n").encode()


def attacks(seed: int, count: int, host: str, key: str) -> Iterator[list[bytes]]:
    """Segments of `count` attacks on a server that is called `host` and serves who has `key`."""
    random = Random(seed)
    while count:
        head, body = _attack(
            hidden(host, key), [f"Host: {host}".encode(), f"Authorization: Bearer {key}".encode()], random
        )
        if _LENGTH.search(head):
            count -= 1
            yield list(_segments(head + body, random))


_LENGTH = re.compile(rb"content-length *:|transfer-encoding *:", re.I)
"""A head that has lost even its name says nothing of a body: what follows is a request of its own, and rightly so."""


def _attack(inner: bytes, lines: Head, random: Random) -> tuple[bytes, bytes]:
    head, body = random.choice(_BASES)(inner, lines, random)
    for _ in range(random.choice((0, 1, 1, 1, 2, 3))):
        head = random.choice(_ON_LINES)(head, random)
    data = b"\r\n".join(head) + b"\r\n\r\n"
    for _ in range(random.choice((0, 0, 1, 1, 2))):
        data = random.choice(_ON_BYTES)(data, random)
    return data, random.choice(_ON_BYTES)(body, random) if random.random() < 0.3 else body


# Requests that hide another one, and are right as they are.


def _counted(inner: bytes, lines: Head, random: Random) -> tuple[Head, bytes]:
    """Its body is counted: the hidden request, or something that could be the end of a chunked body before it."""
    body = random.choice((b"", b"0\r\n\r\n", b"3\r\nabc\r\n0\r\n\r\n", b"{}")) + inner
    return [_first(random), *lines, b"Content-Type: application/json", b"Content-Length: %d" % len(body)], body


def _chunked(inner: bytes, lines: Head, random: Random) -> tuple[Head, bytes]:
    """Its body is one chunk: what could be a counted body, and the hidden request."""
    extension = random.choice((b"", b"", b";a", b';a="b"'))
    body = b"%x%b\r\n%b\r\n0\r\n\r\n" % (len(inner), extension, inner)
    return [_first(random), *lines, b"Content-Type: application/json", b"Transfer-Encoding: chunked"], body


def _first(random: Random) -> bytes:
    return random.choice((b"GET /v1/models/x HTTP/1.1", b"POST /v1/chat/completions HTTP/1.1", b"GET /health HTTP/1.1"))


_BASES: tuple[Callable[[bytes, Head, Random], tuple[Head, bytes]], ...] = (_counted, _chunked)


# What is done to their lines.


def _another(head: Head, random: Random) -> Head:
    at = random.randint(1, len(head))
    return [*head[:at], random.choice(LINES), *head[at:]]


def _twice(head: Head, random: Random) -> Head:
    return [*head, random.choice(head[1:] or head)]


def _swapped(head: Head, random: Random) -> Head:
    return [head[0], *random.sample(head[1:], len(head) - 1)]


def _missing(head: Head, random: Random) -> Head:
    at = random.randint(0, len(head) - 1)
    return head[:at] + head[at + 1 :]


def _first_line(head: Head, random: Random) -> Head:
    return [random.choice(FIRST_LINES), *head[1:]]


def _other_end(head: Head, random: Random) -> Head:
    """One line ends in another way."""
    at = random.randint(0, max(0, len(head) - 2))
    joined = random.choice((b"\n", b"\r", b"\r\r\n", b"\x0b", b"\x00", b"\r\n ")).join(head[at : at + 2])
    return [*head[:at], joined, *head[at + 2 :]]


_ON_LINES: tuple[Callable[[Head, Random], Head], ...] = (
    *(_another, _another, _twice, _swapped, _missing),
    *(_first_line, _other_end),
)


# And to their bytes.


def _deleted(data: bytes, random: Random) -> bytes:
    at = random.randrange(len(data))
    return data[:at] + data[at + 1 :]


def _replaced(data: bytes, random: Random) -> bytes:
    at = random.randrange(len(data))
    return data[:at] + (random.choice(BYTES) if random.random() < 0.5 else random.randbytes(1)) + data[at + 1 :]


def _inserted(data: bytes, random: Random) -> bytes:
    at = random.randrange(len(data))
    return data[:at] + (random.choice(BYTES) if random.random() < 0.7 else random.randbytes(1)) + data[at:]


_ON_BYTES: tuple[Callable[[bytes, Random], bytes], ...] = (_deleted, _replaced, _inserted)


def _segments(data: bytes, random: Random) -> Iterator[bytes]:
    cuts = sorted(random.sample(range(1, len(data)), random.choice((0, 0, 1, 2, 5))))
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        yield data[start:end]
