"""Records of a journal, in their order, put together to rows: an intent whose outcome is there too is one row."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from proxy.core.ledger import Intent, Outcome
from proxy.store.ledger.rows import Row, ended, opened

MOST_AT_ONCE: Final = 2_000
"""Records of one transaction."""

Record = Intent | Outcome

_decode = msgspec.msgpack.Decoder(Record).decode

encode: Final[Callable[[Record], bytes]] = msgspec.msgpack.Encoder().encode
"""Raises OverflowError and UnicodeError."""


class Assembly:
    """`open` are the calls whose intents were seen and whose outcomes were not. `strangers` are outcomes whose intents
    were not: if anybody knows them, the database does. `damaged` counts records that cannot be read."""

    def __init__(self) -> None:
        self.open: dict[str, Intent] = {}
        self.strangers: list[Outcome] = []
        self.damaged = 0

    def rows(self, records: Iterable[Record | bytes | None]) -> list[Row]:
        """The rows to be written now that these records were read, and maybe have to be decoded."""
        began: dict[str, Intent] = {}
        rows: list[Row] = []
        for record in records:
            one = _decoded(record) if isinstance(record, bytes) else record
            if one is None:
                self.damaged += 1
            elif isinstance(one, Intent):
                began[one.call] = one
            elif (intent := began.pop(one.call, None) or self.open.pop(one.call, None)) is not None:
                rows.append(ended(intent, one))
            else:
                self.strangers.append(one)
        self.open.update(began)
        rows.extend(map(opened, began.values()))
        return rows


def _decoded(record: bytes) -> Record | None:
    try:
        one: Record = _decode(record)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return one
