"""What is wrong with the settings, in words: the errors a user of `check` and `serve` reads.

No reason ever quotes a value: it may be a secret, or stand where one was meant to be.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

Path = tuple[str | int, ...]
"""Where a value sits: ("teams", "research", "keys", 0)."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_./@*:<>+-]{1,64}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value was written. `variable` is the environment variable it came from instead of a file's line."""

    file: str
    line: int | None = None
    variable: str | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to mend, printed as `file:line: path: reason`; a part that does not apply is left out.

    `line` counts from 1. `path` is dotted (`teams.research.keys[0]`), or the name of an environment variable.
    """

    file: str
    line: int | None
    path: str
    reason: str

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return ": ".join(part for part in (where, self.path, self.reason) if part)


class SettingsError(Exception):
    """Everything that is wrong with the settings; str() is one line per problem."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        # In the order of the file; what has no line came from the environment.
        self.problems = sorted(problems, key=lambda problem: (problem.line is None, problem.line or 0))
        super().__init__("\n".join(map(str, self.problems)))


def problem(place: Place, path: Path, reason: str) -> Problem:
    return Problem(place.file, place.line, place.variable or dotted(path), reason)


def dotted(path: Path) -> str:
    """`teams.research.keys[0]`. A name that is not plain ASCII is quoted and escaped, and cut at 64 characters."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += "." * bool(text) + (step if _PLAIN_NAME.fullmatch(step) else ascii(step[:64]))
    return text


def hint(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'timeouts'?)`, or nothing when no known word is near."""
    near = get_close_matches(word[:64].lower(), list(known), n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def one_of(words: tuple[str, ...]) -> str:
    return f"expected {words[0]}" if len(words) == 1 else f"expected one of: {', '.join(words)}"


# The limits that types, read beforehand, leave to pydantic: its error type and the words for it.
_WORDS = {
    "greater_than": "must be more than {gt:.15g}",
    "greater_than_equal": "must be at least {ge:.15g}",
    "less_than": "must be less than {lt:.15g}",
    "less_than_equal": "must be at most {le:.15g}",
    "too_short": "the list must have at least {min_length}",
    "too_long": "the list must have at most {max_length}",
    "alias_of_itself": "an alias of itself",
    "workers_alone": "more than 1 needs a store that workers can share: store.url on redis",
    "value_error": "{error}",
}
_NOT_VALID = "not a valid value"


def describe(kind: str, context: dict[str, Any]) -> str:
    """The reason for one pydantic error, given its type and its `ctx`."""
    if kind == "value_error" and not _is_ours(context["error"]):
        return _NOT_VALID
    words = _WORDS.get(kind, _NOT_VALID)
    return words.format_map(context)


def _is_ours(error: Exception | str) -> bool:
    """Whether a validator of this program chose the words. A library's may quote the value, as urllib's do."""
    trace = getattr(error, "__traceback__", None)
    while trace and trace.tb_next:
        trace = trace.tb_next
    return trace is None or trace.tb_frame.f_globals["__name__"].startswith("proxy.")
