"""A translation is a table of rows; this is the interpreter.

The providers' schemas are closed: a field that no row names never goes upstream. It is dropped and reported, or, in
strict mode, refused. A field whose value is null is the same as an absent one on both sides and is left out.

    Table(
        keep("stop"),
        rename("seed", "random_seed"),
        drop("user", "Mistral stores no end-user id"),
        drop("verbosity", "Mistral has no such control", worse=True),
        refuse("audio", "Mistral answers no audio on chat"),
        values("service_tier", {"priority": "auto"}),
        inside("json_schema", Table(...)),
        inside_each("tools", OneOf("type", {"function": Table(...)})),
        compute("messages", translate_messages),
        gives_way("seed", keep("random_seed")),
    )

The same rows make the compatibility page and the `x-proxy-rewrites` header, so the two cannot disagree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Any, Final, Protocol

import msgspec

from proxy.core.errors import (
    BadRequest,
    InvalidType,
    MissingParameter,
    NumberOutOfRange,
    UnsupportedParameter,
    UnsupportedValue,
)
from proxy.core.json import Json
from proxy.core.model import Model


class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()
"""What a compute function returns to leave its field out."""

Check = Callable[[Any], str | None]
"""None when the value is right, else what was expected: a type ("an integer") or a value ("between 0 and 2")."""

Compute = Callable[[Any, "Context", str], Any]
"""(value, context, path of the field) -> the value to send, or ABSENT. Pure; raises ProxyError."""

Rule = Callable[[Json, "Context"], None]
"""A rule across fields: changes the finished upstream body in place."""

_MOST_REWRITES = 32
_LONGEST_NAME = 80
_LONGEST_TOLD = 120
_SAFE_PATH = re.compile(r"[A-Za-z0-9_.>\[\]-]{1,80}")
_POSITION = re.compile(r"\[\d+\]")

_ENDS = frozenset(("stop", "length", "model_length", "tool_calls", "function_call", "content_filter", "error"))
_MOST_ENDS = 128

_MOST_EXACT = 2**53
"""Readers of JSON that keep numbers as floats read integers beyond this differently (RFC 8259, section 6)."""


class Context(msgspec.Struct, eq=False):
    """What a translation needs to know, and what it leaves for the way back.

    `asked` is the client's body and is never changed. `notes` carries facts from the request to its answer (a prefix to
    strip, an encoding to apply); its keys are declared by the endpoint that uses them. `redact` makes a client's text
    fit to be repeated. `ends` are why the choices of the answer ended, in the provider's words. `spoiled`: the answer
    came, and is not what the request should have had; nobody else gets it.
    """

    model: Model
    asked: Json
    strict: bool = False
    rewrites: dict[str, None] = msgspec.field(default_factory=dict)
    notes: dict[str, Any] = msgspec.field(default_factory=dict)
    redact: Callable[[str], str] = str
    ends: list[str] = msgspec.field(default_factory=list)
    spoiled: bool = False

    def report(self, what: str, path: str) -> None:
        """Record one change for `x-proxy-rewrites`, such as ("drop", "user")."""
        if len(self.rewrites) < _MOST_REWRITES:
            # List positions are left out: one entry per field, however long the conversation is.
            path = _POSITION.sub("", path) if "[" in path else path
            if f"{what}:{path}" not in self.rewrites:
                self.rewrites[f"{what}:{path if _SAFE_PATH.fullmatch(path) else '?'}"] = None

    def ended(self, reason: Any) -> None:
        """A choice of the answer has ended. Whatever else a provider may say of it is not kept."""
        if isinstance(reason, str) and reason in _ENDS and len(self.ends) < _MOST_ENDS:
            self.ends.append(reason)

    def worse(self, what: str, path: str, why: str) -> None:
        """A change that may make the answer worse: reported, or refused in strict mode."""
        if self.strict:
            raise UnsupportedParameter(f"'{printable(path)}' is not supported: {why}.", param=printable(path))
        self.report(what, path)

    def unknown(self, at: str, name: str) -> None:
        """A field that no row names. Its name is the client's text, as long as it likes, and could be a key in the
        wrong place: what is reported is redacted, which costs time, so no more is looked at than is told.
        """
        if self.strict:
            self.worse("drop", at + name[:_LONGEST_TOLD], "no such parameter is known here")
        if len(self.rewrites) < _MOST_REWRITES:
            self.report("drop", at + (self.redact(name) if len(name) <= _LONGEST_NAME else "?"))


def printable(path: str) -> str:
    """A field path fit for an error message or a header: ASCII, one line, at most 120 characters."""
    return path[:_LONGEST_TOLD].encode("unicode_escape").decode()[:_LONGEST_TOLD]


@dataclass(frozen=True, slots=True)
class Row:
    """One fact about one field: what becomes of its value, under its own name or as `to`. Beside the field `before` it
    is left out."""

    field: str
    action: str
    compute: Compute
    note: str = ""
    to: str | None = None
    before: str | None = None


class Shape(Protocol):
    """What translates one object: a Table, or a choice of tables."""

    def translate(self, source: Any, context: Context, path: str = "") -> Json: ...


class Table:
    """Rows for one object, then rules across its fields. `required` names fields the client must send. `open`: what no
    row names is sent on as it is, to a provider that speaks OpenAI's own language.

    Where two fields become the same one, one of them gives way: the order in which a client wrote them means nothing.
    """

    def __init__(
        self, *rows: Row, then: tuple[Rule, ...] = (), required: tuple[str, ...] = (), open: bool = False
    ) -> None:
        self.rows: Mapping[str, Row] = {row.field: row for row in rows}
        if len(self.rows) != len(rows):
            raise ValueError("a table names a field twice")
        targets = [row.to or row.field for row in rows if row.before is None]
        if len(set(targets)) != len(targets):
            raise ValueError("two fields of a table become the same one, and neither gives way")
        self.then = then
        self.required = required
        self.open = open
        self._becomes = {row.field: (row.compute, row.to or row.field, row.before) for row in rows}

    def translate(self, source: Any, context: Context, path: str = "") -> Json:
        """The upstream object for the client's `source`; `path` is where it sits, for errors. Raises BadRequest."""
        if type(source) is not dict:
            verify(mapping, source, path)
        at = f"{path}." if path else ""
        for name in self.required:
            if source.get(name) is None:
                raise MissingParameter(f"Missing required parameter: '{at}{name}'.", param=at + name)
        out: Json = {}
        becomes = self._becomes
        for name, value in source.items():
            if value is None:
                continue
            if name in becomes:
                compute, to, before = becomes[name]
                if before is not None and source.get(before) is not None:
                    compute(value, _aside(context), at + name)
                    context.report("drop", at + name)
                    continue
                result = compute(value, context, at + name)
                if result is not ABSENT:
                    out[to] = result
            elif self.open:
                out[name] = value
            else:
                context.unknown(at, name)
        for rule in self.then:
            rule(out, context)
        return out


