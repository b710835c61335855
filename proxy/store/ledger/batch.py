"""Records of a journal, in their order, put together to rows: an intent whose outcome is there too is one row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from proxy.core.ledger import Intent, Outcome
from proxy.store.ledger.rows import Row, ended, opened

MOST_AT_ONCE: Final = 2_000
"""Records of one transaction."""

_decode = msgspec.msgpack.Decoder(Intent | Outcome).decode
_encode = msgspec.msgpack.Encoder().encode


def encode(record: Intent | Outcome) -> bytes:
    """Raises OverflowError and UnicodeError."""
    return _encode(record)


class Assembly:
    """`open` are the calls whose intents were seen and whose outcomes were not. `strangers` are outcomes whose intents
    were not: if anybody knows them, the database does. `damaged` counts records that cannot be read."""

    def __init__(self) -> None:
        self.open: dict[str, Intent] = {}
        self.strangers: list[Outcome] = []
        self.damaged = 0

    def rows(self, records: Iterable[bytes | None]) -> list[Row]:
        """The rows to be written now that these records were read."""
        began: dict[str, Intent] = {}
        rows: list[Row] = []
        for record in records:
            try:
                one = _decode(record or b"")
            except (msgspec.DecodeError, UnicodeDecodeError):
                self.damaged += 1
                continue
            if isinstance(one, Intent):
                began[one.call] = one
            elif (intent := began.pop(one.call, None) or self.open.pop(one.call, None)) is not None:
                rows.append(ended(intent, one))
            else:
                self.strangers.append(one)
        self.open.update(began)
        rows.extend(map(opened, began.values()))
        return rows
