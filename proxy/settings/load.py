"""From a file and the environment to Settings, or to everything that is wrong with them, each with its line.

The way is: bytes, document (text with lines), overlay (what the file leaves out), reader (references, types), model.
No step stops at its first problem but the first: broken YAML has no rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from proxy.settings import document, overlay
from proxy.settings.document import Node
from proxy.settings.model import Settings
from proxy.settings.problems import Place, Problem, SettingsError, describe
from proxy.settings.reader import BROKEN, Reader
from proxy.settings.schema import section

__all__ = ["Problem", "SettingsError", "load"]


def load(path: Path | None, environ: Mapping[str, str], options: Mapping[str, object] | None = None) -> Settings:
    """The settings in the file at `path` (None: no file), completed from `environ`. Reads the secret files they name.

    `options` are values of the command line by dotted path ("server.port"), which overrule the file. Raises
    SettingsError.
    """
    root = _document(path) if path else document.Mapping([], Place("environment"))
    overlay.complete(root, environ)
    overlay.overrule(root, options or {})
    reader = Reader(environ)
    settings = _validate(reader.read(section(Settings), root), reader)
    if settings is None or reader.problems:
        raise SettingsError(reader.problems)
    return settings


def _document(path: Path) -> Node:
    try:
        with path.open("rb") as file:
            return document.parse(file.read(document.MAX_BYTES + 1), str(path))
    except document.Malformed as error:
        problem = Problem(str(path), error.line, "", error.reason)
    except OSError as error:
        problem = Problem(str(path), None, "", f"cannot be read: {error.strerror}")
    raise SettingsError([problem])


def _validate(data: Any, reader: Reader) -> Settings | None:
    """The model, or None after its complaints have been noted."""
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            if fault["input"] is not BROKEN:
                # pydantic's "[key]" says that the name itself is wrong, not what it stands for.
                where = fault["loc"][:-1] if fault["loc"][-1:] == ("[key]",) else fault["loc"]
                reader.refuse(where, describe(where, fault["type"], fault.get("ctx", {})))
    return None
