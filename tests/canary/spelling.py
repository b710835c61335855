"""Twelve ways to write a text, and a search for texts however they are written.

Both halves of a canary are looked for, each alone: a leak that was cut, or masked by half, is one too. Letters count in
upper and lower case alike, so `%4A` and `%4a` are one way.
"""

from __future__ import annotations

import base64
import html
import json
import quopri
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import quote

Spell = Callable[[bytes], Iterable[bytes]]


def _percent(data: bytes) -> bytes:
    return b"".join(b"%%%02x" % byte for byte in data)


def _partly(data: bytes) -> bytes:
    return quote(data, safe="").encode()


def _base64(data: bytes, encode: Callable[[bytes], bytes] = base64.b64encode) -> Iterator[bytes]:
    """What it contributes to a longer text, by how many bytes precede it."""
    for before in range(3):
        text = encode(bytes(before) + data)
        yield text[-(-before * 8 // 6) : (before + len(data)) * 8 // 6]


SPELLINGS: dict[str, Spell] = {
    "plain": lambda data: [data],
    "URL, every byte": lambda data: [_percent(data)],
    "URL, what has to be": lambda data: [_partly(data)],
    "URL, twice": lambda data: [quote(_percent(data)).encode(), quote(_partly(data)).encode()],
    "JSON, every character": lambda data: [b"".join(b"\\u%04x" % byte for byte in data)],
    "JSON, slashes": lambda data: [json.dumps(data.decode())[1:-1].replace("/", "\\/").encode()],
    "base64": _base64,
    "base64 for URLs": lambda data: _base64(data, base64.urlsafe_b64encode),
    "hex": lambda data: [data.hex().encode()],
    "HTML": lambda data: [
        html.escape(data.decode()).encode(),
        b"".join(b"&#%d;" % byte for byte in data),
        b"".join(b"&#x%x;" % byte for byte in data),
    ],
    "quoted-printable": lambda data: [quopri.encodestring(data), b"".join(b"=%02x" % byte for byte in data)],
    # Little or big end first: it is between the letters where both are the same.
    "UTF-16": lambda data: [data.decode().encode("utf-16-le")[:-1]],
}
"""By name: what a text looks like in what is written so."""

READ = ("plain", "URL, what has to be", "JSON, slashes", "base64", "base64 for URLs")
"""Those in which the redactor knows a secret again (docs/redaction.md). Who sends it in another one to where the log
shows what was sent, such as a path, hides it himself. That nothing of ours writes it so is found in all of them."""

_GRAM = 8


class Finder:
    """Which of many texts stand in some bytes. Of each needle one piece of eight bytes is met in steps."""

    def __init__(self, needles: Iterable[tuple[bytes, str]]) -> None:
        folded = [(needle.lower(), name) for needle, name in needles]
        self._step = min(len(needle) for needle, _ in folded) - _GRAM + 1
        assert self._step > 0, "a needle is too short"
        self._by_gram: dict[bytes, list[tuple[bytes, int, str]]] = {}
        for needle, name in folded:
            for at in range(self._step):
                self._by_gram.setdefault(needle[at : at + _GRAM], []).append((needle, at, name))

    def find(self, data: bytes) -> Iterator[tuple[str, int]]:
        """Names, and where in `data`."""
        folded = data.lower()
        for seen in range(0, len(folded), self._step):
            for needle, at, name in self._by_gram.get(folded[seen : seen + _GRAM], ()):
                if seen >= at and folded.startswith(needle, seen - at):
                    yield name, seen - at


def needles(text: str, name: str) -> Iterator[tuple[bytes, str]]:
    """Both halves of `text` in every spelling; `name` comes with each."""
    data = text.encode()
    middle = len(data) // 2
    for half in (data[:middle], data[middle:]):
        for spelling in SPELLINGS.values():
            yield from ((needle, name) for needle in dict.fromkeys(spelling(half)))
