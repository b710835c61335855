"""Repairs of message order: what OpenAI accepts and Mistral answers with 400.

Mistral API, error 3230 `invalid_request_message_order`: no system message after an assistant or a tool message, tool
results only behind the call that they answer and as many as there are calls, the last message not from the assistant
unless it is a prefix to go on from; error 3240: no assistant message that says nothing. docs/decisions/0003 says why
each repair is what it is. A repair changes the conversation, so it is reported, and refused in strict mode.

Every repair but the last message's depends only on what stands before it and, for calls, on their results: a longer
conversation repeats the shorter one's messages and ids, which keeps the provider's prompt cache warm.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from proxy.core.errors import BadRequest, UnsupportedValue
from proxy.core.json import Json
from proxy.core.table import Context
from proxy.providers.mistral.tools import distinct_ids

NO_RESULT = "(no result)"
NOT_SHOWN = "(earlier messages are not shown)"
RESULT = "Tool result:\n"

_ASKING = frozenset(("system", "user"))


def arrange(messages: list[Json], context: Context) -> list[Json]:
    """The messages in an order that Mistral accepts. They have Mistral's shape already, belong to the caller and are
    changed. Raises BadRequest when nothing is asked, in strict mode for every repair."""
    if not messages or not _ASKING.issuperset([message["role"] for message in messages]):
        messages = _answered(messages, context)
    _end(messages, context)
    return messages


def _answered(messages: list[Json], context: Context) -> list[Json]:
    """A conversation in which somebody has answered already, or none at all, up to its end."""
    messages = _without_silent(messages, context)
    if all(message["role"] == "assistant" for message in messages):
        raise BadRequest(
            "Invalid 'messages': there must be at least one message that is not the assistant's.", param="messages"
        )
    _instruct_as_user(messages, context)
    if any(message["role"] == "tool" or "tool_calls" in message for message in messages):
        messages = _paired(messages, context)
    _begin(messages, context)
    _only_last_goes_on(messages, context)
    return messages


def _repair(what: str, why: str, context: Context) -> None:
    if context.strict:
        raise UnsupportedValue(f"Invalid 'messages': {why}.", param="messages")
    context.report("repair", f"messages.{what}")


# Assistant messages that say nothing.


def _without_silent(messages: list[Json], context: Context) -> list[Json]:
    rest = [message for message in messages if message["role"] != "assistant" or _speaks(message)]
    if len(rest) < len(messages):
        _repair("empty", "Mistral takes no assistant message without content and tool calls", context)
    return rest


def _speaks(message: Json) -> bool:
    content = message["content"]
    if "tool_calls" in message or type(content) is str:
        return "tool_calls" in message or content != ""
    return any(chunk["type"] != "thinking" and chunk.get("text") != "" for chunk in content)


# Instructions in the middle of a conversation.


def _instruct_as_user(messages: list[Json], context: Context) -> None:
    """A system message stays where only user and system messages follow the last answer; elsewhere it becomes user
    text at the same place."""
    speaker = "user"
    for message in messages:
        if message["role"] != "system":
            speaker = message["role"]
        elif speaker != "user":
            _to_user(message, context)


def _to_user(message: Json, context: Context) -> None:
    _repair(
        "system", "Mistral takes no system message after the assistant's, a tool's or the last user message", context
    )
    message["role"] = "user"


# Calls and their results.


def _paired(messages: list[Json], context: Context) -> list[Json]:
    paired: list[Json] = []
    turn = _Turn(None, 0, context)
    for position, message in enumerate(messages):
        if message["role"] == "assistant":
            paired += turn.messages()
            turn = _Turn(message, position, context)
        elif message["role"] == "tool":
            turn.answer(message)
        else:
            turn.rest.append(message)
    return paired + turn.messages()


class _Turn:
    """An assistant message, the results of its calls, the rest up to the next one. The first may have no opening."""

    def __init__(self, opening: Json | None, position: int, context: Context) -> None:
        self.context = context
        self.opening = [opening] if opening else []
        self.results: list[Json] = []
        self.rest: list[Json] = []
        self.calls = _identified(opening.get("tool_calls", ()) if opening else (), position, context)

    def answer(self, result: Json) -> None:
        """Put a tool message where it belongs."""
        asked = _client_id(result.get("tool_call_id"))
        id = self.calls.take(asked)
        if id is not None:
            self._add(result, id)
        elif asked in self.calls:
            _repair("surplus_result", "a tool call has more than one result", self.context)
        else:
            _repair("orphan_result", "a tool result answers no call of the assistant message before it", self.context)
            self.rest.append(_told(result))

    def _add(self, result: Json, id: str) -> None:
        if self.rest:
            _repair("order", "a tool result must follow its call directly", self.context)
        result["tool_call_id"] = id
        self.results.append(result)

    def messages(self) -> list[Json]:
        unanswered = self.calls.unanswered()
        if unanswered:
            _repair("missing_result", "a tool call has no result", self.context)
        missing = [{"role": "tool", "tool_call_id": id, "content": NO_RESULT} for id in unanswered]
        return [*self.opening, *self.results, *missing, *self.rest]


def _told(result: Json) -> Json:
    """A tool result without its call, as what the user tells."""
    content = result["content"]
    if type(content) is str:
        return {"role": "user", "content": RESULT + content}
    return {"role": "user", "content": [{"type": "text", "text": RESULT}, *content]}


class _Calls:
    """The calls of one assistant message by the client's ids, and which of them wait for a result.

    Every operation is constant time or amortised: the client decides how many calls there are.
    """

    def __init__(self, asked: list[str | None], sent: list[str]) -> None:
        self._sent = sent
        self._waiting = set(sent)
        # A result without an id is one for the first call that waits.
        self._queues: dict[str | None, deque[str]] = {None: deque(sent)} if sent else {}
        for client, id in zip(asked, sent, strict=True):
            if client is not None:
                self._queues.setdefault(client, deque()).append(id)

    def __contains__(self, asked: str | None) -> bool:
        return asked in self._queues

    def take(self, asked: str | None) -> str | None:
        """The id sent for the first waiting call that the client named so; it waits no longer."""
        queue = self._queues.get(asked)
        while queue:
            id = queue.popleft()
            if id in self._waiting:
                self._waiting.remove(id)
                return id
        return None

    def unanswered(self) -> list[str]:
        return [id for id in self._sent if id in self._waiting] if self._waiting else []


def _identified(calls: Sequence[Json], position: int, context: Context) -> _Calls:
    """Give the calls of the message at `position` ids that Mistral takes."""
    asked = [_client_id(call.get("id")) for call in calls]
    sent = distinct_ids(asked, position)
    if sent != asked:
        context.report("value", "messages.tool_calls.id")
    named = [id for id in asked if id is not None]
    if len(set(named)) < len(named):
        _repair("duplicate_id", "two tool calls of one message have the same id", context)
    for call, id in zip(calls, sent, strict=True):
        call["id"] = id
    return _Calls(asked, sent)


def _client_id(id: str | None) -> str | None:
    """Mistral API: ToolCall.id is "null" by default, which it then refuses; both mean that there is none."""
    return None if id in (None, "", "null") else id


# The two ends.


def _begin(messages: list[Json], context: Context) -> None:
    """Mistral does not count the calls of a first message, so that their results answer nothing."""
    if "tool_calls" in messages[0]:
        _repair("start", "the conversation begins with tool calls", context)
        messages.insert(0, {"role": "user", "content": NOT_SHOWN})


def _only_last_goes_on(messages: list[Json], context: Context) -> None:
    for message in messages[:-1]:
        if message.pop("prefix", False):
            _repair("prefix", "only the last message can be a prefix", context)


def _end(messages: list[Json], context: Context) -> None:
    last = messages[-1]
    if last["role"] == "assistant" and not last.get("prefix"):
        _go_on_from(last, context)
    elif last["role"] == "system":
        _ask_as_user(messages, context)


def _go_on_from(last: Json, context: Context) -> None:
    """Mistral then repeats the text at the start of its answer: `notes["prefix"]` is what to take off again."""
    _repair("prefix", "the last message is the assistant's; with 'prefix': true on it Mistral goes on from it", context)
    last["prefix"] = True
    context.notes["prefix"] = _text(last["content"])


def _text(content: Any) -> str:
    return content if type(content) is str else "".join(chunk.get("text", "") for chunk in content)


def _ask_as_user(messages: list[Json], context: Context) -> None:
    """System messages after the last user message; there is nothing to repair where all are system messages."""
    trailing = list(takewhile(lambda message: message["role"] == "system", reversed(messages)))
    if len(trailing) < len(messages):
        for message in trailing:
            _to_user(message, context)
