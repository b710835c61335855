"""What can be corrected in a body that Mistral refused, so that it is worth sending once more.

Each correction makes a copy, or returns None when it finds nothing to correct. What it does not change is shared with
the refused body, which is never changed itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from proxy.core.json import Json
from proxy.core.table import ABSENT
from proxy.providers.mistral.refused import Loc, Refused

Mend = Callable[[Refused, Json], Json | None]


KEPT: Final = frozenset(("max_tokens", "n"))
"""Without these an answer could cost more than what was reserved for it."""


def without_unknown_keys(refused: Refused, body: Json) -> Json | None:
    mended = body
    for issue in refused.issues:
        if issue.is_unknown_key and issue.loc and issue.loc[-1] not in KEPT:
            shorter = _without(mended, issue.loc)
            mended = mended if shorter is ABSENT else shorter
    return None if mended is body else mended


def _without(node: Any, loc: Loc) -> Any:
    """`node` without the key at `loc`, or ABSENT when there is no such key. Steps that lead nowhere are skipped:
    pydantic writes the branches of a union into a loc ("user", "list[...]"), and they are no places in the body."""
    step, rest = loc[0], loc[1:]
    if not rest:
        has_it = isinstance(node, dict) and step in node
        return {key: value for key, value in node.items() if key != step} if has_it else ABSENT
    if _leads_on(node, step) and (shorter := _without(node[step], rest)) is not ABSENT:
        copy = node.copy()
        copy[step] = shorter
        return copy
    return _without(node, rest)


def _leads_on(node: Any, step: str | int) -> bool:
    if isinstance(node, list):
        return isinstance(step, int) and 0 <= step < len(node)
    return isinstance(node, dict) and step in node


def without_effort(refused: Refused, body: Json) -> Json | None:
    mended = {key: value for key, value in body.items() if key != "reasoning_effort"}
    return None if len(mended) == len(body) else mended


def with_full_top_p(refused: Refused, body: Json) -> Json | None:
    return None if body.get("top_p") == 1 else body | {"top_p": 1}


def without_thinking(refused: Refused, body: Json) -> Json | None:
    def change(messages: list[Json]) -> list[Json]:
        # An assistant message that only thought has to go: Mistral refuses one with neither content nor calls.
        both = [(message, _unthought(message)) for message in messages]
        return [after for before, after in both if after is before or _says_something(after)]

    return _with_messages(body, change)


def _unthought(message: Json) -> Json:
    content = message.get("content")
    if not isinstance(content, list):
        return message
    kept = [chunk for chunk in content if not (isinstance(chunk, dict) and chunk.get("type") == "thinking")]
    return message if len(kept) == len(content) else message | {"content": kept or ""}


def _says_something(message: Json) -> bool:
    return bool(message.get("role") != "assistant" or message.get("content") or message.get("tool_calls"))


def with_calls_alone(refused: Refused, body: Json) -> Json | None:
    """Models with an older tokenizer take content or tool calls in one assistant message, not both."""

    def blank(message: Json) -> Json:
        both = message.get("role") == "assistant" and message.get("content") and message.get("tool_calls")
        return message | {"content": ""} if both else message

    return _with_messages(body, lambda messages: [blank(message) for message in messages])


def with_bridges(refused: Refused, body: Json) -> Json | None:
    """Older deployments want an assistant to speak between a tool's result and the user."""

    def change(messages: list[Json]) -> list[Json]:
        bridged: list[Json] = []
        for message in messages:
            if bridged and (bridged[-1].get("role"), message.get("role")) == ("tool", "user"):
                bridged.append({"role": "assistant", "content": "OK"})
            bridged.append(message)
        return bridged

    return _with_messages(body, change)


def _with_messages(body: Json, change: Callable[[list[Json]], list[Json]]) -> Json | None:
    before = body.get("messages") or []
    after = change(before)
    return None if after == before else body | {"messages": after}
