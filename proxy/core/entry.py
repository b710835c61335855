"""An answer as it is kept, and the form in which it leaves the process: sealed, so that nothing else is taken for one.

    b"MPC1"  32 bytes: BLAKE2b, keyed, of the entry's key and of what follows  MessagePack of the Entry

What was cut, flipped, put under another key, written by another version or made up by somebody who has no key of ours
does not open. Nothing in it is code: MessagePack holds data alone.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b
from hmac import compare_digest
from typing import Final

import msgspec

MAGIC: Final = b"MPC1"
SEAL: Final = 32
"""Bytes of the digest."""


class Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """`body` is what the client was sent, byte for byte. `created` is when it was complete, in Unix milliseconds.
    `prompt` and `completion` are the tokens that it took, `cost` what was paid for it (nano-USD, None: not known):
    what everybody saves who is answered with it. `rewrites` were reported with it and not before it. `cadence` is,
    for a stream, pairs of numbers: after so many milliseconds came so many bytes. `began` is when it was asked for, in
    Unix milliseconds: of two answers the one that was asked for later is the newer. (Lua reads the first number and the
    last.)"""

    created: int
    stream: bool
    body: bytes
    prompt: int
    completion: int
    cost: int | None
    rewrites: tuple[str, ...] = ()
    cadence: bytes = b""
    began: int = 0

    @property
    def size(self) -> int:
        """Bytes, near enough."""
        return len(self.body) + len(self.cadence)


def packed(numbers: Sequence[int]) -> bytes:
    """A cadence as it is kept: 32 bits each, little-endian."""
    return struct.pack(f"<{len(numbers)}I", *numbers) if numbers else b""  # most answers are whole


def unpacked(cadence: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(cadence) // 4}I", cadence)


class Sealer:
    """Seals and opens, under a secret of ours."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Entry).decode

    def seal(self, key: str, entry: Entry) -> bytes:
        packed = self._encode(entry)
        return MAGIC + self._digest(key, packed) + packed

    def open(self, key: str, data: bytes) -> Entry | None:
        """None: it is none of ours, or not what it was."""
        head, packed = data[: len(MAGIC) + SEAL], data[len(MAGIC) + SEAL :]
        if not compare_digest(head, MAGIC + self._digest(key, packed)):
            return None
        try:
            return self._decode(packed)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None  # of a version that has kept other things under the same mark

    def _digest(self, key: str, packed: bytes) -> bytes:
        digest = blake2b(key.encode() + b"\n", digest_size=SEAL, key=self._secret, person=b"cache entry")
        digest.update(packed)
        return digest.digest()
