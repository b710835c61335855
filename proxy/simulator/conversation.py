"""Reading a chat or embeddings request: its texts and what they cost in tokens."""

import re
from typing import Any

_TOKEN = re.compile(r"\s*\S{1,8}|\s+")


def chunks(message: dict[str, Any]) -> list[dict[str, Any]]:
    """A message's content chunks; a plain string has none."""
    content = message.get("content")
    return content if isinstance(content, list) else []


def text_of(message: dict[str, Any]) -> str:
    """The text of a message, whatever the form of its content."""
    content = message.get("content")
    return content if isinstance(content, str) else "".join(chunk.get("text", "") for chunk in chunks(message))


def last_user_text(messages: list[dict[str, Any]]) -> str:
    return next((text_of(message) for message in reversed(messages) if message["role"] == "user"), "")


def functions(request: dict[str, Any]) -> list[dict[str, Any]]:
    """The functions among the tools."""
    return [tool["function"] for tool in request.get("tools") or () if tool["type"] == "function"]


def inputs(request: dict[str, Any]) -> list[str]:
    """The texts to embed."""
    given = request["input"]
    return [given] if isinstance(given, str) else given


def tokens(text: str) -> list[str]:
    """The text in pieces of about a token: a word with the space before it, long words in parts. Nothing is lost."""
    return _TOKEN.findall(text)


def tokens_of(text: str) -> int:
    """What a text costs in a prompt: about four characters a token, never nothing."""
    return len(text) // 4 + 1


def prompt_tokens(messages: list[dict[str, Any]]) -> int:
    """Text by its length, anything else (images, audio, documents) 256 tokens a piece."""
    other = sum(chunk["type"] not in ("text", "thinking") for message in messages for chunk in chunks(message))
    return sum(tokens_of(text_of(message)) for message in messages) + 256 * other
