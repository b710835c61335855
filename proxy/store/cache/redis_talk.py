"""What workers tell each other about calls that are under way: each listens to a channel of its own.

    16 bytes: BLAKE2b, keyed, of the channel and of what follows  MessagePack of the message

Whoever has no key of ours makes nobody believe anything, and what was said to one worker is nothing to another.
"""

from __future__ import annotations

from hashlib import blake2b
from hmac import compare_digest
from typing import Final, Literal

import msgspec

SEAL: Final = 16
"""Bytes of the digest."""


class Join(msgspec.Struct, frozen=True, array_like=True, tag="join"):
    """Tell me, who am `back`, of this flight from byte `at` on; I shall call that `follow`. The key is that of its
    entry."""

    follow: str
    flight: str
    key: str
    at: int
    back: str


class Leave(msgspec.Struct, frozen=True, array_like=True, tag="leave"):
    """Nobody here waits for it any more."""

    follow: str


class Piece(msgspec.Struct, frozen=True, array_like=True, tag="piece"):
    """A part of the stream, or, if `sealed`, of the entry as it is kept. It begins at byte `at`. `rewrites` were
    reported before the first. `back` is who says it."""

    follow: str
    at: int
    data: bytes
    sealed: bool = False
    rewrites: tuple[str, ...] = ()
    back: str = ""


class End(msgspec.Struct, frozen=True, array_like=True, tag="end"):
    """Done with it: there were `size` bytes, of the entry if it was `sealed`. Or it is lost, is unknown here, or is
    closed to whoever has missed so much of it. Of what is lost: `told`, the pieces say so; `unasked`, it was not even
    asked; and if the provider has failed, `status`, `code`, `kind`, which is its type, and `headers` of the error, with
    the `payer` whose key it is about, if it is, what it says of that `key` (a KeyFault), and whether it was only `late`
    for the one who asked."""

    follow: str
    how: Literal["done", "lost", "unknown", "closed"]
    size: int = 0
    saved: int = 0
    told: bool = False
    status: int = 0
    code: str | None = None
    kind: str = "server_error"
    headers: list[tuple[bytes, bytes]] = []
    unasked: bool = False
    payer: str | None = None
    key: str = "NONE"
    late: bool = False
    sealed: bool = False


Message = Join | Leave | Piece | End


class Talk:
    """`prefix` is that of all keys and channels."""

    def __init__(self, prefix: str, secret: bytes) -> None:
        self._prefix = prefix
        self._secret = secret
        self._encode = msgspec.msgpack.Encoder().encode
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)

    def channel(self, owner: str) -> bytes:
        return f"{self._prefix}worker:{owner}".encode()

    def seal(self, channel: bytes, message: Message) -> bytes:
        packed = self._encode(message)
        return self._digest(channel, packed) + packed

    def open(self, channel: bytes, data: bytes) -> Message | None:
        """None: nobody of ours has said this here."""
        seal, packed = data[:SEAL], data[SEAL:]
        if not compare_digest(seal, self._digest(channel, packed)):
            return None
        try:
            return self._decoder.decode(packed)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None  # of another version

    def _digest(self, channel: bytes, packed: bytes) -> bytes:
        digest = blake2b(channel + b"\n", digest_size=SEAL, key=self._secret, person=b"cache talk")
        digest.update(packed)
        return digest.digest()
