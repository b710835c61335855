"""The addresses of one host: looked up beside the event loop, by one question for all who wait, and remembered."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from aiohappyeyeballs import AddrInfoType

TTL: Final = 300.0
"""Seconds that an answer is believed, unless it is forgotten before."""


class Addresses:
    """`time` is in seconds."""

    def __init__(self, host: str, port: int, time: Callable[[], float]) -> None:
        self._host, self._port, self._time = host, port, time
        self._asking: asyncio.Task[list[AddrInfoType]] | None = None
        self._known: list[AddrInfoType] = []
        self._until = 0.0

    async def get(self) -> list[AddrInfoType]:
        """All there are, each time beginning with another one. Raises OSError.

        Who no longer waits leaves the question to the others: a resolver that stalls has one thread, and not one for
        each call."""
        known = self._known
        if not known or self._time() >= self._until:
            if self._asking is None:
                self._asking = asyncio.create_task(self._ask())
                self._asking.add_done_callback(self._answered)
            asking = self._asking
            await asyncio.wait((asking,))
            if asking.cancelled():
                raise OSError(None, "the transport was closed")
            known = asking.result()
        known.append(known.pop(0))
        return known.copy()

    def forget(self) -> None:
        """The host may be elsewhere by now."""
        self._known = []

    def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()

    async def _ask(self) -> list[AddrInfoType]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        if not found:
            raise OSError(None, "the name has no address")
        return list(found)

    def _answered(self, asked: asyncio.Task[list[AddrInfoType]]) -> None:
        self._asking = None
        if not asked.cancelled() and asked.exception() is None:  # asked for: an error nobody looks at is logged
            self._known, self._until = asked.result(), self._time() + TTL
