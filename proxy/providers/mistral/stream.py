"""Mistral's streamed chat answer on its way to an OpenAI client: byte for byte, but for events that would break one.

Sources: Mistral API, chat completion chunk; OpenAI API reference, the chat completion chunk object; OpenAI SDK for
Python, the accumulator behind `client.chat.completions.stream()`. docs/streaming.md lists what is rewritten, and why.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

from proxy.core import json, sse
from proxy.core.errors import UpstreamFailed
from proxy.core.json import Json
from proxy.core.table import Context
from proxy.providers.events import BYTES_A_TOKEN, MOST_CHOICES, NONSENSE, ChatEvents, tokens
from proxy.providers.mistral.answer import (
    arguments_text,
    choices_of,
    clean_usage,
    finish_reason,
    index_of,
    logprobs,
    plain_content,
    service_tier,
)

MOST_CALLS: Final = 128
"""Tool calls of one choice: as many as a request may offer tools."""

_LONGEST_NAME = 256
"""Characters of what calls are told apart by. All of it is kept until the stream ends."""

# A chunk that fits this schema needs no change and is not looked at further. Checking the schema costs less than
# searching the bytes for suspicious patterns, and neither white space nor escapes can hide anything from it.


class _PlainDelta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: None = None
    function_call: None = None


class _PlainChoice(msgspec.Struct):
    index: int
    delta: _PlainDelta
    finish_reason: None = None
    error: None = None
    logprobs: None = None


class _PlainChunk(msgspec.Struct):
    object: Literal["chat.completion.chunk"]
    choices: list[_PlainChoice]
    usage: None = None
    error: None = None


_plain_chunks = msgspec.json.Decoder(_PlainChunk).decode_lines


class ChatStream(ChatEvents):
    """An EventStream (proxy/core/endpoint.py) for one chat answer of Mistral's.

    Reads of `context.notes`: "prefix" (str), which Mistral repeats at the start of each choice and the client has
    already; "functions" (true), the client speaks the older `functions`; "include_usage" (true), it asked for usage in
    a chunk of its own before the end. In strict mode a client that did not ask sees no usage.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._choices: dict[int, _Choice] = {}
        self._usage_chunk: Json | None = None

    def _plain(self, lines: bytes, count: int) -> bool:
        try:
            chunks = _plain_chunks(lines)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        if len(chunks) != count:
            return False
        delivered, known = 0, self._choices
        for chunk in chunks:
            for choice in chunk.choices:
                one, delta = known.get(choice.index), choice.delta
                if one is None:
                    if not self._may_be(choice.index):
                        return False
                    one = self._choice(choice.index)
                if one.prefix:
                    return False
                text = delta.content
                if text:
                    delivered += 1 if len(text) < 2 * BYTES_A_TOKEN and text.isascii() else tokens(text)
                if delta.reasoning_content:
                    delivered += tokens(delta.reasoning_content)
        self.delivered += delivered
        return True

    def _whole(self, event: bytes, chunk: Any) -> bytes:
        was = json.encode(chunk)
        translated = self._translate(chunk)
        *before, last = [json.encode(one) for one in _calls_before_the_end(translated)]
        self.delivered += sum(_tokens_of(choice["delta"]) for choice in translated["choices"])
        if last == was:
            return event
        end = sse.line_end(event) * 2
        return b"".join(b"data: " + one + end for one in before) + sse.with_data(event, last)

    def _complete(self) -> bool:
        return len(self._choices) >= self._expected and all(choice.finished for choice in self._choices.values())

    def _may_be(self, index: int) -> bool:
        """Whether there can be such a choice."""
        return index in self._choices or len(self._choices) < max(self._expected, MOST_CHOICES)

    def _choice(self, index: int) -> _Choice:
        if index not in self._choices:
            if not self._may_be(index):
                raise UpstreamFailed(NONSENSE)
            self._choices[index] = _Choice(self._context, self._context.notes.get("prefix", ""))
        return self._choices[index]

    def _translate(self, chunk: Any) -> Json:
        choices = choices_of(chunk)
        translated = [self._choice(index_of(choice, at)).translate(choice, at) for at, choice in enumerate(choices)]
        return self._take_usage({**chunk, "choices": translated})

    def _take_usage(self, chunk: Json) -> Json:
        usage = chunk.get("usage")
        if usage is None:
            return chunk
        self.usage = clean_usage(usage)
        self.tier = service_tier(usage).get("service_tier")
        if self.usage is None:  # what cannot be believed is not passed on
            return {key: value for key, value in chunk.items() if key != "usage"}
        if self._include_usage and chunk["choices"]:
            head = {key: chunk[key] for key in ("id", "object", "created", "model") if key in chunk}
            self._usage_chunk = head | {"choices": [], "usage": self.usage}
            return chunk | service_tier(usage) | {"usage": None}
        if self._include_usage:  # the upstream has sent the extra chunk itself
            self._usage_chunk = None
        elif self._context.strict:
            del chunk["usage"]
        return chunk

    def _before_the_end(self, line_end: bytes) -> bytes:
        """The chunk of usage, for a client that wants one."""
        if self._usage_chunk is None:
            return b""
        return b"data: " + json.encode(self._usage_chunk) + line_end * 2


