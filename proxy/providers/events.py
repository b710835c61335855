"""A streamed chat answer on its way to the client, event by event: what is the same whoever gives it.

Sources: OpenAI API reference, the chat completion chunk object; OpenAI SDK for Python, its reader of events.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Final

from proxy.core import json, sse
from proxy.core.errors import ProxyError, UpstreamFailed
from proxy.core.json import Json
from proxy.core.table import Context
from proxy.providers.choices import expected

INCOMPLETE: Final = "The upstream ended the stream before it was complete."
NONSENSE: Final = "The upstream sent something that is not a chat completion."
TOO_LONG: Final = "The upstream sent an event of more than 1 MiB."

MOST_CHOICES: Final = 128
"""Choices of one stream, should fewer be asked for."""

_DONE = b"[DONE]"
_DONE_EVENT = b"data: [DONE]\n\n"
_ID = frozenset((b"id",))


class ChatEvents(ABC):
    """An EventStream (proxy/core/endpoint.py) for one chat answer. A provider's own says what becomes of a chunk and
    when the answer is whole; what a stream may hold beside chunks, and how it may end, is treated here."""

    def __init__(self, context: Context) -> None:
        self.error: ProxyError | None = None
        self.done = self.surplus = False
        self.usage: Json | None = None
        self.delivered = 0
        self.tier: str | None = None
        self._context = context
        self._include_usage = bool(context.notes.get("include_usage"))
        self._expected = expected(context)
        self._splitter = sse.Splitter()
        self._first = True

    @abstractmethod
    def _plain(self, lines: bytes, count: int) -> bool:
        """Whether these are so many chunks, each on a line, that say text and nothing else: then they are counted, and
        go on as they came."""

    @abstractmethod
    def _whole(self, event: bytes, chunk: Any) -> bytes:
        """The event of a chunk that is not plain, as it goes on. Raises UpstreamFailed when it is no chunk at all."""

    @abstractmethod
    def _complete(self) -> bool:
        """Whether nothing is missing, should the stream end here without a word."""

    def _may_end(self) -> bool:
        """Whether it may say here that it is at its end."""
        return self._complete()

    def _before_the_end(self, line_end: bytes) -> bytes:
        """Events of ours that come before the end mark."""
        return b""

    def feed(self, chunk: bytes) -> bytes:
        if self.done or self.error:
            return b""
        plain = self._splitter.plain(chunk)
        if plain and (chunk.isascii() or _is_text(chunk)) and self._plain(*plain):
            self._first = False
            return chunk
        return self._pass_all(self._splitter.feed(chunk))

    def end(self) -> bytes:
        if self.done or self.error:
            return b""
        out = self._pass_all(self._splitter.flush())
        if self.done or self.error:
            return out
        if not self._complete():
            self.error = UpstreamFailed(INCOMPLETE)
            return out
        self.done = True
        return out + self._before_the_end(b"\n") + _DONE_EVENT

    def _pass_all(self, events: Iterable[bytes]) -> bytes:
        out: list[bytes] = []
        try:
            for event in events:
                out.append(self._pass(event))
                if self.done:
                    self.surplus = bool(self._splitter.rest)
                    break
        except sse.TooLong:
            self.error = UpstreamFailed(TOO_LONG)
        except UpstreamFailed as error:
            self.error = error
        return b"".join(out)

    def _pass(self, event: bytes) -> bytes:
        """The event as it goes on. Raises UpstreamFailed when the stream ends here."""
        if not event.isascii() and not _is_text(event):
            raise UpstreamFailed(NONSENSE)
        data = sse.only_data(event)
        if data is None:
            # After an id OpenAI's SDK for Python takes every comment, also one of ours, for an event, and stops.
            event = sse.without_fields(event, _ID)
            data = sse.data(event)
        if data is None:
            return self._without_data(event)
        self._first = False
        return event if self._plain(data, 1) else self._examine(event, data)

    def _without_data(self, event: bytes) -> bytes:
        first, self._first = self._first, False
        # OpenAI's SDK for Python does not skip a byte order mark, and would miss the first event.
        if first and event.startswith(sse.BOM):
            return self._pass(event.removeprefix(sse.BOM))
        if not sse.recognised(event):
            raise UpstreamFailed(NONSENSE)
        return sse.without_fields(event, sse.FIELDS)  # without data it says nothing, and the SDKs would read that

    def _examine(self, event: bytes, data: bytes) -> bytes:
        word = data.strip()
        if word == _DONE:
            return self._last(event)
        if not word:  # some servers keep a connection alive so; the SDKs would read the nothing as JSON
            return sse.without_fields(sse.without_data(event), sse.FIELDS)
        try:
            chunk = json.decode(data)
        except json.Malformed:
            raise UpstreamFailed(NONSENSE) from None
        return self._whole(event, chunk)

    def _last(self, event: bytes) -> bytes:
        if not self._may_end():
            raise UpstreamFailed(INCOMPLETE)
        if not self._complete():
            self._context.spoiled = True  # the next one may have all that was asked for
        self.done = True
        return self._before_the_end(sse.line_end(event)) + event


def _is_text(data: bytes) -> bool:
    """What the schema of a plain chunk skips is not decoded, and the SDKs would stumble over it."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


BYTES_A_TOKEN = 8
"""Few tokens are longer. What is one piece is mostly one token, but some servers send many at once."""


def tokens(text: Any) -> int:
    """Of one piece of text; of anything else none."""
    if not isinstance(text, str) or not text:
        return 0
    size = len(text) if text.isascii() else len(text.encode())
    return size // BYTES_A_TOKEN or 1
