"""A mutator without coverage: for the smoke run of the suite, and where atheris cannot be installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

TOKENS = (
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\n\n",
        b"\r\n\r\n",
        b"\x00",
        b" ",
        b"\t",
        b":",
        b",",
        b";",
        b'"',
        b"\\",
        b"\xff",
        b"\xef\xbb\xbf",
    ),
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b"null",
        b"true",
        b"-1",
        b"1e999",
        b"NaN",
        b"18446744073709551617",
        b"\\ud800",
        b"\\u0000",
    ),
    *(b"data: ", b"data:", b"event: ", b"id: ", b"retry: ", b": ", b"[DONE]", b"data: [DONE]\n\n", b'{"error":{}}'),
    *(b"HTTP/1.1", b"HTTP/1.0", b"GET / ", b"POST /v1/chat/completions ", b"Host: a\r\n", b"Connection: close\r\n"),
    *(
        b"Content-Length: 0\r\n",
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"0\r\n\r\n",
        b"ffffffffffffffff\r\n",
    ),
)
"""What a random byte would hardly ever spell: the marks of HTTP, JSON and SSE."""

Mutation = Callable[[bytes, Sequence[bytes], Random], bytes]


def _cut(data: bytes, random: Random) -> tuple[int, int]:
    start = random.randint(0, len(data))
    return start, min(len(data), start + random.choice((1, 1, 2, 4, 16, 64)))


def _delete(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    start, end = _cut(data, random)
    return data[:start] + data[end:]


def _repeat(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    start, end = _cut(data, random)
    return data[:end] + data[start:end] * random.choice((1, 1, 2, 70)) + data[end:]


def _replace(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    start, _ = _cut(data, random)
    return data[:start] + bytes([random.randrange(256)]) + data[start + 1 :]


def _insert(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    start, _ = _cut(data, random)
    return data[:start] + random.choice(TOKENS) + data[start:]


def _splice(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    other = random.choice(others)
    return data[: random.randint(0, len(data))] + other[random.randint(0, len(other)) :]


def _end(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    return data[: random.randint(0, len(data))]


MUTATIONS: tuple[Mutation, ...] = (_delete, _repeat, _replace, _replace, _insert, _insert, _splice, _end)


def mutated(seeds: Sequence[bytes], random: Random, most: int = 1 << 16) -> bytes:
    """One of `seeds` after one to eight changes, at most `most` bytes long."""
    data = random.choice(seeds)
    for _ in range(random.randint(1, 8)):
        data = random.choice(MUTATIONS)(data, seeds, random)
    return data[:most]
