"""Tools in both of OpenAI's spellings (tools, and the older functions) as Mistral's tools, calls and choices.

Mistral API: `tools`, `tool_choice`, `tool_calls[]` and everything inside them are closed schemas, `parameters` is
required, and a call's id has nine letters or digits ("Tool call id was x but must be a-z, A-Z, 0-9, with a length
of 9." is its error 3280).
"""

from __future__ import annotations

import hashlib
import re
import string
from typing import Any

from proxy.core import json
from proxy.core.errors import BadRequest
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
    inside,
    integer,
    keep,
    mapping,
    text,
    unsupported,
    values,
    verify,
)

MOST_TOOLS = 128

_FUNCTION_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def is_function_name(value: Any) -> bool:
    return type(value) is str and _FUNCTION_NAME.fullmatch(value) is not None


def function_name(value: Any) -> str | None:
    if is_function_name(value):
        return None
    return text(value) or "at most 64 characters out of a-z, A-Z, 0-9, _ and -"


def texts(value: Any) -> str | None:
    right = type(value) is list and all(type(item) is str for item in value)
    return None if right else "an array of strings"


def _libraries(value: Any) -> str | None:
    return texts(value) or (None if value else "at least one id")


# What the model may call.


def _takes_nothing(out: Json, _: Context) -> None:
    """OpenAI SDK: "Omitting `parameters` defines a function with an empty parameter list." Mistral requires them."""
    out.setdefault("parameters", {"type": "object", "properties": {}})


FUNCTION = Table(
    keep("name", function_name),
    keep("description", text),
    keep("parameters", mapping),
    keep("strict", boolean),
    required=("name",),
    then=(_takes_nothing,),
)

_CACHE_CONTROL = drop("cache_control", "Mistral finds the reusable part of a prompt by itself")

_CONFIGURATION = Table(keep("exclude", texts), keep("include", texts), keep("requires_confirmation", texts))
_AUTHORIZATION = Table(
    values("type", {"oauth2-token": "oauth2-token", "api-key": "api-key"}),
    keep("value", text),
    required=("type", "value"),
)

TOOLS = OneOf(
    "type",
    {
        "function": Table(keep("type"), inside("function", FUNCTION), _CACHE_CONTROL, required=("function",)),
        "image_generation": Table(keep("type"), inside("tool_configuration", _CONFIGURATION)),
        "document_library": Table(
            keep("type"),
            keep("library_ids", _libraries),
            inside("tool_configuration", _CONFIGURATION),
            required=("library_ids",),
        ),
        "connector": Table(
            keep("type"),
            keep("connector_id", text),
            inside("authorization", _AUTHORIZATION),
            inside("tool_configuration", _CONFIGURATION),
            required=("connector_id",),
        ),
    },
)
"""OpenAI's function tools, and Mistral's own for clients that know them. OpenAI's `custom` tools have no equal."""


def _few_enough(value: Any) -> str | None:
    return array(value) or (None if len(value) <= MOST_TOOLS else f"at most {MOST_TOOLS} tools")


def tools(value: Any, context: Context, path: str) -> Any:
    verify(_few_enough, value, path)
    return each(TOOLS, value, context, path) or ABSENT


def functions(value: Any, context: Context, path: str) -> Any:
    verify(_few_enough, value, path)
    return each(FUNCTION, value, context, path) or ABSENT


# What it must or must not call.

_CHOICES = ("none", "auto", "required", "any")

_NAME = Table(keep("name", text), required=("name",))
_NAMED = OneOf("type", {"function": Table(keep("type"), inside("function", _NAME), required=("function",))})


def _names(value: Any, context: Context, path: str) -> list[str]:
    return [tool["function"]["name"] for tool in each(_NAMED, value, context, path)]


_ALLOWED = Table(
    values("mode", {"auto": "auto", "required": "required"}), compute("tools", _names), required=("mode", "tools")
)
_CHOICE = OneOf(
    "type",
    {
        **_NAMED.shapes,
        "allowed_tools": Table(keep("type"), inside("allowed_tools", _ALLOWED), required=("allowed_tools",)),
    },
)


def tool_choice(value: Any, context: Context, path: str) -> Any:
    """A word or a named function, as both sides spell them; `allowed_tools` is left for `keep_allowed_tools`."""
    if type(value) is not str:
        return _CHOICE.translate(value, context, path)
    if value not in _CHOICES:
        raise unsupported(path, _CHOICES)
    return value


def function_call(value: Any, context: Context, path: str) -> Any:
    """The older spelling of tool_choice: none, auto, or {"name": …}."""
    if type(value) is not str:
        return {"type": "function", "function": _NAME.translate(value, context, path)}
    if value not in ("none", "auto"):
        raise unsupported(path, ("none", "auto"))
    return value


