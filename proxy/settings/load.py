"""From a file and the environment to Settings, or to everything that is wrong with them, each with its line.

The way is: sources (all bytes, read once), document (text with lines), overlay (what the file leaves out), reader
(references, types), model. No step stops at its first problem but the first: broken YAML has no rest.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
from pydantic import ValidationError

from proxy.settings import document, overlay
from proxy.settings.document import Node
from proxy.settings.model import Settings
from proxy.settings.problems import Place, Problem, SettingsError, describe
from proxy.settings.reader import BROKEN, Reader
from proxy.settings.references import SecretFile, read_secret
from proxy.settings.rules import impossible
from proxy.settings.schema import section

__all__ = ["Loaded", "Problem", "SettingsError", "Sources", "load", "settings_of"]


_decode = msgspec.msgpack.Decoder(tuple[bytes, dict[bytes, SecretFile], bool]).decode


@dataclass(frozen=True, slots=True, repr=False)
class Sources:
    """All that settings are made of: whoever has the same sources makes the same settings, and reads no file for it.

    `data` is the file's bytes, `options` are values of the command line by dotted path ("server.port"), `secrets` the
    files that the file names, by their names. Two are equal when the same would come of them. Holds secrets in plain
    text, so its repr shows nothing.
    """

    file: str | None
    data: bytes
    environ: dict[str, str]
    options: dict[str, str | int]
    secrets: dict[str, SecretFile] = field(default_factory=dict)
    writable: bool = field(default=False, compare=False)

    @classmethod
    def read(
        cls, path: Path | None, environ: Mapping[str, str], options: Mapping[str, str | int] | None = None
    ) -> Sources:
        """Read the file at `path` (None: no file) and what it names. Raises SettingsError when there is no reading it;
        what is wrong with its content, or with a secret file, is for `settings_of` to say."""
        data, writable = _contents(path) if path else (b"", False)
        bare = cls(str(path) if path else None, data, dict(environ), dict(options or {}), writable=writable)
        return bare._with_secrets()

    def again(self) -> Sources:
        """The same sources as they are now. Raises SettingsError. What came through a pipe is not there a second time:
        it stays as it was."""
        if self.file is None or not _is_file(self.file):
            return self._with_secrets()
        return Sources.read(Path(self.file), self.environ, self.options)

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that was looked at."""
        return (*([self.file] if self.file else []), *self.secrets)

    @property
    def digest(self) -> str | None:
        """Tells one configuration file from another: the first 12 hexadecimal digits of its SHA-256. None without a
        file. Only the file counts: a digest of secrets would help to guess them."""
        return hashlib.sha256(self.data).hexdigest()[:12] if self.file else None

    def changes(self) -> bytes:
        """What may be new since the start, for a pipe to another process of ours, never for a log or a disk: secrets
        are in it."""
        # The names of files need not be text: what is no UTF-8 in them came in as surrogates.
        secrets = {os.fsencode(name): found for name, found in self.secrets.items()}
        return msgspec.msgpack.encode((self.data, secrets, self.writable))

    def changed(self, changes: bytes) -> Sources:
        """As those are that these `changes` are of, which had the same start."""
        data, secrets, writable = _decode(changes)
        return replace(
            self, data=data, secrets={os.fsdecode(name): found for name, found in secrets.items()}, writable=writable
        )

    def _with_secrets(self) -> Sources:
        """Which secret files are named is known only once references are resolved: a reading to see what it opens."""
        found: dict[str, SecretFile] = {}

        def open_secret(name: str) -> SecretFile:
            if name not in found:
                found[name] = read_secret(name)
            return found[name]

        with suppress(SettingsError):  # whoever makes settings of it will say so
            _read(self, open_secret)
        return replace(self, secrets=found)


@dataclass(frozen=True, slots=True)
class Loaded:
    """`warnings` are no errors, but somebody should know of them."""

    settings: Settings
    warnings: tuple[Problem, ...]


def load(path: Path | None, environ: Mapping[str, str], options: Mapping[str, str | int] | None = None) -> Settings:
    """The settings in the file at `path` (None: no file), completed from `environ`, overruled by `options`. Reads the
    secret files they name. Raises SettingsError."""
    return settings_of(Sources.read(path, environ, options)).settings


def settings_of(sources: Sources) -> Loaded:
    """What comes of these sources; touches no file. Raises SettingsError."""
    reader, data = _read(sources, sources.secrets.__getitem__)
    settings = _validate(data, reader)
    if settings is not None:
        for path, reason in impossible(settings):
            reader.refuse(path, reason)
    if settings is None or reader.problems:
        raise SettingsError(reader.problems)
    warnings = reader.warnings
    if sources.file and sources.writable:
        warnings = [Problem(sources.file, None, "", "every user of this machine can change this file"), *warnings]
    return Loaded(settings, tuple(warnings))


def _read(sources: Sources, open_secret: Callable[[str], SecretFile]) -> tuple[Reader, Any]:
    root = _document(sources)
    overlay.complete(root, sources.environ)
    overlay.overrule(root, sources.options)
    reader = Reader(sources.environ, open_secret)
    return reader, reader.read(section(Settings), root)


def _contents(path: Path) -> tuple[bytes, bool]:
    """The file's bytes, and whether everybody may change them."""
    try:
        with path.open("rb") as file:
            return file.read(document.MAX_BYTES + 1), bool(os.fstat(file.fileno()).st_mode & stat.S_IWOTH)
    except OSError as error:
        problem = Problem(str(path), None, "", f"cannot be read: {error.strerror}")
    raise SettingsError([problem])


def _is_file(name: str) -> bool:
    """Whether it can be read again: anything but a pipe or a device. What is not there has an error to be told."""
    try:
        mode = Path(name).stat().st_mode
    except OSError:
        return True
    return not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode))


def _document(sources: Sources) -> Node:
    if sources.file is None:
        return document.Mapping([], Place("environment"))
    try:
        return document.parse(sources.data, sources.file)
    except document.Malformed as error:
        problem = Problem(sources.file, error.line, "", error.reason)
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
                reader.refuse(where, describe(fault["type"], fault.get("ctx", {})))
    return None
