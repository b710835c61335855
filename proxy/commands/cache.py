"""`mistral-proxy cache`: the answers that are kept, counted, verified and forgotten."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from proxy.commands import WRONG, Command, config_option

if TYPE_CHECKING:  # the HTTP client takes its time
    from proxy.commands.cache_keeper import Question

Report = Mapping[str, int]

_UNITS: Final = ("KB", "MB", "GB", "TB")
_STEP: Final = 1024


@click.group()
def cache() -> None:
    """Count, verify and forget the answers that are kept.

    With a shared store, Redis is asked. Without one they are in the memory of the proxy: it is asked over HTTP, with an
    admin key in the environment variable MISTRAL_PROXY_ADMIN_KEY.
    """


def _team(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> str | None:
    from proxy.core.team_name import RULE, is_team_name

    if not values:
        return None
    if len(values) > 1:
        raise click.BadParameter("one team at a time")
    if not is_team_name(values[0]):
        raise click.BadParameter(RULE)
    return values[0]


def _url(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    from urllib.parse import urlsplit

    if value is None:
        return None
    try:
        parts = urlsplit(value)
        bare = not (parts.query or parts.fragment or parts.username or parts.password) and value.isprintable()
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and bare
    except ValueError:
        good = False
    if not good:
        raise click.BadParameter("expected the address of a proxy, such as http://127.0.0.1:8080")
    return value.rstrip("/")


def _options(command: Command) -> Command:
    """Those of every command here."""
    where = "Ask the proxy at this address; default what the configuration says."
    for option in (
        config_option,
        click.option("--json", "as_json", is_flag=True, help="As JSON, with exact sizes."),
        click.option("--url", callback=_url, help=where),
    ):
        command = option(command)
    return command


@cache.command()
@click.option("--team", multiple=True, callback=_team, help="Only the answers of this team.")
@_options
def stats(team: str | None, url: str | None, as_json: bool, config: Path | None) -> None:
    """Show how many answers are kept, and how large they are."""
    from proxy.commands.cache_keeper import STATS

    _show(_ask(STATS, team, url, config), as_json, stats_text)


@cache.command()
@click.option("--team", multiple=True, callback=_team, help="The answers of this team.")
@click.option("--all", "everything", is_flag=True, help="The answers of everybody.")
@_options
def clear(team: str | None, everything: bool, url: str | None, as_json: bool, config: Path | None) -> None:
    """Forget answers: those of a team, or all."""
    from proxy.commands.cache_keeper import CLEAR

    if everything == (team is not None):
        raise click.UsageError("Say whose answers are to be forgotten: --team TEAM, or --all.")
    _show(_ask(CLEAR, team, url, config), as_json, clear_text)


@cache.command()
@_options
def verify(url: str | None, as_json: bool, config: Path | None) -> None:
    """Look at every answer: whether it is what it was when it was kept.

    Those that are not are gone then, and the exit code is 1.
    """
    from proxy.commands.cache_keeper import VERIFY

    report = _ask(VERIFY, None, url, config)
    _show(report, as_json, verify_text)
    if report["wrong"]:
        sys.exit(WRONG)


def _ask(question: Question, team: str | None, url: str | None, config: Path | None) -> Report:
    from proxy.commands.cache_keeper import ask

    return ask(question, team, url, config, os.environ)


def _show(report: Report, as_json: bool, text: Callable[[Report], str]) -> None:
    click.echo(json.dumps(report, indent=2) if as_json else text(report))


def stats_text(report: Report) -> str:
    """For people."""
    said = f"{_answers(report['entries'])}, {size(report['bytes'])}"
    evicted = report.get("evicted")
    return said if evicted is None else f"{said}; {evicted:,} made room for others"


def clear_text(report: Report) -> str:
    """For people."""
    return f"{_answers(report['deleted'])} forgotten"


def verify_text(report: Report) -> str:
    """For people."""
    if not report["wrong"]:
        return f"{_answers(report['right'])} right"
    said = f"{_answers(report['right'])} right, {report['wrong']:,} wrong: gone now"
    return said if report["right"] else f"{said} (if that is all of them, is server.key_pepper that of the proxies?)"


def _answers(count: int) -> str:
    return f"{count:,} answer{'' if count == 1 else 's'}"


def size(count: int) -> str:
    """So many bytes, in powers of 1024 as the configuration has them."""
    if count < _STEP:
        return f"{count} B"
    shown, at = count / _STEP, 0
    while round(shown, 1) >= _STEP and at < len(_UNITS) - 1:
        shown, at = shown / _STEP, at + 1
    return f"{shown:.1f} {_UNITS[at]}"
