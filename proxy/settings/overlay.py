"""Settings from outside the file: well-known environment variables where it says nothing, options that overrule it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from proxy.settings.document import Entry, Node, Refused, Scalar, Sequence
from proxy.settings.document import Mapping as Entries
from proxy.settings.problems import Place

FALLBACKS = {
    "MISTRAL_API_KEY": "providers.mistral.api_keys[0]",
    "MISTRAL_BASE_URL": "providers.mistral.base_url",
    "MISTRAL_TIMEOUT_SECS": "providers.mistral.timeouts.total",
    "MISTRAL_MAX_RETRIES": "providers.mistral.retry.max_attempts",
    "MISTRAL_LOG_LEVEL": "logging.level",
    "CORS_ORIGINS": "server.cors_origins",
    "DEFAULT_MODEL": "models.default",
    "DEFAULT_MAX_TOKENS": "models.default_max_tokens",
    "DEFAULT_TEMPERATURE": "models.default_temperature",
    "OPENAI_API_KEY": "providers.openai.api_keys[0]",
}
"""Each variable and the option it stands for. An empty variable counts as unset."""

_ASKED_FOR = {"OPENAI_API_KEY": ("providers", "openai")}
"""Variables that count only where the file has their section. An app of this proxy has its team's key in this one, and
must not send it to anybody else by being started beside it."""


def _seconds(text: str) -> str:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        raise ValueError("expected a number of seconds such as 30")
    return f"{text}s"


def _level(text: str) -> str:
    level = text.lower()
    return "warning" if level == "warn" else level


def _attempts(text: str) -> str:
    """The first one is no retry."""
    if not re.fullmatch(r"[0-9]", text):
        raise ValueError("expected a number of retries from 0 to 9")
    return str(int(text) + 1)


_SPELLING: Mapping[str, Callable[[str], str]] = {
    "MISTRAL_TIMEOUT_SECS": _seconds,
    "MISTRAL_MAX_RETRIES": _attempts,
    "MISTRAL_LOG_LEVEL": _level,
}
"""Variables that are written otherwise than the file's option."""


_LISTS = frozenset({"CORS_ORIGINS"})
"""Variables that hold several values, with commas between them."""


def complete(root: Node, environ: Mapping[str, str]) -> None:
    """Add to the file's tree what it leaves out and a variable says."""
    for name, path in FALLBACKS.items():
        text = environ.get(name)
        if text and (name not in _ASKED_FOR or _has(root, _ASKED_FOR[name])):
            node = _list(name, text) if name in _LISTS else _node(name, text)
            option = path.removesuffix("[0]")
            _add(root, option.split("."), node if option == path else Sequence([node], node.place))


def _has(root: Node, path: tuple[str, ...]) -> bool:
    node: Node = root
    for step in path:
        entry = node.find(step) if isinstance(node, Entries) else None
        if entry is None:
            return False
        node = entry.node
    return True


def _list(name: str, text: str) -> Node:
    parts = (part.strip() for part in text.split(","))
    return Sequence([_node(name, part) for part in parts if part], Place("environment", variable=name))


def _node(name: str, text: str) -> Node:
    place = Place("environment", variable=name)
    try:
        return Scalar(_SPELLING.get(name, str)(text), place, given=True)
    except ValueError as error:
        return Refused(str(error), place)


def overrule(root: Node, options: Mapping[str, object]) -> None:
    """Put the command line's values, by dotted path, in the place of the file's."""
    for path, value in options.items():
        *sections, key = path.split(".")
        place = Place("command line", variable=f"--{key}")
        mapping = _descend(root, sections, place)
        if mapping is not None:
            mapping.entries = [entry for entry in mapping.entries if entry.key != key]
            mapping.entries.append(Entry(key, place, Scalar(str(value), place, given=True)))


def _add(root: Node, path: list[str], node: Node) -> None:
    """Put `node` at `path` unless the file has something there."""
    *sections, key = path
    mapping = _descend(root, sections, node.place)
    if mapping is not None and mapping.find(key) is None:
        mapping.entries.append(Entry(key, node.place, node))


def _descend(node: Node, sections: list[str], place: Place) -> Entries | None:
    """The section at that path, made where there is none; None where the file has something else."""
    for section in sections:
        if not isinstance(node, Entries):
            return None
        entry = node.find(section)
        if entry is None:
            entry = Entry(section, place, Entries([], place))
            node.entries.append(entry)
        elif isinstance(entry.node, Scalar) and entry.node.empty:
            entry.node = Entries([], entry.place)
        node = entry.node
    return node if isinstance(node, Entries) else None
