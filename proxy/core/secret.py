"""A string that cannot be printed by accident: keys of teams and providers travel as `Secret`."""

from __future__ import annotations

import hashlib
import hmac
from typing import NoReturn


class Secret:
    """Holds a secret; `reveal()` is the only way to its text.

    str, repr, format and JSON show `***`; it compares in constant time, does not hash (a secret is no
    dictionary key) and refuses to be pickled or copied into a log by accident.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The secret itself. Call it only where it leaves for its one destination."""
        return self._text

    def digest(self) -> bytes:
        """SHA-256 of the UTF-8 text, 32 bytes: what a key is compared by."""
        return hashlib.sha256(self._text.encode()).digest()

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self.digest(), other.digest())

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return bool(self._text)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled")
