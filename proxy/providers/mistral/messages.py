"""The conversation: OpenAI's roles and content parts as tables of what Mistral's closed schemas take.

Mistral API: SystemMessage, UserMessage, AssistantMessage, ToolMessage and every content chunk refuse a key they do not
know. One message or part is translated at a time here; what depends on its neighbours is in order.py.
"""

from __future__ import annotations

import re
from typing import Any, Final

from proxy.core.errors import MissingParameter
from proxy.core.json import Json
from proxy.core.table import (
    ABSENT,
    Context,
    OneOf,
    Table,
    array,
    boolean,
    compute,
    drop,
    each,
    gives_way,
    inside,
    inside_each,
    keep,
    rename,
    text,
    values,
    verify,
)
from proxy.providers.mistral.order import arrange
from proxy.providers.mistral.tools import CALLED, is_function_name, tool_calls

_CACHE = (
    drop("cache_control", "Mistral finds the reusable part of a prompt by itself"),
    drop("prompt_cache_breakpoint", "Mistral finds the reusable part of a prompt by itself"),
)

# Content parts.

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_DETAILS = ("low", "auto", "high")


def _file_id(value: Any) -> str | None:
    right = type(value) is str and _UUID.fullmatch(value)
    return None if right else text(value) or "the id of a file stored at Mistral, which is a UUID"


def _data_url(value: Any) -> str | None:
    right = type(value) is str and value.startswith("data:")
    return None if right else text(value) or "the file as a data URL, such as data:application/pdf;base64,…"


def _reference_ids(value: Any) -> str | None:
    right = type(value) is list and all(type(item) in (int, str) for item in value)
    return None if right else "an array of integers and strings"


TEXT = Table(
    keep("type"),
    keep("text", text),
    drop("annotations", "Mistral's text has none"),
    *_CACHE,
    required=("text",),
)


def _detail(value: Any, context: Context, path: str) -> Any:
    if value in _DETAILS:
        return value
    context.report("drop", path)
    return ABSENT


IMAGE_URL = Table(keep("url", text), compute("detail", _detail), required=("url",))


def _image_url(value: Any, context: Context, path: str) -> Any:
    return value if type(value) is str else IMAGE_URL.translate(value, context, path)


IMAGE = Table(keep("type"), compute("image_url", _image_url), *_CACHE, required=("image_url",))

SOUND = Table(keep("data", text), drop("format", "Mistral reads it from the data"), required=("data",))


def _input_audio(value: Any, context: Context, path: str) -> Any:
    """Mistral API: AudioChunk.input_audio is the base64 text itself."""
    return value if type(value) is str else SOUND.translate(value, context, path)["data"]


AUDIO = Table(keep("type"), compute("input_audio", _input_audio), *_CACHE, required=("input_audio",))

DOCUMENT = Table(
    keep("type"), keep("document_url", text), keep("document_name", text), *_CACHE, required=("document_url",)
)

FILE_SOURCE = Table(keep("file_data", _data_url), keep("file_id", _file_id), keep("filename", text))


def _file(value: Any, context: Context, path: str) -> Json:
    """The chunk for OpenAI's `file`: by id when it names one, else its data as a document."""
    source = FILE_SOURCE.translate(value, context, path)
    if "file_id" in source:
        return {"type": "file", "file_id": source["file_id"]}
    if "file_data" not in source:
        raise MissingParameter(f"Missing required parameter: '{path}.file_data'.", param=f"{path}.file_data")
    chunk = {"type": "document_url", "document_url": source["file_data"]}
    if "filename" in source:
        chunk["document_name"] = source["filename"]
    return chunk


def _be_the_file(out: Json, _: Context) -> None:
    out.update(out.pop("file"))


class _FilePart:
    """OpenAI puts the file into an object, Mistral's own file chunk has the id beside its type."""

    openai = Table(keep("type"), compute("file", _file), *_CACHE, required=("file",), then=(_be_the_file,))
    mistral = Table(keep("type"), keep("file_id", _file_id), required=("file_id",))

    def translate(self, source: Any, context: Context, path: str = "") -> Json:
        shape = self.mistral if type(source) is dict and "file_id" in source else self.openai
        return shape.translate(source, context, path)


REFUSAL = Table(values("type", {"refusal": "text"}), rename("refusal", "text", text), required=("refusal",))

REFERENCE = Table(keep("type"), keep("reference_ids", _reference_ids), required=("reference_ids",))

TOOL_REFERENCE = Table(
    keep("type"),
    keep("tool", text),
    keep("title", text),
    keep("url", text),
    keep("favicon", text),
    keep("description", text),
    required=("tool", "title"),
)

THINKING = Table(
    keep("type"),
    inside_each("thinking", OneOf("type", {"text": TEXT, "reference": REFERENCE, "tool_reference": TOOL_REFERENCE})),
    keep("signature", text),
    keep("closed", boolean),
    required=("thinking",),
)

PARTS = OneOf(
    "type",
    {
        "text": TEXT,
        "image_url": IMAGE,
        "input_audio": AUDIO,
        "file": _FilePart(),
        "refusal": REFUSAL,
        "document_url": DOCUMENT,
        "reference": REFERENCE,
        "thinking": THINKING,
    },
)
"""OpenAI's parts, then Mistral's own for clients that know them."""

SYSTEM_PARTS = OneOf("type", {"text": TEXT, "thinking": THINKING})