def _aside(context: Context) -> Context:
    """For what is only checked: of what becomes of it nothing is reported."""
    return Context(context.model, context.asked, context.strict, redact=context.redact)


class OneOf:
    """Tables of which an object follows one, named by its field `tag`: a content part's `type`, a message's `role`.

    `default` is the name where an object may leave it out.
    """

    def __init__(self, tag: str, shapes: Mapping[str, Shape], default: str | None = None) -> None:
        self.tag = tag
        self.shapes = shapes
        self.default = default

    def translate(self, source: Any, context: Context, path: str = "") -> Json:
        if type(source) is not dict:
            verify(mapping, source, path)
        name = source.get(self.tag)
        if name is None:
            name = self.default
        if type(name) is not str or name not in self.shapes:
            raise self._unknown(name, f"{path}.{self.tag}" if path else self.tag)
        return self.shapes[name].translate(source, context, path)

    def _unknown(self, name: Any, path: str) -> BadRequest:
        if name is None:
            return MissingParameter(f"Missing required parameter: '{path}'.", param=path)
        verify(text, name, path)
        return unsupported(path, self.shapes)


def each(shape: Shape, items: Any, context: Context, path: str) -> list[Json]:
    """Every object of the array `items`, translated. Raises BadRequest."""
    verify(array, items, path)
    return [shape.translate(item, context, f"{path}[{i}]") for i, item in enumerate(items)]


def unsupported(path: str, known: Iterable[str]) -> UnsupportedValue:
    """The error for a word that is none of the `known` ones."""
    choice = ", ".join(f"'{one}'" for one in known)
    return UnsupportedValue(f"Unsupported value for '{path}'. Supported values: {choice}.", param=path)


