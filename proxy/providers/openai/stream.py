"""The streamed chat answer on its way to the client: byte for byte, event by event.

Sources: OpenAI API reference, the chat completion chunk object; OpenAI SDK for Python, its reader of events; streams of
vLLM and OpenRouter.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from proxy.core import json, sse
from proxy.core.errors import UpstreamFailed
from proxy.core.json import Json
from proxy.core.table import Context
from proxy.providers.events import MOST_CHOICES, NONSENSE, ChatEvents, tokens
from proxy.providers.openai.answer import CHAT_COUNTS, choices_of, clean_usage, is_as_asked

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
    error: None = None


class _PlainChunk(msgspec.Struct):
    object: Literal["chat.completion.chunk"]
    choices: list[_PlainChoice]
    usage: None = None
    error: None = None
    service_tier: str | None = None


_plain_chunks = msgspec.json.Decoder(_PlainChunk).decode_lines


class ChatStream(ChatEvents):
    """An EventStream (proxy/core/endpoint.py) for one chat answer of OpenAI's.

    Reads of `context.notes` "include_usage" (true): the client asked for the chunk of usage. The upstream always sends
    one, because it is always asked to; a client that did not ask does not see it.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._finished: dict[int, bool] = {}
        """The choices that have come, by index."""

    def _plain(self, lines: bytes, count: int) -> bool:
        try:
            chunks = _plain_chunks(lines)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        if len(chunks) != count:
            return False
        delivered, tier = 0, self.tier
        for chunk in chunks:
            for choice in chunk.choices:
                if not self._may_be(choice.index):
                    return False
                self._come(choice.index, finished=False)
                delta = choice.delta
                delivered += tokens(delta.content) + tokens(delta.reasoning_content or delta.reasoning)
            tier = chunk.service_tier or tier
        self.delivered, self.tier = self.delivered + delivered, tier
        return True

    def _whole(self, event: bytes, chunk: Any) -> bytes:
        choices = choices_of(chunk)
        for at, choice in enumerate(choices):
            reason = choice.get("finish_reason")
            self._context.ended(reason)
            if choice.get("error") or (reason is not None and not is_as_asked(reason)):
                self._context.spoiled = True
            self._come(_index_of(choice, at), finished=bool(reason))
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

    def _may_end(self) -> bool:
        # Some servers give one answer, however many are asked for. They say themselves that it is all.
        return bool(self._finished) and all(self._finished.values())

    def _may_be(self, index: int) -> bool:
        """Whether there can be such a choice."""
        return index in self._finished or len(self._finished) < max(self._expected, MOST_CHOICES)

    def _come(self, index: int, *, finished: bool) -> None:
        if not self._may_be(index):
            raise UpstreamFailed(NONSENSE)
        self._finished[index] = finished or self._finished.get(index, False)

    def _complete(self) -> bool:
        return len(self._finished) >= self._expected and all(self._finished.values())


def _index_of(choice: Json, at: int) -> int:
    """The choice's index; `at`, its place in the chunk, if it has none."""
    index = choice.get("index")
    return index if type(index) is int else at


def _tokens_of(delta: Any) -> int:
    """Of all the text that a client makes something of."""
    if not isinstance(delta, dict):
        return 0
    calls = delta.get("tool_calls")
    called = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    functions = [one for one in [*called, delta.get("function_call")] if isinstance(one, dict)]
    texts = [delta.get("content"), delta.get("reasoning_content") or delta.get("reasoning"), delta.get("refusal")]
    texts += [function.get(key) for function in functions for key in ("name", "arguments")]
    return sum(map(tokens, texts))