def _chunks(shape: OneOf, value: Any, context: Context, path: str) -> Any:
    if type(value) is str:
        return value
    if type(value) is not list:
        verify(text_or_parts, value, path)
    chunks = each(shape, value, context, path)
    if context.model.known and not context.model.reasons:
        # Mistral API: "Reasoning input is not enabled for this model" is its error 3051.
        chunks = _without_thinking(chunks, context, path)
    return chunks or ""


def text_or_parts(value: Any) -> str | None:
    return None if type(value) in (str, list) else "a string or an array of content parts"


def _without_thinking(chunks: list[Json], context: Context, path: str) -> list[Json]:
    rest = [chunk for chunk in chunks if chunk["type"] != "thinking"]
    if len(rest) < len(chunks):
        context.report("drop", f"{path}.thinking")
    return rest


def content(value: Any, context: Context, path: str) -> Any:
    return _chunks(PARTS, value, context, path)


def system_content(value: Any, context: Context, path: str) -> Any:
    return _chunks(SYSTEM_PARTS, value, context, path)


# Roles.

_NAME = drop("name", "Mistral's messages do not name their author", worse=True)


def _thought(value: Any, context: Context, path: str) -> Any:
    """Reasoning that a client replays (DeepSeek's and OpenRouter's spelling) as a chunk, for models that take it."""
    verify(text, value, path)
    if not context.model.reasons or not value:
        context.report("drop", path)
        return ABSENT
    return {"type": "thinking", "thinking": [{"type": "text", "text": value}], "closed": True}


def _as_chunks(content: Any) -> list[Json]:
    if type(content) is str:
        return [{"type": "text", "text": content}] if content else []
    return content or []


def _refusal_is_text(out: Json, _: Context) -> None:
    refusal = out.pop("refusal", None)
    if refusal:
        said = out.get("content")
        out["content"] = [*_as_chunks(said), {"type": "text", "text": refusal}] if said else refusal


def _thought_is_content(out: Json, _: Context) -> None:
    thought = out.pop("reasoning_content", None)
    if thought:
        out["content"] = [thought, *_as_chunks(out.get("content"))]


def _function_call_is_tool_call(out: Json, _: Context) -> None:
    """The older spelling of one call; it has no id, order.py gives it one."""
    called = out.pop("function_call", None)
    if called and "tool_calls" not in out:
        out["tool_calls"] = [{"type": "function", "function": called}]


def _content_is_text(out: Json, _: Context) -> None:
    """Mistral's own clients send "" beside tool calls; a result must have content."""
    out.setdefault("content", "")


def _tool_name(value: Any, context: Context, path: str) -> Any:
    """Not needed for a result, so a name that Mistral would refuse is left out."""
    if is_function_name(value):
        return value
    context.report("drop", path)
    return ABSENT


SYSTEM = Table(
    values("role", {"system": "system", "developer": "system"}),
    compute("content", system_content),
    _NAME,
    *_CACHE,
    required=("content",),
)

USER = Table(keep("role"), compute("content", content), _NAME, *_CACHE, required=("content",))

ASSISTANT = Table(
    keep("role"),
    compute("content", content),
    compute("tool_calls", tool_calls),
    keep("prefix", boolean),
    inside("function_call", CALLED, "sent as a tool call"),
    keep("refusal", text, note="sent as text"),
    compute("reasoning_content", _thought, note="sent as a thinking chunk to models that reason"),
    gives_way(
        "reasoning_content",
        compute("reasoning", _thought, to="reasoning_content", note="sent as a thinking chunk to models that reason"),
    ),
    drop("audio", "Mistral keeps no audio answers to refer to", worse=True),
    drop("annotations", "Mistral's text has none"),
    drop("parsed", "the OpenAI SDK's own copy of the content"),
    _NAME,
    *_CACHE,
    then=(_refusal_is_text, _thought_is_content, _function_call_is_tool_call, _content_is_text),
)

TOOL = Table(
    keep("role"),
    compute("content", content),
    keep("tool_call_id", text),
    compute("name", _tool_name),
    *_CACHE,
    then=(_content_is_text,),
)

FUNCTION = Table(
    values("role", {"function": "tool"}),
    compute("content", content),
    compute("name", _tool_name),
    *_CACHE,
    then=(_content_is_text,),
)

ROLES = OneOf(
    "role",
    {
        "system": SYSTEM,
        "developer": SYSTEM,
        "user": USER,
        "assistant": ASSISTANT,
        "tool": TOOL,
        "function": FUNCTION,
    },
)


_PLAIN: Final = frozenset(("system", "user", "assistant"))
"""Roles whose messages are the same there when they say nothing but a text, as nearly all do."""


def _is_plain(message: Any) -> bool:
    """Whether the tables would find nothing to change."""
    if type(message) is not dict or len(message) != 2 or type(message.get("content")) is not str:
        return False
    role = message.get("role")
    return type(role) is str and role in _PLAIN


def messages(value: Any, context: Context, path: str) -> list[Json]:
    """The conversation as Mistral takes it. Raises BadRequest naming the message, the part and the key at fault."""
    verify(array, value, path)
    translated = [
        message.copy() if _is_plain(message) else ROLES.translate(message, context, f"{path}[{i}]")
        for i, message in enumerate(value)
    ]
    return arrange(translated, context)