def _tokens_of(delta: Json) -> int:
    """Of all the text that a client makes something of."""
    called = [call["function"] for call in delta.get("tool_calls") or ()]
    called += [delta["function_call"]] if isinstance(delta.get("function_call"), dict) else []
    texts = [delta.get("content"), delta.get("reasoning_content")]
    texts += [function.get(key) for function in called for key in ("name", "arguments")]
    return sum(map(tokens, texts))


def _calls_before_the_end(chunk: Json) -> list[Json]:
    """The chunk, or two of it. Mistral's own models send the last tool calls together with the finish_reason; the
    stream helpers of OpenAI's SDKs announce a whole call only when a later chunk comes, and OpenAI always sends one.
    """
    if not any(_calls_and_ends(choice) for choice in chunk["choices"]):
        return [chunk]
    calling = [choice | {"finish_reason": None} for choice in chunk["choices"]]
    ending = [choice | {"delta": {}} for choice in chunk["choices"] if choice.get("finish_reason")]
    first = {key: value for key, value in chunk.items() if key not in ("usage", "service_tier")}
    return [first | {"choices": calling}, chunk | {"choices": ending}]


def _calls_and_ends(choice: Json) -> bool:
    called = "tool_calls" in choice["delta"] or "function_call" in choice["delta"]
    return called and bool(choice.get("finish_reason"))


@dataclass(slots=True)
class _Choice:
    """What has passed of one choice. `prefix` is the text still awaited, of which `matched` characters have come."""

    context: Context
    prefix: str
    matched: int = 0
    finished: bool = False
    calls: _Calls = field(default_factory=lambda: _Calls())

    def translate(self, source: Json, at: int) -> Json:
        """The chunk's choice for the client; `at` is its place in the chunk."""
        choice = source | {"index": index_of(source, at)}
        self.finished = self.finished or bool(source.get("finish_reason"))
        if source.get("error"):
            self.context.spoiled = True
        choice["delta"] = self._delta(source.get("delta"))
        if source.get("finish_reason") is not None:
            choice["finish_reason"] = finish_reason(source["finish_reason"], self.context)
        if "logprobs" in source:
            choice["logprobs"] = logprobs(source["logprobs"])
        return choice

    def _delta(self, source: Any) -> Json:
        delta = plain_content(source, self.context) if isinstance(source, dict) else {}
        if self.prefix:
            text = delta.get("content") or ""
            rest = self._without_prefix(text)
            delta = delta if rest == text else delta | {"content": rest}
        return self._called(delta) if delta.get("tool_calls") is not None else delta

    def _without_prefix(self, text: str) -> str:
        awaited = self.prefix[self.matched :]
        if text.startswith(awaited):
            self.prefix = ""
            return text[len(awaited) :]
        if awaited.startswith(text) and not self.finished:
            self.matched += len(text)
            return ""
        withheld, self.prefix = self.prefix[: self.matched], ""
        return withheld + text

    def _called(self, delta: Json) -> Json:
        """The calls under the name that the client knows. Of the older functions there is only the first."""
        calls = self.calls.translate(delta["tool_calls"])
        if calls and not self.context.notes.get("functions"):
            return delta | {"tool_calls": calls}
        functions = [call["function"] for call in calls if call["index"] == self.calls.first]
        called = {key: text for key in ("name", "arguments") if (text := _joined(functions, key))}
        rest = {key: value for key, value in delta.items() if key != "tool_calls"}
        return rest | {"function_call": called} if called else rest


