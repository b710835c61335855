"""YAML as text in a tree, each value with its line: what was written, before anything is made of it.

Built from the parser's events and not by a loader: a scalar stays the text it was written as (no octal 0123, no `off`
that turns into False, no dates), nothing is constructed from a tag, and an alias cannot multiply anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import yaml

from proxy.settings.problems import Place

MAX_BYTES = 1_000_000
MAX_DEPTH = 16
MAX_SCALAR = 4_096

# libyaml needs a compiler where there is no wheel; the pure parser is slower and gives the same events.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NULL = {"", "~", "null", "Null", "NULL"}


@dataclass(slots=True)
class Scalar:
    """`text` as written; `given`: it came from outside the file, so it may be a secret and holds no reference."""

    text: str
    place: Place
    quoted: bool = False
    given: bool = False

    @property
    def empty(self) -> bool:
        """Nothing was written: `key:` and then the next line."""
        return not (self.text or self.quoted or self.given)


@dataclass(slots=True)
class Sequence:
    items: list[Node]
    place: Place


@dataclass(slots=True)
class Entry:
    key: str
    place: Place
    node: Node


@dataclass(slots=True)
class Mapping:
    """Entries in their order, a key given twice included."""

    entries: list[Entry]
    place: Place

    def find(self, key: str) -> Entry | None:
        return next((entry for entry in self.entries if entry.key == key), None)


@dataclass(slots=True)
class Refused:
    """A value of a kind that is not read here."""

    reason: str
    place: Place


Node = Scalar | Sequence | Mapping | Refused


class Malformed(Exception):
    """Not a YAML document, or one beyond the limits. `line` counts from 1."""

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line


def parse(data: bytes, file: str) -> Node:
    """The tree of the one document in `data`; an empty file is an empty mapping. Raises Malformed."""
    text = _text(data)
    try:
        return _Composer(text, file).document()
    except yaml.MarkedYAMLError as error:
        raise _syntax(error, text) from None


def is_null(text: str) -> bool:
    """Whether an unquoted scalar stands for nothing."""
    return text in _NULL


def _text(data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise Malformed(f"larger than {MAX_BYTES:,} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Malformed("not UTF-8", data.count(b"\n", 0, error.start) + 1) from None
    if found := _FORBIDDEN.search(text):
        raise Malformed("a control character", text.count("\n", 0, found.start()) + 1)
    return text


def _syntax(error: yaml.MarkedYAMLError, text: str) -> Malformed:
    line = error.problem_mark.line if error.problem_mark else 0
    reason = f"not valid YAML: {error.problem}"
    if error.context:
        reason += f", {error.context}"
    if error.context_mark and error.context_mark.line != line:
        reason += f" that begins on line {error.context_mark.line + 1}"
    lines = text.splitlines()
    if line < len(lines) and re.search(r"[\[{,].*\$\{", lines[line]):
        reason += " (inside [ ] and { } a ${NAME} needs quotes)"
    return Malformed(reason, line + 1)


class _Composer:
    """Events in, nodes out; one recursion level per nesting level, which is bounded."""

    def __init__(self, text: str, file: str) -> None:
        self._events: Iterator[yaml.Event] = yaml.parse(text, Loader=_Loader)
        self._file = file

    def document(self) -> Node:
        next(self._events)
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return Mapping([], Place(self._file, 1))
        first = next(self._events)
        root = self._node(first, self._place(first), 1)
        next(self._events)
        if not isinstance(after := next(self._events), yaml.StreamEndEvent):
            raise Malformed("a second document begins here: a file holds one", self._line(after))
        return Mapping([], root.place) if isinstance(root, Scalar) and root.empty else root

    def _line(self, event: yaml.Event) -> int:
        return event.start_mark.line + 1 if event.start_mark else 1

    def _place(self, event: yaml.Event) -> Place:
        return Place(self._file, self._line(event))

    def _node(self, event: yaml.Event, place: Place, depth: int) -> Node:
        """`place` is where problems of the value as a whole are shown."""
        if depth > MAX_DEPTH:
            raise Malformed(f"nested more than {MAX_DEPTH} levels deep", self._line(event))
        node = self._untagged(event, place, depth)
        if getattr(event, "tag", None) is not None:
            return Refused("tags (!name) are not read: write the value alone", place)
        return node

    def _untagged(self, event: yaml.Event, place: Place, depth: int) -> Node:
        if isinstance(event, yaml.ScalarEvent):
            if len(event.value) > MAX_SCALAR:
                return Refused(f"longer than {MAX_SCALAR:,} characters", place)
            return Scalar(event.value, place, quoted=bool(event.style))
        if isinstance(event, yaml.SequenceStartEvent):
            return Sequence(list(self._items(depth + 1)), place)
        if isinstance(event, yaml.MappingStartEvent):
            return Mapping(list(self._entries(depth + 1)), place)
        return Refused("aliases (*name) are not read: write the value out", place)

    def _items(self, depth: int) -> Iterator[Node]:
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            yield self._node(event, self._place(event), depth)

    def _entries(self, depth: int) -> Iterator[Entry]:
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent) or event.tag is not None:
                raise Malformed("a key must be a plain word", self._line(event))
            key, value = self._place(event), next(self._events)
            # A section that is wrong as a whole is shown at its name, a single value where it stands.
            alone = isinstance(value, yaml.ScalarEvent) and (value.value or value.style)
            yield Entry(event.value, key, self._node(value, self._place(value) if alone else key, depth))
