"""The configuration and the ledger's database, for as long as a command runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from proxy.commands import CANNOT_START, stop
from proxy.core.secret import Secret
from proxy.serving.ledger_place import ledger_url
from proxy.serving.pepper import path, pepper
from proxy.settings.load import SettingsError, Sources, settings_of
from proxy.settings.model import Settings
from proxy.store.database import Database, DatabaseGone, DatabaseUnfit, open_database, place
from proxy.store.keys import Keys
from proxy.store.migrations import migrate

_DEFAULT = Path("proxy.yaml")


@dataclass(frozen=True, slots=True, repr=False)
class Opened:
    """What a command works with. `file` is the configuration's name."""

    settings: Settings
    file: str
    database: Database
    environ: Mapping[str, str]

    @property
    def teams(self) -> frozenset[str]:
        """Without a configured one there is `local`, as `serve` has it."""
        return frozenset(self.settings.teams or {"local"})

    @property
    def keys(self) -> Keys:
        return Keys(self.database)

    def pepper(self) -> Secret:
        """Stops the command when there is none to be had."""
        try:
            return pepper(self.settings.server.key_pepper, self.environ)
        except OSError as error:
            stop(f"The pepper of issued keys could not be kept: {error}. Set server.key_pepper.", CANNOT_START)

    def caution(self) -> str | None:
        """What may keep a key from being known elsewhere."""
        if self.settings.server.key_pepper or self.database.dialect == "sqlite":
            return None
        return (
            "Other machines that share this database know the key only when server.key_pepper is set, on all of them, "
            f"to what {path(self.environ)} holds here."
        )


@contextmanager
def opened(config: Path | None, environ: Mapping[str, str], purpose: str) -> Iterator[Opened]:
    """The ledger's database, brought up to date. Stops the command, with a sentence, when it cannot be had; `purpose`
    is what needs it."""
    file = config or (_DEFAULT if _DEFAULT.exists() else None)
    try:
        settings = settings_of(Sources.read(file, environ)).settings
        url = ledger_url(settings, environ)
    except SettingsError as error:
        stop(str(error), CANNOT_START)
    except OSError as error:
        stop(f"The folder of the ledger cannot be made: {error}.", CANNOT_START)
    if url is None:
        stop(f"{purpose} need the ledger's database, and ledger.url is off.", CANNOT_START)
    try:
        with _database(url) as database:
            yield Opened(settings, str(file or "the environment"), database, environ)
    except (DatabaseGone, DatabaseUnfit) as error:
        stop(f"The ledger's database ({place(url.reveal())}) cannot be used: {error}.", CANNOT_START)


@contextmanager
def _database(url: Secret) -> Iterator[Database]:
    database = open_database(url.reveal())
    try:
        migrate(database)
        yield database
    finally:
        with suppress(DatabaseGone):
            database.close()
