"""The key of the team `local`, for a proxy that is started without a configuration: minted once, kept for this user."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path

from proxy.core.secret import Secret
from proxy.serving import minted


def path(environ: Mapping[str, str]) -> Path:
    """Where the key lies."""
    return minted.state_folder(environ) / "local.key"


def read_or_mint(file: Path) -> Secret:
    """The key in `file`, which is made if there is none. Raises OSError when there is no having it."""
    secret = minted.read_or_mint(file, lambda: f"sk-local-{secrets.token_urlsafe(32)}")
    if secret is None:
        raise OSError(f"{file} does not hold a key; delete it and start again")
    return secret
