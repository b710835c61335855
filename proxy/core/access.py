"""The keys to this proxy, teams' and admins': how proxy.yaml has them, how one is found in a request and among those
that are known, and what whoever has none is told."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

from pydantic import BeforeValidator

from proxy.core.errors import BadFraming, InvalidApiKey, ProxyError, TooManyAuthFailures
from proxy.core.failures import Failures
from proxy.core.head import Head
from proxy.core.secret import Secret
from proxy.core.team_key import is_whole

_NOBODY: Final = bytes(32)

Owner = TypeVar("Owner")


class AccessKey:
    """A key as SHA-256; `secret` is its text where we have it (for redaction), None for `sha256:` entries."""

    __slots__ = ("digest", "secret")

    def __init__(self, digest: bytes, secret: Secret | None = None) -> None:
        self.digest = digest
        self.secret = secret

    @property
    def id(self) -> str:
        """What it is called in logs and rows."""
        return self.digest.hex()[:12]


def _access_key(value: Any) -> AccessKey:
    if isinstance(value, AccessKey):
        return value
    if isinstance(value, Secret):
        if is_whole(value.reveal().encode()):
            raise ValueError("this key was issued by `keys new`: it is known already, and here it could not be revoked")
        return AccessKey(value.digest(), value)
    if isinstance(value, str) and value.startswith("sha256:"):
        digest = value.removeprefix("sha256:")
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise ValueError("expected sha256: and 64 lower-case hexadecimal digits")
        return AccessKey(bytes.fromhex(digest))
    raise ValueError("a key is not written into the file: use ${NAME}, file:/path or sha256:<hex>")


WrittenKey = Annotated[AccessKey, BeforeValidator(_access_key)]
"""A key in proxy.yaml."""


@dataclass(frozen=True, slots=True, repr=False)
class Token:
    """What was sent as a key, and its SHA-256; empty if nothing was."""

    text: bytes
    digest: bytes


def find(token: Token, known: Mapping[bytes, Owner]) -> Owner | None:
    """Whose key it is, among those whose SHA-256 are `known`. Neither the time nor the answer tells how near a guess
    was."""
    digest = token.digest
    if hmac.compare_digest(digest if digest in known else _NOBODY, digest):
        return known[digest]
    return None


def bearer(head: Head) -> Token:
    """The key that was sent. Two keys are no key but two readers' quarrel: whoever is in front of us
    may have looked at the other one."""
    values = head.values(b"authorization")
    if len(values) > 1:
        raise BadFraming("The request must have one Authorization header.")
    value = values[0].strip(b" \t") if values else b""  # what surrounds a value is no part of it (RFC 9110, 5.5)
    text = value[7:].lstrip(b" ") if value[:7].lower() == b"bearer " else b""
    return Token(text, hashlib.sha256(text).digest())


class Refusals:
    """What whoever has no key is told: one and the same 401, and an address that sends ever more wrong ones a 429. It
    is asked about nobody who has a key, so it holds up none of them. `right` says what a right one would be."""

    def __init__(self, failures: Failures, monotonic: Callable[[], float], right: str) -> None:
        self._failures = failures
        self._clock = monotonic
        self._message = f"Incorrect API key provided. Use {right} of this proxy: `Authorization: Bearer <key>`."

    def refuse(self, client: str, token: bytes) -> ProxyError:
        # Who sends no key at all guesses none.
        wait = self._failures.failed(client, self._clock()) if token else 0.0
        if wait:
            return TooManyAuthFailures(
                "Too many incorrect API keys came from your address. A correct one works at any time; "
                f"wait {wait:.0f} seconds before you try another.",
                wait=int(wait * 1000),
            )
        return InvalidApiKey(self._message, headers=[(b"www-authenticate", b"Bearer")])
