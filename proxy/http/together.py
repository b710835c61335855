"""The head of an answer and the first piece of its body, written together: each write is a call of the system, which
may cost as much as everything else that is done for an answer that is there already, and wakes whoever reads."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

LARGE: Final = 1 << 16
"""Bytes of a first piece that is not copied to stand behind its head."""


class Together(asyncio.Transport):
    """A connection as one request's cycle sees it. The head is held until the body begins, which in this program it
    does at once: whoever begins an answer has a part of it."""

    def __init__(self, cycle: RequestResponseCycle, connection: asyncio.Transport) -> None:
        super().__init__()
        self._cycle = cycle
        self._connection = connection
        self._head = b""

    def write(self, data: Any) -> None:
        if not self._cycle.response_started:  # not an answer yet: 100 Continue
            self._connection.write(data)
            return
        self.write = self._write_body  # type: ignore[method-assign]
        self._head = data

    def _write_body(self, data: Any) -> None:
        self.write = self._connection.write  # type: ignore[method-assign]
        head, self._head = self._head, b""
        if len(data) > LARGE:
            self._connection.write(head)
            self._connection.write(data)
        else:
            self._connection.write(head + data)

    def flush(self) -> None:
        """An answer without a body is complete, too."""
        if self._head:
            self._write_body(b"")

    def is_closing(self) -> bool:
        return self._connection.is_closing()

    def close(self) -> None:
        self.flush()
        self._connection.close()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._connection.get_extra_info(name, default)
