"""The newest part of a conversation that fits into a model's context.

What the system says stays, and of everything else the newest, without a gap. A call of a tool and its results are one
thing: they stay or go together. Sizes are estimates, on the side of too large: a token for 3.5 characters or as
prompt.py counts them, if that is more, and four for each message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from proxy.core import json
from proxy.core.json import Json
from proxy.core.prompt import measure, text_tokens

ANSWER: Final = 1_000
"""Tokens that an answer may need for which no limit is asked."""

LEAST: Final = 2
"""Messages that stay whatever their size: the provider says better than we do that they are too many."""

_ALWAYS: Final = frozenset({"system", "developer"})
_RESULTS: Final = frozenset({"tool", "function"})


@dataclass(slots=True)
class _Turn:
    """A message, or a call with its results: where they are, and their tokens."""

    places: list[int] = field(default_factory=list)
    tokens: int = 0


def fit(body: Json, context: int, answer: int = ANSWER) -> tuple[list[Any], int] | None:
    """The messages of a chat request that stay, and how many go; None when all stay, or when they are of no shape that
    this could be told of. `answer` tokens are left for an answer for which no limit is asked."""
    messages = body.get("messages")
    if type(messages) is not list or not all(type(message) is dict for message in messages):
        return None
    always, turns = _turns(messages)
    room = context - _answer(body, answer) - sum(_tokens(messages[place]) for place in always)
    room -= sum(_chars(body.get(name)) for name in ("tools", "functions", "response_format"))
    kept, count = list(always), 0
    for turn in reversed(turns):
        room -= turn.tokens
        if room < 0 and count >= LEAST:
            break
        kept += turn.places
        count += len(turn.places)
    if len(kept) == len(messages):
        return None
    return [messages[place] for place in sorted(kept)], len(messages) - len(kept)


def _turns(messages: Sequence[Json]) -> tuple[list[int], list[_Turn]]:
    """Where the messages are that always stay, and the turns of all others: as old as the last message of each."""
    always: list[int] = []
    turns: list[_Turn] = []
    calls: dict[str, _Turn] = {}
    latest: _Turn | None = None
    """That with the latest call."""
    for place, message in enumerate(messages):
        role = message.get("role")
        if isinstance(role, str) and role in _ALWAYS:
            always.append(place)
            continue
        turn = None
        if isinstance(role, str) and role in _RESULTS:
            id = message.get("tool_call_id")
            turn = (calls.get(id) if isinstance(id, str) else None) or latest
        if turn is None:
            turn = _Turn()
            turns.append(turn)
        turn.places.append(place)
        turn.tokens += _tokens(message)
        if message.get("tool_calls") or message.get("function_call"):
            latest = turn
            calls |= dict.fromkeys(_ids(message.get("tool_calls")), turn)
    return always, sorted(turns, key=lambda turn: turn.places[-1])


def _ids(calls: Any) -> list[str]:
    if type(calls) is not list:
        return []
    return [call["id"] for call in calls if type(call) is dict and isinstance(call.get("id"), str)]


def _tokens(message: Json) -> int:
    """Text by its length; what is not text as it counts against limits (prompt.py)."""
    tokens = 4
    for name, value in message.items():
        if name == "content" and type(value) is list:
            for part in value:
                is_text = type(part) is dict and part.get("type") == "text"
                tokens += _chars(part.get("text")) if is_text else _media(part)
        elif name != "role":
            tokens += _chars(value)
    return tokens


def _media(part: Any) -> int:
    return measure({"messages": [{"role": "user", "content": [part]}]}, None).tokens


def _chars(value: Any) -> int:
    """Tokens of a text, or of something that is sent as JSON; of what is dense, such as digits, as many as it counts
    for against limits."""
    if value is None:
        return 0
    text = value.encode() if isinstance(value, str) else json.encode(value)
    size = len(value) if isinstance(value, str) else len(text)
    return max(-(-2 * size // 7), text_tokens(text))


def _answer(body: Json, unlimited: int) -> int:
    for name in ("max_completion_tokens", "max_tokens"):
        asked = body.get(name)
        if type(asked) is int and asked > 0:
            return asked
    return unlimited
