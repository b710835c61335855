"""The tree of text becomes the data a model is made of: keys checked, references resolved, scalars typed.

Nothing stops at the first problem: what is wrong is noted with its line and left in the data as BROKEN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from proxy.core.access import AccessKey
from proxy.settings import references
from proxy.settings.document import Entry, Node, Refused, Scalar, Sequence, is_null
from proxy.settings.document import Mapping as Entries
from proxy.settings.problems import Path, Place, Problem, dotted, hint, one_of, problem
from proxy.settings.references import SecretFile
from proxy.settings.scalars import Type
from proxy.settings.schema import Choice, Hidden, Items, Kind, Maybe, Named, Section

BROKEN: Final = object()
"""Stands for a value that has been complained about. No type accepts it."""


class Reader:
    """Collects `problems` and `warnings`; remembers the place of every value it has seen, for problems found later.

    `open_secret` gives the secret file of a name: the reader itself opens no file.
    """

    def __init__(self, environ: Mapping[str, str], open_secret: Callable[[str], SecretFile]) -> None:
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self._environ = environ
        self._open_secret = open_secret
        self._places: dict[Path, Place] = {}
        self._owners: dict[bytes, Path] = {}

    def refuse(self, path: Path, reason: str, place: Place | None = None) -> Any:
        """Note a problem, at the nearest known place around `path`; returns BROKEN."""
        seen = path
        while place is None:
            place = self._places.get(seen)
            seen = seen[:-1]
        self.problems.append(problem(place, path, reason))
        return BROKEN

    def read(self, kind: Kind, node: Node, path: Path = ()) -> Any:
        """What `node` says, as data for pydantic."""
        self._places[path] = node.place
        if isinstance(node, Refused):
            return self.refuse(path, node.reason)
        match kind:
            case Section():
                return self._section(kind, node, path)
            case Named(of):
                return self._named(of, node, path)
            case Items(of):
                return self._items(of, node, path)
            case Maybe(of) if self._is_null(node):
                return None
            case Maybe(of):
                return self.read(of, node, path)
        if not isinstance(node, Scalar):
            return self.refuse(path, "expected a single value")
        try:
            return self._secret(kind, node, path) if isinstance(kind, Hidden) else self._scalar(kind, node)
        except references.Unresolved as error:
            for reason in error.reasons:
                self.refuse(path, reason)
            return BROKEN
        except ValueError as error:
            return self.refuse(path, str(error))

    def _section(self, section: Section, node: Node, path: Path) -> Any:
        if isinstance(node, Scalar) and node.text in section.words:
            return section.words[node.text]
        entries = self._entries(node, path)
        if entries is None:
            return BROKEN
        data = {}
        for key, entry in entries.items():
            if key in section.keys:
                data[key] = self.read(section.keys[key], entry.node, (*path, key))
            else:
                self.refuse((*path, key), "unknown key" + hint(key, section.keys), entry.place)
        return data

    def _named(self, of: Kind, node: Node, path: Path) -> Any:
        entries = self._entries(node, path)
        if entries is None:
            return BROKEN
        data = {}
        for key, entry in entries.items():
            if not key or not key.isprintable():
                self.refuse((*path, key), "a name is one line of text", entry.place)
            elif references.refers(key):
                self.refuse((*path, key), "a reference is read in a value, not in a name", entry.place)
            else:
                data[key] = self.read(of, entry.node, (*path, key))
        return data

    def _entries(self, node: Node, path: Path) -> dict[str, Entry] | None:
        """The entries by key, the first of each; a section with nothing in it has none. None: not a mapping."""
        if isinstance(node, Scalar) and node.empty:
            return {}
        if not isinstance(node, Entries):
            self.refuse(path, "expected a mapping (key: value)")
            return None
        entries: dict[str, Entry] = {}
        for entry in node.entries:
            first = entries.setdefault(entry.key, entry)
            if first is not entry:
                self.refuse((*path, entry.key), f"given twice, first on line {first.place.line}", entry.place)
        return entries

    def _items(self, of: Kind, node: Node, path: Path) -> Any:
        if not isinstance(node, Sequence):
            return self.refuse(path, "expected a list")
        return [self.read(of, item, (*path, position)) for position, item in enumerate(node.items)]

    def _secret(self, kind: Hidden, node: Scalar, path: Path) -> Any:
        """Raises ValueError with the reason."""

        def contents(file: str) -> str:
            opened = self._open_secret(file)
            if opened.exposed:
                self.warnings.append(problem(node.place, path, "every user of this machine can read the secret file"))
            return opened.text()

        value = references.secret(node.text, self._environ, contents, given=node.given, digests=kind.access)
        key = kind.check(value)
        if isinstance(key, AccessKey):
            owner = self._owners.setdefault(key.digest, path)
            if owner[:2] != path[:2]:
                raise ValueError(f"the same key as {dotted(owner)}")
        return value

    def _scalar(self, kind: Choice | Type, node: Scalar) -> Any:
        """Raises ValueError with the reason."""
        text = self._text(node)
        if isinstance(kind, Choice):
            if text in kind.words:
                return text
            raise ValueError(one_of(kind.words) + hint(text, kind.words))
        if _quoted(node) and not kind.quotes:
            raise ValueError(f"expected {kind.expected}, without quotes")
        try:
            return kind.parse(None if is_null(text) and not _quoted(node) else text)
        except ValueError:
            raise ValueError(f"expected {kind.expected}") from None

    def _text(self, node: Scalar) -> str:
        return node.text if node.given else references.expand(node.text, self._environ)

    def _is_null(self, node: Node) -> bool:
        if not isinstance(node, Scalar) or _quoted(node):
            return False
        try:
            return is_null(self._text(node))
        except references.Unresolved:
            return False


def _quoted(node: Scalar) -> bool:
    """Quotes around a reference do not make it text: YAML needs them inside [ ] and { }."""
    return node.quoted and not references.refers(node.text)
