"""A small interpreter of closed schemas: a table of facts and a JSON value in, pydantic's 422 entries out.

Mistral validates requests with pydantic (FastAPI): every problem at once, each `{type, loc, msg, input}`, with the
model's or the branch's name inside `loc` where a union was tried. Unlike pydantic nothing is coerced here: `"5"` is no
integer, as the published OpenAPI file says.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

Loc: TypeAlias = tuple[str | int, ...]
Problem: TypeAlias = dict[str, Any]

_NO_OBJECT = "Input should be a valid dictionary or object to extract fields from"
_UUID = re.compile(r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}", re.IGNORECASE)


def problem(kind: str, loc: Loc, message: str, value: Any, **context: Any) -> Problem:
    """One entry of pydantic's error list; `ctx` is there only when pydantic has one."""
    entry = {"type": kind, "loc": list(loc), "msg": message, "input": value}
    return {**entry, "ctx": context} if context else entry


class Node(Protocol):
    """What a value must be. `label` is the name pydantic gives to this branch of a union."""

    @property
    def label(self) -> str: ...

    def check(self, value: Any, loc: Loc) -> Iterator[Problem]: ...


@dataclass(frozen=True, slots=True)
class Text:
    label: str = "str"

    def check(self, value: Any, loc: Loc) -> Iterator[Problem]:
        if not isinstance(value, str):
            yield problem("string_type", loc, "Input should be a valid string", value)


@dataclass(frozen=True, slots=True)
class Uuid:
    label: str = "uuid"

    def check(self, value: Any, loc: Loc) -> Iterator[Problem]:
        if not isinstance(value, str) or not _UUID.fullmatch(value):
            yield problem("uuid_parsing", loc, "Input should be a valid UUID", value)


@dataclass(frozen=True, slots=True)
class Flag:
    label: str = "bool"

    def check(self, value: Any, loc: Loc) -> Iterator[Problem]:
        if not isinstance(value, bool):
            yield problem("bool_type", loc, "Input should be a valid boolean", value)


@dataclass(frozen=True, slots=True)
class Number:
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    whole: bool = False

    @property
    def label(self) -> str:
        return "int" if self.whole else "float"

    def check(self, value: Any, loc: Loc) -> Iterator[Problem]:
        if isinstance(value, bool) or not isinstance(value, int | float):
            kind, noun = ("int_type", "integer") if self.whole else ("float_type", "number")
            yield problem(kind, loc, f"Input should be a valid {noun}", value)
        elif self.whole and value != int(value):
            message = "Input should be a valid integer, got a number with a fractional part"
            yield problem("int_from_float", loc, message, value)
        elif self.ge is not None and value < self.ge:
            message = f"Input should be greater than or equal to {self.ge:g}"
            yield problem("greater_than_equal", loc, message, value, ge=self.ge)
        elif self.gt is not None and value <= self.gt:
            yield problem("greater_than", loc, f"Input should be greater than {self.gt:g}", value, gt=self.gt)
        elif self.le is not None and value > self.le:
            yield problem(
                "less_than_equal", loc, f"Input should be less than or equal to {self.le:g}", value, le=self.le
            )


@dataclass(frozen=True, slots=True)
class OneOf:
    """An enum, or with a single value a literal."""

    values: tuple[str, ...]
    label: str = "enum"

    def check(self, value: Any, loc: Loc) -> Iterator[Problem]:
        if not isinstance(value, str) or value not in self.values:
            expected = _either(self.values)
            kind = "enum" if len(self.values) > 1 else "literal_error"
            yield problem(kind, loc, f"Input should be {expected}", value, expected=expected)


@dataclass(frozen=True, slots=True)
class Anything:
    """An object whose content nobody checks (metadata, JSON schemas)."""

    label: str = "dict[str,any]"

    def check(self, value: Any, loc: Loc) -> Iterator[Problem]:
        if not isinstance(value, dict):
            yield problem("dict_type", loc, "Input should be a valid dictionary", value)


@dataclass(frozen=True, slots=True)
class Items:
    item: Node
    least: int = 0

    @property
    def label(self) -> str:
        return f"list[{self.item.label}]"

    def check(self, value: Any, loc: Loc) -> Iterator[Problem]:
        if not isinstance(value, list):
            yield problem("list_type", loc, "Input should be a valid list", value)
            return
        if len(value) < self.least:
            message = f"List should have at least {self.least} item after validation, not {len(value)}"
            yield problem("too_short", loc, message, value, min_length=self.least, actual_length=len(value))
        for index, item in enumerate(value):
            yield from self.item.check(item, (*loc, index))


@dataclass(frozen=True, slots=True)
class Model:
    """An object with named fields; those in `must` may not be missing, and a closed one has no others."""

    label: str
    fields: Mapping[str, Node]
    must: tuple[str, ...] = ()
    closed: bool = True

    def check(self, value: Any, loc: Loc) -> Iterator[Problem]:
        if not isinstance(value, dict):
            yield problem("model_attributes_type", loc, _NO_OBJECT, value)
            return
        for name in self.must:
            if name not in value:
                yield problem("missing", (*loc, name), "Field required", value)
        for name, item in value.items():
            if name in self.fields:
                yield from self.fields[name].check(item, (*loc, name))
            elif self.closed:
                yield problem("extra_forbidden", (*loc, name), "Extra inputs are not permitted", item)


@dataclass(frozen=True, slots=True)
class OrNull:
    node: Node

    @property
    def label(self) -> str:
        return self.node.label

    def check(self, value: Any, loc: Loc) -> Iterator[Problem]:
        return iter(()) if value is None else self.node.check(value, loc)


@dataclass(frozen=True, slots=True)
class Either:
    """A plain union: when no branch fits, the problems of all of them, each under its branch's label."""

    branches: tuple[Node, ...]
    label: str = "union"

    def check(self, value: Any, loc: Loc) -> Iterator[Problem]:
        tried = [list(branch.check(value, (*loc, branch.label))) for branch in self.branches]
        if all(tried):
            for problems in tried:
                yield from problems


@dataclass(frozen=True, slots=True)
class Tagged:
    """A union decided by one key (`role`, `type`), which pydantic then insists on even where it has a default."""

    key: str
    models: Mapping[str, Model]

    @property
    def label(self) -> str:
        return f"tagged-union[{','.join(model.label for model in self.models.values())}]"

    def check(self, value: Any, loc: Loc) -> Iterator[Problem]:
        if not isinstance(value, dict):
            yield problem("model_attributes_type", loc, _NO_OBJECT, value)
        elif self.key not in value:
            message = f"Unable to extract tag using discriminator '{self.key}'"
            yield problem("union_tag_not_found", loc, message, value, discriminator=f"'{self.key}'")
        elif isinstance(tag := value[self.key], str) and tag in self.models:
            yield from self.models[tag].check(value, (*loc, tag))
        else:
            tags = ", ".join(f"'{name}'" for name in self.models)
            found = f"Input tag '{tag}' found using '{self.key}'"
            context = {"discriminator": f"'{self.key}'", "tag": str(tag), "expected_tags": tags}
            message = f"{found} does not match any of the expected tags: {tags}"
            yield problem("union_tag_invalid", loc, message, value, **context)


def _either(values: tuple[str, ...]) -> str:
    quoted = [f"'{value}'" for value in values]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)