# Rules over the whole body, in this order.


def functions_as_tools(out: Json, context: Context) -> None:
    """The older `functions` and `function_call` become tools; `notes["functions"]` asks for the answer in kind."""
    listed = out.pop("functions", None)
    choice = out.pop("function_call", None)
    if listed is None:
        if "tools" in out and choice not in (None, "auto"):
            context.worse("drop", "function_call", "it is about 'functions', and there are none")
        elif choice is not None:
            context.report("drop", "function_call")
        return
    if "tools" in out:
        raise BadRequest("'functions' and 'tools' cannot be used together.", param="functions")
    out["tools"] = [{"type": "function", "function": function} for function in listed]
    # An answer in the older spelling has room for one call.
    out["parallel_tool_calls"] = False
    if choice is not None:
        out["tool_choice"] = choice
    context.notes["functions"] = True


def keep_allowed_tools(out: Json, context: Context) -> None:
    """Mistral has no allowed_tools: only those tools are sent, and the choice is its mode."""
    choice = out.get("tool_choice")
    if type(choice) is not dict or "allowed_tools" not in choice or "tools" not in out:
        return
    allowed = choice["allowed_tools"]
    names = frozenset(allowed["tools"])
    out["tools"] = [tool for tool in out["tools"] if tool.get("function", {}).get("name") in names]
    if not out["tools"]:
        path = "tool_choice.allowed_tools.tools"
        raise BadRequest(f"Invalid value for '{path}': it names none of 'tools'.", param=path)
    out["tool_choice"] = allowed["mode"]
    context.report("value", "tool_choice")


def without_tools(out: Json, context: Context) -> None:
    """How to use tools is not said where there are none."""
    if "tools" in out:
        return
    for name in ("tool_choice", "parallel_tool_calls"):
        if out.pop(name, None) is not None:
            context.report("drop", name)


# Calls in the conversation so far.


def _arguments(value: Any, context: Context, path: str) -> str:
    """A JSON text. Mistral also takes an object, and answers with either."""
    if type(value) is not dict:
        verify(text, value, path)
        return value or "{}"
    try:
        return json.encode(value).decode()
    except RecursionError:
        raise BadRequest(f"Invalid value for '{path}': it is nested too deeply.", param=path) from None


def _no_arguments(out: Json, _: Context) -> None:
    out.setdefault("arguments", "{}")


CALLED = Table(
    keep("name", function_name),
    compute("arguments", _arguments),
    drop("parsed_arguments", "the OpenAI SDK's own copy of the arguments"),
    required=("name",),
    then=(_no_arguments,),
)


def _function_type(out: Json, _: Context) -> None:
    out.setdefault("type", "function")


_CALL = Table(
    keep("id", text),
    keep("type"),
    keep("index", integer()),
    inside("function", CALLED),
    required=("function",),
    then=(_function_type,),
)
CALL = OneOf("type", {"function": _CALL}, default="function")


def tool_calls(value: Any, context: Context, path: str) -> Any:
    return each(CALL, value, context, path) or ABSENT


# Ids.

_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase
_LENGTH = 9
# 62^43 is the first power of 62 above 2^256: SHA-256 has 43 digits in base 62.
_LAST_34_DIGITS = 62**34


def fits(id: str) -> bool:
    """Whether every Mistral model takes this tool call id as it is."""
    return len(id) == _LENGTH and id.isascii() and id.isalnum()


def short_id(name: str) -> str:
    """The first nine base-62 digits of SHA-256(name): the same in every process, turn and release."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest(), "big") // _LAST_34_DIGITS
    digits = []
    for _ in range(_LENGTH):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))


def distinct_ids(asked: list[str | None], position: int) -> list[str]:
    """The ids to send for the calls of one assistant message, in order, all different.

    An id that fits stays; others are hashed, a missing one (None) by its place in the conversation: `position` counts
    messages. Should a hash equal a neighbour's id, or one id stand twice, the next hash is taken. Only calls of one
    message have to differ: Mistral pairs results with the calls of the assistant message before them.
    """
    taken = {id for id in asked if id is not None and fits(id)}
    uses: dict[str, int] = {}
    sent = []
    for place, id in enumerate(asked):
        name = f"{position}.{place}" if id is None else id
        uses[name] = uses.get(name, -1) + 1
        if id is None or not fits(id) or uses[name]:
            id = _next_free(name, uses, taken)
        sent.append(id)
    return sent


def _next_free(name: str, uses: dict[str, int], taken: set[str]) -> str:
    """Counts on in `uses`, so that a thousand equal ids cost a thousand hashes and not a million."""
    while (id := short_id(f"{name}#{uses[name]}" if uses[name] else name)) in taken:
        uses[name] += 1
    taken.add(id)
    return id
