"""The narrow door to the network: one request out, one streamed answer back.

Whatever carries the bytes (http1, aiohttp, httpx) is hidden behind `Transport`. Deadlines after the connection is made
and the client's leaving are the caller's business: it cancels the task, and a transport's one duty is then to close the
connection at once and give the pool its place back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import NamedTuple, Protocol

Headers = Sequence[tuple[str, str]]


class TransportError(Exception):
    """The exchange with the upstream failed. `kind` is one of connect, connect_timeout, tls, pool, protocol, closed.

    `answered`: something of the answer had come. `reused`: the connection had served another exchange before. The text
    never contains a header, a URL's secret or the request: it is fit for a log.
    """

    def __init__(self, kind: str, message: str, *, answered: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.answered = answered
        self.reused = False

    def again(self) -> TransportError:
        """The same, with a traceback of its own: whoever keeps one would be held by the frames in it."""
        return TransportError(self.kind, str(self), answered=self.answered)

    @property
    def stale(self) -> bool:
        """Whether the request met an idle connection that its server had just given up. A fresh one may serve it."""
        return self.kind == "closed" and self.reused and not self.answered


class Connections(NamedTuple):
    """How many a pool has: held by a call, and ready for the next one."""

    in_use: int
    idle: int


class Answer(Protocol):
    """An answer whose headers have arrived."""

    status: int

    def header(self, name: str) -> str | None:
        """The first value of a header, by lower-case name."""

    def whole(self) -> bytes | None:
        """All of the body, if the transport can tell that it is there: most answers that are no streams come at once.
        It is no more than a transport reads ahead. None: it comes by `chunks`."""

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives, unbuffered and undecoded. Raises TransportError when it is cut short."""


class Call(Protocol):
    """One request under way: an async context manager, whose exit returns or closes the connection. `sent`: some of it
    may be at the upstream, which may then ask money for it, however it ends."""

    @property
    def sent(self) -> bool: ...

    async def __aenter__(self) -> Answer: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Transport(Protocol):
    """A pool of connections to one origin."""

    @property
    def connections(self) -> Connections:
        """Counted when asked, with a question to the system for each that is idle: no part of a request."""

    def call(
        self, method: str, path: str, headers: Headers, body: bytes, *, more: Headers = (), fresh: bool = False
    ) -> Call:
        """Send `body` to `path` (already encoded) of the origin, if `fresh` on a connection of its own. `headers` are
        the same for many calls, `more` are of this one. Nothing is sent before the Call is entered."""

    async def close(self) -> None:
        """Close every connection."""
