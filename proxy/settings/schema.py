"""What may stand where in proxy.yaml, derived from the model: it guides the reader, which has only text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from pydantic import BeforeValidator

from proxy.core.access import AccessKey
from proxy.core.config import Strict
from proxy.core.secret import Secret
from proxy.settings.model import WORDS
from proxy.settings.scalars import TYPES, WRITTEN, Type


@dataclass(frozen=True, slots=True)
class Section:
    """A mapping with keys of ours. One of `words` may stand for all of it, and means the mapping that it has here."""

    keys: Mapping[str, Kind]
    words: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Named:
    """A mapping with names of the user's own."""

    of: Kind


@dataclass(frozen=True, slots=True)
class Items:
    of: Kind


@dataclass(frozen=True, slots=True)
class Maybe:
    """Null is allowed."""

    of: Kind


@dataclass(frozen=True, slots=True)
class Choice:
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Hidden:
    """A secret. `check` is its type's own and raises ValueError.

    `access`: it lets its owner in, so two owners cannot share it, and `sha256:<hex>` may stand for it.
    """

    check: Callable[[Any], Any]
    access: bool


Kind = Section | Named | Items | Maybe | Choice | Hidden | Type


@cache
def section(model: type[Strict]) -> Section:
    """The keys of a model and what each takes."""
    keys = {name: _kind(field.annotation, field.metadata) for name, field in model.model_fields.items()}
    return Section(keys, WORDS.get(model, {}))


def _kind(annotation: Any, metadata: list[Any]) -> Kind:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0], list(annotation.__metadata__))
    before = next((item for item in metadata if isinstance(item, BeforeValidator)), None)
    if before:
        hidden = annotation in (Secret, AccessKey)
        check = cast(Callable[[Any], Any], before.func)
        return Hidden(check, access=annotation is AccessKey) if hidden else WRITTEN
    if origin is Literal:
        return Choice(arguments)
    if origin in (Union, UnionType):
        (wanted,) = (argument for argument in arguments if argument is not NoneType)
        return Maybe(_kind(wanted, []))
    if origin is list:
        return Items(_kind(arguments[0], []))
    if origin is dict:
        return Named(_kind(arguments[1], []))
    return section(annotation) if issubclass(annotation, Strict) else TYPES[annotation]
