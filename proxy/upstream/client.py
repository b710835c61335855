"""Calls to one provider: its key, its headers, and what a failed exchange becomes."""

from __future__ import annotations

import re
from collections.abc import Callable

from proxy import __version__
from proxy.core.errors import Overloaded, ProxyError, Repeat, UpstreamFailed, UpstreamTimeout
from proxy.upstream.config import Config, Timeouts
from proxy.upstream.retry import Retries
from proxy.upstream.transport import Answer, Call, Headers, Transport, TransportError

MOST_JSON = 32 << 20
"""Bytes of an answer that is read as a whole."""

MOST_REFUSAL = 1 << 20
"""Bytes of an answer that is no success. Of a longer one only the status counts."""


class Upstream:
    """The headers are made once: nothing that a client sent is ever among them. `workers` call it beside this one."""

    def __init__(self, config: Config, transport: Transport, workers: int = 1) -> None:
        self.timeouts: Timeouts = config.timeouts
        self.retries = Retries(config.retry, workers)
        self._transport = transport
        self._key = config.api_keys[0].reveal().encode() if config.api_keys else b""
        self._escaped = _escaped(self._key)
        self._has_slash = b"/" in self._key
        self._json = _headers(config, "application/json")
        self._events = _headers(config, "text/event-stream")

    def call(self, method: str, path: str, body: bytes | None, *, stream: bool, fresh: bool = False) -> Call:
        """One exchange; if `fresh`, on a connection of its own."""
        headers = self._events if stream else self._json
        if body is None:
            return self._transport.call(method, path, headers, b"", fresh=fresh)
        headers = [*headers, ("Content-Type", "application/json")]
        return self._transport.call(method, path, headers, body, fresh=fresh)

    def scrub(self, data: bytes) -> bytes:
        """`data` without the provider's key, should an upstream ever repeat it: it must not reach a client. JSON may
        spell it with escapes. Linear in time; what is cut afterwards can cut no key."""
        if self._key and self._key in data:
            data = data.replace(self._key, b"***")
        # One byte is found ten times as fast as two.
        if b"\\" in data and (b"\\u00" in data or (self._has_slash and b"\\/" in data)) and self._escaped:
            data = self._escaped.sub(b"***", data)
        return data

    async def close(self) -> None:
        await self._transport.close()


def _headers(config: Config, accept: str) -> Headers:
    headers = [
        ("Accept", accept),
        ("Accept-Encoding", "identity"),  # bytes are passed on as they come
        ("User-Agent", f"mistral-proxy/{__version__}"),
    ]
    if config.api_keys:
        headers.append(("Authorization", f"Bearer {config.api_keys[0].reveal()}"))
    return headers


def _escaped(key: bytes) -> re.Pattern[bytes] | None:
    """Finds the key in JSON, and in JSON within the strings of JSON, however deep, whichever of its characters are
    escaped."""
    return re.compile(b"".join(map(_spellings, key))) if key else None


def _spellings(character: int) -> bytes:
    # A whole run of backslashes or none, or a long one would be looked at from each of its places. What it begins with
    # stands before the look behind: so `re` finds by itself where a match can begin.
    slash = b"/|" if character == ord("/") else b""
    return rb"(?:%b|\\(?<!\\\\)\\*+(?:%bu00(?i:%02x)))" % (re.escape(bytes((character,))), slash, character)


def is_encoded(answer: Answer) -> bool:
    """Whether the body is compressed, though we ask for none that is. It is not unpacked: 200 KB can become 200 MB."""
    return (answer.header("content-encoding") or "identity").lower() != "identity"


def is_json(answer: Answer) -> bool:
    """Whether the body may be JSON; a server that does not say is taken at its word."""
    return "json" in (answer.header("content-type") or "json").lower()


async def read(answer: Answer, heard: Callable[[], None], most: int) -> bytes | None:
    """The whole body, or None if it has more than `most` bytes; `heard` is called for every piece."""
    pieces: list[bytes] = []
    size = 0
    async for piece in answer.chunks():
        heard()
        pieces.append(piece)
        size += len(piece)
        if size > most:
            return None
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def failure(error: TransportError, timeouts: Timeouts, *, sent: bool) -> ProxyError:
    """What the client is told when the exchange with the upstream failed; `sent`: after some of it was sent."""
    if error.kind == "pool":
        return Overloaded("All connections to the upstream are in use.")
    failed: ProxyError
    if error.kind == "connect_timeout":
        text = f"No connection to the upstream within {timeouts.connect:g} seconds (timeouts.connect)."
        failed = UpstreamTimeout(text, detail={"timeout": "connect"})
    else:
        failed = UpstreamFailed(_FAILED[error.kind])
    if error.kind == "tls":
        failed.repeat = Repeat.NEVER  # a certificate does not change within a minute
    elif not sent:
        failed.repeat = Repeat.SAFE
    return failed


_FAILED = {
    "connect": "The upstream could not be reached.",
    "tls": "The upstream's certificate or TLS version was refused.",
    "closed": "The upstream closed the connection before the answer was complete.",
    "protocol": "The upstream's answer was not valid HTTP.",
}
