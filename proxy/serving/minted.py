"""Secrets that a first start makes for itself, and every later one finds in the user's state directory."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

from proxy.core.secret import Secret

_SHORTEST = 32
"""Characters. A file with fewer holds no secret of ours."""


def state_folder(environ: Mapping[str, str]) -> Path:
    """$XDG_STATE_HOME or ~/.local/state, as the XDG base directory specification says. Raises OSError when the user has
    neither: a container may run as a number that is nobody's."""
    if base := environ.get("XDG_STATE_HOME"):
        return Path(base) / "mistral-proxy"
    try:
        home = Path.home()
    except RuntimeError:
        message = f"user {os.getuid()} has no home directory, and XDG_STATE_HOME is not set"
        raise FileNotFoundError(message) from None
    return home / ".local" / "state" / "mistral-proxy"


def read_or_mint(file: Path, mint: Callable[[], str]) -> Secret | None:
    """The secret in `file`, which is made with mode 0600 if there is none; None when what is in it is no secret. Raises
    OSError when neither can be done."""
    try:
        return read(file)
    except FileNotFoundError:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Written aside and linked into place: two first starts at once must end with one secret, and none half written.
    aside = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w") as opened:
            opened.write(f"{mint()}\n")
        os.link(aside, file)
    except FileExistsError:
        pass  # another start was first: its secret is the one
    finally:
        aside.unlink()
    return read(file)


def read(file: Path) -> Secret | None:
    """The secret in `file`; None when what is in it is no secret. Raises OSError, FileNotFoundError above all."""
    text = file.read_bytes().decode("ascii", "replace").strip()
    if len(text) < _SHORTEST or not text.isascii():
        return None
    file.chmod(0o600)
    return Secret(text)
