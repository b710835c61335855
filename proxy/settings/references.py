"""Values from outside the file: `${NAME}`, `${NAME:-default}` and, for secrets, `file:/path`.

`$${` is a literal `${`; every other `$` is a dollar sign. As in the shell, the default stands in for a variable that is
unset or empty.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from proxy.core.secret import Secret

MAX_SECRET_FILE = 65_536

_REFERENCE = re.compile(r"\$\$\{|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}|\$\{")
# What a header can carry: a secret travels in `Authorization`.
_SENDABLE = re.compile(r"[\x21-\x7e]+")


class Unresolved(ValueError):
    """`reasons` says why a value could not be had."""

    def __init__(self, *reasons: str) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


@dataclass(frozen=True, slots=True, repr=False)
class SecretFile:
    """What a secret file holds, or `wrong`: why it cannot be had. `exposed`: every user of the machine may read it."""

    data: bytes = b""
    wrong: str = ""
    exposed: bool = field(default=False, compare=False)

    def text(self) -> str:
        """Without the line break at its end. Raises Unresolved."""
        if self.wrong:
            raise Unresolved(self.wrong)
        return self.data.decode("utf-8", "replace").removesuffix("\n").removesuffix("\r")


def read_secret(file: str) -> SecretFile:
    """The file as it is now."""
    try:
        # A pipe or a device could block the start or never end.
        if not Path(file).is_file():
            return SecretFile(wrong="the secret file does not exist or is not a regular file")
        with Path(file).open("rb") as opened:
            exposed = bool(os.fstat(opened.fileno()).st_mode & stat.S_IROTH)
            data = opened.read(MAX_SECRET_FILE + 1)
    except OSError as error:
        return SecretFile(wrong=f"the secret file cannot be read: {error.strerror}")
    except ValueError:
        return SecretFile(wrong="the secret file's name cannot be one")
    if len(data) > MAX_SECRET_FILE:
        return SecretFile(wrong=f"the secret file is larger than {MAX_SECRET_FILE:,} bytes")
    return SecretFile(data, exposed=exposed)


def refers(text: str) -> bool:
    """Whether the text holds a reference, be it well formed or not."""
    return any(found[0] != "$${" for found in _REFERENCE.finditer(text))


def expand(text: str, environ: Mapping[str, str]) -> str:
    """The text with every reference replaced; what comes in is not looked at again. Raises Unresolved."""
    reasons: list[str] = []

    def replace(found: re.Match[str]) -> str:
        name, default = found["name"], found["default"]
        if found[0] == "$${":
            return "${"
        if not name:
            reasons.append("expected ${NAME} or ${NAME:-default}; a literal ${ is written $${")
        elif default is None and name not in environ:
            reasons.append(f"environment variable {name} is not set")
        else:
            return environ.get(name, "") or default or ""
        return ""

    expanded = _REFERENCE.sub(replace, text)
    if reasons:
        raise Unresolved(*dict.fromkeys(reasons))
    return expanded


def secret(
    text: str, environ: Mapping[str, str], contents: Callable[[str], str], *, given: bool, digests: bool
) -> Secret | str:
    """The secret that `text` refers to; `contents` gives the text of a secret file. Raises Unresolved.

    What is no reference comes back as the string it is, for the schema to refuse or, with `digests`, to read as
    `sha256:<hex>`. `given`: the text came from the environment already.
    """
    if not given:
        if not _from_outside(text, digests):
            return text
        text = expand(text, environ)
    if text.startswith("file:"):
        file = text.removeprefix("file:")
        if not Path(file).is_absolute():
            raise Unresolved("expected file: and an absolute path")
        text = contents(file)
    if not text:
        raise Unresolved("the secret is empty")
    if digests and text.startswith("sha256:"):
        return text
    if not _SENDABLE.fullmatch(text):
        raise Unresolved("a secret is printable ASCII without spaces or line breaks")
    return Secret(text)


def _from_outside(text: str, digests: bool) -> bool:
    """A default is written in the file, so for a secret it is as good as a literal."""
    harmless = ("file:", "sha256:") if digests else ("file:",)
    defaults = [found["default"] for found in _REFERENCE.finditer(text) if found["default"]]
    return (text.startswith("file:") or refers(text)) and all(default.startswith(harmless) for default in defaults)