def _joined(functions: list[Json], key: str) -> str:
    return "".join(text for function in functions if isinstance(text := function.get(key), str))


class _Calls:
    """The tool calls of one choice. OpenAI's clients put the pieces of a call together by its index."""

    def __init__(self) -> None:
        self.first: int | None = None
        self._open: dict[int, _Call] = {}
        self._index_of: dict[str, int] = {}
        self._last = 0
        self._next = 0

    def translate(self, source: Any) -> list[Json]:
        """The calls, or pieces of calls, of one delta. Only the first piece of a call says what call it is."""
        return [self._piece(call) for call in source if isinstance(call, dict)] if isinstance(source, list) else []

    def _piece(self, source: Json) -> Json:
        function = dict(source["function"]) if isinstance(source.get("function"), dict) else {}
        if function.get("arguments") is not None:
            function["arguments"] = arguments_text(function["arguments"])
        identity = _identity(source)
        index = self._last = self._index(source.get("index"), identity, bool(function.get("name")))
        piece = source | {"index": index}
        if index in self._open:
            self._open[index].drop_repeats(piece, function)
        else:
            piece["type"] = source.get("type") or "function"
            self._begin(index, _Call(identity, _kept(function.get("name"))))
        return piece | {"function": function}

    def _index(self, given: Any, identity: str | None, named: bool) -> int:
        """A call's own index, unless it is another call's; else that of its id; else the next, or the one going on."""
        if type(given) is int and (given not in self._open or self._open[given].may_be(identity)):
            return given
        if identity in self._index_of:
            return self._index_of[identity]
        return self._next if identity or named else self._last

    def _begin(self, index: int, call: _Call) -> None:
        if len(self._open) >= MOST_CALLS:
            raise UpstreamFailed(NONSENSE)
        if self.first is None:
            self.first = index
        self._open[index] = call
        self._next = max(self._next, index + 1)
        if call.identity:
            self._index_of[call.identity] = index


@dataclass(frozen=True, slots=True)
class _Call:
    """A tool call as its first piece names it."""

    identity: str | None
    name: str | None

    def may_be(self, identity: str | None) -> bool:
        return identity is None or self.identity in (None, identity)

    def drop_repeats(self, piece: Json, function: Json) -> None:
        """Take out what says again, or not at all, what call this is: OpenAI's SDK for Python appends a repeated id to
        the one it has, the one for Node raises when the name changes, to an empty one too.
        """
        if "id" in piece and _identity(piece) in (None, self.identity):
            del piece["id"]
        if "name" in function and function["name"] in (None, "", self.name):
            del function["name"]
        if "type" in piece and piece["type"] is None:
            del piece["type"]


def _identity(call: Json) -> str | None:
    # "null" is the default of an id in Mistral's schema.
    identity = _kept(call.get("id"))
    return identity if identity not in ("", "null") else None


def _kept(name: Any) -> str | None:
    return name if isinstance(name, str) and len(name) <= _LONGEST_NAME else None