def type_name(value: Any) -> str:
    """The JSON name of a value's type, as in OpenAI's messages ("a string")."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    names = {str: "a string", int: "an integer", float: "a number", list: "an array", dict: "an object"}
    return names.get(type(value), "something else")


def verify(check: Check, value: Any, path: str) -> None:
    """Raise the error that names `path` unless `check` accepts `value`."""
    expected = check(value)
    if expected is not None:
        raise _unfit(expected, value, path)


def _unfit(expected: str, value: Any, path: str) -> BadRequest:
    where = f"'{path}'" if path else "the body"
    if not expected.startswith(("a ", "an ")):
        kind = NumberOutOfRange if type(value) is int and abs(value) > _MOST_EXACT else BadRequest
        return kind(f"Invalid value for {where}: it must be {expected}.", param=path or None)
    return InvalidType(
        f"Invalid type for {where}: expected {expected}, but got {type_name(value)}.", param=path or None
    )


def keep(name: str, check: Check | None = None, note: str = "") -> Row:
    return Row(name, "keep", _checked(check), note)


def _checked(check: Check | None) -> Compute:
    def same(value: Any, context: Context, path: str) -> Any:
        expected = check(value) if check else None  # as `verify` does it: most fields are kept
        if expected is not None:
            raise _unfit(expected, value, path)
        return value

    return same


def rename(name: str, to: str, check: Check | None = None, note: str = "") -> Row:
    checked = _checked(check)

    def renamed(value: Any, context: Context, path: str) -> Any:
        result = checked(value, context, path)
        context.report("rename", f"{path}>{to}")
        return result

    return Row(name, "rename", renamed, note, to)


def drop(name: str, why: str, *, worse: bool = False, unless: Callable[[Any], bool] | None = None) -> Row:
    """Left out. `worse`: the answer may suffer, so strict mode refuses, unless the value asks for nothing."""

    def dropped(value: Any, context: Context, path: str) -> Any:
        if worse and not (unless and unless(value)):
            context.worse("drop", path, why)
        else:
            context.report("drop", path)
        return ABSENT

    return Row(name, "drop (strict: refuse)" if worse else "drop", dropped, why)


def refuse(name: str, why: str, *, unless: Callable[[Any], bool] | None = None) -> Row:
    """400 naming the field, unless the value asks for nothing (an empty logit_bias), which is dropped."""

    def refused(value: Any, context: Context, path: str) -> Any:
        if not (unless and unless(value)):
            raise UnsupportedParameter(f"'{path}' is not supported: {why}.", param=path)
        context.report("drop", path)
        return ABSENT

    return Row(name, "refuse", refused, why)


def values(name: str, known: Mapping[str, str | None], note: str = "", to: str | None = None) -> Row:
    """An enum: each known value and what it becomes; None leaves the field out."""

    def chosen(value: Any, context: Context, path: str) -> Any:
        verify(text, value, path)
        if value not in known:
            raise unsupported(path, known)
        becomes = known[value]
        if becomes != value:
            context.report("drop" if becomes is None else "value", path)
        return ABSENT if becomes is None else becomes

    return Row(name, "values", chosen, note, to)


def inside(name: str, shape: Shape, note: str = "", to: str | None = None) -> Row:
    return Row(name, "inside", shape.translate, note, to)


def inside_each(name: str, shape: Shape, note: str = "") -> Row:
    return Row(name, "inside", partial(each, shape), note)


def compute(name: str, function: Compute, note: str = "", to: str | None = None) -> Row:
    """The escape hatch: a named pure function decides."""
    return Row(name, "compute", function, note, to)


def gives_way(before: str, row: Row) -> Row:
    """For another spelling of the field `before`: when both are there, this one is checked, and left out."""
    return replace(row, before=before)


# Checks. bool is an int in Python and not in JSON, hence the exact types.


def boolean(value: Any) -> str | None:
    return None if type(value) is bool else "a boolean"


def text(value: Any) -> str | None:
    return None if type(value) is str else "a string"


def array(value: Any) -> str | None:
    return None if type(value) is list else "an array"


def mapping(value: Any) -> str | None:
    return None if type(value) is dict else "an object"


def text_or_texts(value: Any) -> str | None:
    if type(value) is str or (type(value) is list and all(type(item) is str for item in value)):
        return None
    return "a string or an array of strings"


def integer(least: int | None = None, most: int | None = None) -> Check:
    return _numeric((int,), "an integer", least, most)


def number(least: float | None = None, most: float | None = None) -> Check:
    return _numeric((int, float), "a number", least, most)


def _numeric(types: tuple[type, ...], name: str, least: float | None, most: float | None) -> Check:
    lowest, highest = -inf if least is None else least, inf if most is None else most
    if least is None or most is None:
        bounds = f"at most {most}" if least is None else f"at least {least}"
    else:
        bounds = f"between {least} and {most}"

    def check(value: Any) -> str | None:
        if type(value) not in types:
            return name
        return None if lowest <= value <= highest else bounds

    return check
