"""Reads the body of a refusal, whichever server wrote it.

Seen: OpenAI's `{"error": {"message", "type", "param", "code"}}`, with a number as code from OpenRouter and vLLM, twice
wrapped, or in a list; vLLM's bare error object of before; `{"error": "text"}`; FastAPI's `{"detail": ...}`; Azure's
`{"statusCode", "message"}`; a sentence, a web page, nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from proxy.core import json
from proxy.core.json import Json
from proxy.core.provider import Header

_MOST_TEXT = 2000
_MOST_ISSUES = 100
_MOST_WRAPPED = 3
_ECHO = re.compile(r"""["']input["']\s*:""")
_NAMED = re.compile(r"^(?:Unrecognized request arguments? supplied: |Unknown parameter: ')([\w.\[\]-]{1,80})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Refused:
    """A refusal as it was worded: the message, OpenAI's `type`, `code` and `param`. Each is None, or empty, where the
    body does not tell it. `text` never holds the `input` that a list of problems repeats."""

    status: int
    header: Header
    kind: str | None
    code: str | None
    param: str | None
    text: str

    @property
    def marks(self) -> frozenset[str | None]:
        """What a row of the error table can know it by."""
        return frozenset({self.code, self.kind})


def read(status: int, header: Header, body: bytes) -> Refused:
    """Never raises, whatever the body is."""
    told = _object(body)
    message = told.get("message") or told.get("detail")
    text = "; ".join(_problems(message)) if isinstance(message, list) else _sentence(message)
    return Refused(
        status=status,
        header=header,
        kind=_word(told.get("type")),
        code=_word(told.get("code")),
        param=_param(told.get("param")) or _named(text),
        text=text,
    )


def _object(body: bytes) -> Json:
    """The error object, taken out of what it is wrapped in. A text alone is the message of one."""
    try:
        told = json.decode(body.strip().removeprefix(b"data:"))
    except json.Malformed:
        return {"message": _plain(body)}
    for _ in range(_MOST_WRAPPED):
        if isinstance(told, list):
            told = told[0] if told else None
        inner = told.get("error") if isinstance(told, dict) else None
        if not inner:
            break
        told = inner
    return told if isinstance(told, dict) else {"message": told}


def _plain(body: bytes) -> str:
    """A sentence of some gateway; a web page is none."""
    text = body[: 4 * _MOST_TEXT].decode(errors="replace").strip()
    return "" if text.startswith(("<", "{", "[")) else text


def _problems(items: list[Any]) -> list[str]:
    """pydantic's list: the text of each problem, with the field."""
    found = [(item.get("loc"), item.get("msg")) for item in items[:_MOST_ISSUES] if isinstance(item, dict)]
    return [f"{_path(loc)}{_sentence(text)}" for loc, text in found if isinstance(text, str)]


def _path(loc: Any) -> str:
    steps = [str(step) for step in loc if type(step) in (str, int)][:8] if isinstance(loc, list) else []
    return ".".join(steps[1:] if steps[:1] == ["body"] else steps) + ": " if steps else ""


def _sentence(message: Any) -> str:
    """A list of problems that somebody printed into a sentence repeats the input: nothing of it is used."""
    return message[:_MOST_TEXT] if isinstance(message, str) and not _ECHO.search(message) else ""


def _word(value: Any) -> str | None:
    text = str(value) if type(value) is int else value
    return text if isinstance(text, str) and re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", text) else None


def _param(value: Any) -> str | None:
    return value if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_.\[\]-]{1,80}", value) else None


def _named(text: str) -> str | None:
    """OpenAI's own words for a field that it does not know name it, and its `param` may not."""
    found = _NAMED.match(text)
    return found[1] if found else None
