"""Where the ledger is: usage, and the keys that were issued."""

from __future__ import annotations

from collections.abc import Mapping

from proxy.core.secret import Secret
from proxy.serving.minted import state_folder
from proxy.settings.model import Settings


def ledger_url(settings: Settings, environ: Mapping[str, str]) -> Secret | None:
    """The URL of its database, of which this user's folder is made if that is where it is; None when none is kept.
    Raises OSError when the folder cannot be made."""
    if settings.ledger.off:
        return None
    if settings.ledger.url:
        return settings.ledger.url
    folder = state_folder(environ)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Secret(f"sqlite:///{folder}/ledger.db")
