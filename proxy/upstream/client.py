"""Calls to one provider: its keys, its headers, and what a failed exchange becomes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from proxy import __version__
from proxy.core import wording
from proxy.core.errors import Elsewhere, Fault, Overloaded, ProxyError, Repeat, UpstreamFailed, UpstreamTimeout
from proxy.core.secret import Secret
from proxy.core.services import Log
from proxy.upstream.config import Config, Timeouts
from proxy.upstream.keys import Key, KeyPool
from proxy.upstream.retry import Retries
from proxy.upstream.transport import Answer, Call, Connections, Headers, Transport, TransportError

MOST_JSON = 32 << 20
"""Bytes of an answer that is read as a whole."""

MOST_REFUSAL = 1 << 20
"""Bytes of an answer that is no success. Of a longer one only the status counts."""


_NO_KEYS: Final[Mapping[str, Secret]] = MappingProxyType({})


def _silent(level: str, event: str, **fields: object) -> None:
    """For whoever has no log."""


def _headers(accept: str) -> Headers:
    return [
        ("Accept", accept),
        ("Accept-Encoding", "identity"),  # bytes are passed on as they come
        ("User-Agent", f"mistral-proxy/{__version__}"),
    ]


_JSON: Final = _headers("application/json")
_EVENTS: Final = _headers("text/event-stream")
_BODY: Final = (("Content-Type", "application/json"),)
_BACKSLASH: Final = ord("\\")


class Upstream:
    """The headers are made once: nothing that a client sent is ever among them but the id of a trace. `name` is the
    provider's, `own_keys` are those of teams that pay it themselves. `workers` call it beside this one."""

    def __init__(
        self,
        config: Config,
        transport: Transport,
        workers: int = 1,
        *,
        name: str = "",
        own_keys: Mapping[str, Secret] = _NO_KEYS,
        log: Log = _silent,
    ) -> None:
        self.timeouts: Timeouts = config.timeouts
        self.retries = Retries(config.retry, workers)
        self._transport = transport
        longest = config.retry.max_delay
        self._shared = KeyPool(f"{name} key", config.api_keys, log, longest, workers)
        self._own = {
            team: KeyPool(f"{name} key of {team}", [key], log, longest, workers) for team, key in own_keys.items()
        }
        secrets = {key.reveal().encode() for key in (*config.api_keys, *own_keys.values())}
        self._secrets = sorted(secrets, key=len, reverse=True)  # one may begin with another
        self._escaped = _escaped(self._secrets)
        self._has_slash = any(b"/" in key for key in self._secrets)

    @property
    def connections(self) -> Connections:
        """See Transport."""
        return self._transport.connections

    def usable_keys(self) -> Iterator[tuple[str, bool]]:
        """Each key by its label, and whether it pays for anything at the moment."""
        for pool in (self._shared, *self._own.values()):
            now = pool.now()
            yield from ((key.label, key.is_usable(now)) for key in pool.keys)

    def keys(self, team: str | None) -> KeyPool:
        """Those that the calls of this team are paid with."""
        return self._own.get(team, self._shared) if team else self._shared

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None,
        key: Key,
        *,
        stream: bool,
        traceparent: str,
        fresh: bool = False,
    ) -> Call:
        """One exchange, as a part of this trace; if `fresh`, on a connection of its own."""
        headers = (*(_EVENTS if stream else _JSON), *key.headers, *(() if body is None else _BODY))
        trace = (("traceparent", traceparent),)
        return self._transport.call(method, path, headers, body or b"", more=trace, fresh=fresh)

    def scrub(self, data: bytes) -> bytes:
        """`data` without the provider's keys, should an upstream ever repeat one: it must not reach a client. JSON may
        spell it with escapes. Linear in time; what is cut afterwards can cut no key."""
        # `find`, and a number: `in` first takes bytes for a number, and that this is an error costs ten times as much
        # as to look for them.
        for key in self._secrets:
            if data.find(key) >= 0:
                data = data.replace(key, b"***")
        if _BACKSLASH in data and (b"\\u00" in data or (self._has_slash and b"\\/" in data)) and self._escaped:
            data = self._escaped.sub(b"***", data)
        return data

    async def close(self) -> None:
        await self._transport.close()


def _escaped(keys: Sequence[bytes]) -> re.Pattern[bytes] | None:
    """Finds the keys in JSON, and in JSON within the strings of JSON, however deep, whichever of their characters are
    escaped."""
    return re.compile(b"|".join(b"".join(map(_spellings, key)) for key in keys)) if keys else None


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
        full = Overloaded(wording.ALL_IN_USE)
        full.elsewhere = Elsewhere.YES
        return full
    failed: ProxyError
    if error.kind == "connect_timeout":
        text = f"No connection to the upstream within {timeouts.connect:g} seconds (timeouts.connect)."
        failed = UpstreamTimeout(text, detail={"timeout": "connect"})
    else:
        failed = UpstreamFailed(_FAILED[error.kind])
    if error.kind != "protocol":
        failed.blame = Fault.NETWORK
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
