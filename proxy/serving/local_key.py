"""The key of the team `local`, for a proxy that is started without a configuration: minted once, kept for this user."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from proxy.core.secret import Secret


def path(environ: Mapping[str, str]) -> Path:
    """Where the key lies: $XDG_STATE_HOME or ~/.local/state, as the XDG base directory specification says."""
    base = environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "mistral-proxy" / "local.key"


def read_or_mint(file: Path) -> Secret:
    """The key in `file`, which is made with mode 0600 if there is none. Raises OSError when neither can be done."""
    try:
        return _read(file)
    except FileNotFoundError:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Written aside and linked into place: two first starts at once must end with one key, and none half written.
    aside = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w") as opened:
            opened.write(f"sk-local-{secrets.token_urlsafe(32)}\n")
        os.link(aside, file)
    except FileExistsError:
        pass  # another start was first: its key is the one
    finally:
        aside.unlink()
    return _read(file)


def _read(file: Path) -> Secret:
    text = file.read_bytes().decode("ascii", "replace").strip()
    if len(text) < 32 or not text.isascii():
        raise OSError(f"{file} does not hold a key; delete it and start again")
    file.chmod(0o600)
    return Secret(text)
