"""`mistral-proxy keys`: the keys of teams that no file names. A key is shown once, when it is made."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from proxy.commands import WRONG, Milliseconds, config_option, moment, stop, table, unix_milliseconds

if TYPE_CHECKING:  # SQLAlchemy takes its time
    from proxy.commands.opening import Opened
    from proxy.store.keys import KeyRow, NewKey

_HEAD = ("ID", "TEAM", "NAME", "STATE", "CREATED", "EXPIRES", "LAST USED", "SUCCESSOR")
_LONGEST_NAME = 64


@click.group()
def keys() -> None:
    """Issue, list, rotate and revoke keys of teams.

    They are kept in the ledger's database, as hashes: a key is shown once. Running proxies take up every change within
    a second.
    """


def _name(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    if value is not None and not (value.isprintable() and 0 < len(value) <= _LONGEST_NAME):
        raise click.BadParameter(f"a name has 1 to {_LONGEST_NAME} printable characters")
    return value


def _lasting(_context: click.Context, _option: click.Parameter, value: int | None) -> int | None:
    if value == 0:
        raise click.BadParameter("a key that is good for no time is none")
    return value


@keys.command()
@click.argument("team")
@click.option(
    "--expires", type=Milliseconds(), callback=_lasting, help="How long it is good for, such as 90d; default for ever."
)
@click.option("--name", callback=_name, help="What it is for, to tell it from others.")
@config_option
def new(team: str, expires: int | None, name: str | None, config: Path | None) -> None:
    """Issue a key to TEAM and print it."""
    with _opened(config) as found:
        if team not in found.teams:
            _no_team(team, found)
        at = unix_milliseconds()
        _show(found, found.keys.issue(team, name, None if expires is None else at + expires, at, found.pepper()))


@keys.command("list")
@click.option("--team", help="Only the keys of this team.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@config_option
def list_(team: str | None, as_json: bool, config: Path | None) -> None:
    """List the keys that were issued, and when each was last used."""
    with _opened(config) as found:
        rows = [row for row in found.keys.all() if team in (None, row.team)]
        if team is not None and not rows and team not in found.teams:
            _no_team(team, found)
        described = describe(rows, found.teams, unix_milliseconds())
    click.echo(json.dumps(described, indent=2) if as_json else listing(described))


@keys.command()
@click.argument("id")
@click.option(
    "--overlap",
    type=Milliseconds(),
    default="24h",
    show_default=True,
    help="How long the old key stays good beside it.",
)
@config_option
def rotate(id: str, overlap: int, config: Path | None) -> None:
    """Print a key in place of ID, which stays good for a while."""
    with _opened(config) as found:
        for row in found.keys.all():
            if row.id == id and row.team not in found.teams:
                _no_team(row.team, found)
        _show(found, found.keys.rotate(id, overlap, unix_milliseconds(), found.pepper()))


@keys.command()
@click.argument("id")
@config_option
def revoke(id: str, config: Path | None) -> None:
    """End the key ID at once and for good."""
    with _opened(config) as found:
        row = found.keys.revoke(id, unix_milliseconds())
    click.echo(f"{row.id} of team {row.team} is revoked: every worker refuses it within a second.")


def describe(rows: Iterable[KeyRow], teams: Collection[str], now: int) -> list[dict[str, Any]]:
    """The keys as they are at this moment."""
    return [
        {
            "id": row.id,
            "team": row.team,
            "name": row.name,
            "state": _state(row, teams, now),
            "created": moment(row.created),
            "expires": row.expires and moment(row.expires),
            "revoked": row.revoked and moment(row.revoked),
            "last_used": row.last_used and moment(row.last_used),
            "successor": row.successor,
        }
        for row in rows
    ]


def listing(described: Iterable[dict[str, Any]]) -> str:
    """As a table."""
    fields = [name.lower().replace(" ", "_") for name in _HEAD]
    return table([_HEAD, *([str(key[field] or "-") for field in fields] for key in described)])


def _state(row: KeyRow, teams: Collection[str], now: int) -> str:
    """`no team`: it would be good, but the configuration has lost its team."""
    state = row.state(now)
    return "no team" if state in ("active", "rotated") and row.team not in teams else state


@contextmanager
def _opened(config: Path | None) -> Iterator[Opened]:
    from proxy.commands.opening import opened
    from proxy.store.keys import KeyRefused

    with opened(config, os.environ, "Issued keys") as found:
        try:
            yield found
        except KeyRefused as error:
            stop(str(error), WRONG)


def _no_team(team: str, found: Opened) -> NoReturn:
    stop(f"There is no team {team!r} in {found.file}: there is {', '.join(sorted(found.teams))}.", WRONG)


def _show(found: Opened, new: NewKey) -> None:
    """The key alone to standard output, for whoever pipes it somewhere."""
    row = new.row
    until = f"good until {moment(row.expires)}" if row.expires else "good until it is revoked"
    click.echo(new.secret.reveal())
    click.echo(f"{row.id} of team {row.team}, {until}. The key is shown this once: keep it now.", err=True)
    if caution := found.caution():
        click.echo(caution, err=True)
