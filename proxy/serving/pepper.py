"""The pepper: the server's own secret, under which issued keys are kept in the database. Whoever has one without the
other has no key. Without `server.key_pepper` it is minted once, for this user of this machine."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path

from proxy.core.secret import Secret
from proxy.serving import minted


def path(environ: Mapping[str, str]) -> Path:
    """Where the pepper lies that nobody has configured."""
    return minted.state_folder(environ) / "pepper"


def read_or_mint(file: Path) -> Secret:
    """The pepper in `file`, which is made if there is none. Raises OSError when there is no having it."""
    secret = minted.read_or_mint(file, lambda: secrets.token_urlsafe(32))
    if secret is None:
        # Not to be deleted lightly: with another one, no key that was issued is known any more.
        raise OSError(f"{file} does not hold a pepper; put it back from a backup, or delete it and issue all keys anew")
    return secret


def pepper(configured: Secret | None, environ: Mapping[str, str]) -> Secret:
    """The one in force. Several machines with one database need one that is configured. Raises OSError."""
    return configured or read_or_mint(path(environ))


def of_answers(pepper: Secret) -> bytes:
    """What the response cache in a shared store is sealed with: whoever has the same pepper can open it."""
    return blake2b(pepper.reveal().encode(), digest_size=32, person=b"response cache").digest()
