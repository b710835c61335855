"""The messages of a chat request. They go on as they came; two things that only Mistral knows are left out.

Nothing is copied where nothing changes: a conversation may be of megabytes.
"""

from __future__ import annotations

from typing import Any

from proxy.core.json import Json
from proxy.core.table import Context, array, verify


def messages(value: Any, context: Context, path: str) -> Any:
    """The same list, or a copy of it with the assistant's messages that had to change. What is wrong with the rest is
    for the provider to tell. Raises InvalidType, and in strict mode UnsupportedParameter for a `prefix`."""
    verify(array, value, path)
    changed = {
        at: _assistant(message, context, f"{path}[{at}]")
        for at, message in enumerate(value)
        if type(message) is dict and message.get("role") == "assistant" and _is_mistrals(message)
    }
    return [changed.get(at, message) for at, message in enumerate(value)] if changed else value


def _is_mistrals(message: Json) -> bool:
    return "prefix" in message or _has_thinking(message.get("content"))


def _has_thinking(content: Any) -> bool:
    return type(content) is list and any(map(_is_thinking, content))


def _is_thinking(part: Any) -> bool:
    return type(part) is dict and part.get("type") == "thinking"


def _assistant(message: Json, context: Context, path: str) -> Json:
    message = dict(message)
    if message.pop("prefix", None):
        context.worse("drop", f"{path}.prefix", "the provider begins its answer anew")
    if _has_thinking(message.get("content")):
        context.report("drop", f"{path}.content.thinking")
        # OpenAI refuses an empty array, and takes an empty text.
        message["content"] = [part for part in message["content"] if not _is_thinking(part)] or ""
    return message
