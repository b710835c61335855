"""The keys that this proxy issues: what they look like, and as what they are kept.

    sk-mp-  43 characters, 256 random bits  6 characters, the CRC-32 of all before them

The prefix makes a key known to whoever scans files for lost ones. The checksum tells a mistyped key from one that was
issued without asking anybody; it protects nothing. Both are as GitHub's tokens have them (github.blog, "Behind GitHub's
new authentication token formats").
"""

from __future__ import annotations

import base64
import hmac
import re
import secrets
import zlib
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from proxy.core.secret import Secret

PREFIX: Final = "sk-mp-"

_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM, _CHECKSUM = 43, 6
"""Characters: the fewest of 62 kinds that hold 256 and 32 bits."""

_SHAPE: Final = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{_RANDOM + _CHECKSUM}}}".encode())

Randomness = Callable[[int], bytes]
"""So many random bytes."""


class Issued(Protocol):
    """The keys that have been issued, as far as this process knows."""

    def lookup(self, token: bytes) -> tuple[str, str] | None:
        """Team and key id of a key that is in force; None when it is none, in the same time whatever the reason.
        Raises StoreGone when nothing is known of any key. Never waits."""
        ...

    def ids(self, team: str) -> Sequence[str]:
        """Of the keys of one team, as far as they are known."""
        ...


def mint(randomness: Randomness = secrets.token_bytes) -> Secret:
    """A new key."""
    text = PREFIX + _base62(int.from_bytes(randomness(32)), _RANDOM)
    return Secret(text + _checksum(text.encode()))


def new_id(randomness: Randomness = secrets.token_bytes) -> str:
    """A name for a key that says nothing of it: for logs, rows and commands."""
    return "key_" + base64.b32encode(randomness(5)).decode().lower()


def is_whole(token: bytes) -> bool:
    """Whether it looks like one of ours to its last character. Any other character in any one place would show."""
    return bool(_SHAPE.fullmatch(token)) and _checksum(token[:-_CHECKSUM]).encode() == token[-_CHECKSUM:]


def digest(token: bytes, pepper: Secret) -> bytes:
    """What is kept of a key: HMAC-SHA256 under the server's pepper. Whoever reads the database can neither use it nor
    try a key on it."""
    return hmac.digest(pepper.reveal().encode(), token, "sha256")


def _checksum(text: bytes) -> str:
    return _base62(zlib.crc32(text), _CHECKSUM)


def _base62(number: int, length: int) -> str:
    digits = ""
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits = _ALPHABET[digit] + digits
    return digits
