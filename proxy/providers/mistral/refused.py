"""Reads the body of a refusal, whichever of Mistral's layers wrote it.

Seen on the wire from 2024 to 2026: the API's own error object; pydantic's list of problems, bare, inside that object's
`message`, or in both `message` and `detail` (agents, with a number as code); one sentence under `detail` or `message`
(gateway, Kong, models); an event of a stream; a web page; nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from proxy.core import json
from proxy.core.json import Json
from proxy.core.provider import Header

Loc = tuple[str | int, ...]

_MOST_TEXT = 2000
_MOST_ISSUES = 100
_DEEPEST_LOC = 16
_ECHO = re.compile(r"""["']input["']\s*:""")


@dataclass(frozen=True, slots=True)
class Issue:
    """One entry of a 422: pydantic's `type`, its `loc` without the leading "body", its `msg`."""

    kind: str
    loc: Loc
    text: str

    @property
    def is_unknown_key(self) -> bool:
        return self.kind == "extra_forbidden"


@dataclass(frozen=True, slots=True)
class Refused:
    """A refusal as it was worded. `kind` is Mistral's `type`, `code` its number as text; both are None in older bodies.

    `text` is the message, or those of the issues; it never holds the `input` that a 422 repeats.
    """

    status: int
    header: Header
    kind: str | None
    code: str | None
    text: str
    issues: tuple[Issue, ...]
    guardrails: list[Any] | None

    @property
    def lead(self) -> Issue | None:
        """The issue that names the error. Where one branch of a union does not know a key, pydantic may list first what
        another branch wanted, and that says less."""
        unknown = (issue for issue in self.issues if issue.is_unknown_key)
        return next(unknown, self.issues[0] if self.issues else None)

    @property
    def marks(self) -> frozenset[str | None]:
        """What a row of the error table can know it by."""
        return frozenset({self.code, self.kind, self.lead.kind if self.lead else None})


def read(status: int, header: Header, body: bytes) -> Refused:
    """Never raises, whatever the body is."""
    told = _object(body)
    message = told.get("message")
    if isinstance(message, dict):
        message = message.get("detail")
    message = message or told.get("detail")
    issues = tuple(_issues(message))
    guardrails = told.get("guardrails")
    return Refused(
        status=status,
        header=header,
        kind=_word(told.get("type")),
        code=_word(told.get("code")),
        text=_sentence(message) if isinstance(message, str) else "; ".join(issue.text for issue in issues),
        issues=issues,
        guardrails=guardrails if isinstance(guardrails, list) else None,
    )


def _object(body: bytes) -> Json:
    """The error object: alone, as OpenAI wraps it, or as an event of a stream. Empty when there is none."""
    try:
        told = json.decode(body.strip().removeprefix(b"data:"))
    except json.Malformed:
        return {}
    inner = told.get("error") if isinstance(told, dict) else None
    told = inner if isinstance(inner, dict) else told
    return told if isinstance(told, dict) else {}


def _issues(items: Any) -> Iterator[Issue]:
    for item in items[:_MOST_ISSUES] if isinstance(items, list) else ():
        if isinstance(item, dict):
            yield Issue(_word(item.get("type")) or "", _loc(item.get("loc")), _unechoed(item))


def _loc(steps: Any) -> Loc:
    steps = [step for step in steps if type(step) in (str, int)] if isinstance(steps, list) else []
    steps = steps[1:] if steps and steps[0] in ("body", "query", "path", "header") else steps
    return tuple(steps) if len(steps) <= _DEEPEST_LOC else ()


def _unechoed(item: Json) -> str:
    """pydantic's own texts do not quote the input; those of a custom validator may."""
    text, echo = item.get("msg"), item.get("input")
    if not isinstance(text, str):
        return ""
    return (text.replace(echo, "…") if isinstance(echo, str) and len(echo) > 8 else text)[:_MOST_TEXT]


def _sentence(message: str) -> str:
    """A list of problems that somebody printed into a sentence repeats the input: nothing of it is used."""
    return "" if _ECHO.search(message) else message[:_MOST_TEXT]


def _word(value: Any) -> str | None:
    text = str(value) if type(value) is int else value
    return text if isinstance(text, str) and re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", text) else None
