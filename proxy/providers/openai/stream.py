"""The streamed chat answer on its way to the client: byte for byte, event by event.

Sources: OpenAI API reference, the chat completion chunk object; OpenAI SDK for Python, its reader of events; streams of
vLLM and OpenRouter.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal

import msgspec

from proxy.core import json, sse
from proxy.core.errors import ProxyError, UpstreamFailed
from proxy.core.json import Json
from proxy.core.table import Context
from proxy.providers.openai.answer import CHAT_COUNTS, NONSENSE, choices_of, clean_usage

INCOMPLETE: Final = "The upstream ended the stream before it was complete."
TOO_LONG: Final = "The upstream sent an event of more than 1 MiB."

MOST_CHOICES: Final = 128
"""Choices of one stream, should fewer be asked for."""

_DONE = b"[DONE]"
_DONE_EVENT = b"data: [DONE]\n\n"
_ID = frozenset((b"id",))


# A chunk that fits this schema is text, more is to come, and it needs no further look. The field `reasoning` is what
# vLLM and OpenRouter call `reasoning_content`.


class _PlainDelta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: None = None
    tool_calls: None = None
    function_call: None = None


class _PlainChoice(msgspec.Struct):
    index: int
    delta: _PlainDelta
    finish_reason: None = None


class _PlainChunk(msgspec.Struct):
    object: Literal["chat.completion.chunk"]
    choices: list[_PlainChoice]
    usage: None = None
    error: None = None
    service_tier: str | None = None


_plain_chunk = msgspec.json.Decoder(_PlainChunk).decode


class ChatStream:
    """An EventStream (proxy/core/endpoint.py) for one chat answer.

    Reads of `context.notes` "include_usage" (true): the client asked for the chunk of usage. The upstream always sends
    one, because it is always asked to; a client that did not ask does not see it.
    """

    def __init__(self, context: Context) -> None:
        self.error: ProxyError | None = None
        self.done = self.surplus = False
        self.usage: Json | None = None
        self.delivered = 0
        self.tier: str | None = None
        self._include_usage = bool(context.notes.get("include_usage"))
        self._expected = max(1, context.asked.get("n") or 1)
        self._splitter = sse.Splitter()
        self._first = True
        self._finished: dict[int, bool] = {}
        """The choices that have come, by index."""

    def feed(self, chunk: bytes) -> bytes:
        return b"" if self.done or self.error else self._pass_all(self._splitter.feed(chunk))

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
        return out + _DONE_EVENT

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
        if not event.isascii():
            _require_text(event)
        data = sse.only_data(event)
        if data is None:
            # After an id OpenAI's SDK for Python takes every comment, also one of ours, for an event, and stops.
            event = sse.without_fields(event, _ID)
            data = sse.data(event)
        if data is None:
            return self._without_data(event)
        self._first = False
        try:
            chunk = _plain_chunk(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._examine(event, data)
        for choice in chunk.choices:
            self._come(choice.index, finished=False)
            delta = choice.delta
            self.delivered += _tokens(delta.content) + _tokens(delta.reasoning_content or delta.reasoning)
        self.tier = chunk.service_tier or self.tier
        return event

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
        choices = choices_of(chunk)
        for at, choice in enumerate(choices):
            self._come(_index_of(choice, at), finished=bool(choice.get("finish_reason")))
            self.delivered += _tokens_of(choice.get("delta"))
        tier = chunk.get("service_tier")
        self.tier = tier if isinstance(tier, str) else self.tier
        return event if chunk.get("usage") is None else self._with_usage(event, chunk)

    def _with_usage(self, event: bytes, chunk: Json) -> bytes:
        self.usage = clean_usage(chunk["usage"], CHAT_COUNTS)
        if not chunk["choices"] and not self._include_usage:
            return b""
        if self.usage is chunk["usage"]:
            return event
        # What cannot be believed is not passed on.
        rest = {key: value for key, value in chunk.items() if key != "usage"}
        return sse.with_data(event, json.encode(rest | ({"usage": self.usage} if self.usage else {})))

    def _last(self, event: bytes) -> bytes:
        # Some servers give one answer, however many are asked for. They say themselves that it is all.
        if not self._finished or not all(self._finished.values()):
            raise UpstreamFailed(INCOMPLETE)
        self.done = True
        return event

    def _come(self, index: int, *, finished: bool) -> None:
        if index not in self._finished and len(self._finished) >= max(self._expected, MOST_CHOICES):
            raise UpstreamFailed(NONSENSE)
        self._finished[index] = finished or self._finished.get(index, False)

    def _complete(self) -> bool:
        return len(self._finished) >= self._expected and all(self._finished.values())


def _require_text(event: bytes) -> None:
    """What the schema skips is not decoded, and the SDKs would stumble over it."""
    try:
        event.decode()
    except UnicodeDecodeError:
        raise UpstreamFailed(NONSENSE) from None


def _index_of(choice: Json, at: int) -> int:
    """The choice's index; `at`, its place in the chunk, if it has none."""
    index = choice.get("index")
    return index if type(index) is int else at


_BYTES_A_TOKEN = 8
"""Few tokens are longer. What is one piece is mostly one token, but some servers send many at once."""


def _tokens(text: Any) -> int:
    """Of one piece of text; of anything else none."""
    if not isinstance(text, str) or not text:
        return 0
    size = len(text) if text.isascii() else len(text.encode())
    return size // _BYTES_A_TOKEN or 1


def _tokens_of(delta: Any) -> int:
    """Of all the text that a client makes something of."""
    if not isinstance(delta, dict):
        return 0
    calls = delta.get("tool_calls")
    called = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    functions = [one for one in [*called, delta.get("function_call")] if isinstance(one, dict)]
    texts = [delta.get("content"), delta.get("reasoning_content") or delta.get("reasoning"), delta.get("refusal")]
    texts += [function.get(key) for function in functions for key in ("name", "arguments")]
    return sum(map(_tokens, texts))
