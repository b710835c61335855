"""Where in the client's own request Mistral's complaint is: its names and paths, written as OpenAI writes them."""

from __future__ import annotations

import re

from proxy.core.table import Context, printable
from proxy.providers.mistral.refused import Issue

# Mistral's field -> what the client may have called it, the likeliest first.
_SPELLINGS = {
    "random_seed": ("seed",),
    "max_tokens": ("max_completion_tokens", "max_tokens"),
    "output_dimension": ("dimensions",),
    "messages": ("messages", "input", "prompt"),
    "tools": ("tools", "functions"),
    "tool_choice": ("tool_choice", "function_call"),
}

# What pydantic puts after a position in a list: the role of a message, the type of a content chunk.
_TAGS = frozenset({"system", "user", "assistant", "tool"}) | frozenset(
    {"text", "image_url", "input_audio", "document_url", "file", "reference", "thinking", "tool_file"}
)
_PLAIN_TYPES = frozenset({"str", "int", "float", "bool", "list", "dict", "none"})


def spelled(field: str, context: Context) -> str:
    """The client's name for one of Mistral's top-level fields."""
    known = _SPELLINGS.get(field, (field,))
    return next((name for name in (*known, field) if context.asked.get(name) is not None), known[0])


def param(issue: Issue | None, context: Context) -> str | None:
    """The path of an issue: ("messages", 2, "user", "content") is messages[2].content. At most 120 characters."""
    if issue is None or not issue.loc or isinstance(issue.loc[0], int):
        return None
    path = spelled(issue.loc[0], context)
    for at, step in enumerate(issue.loc[1:], 1):
        is_the_key = issue.is_unknown_key and at == len(issue.loc) - 1
        if isinstance(step, int):
            path += f"[{step}]"
        elif is_the_key or not _is_branch(step, issue.loc[at - 1]):
            path += f".{step}"
    return printable(path)


def _is_branch(step: str, before: str | int) -> bool:
    """Whether a step is no key but the branch of a union. The API's keys are lower-case words; the names of types have
    capitals or brackets."""
    is_tag = step in _TAGS and isinstance(before, int)
    return is_tag or step in _PLAIN_TYPES or not re.fullmatch(r"[a-z0-9_]+", step)
