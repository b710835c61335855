"""`mistral-proxy usage`: what was used and what it cost, out of the ledger."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from proxy.commands import WRONG, Milliseconds, config_option, stop, table, unix_milliseconds
from proxy.core.money import decimal

if TYPE_CHECKING:  # SQLAlchemy takes its time
    from proxy.store.ledger.usage import Line, Part

_COUNTS: Final = {
    "requests": "REQUESTS",
    "failed": "FAILED",
    "estimated": "ESTIMATED",
    "unpriced": "UNPRICED",
    "prompt": "PROMPT",
    "cached": "CACHED",
    "completion": "COMPLETION",
}
"""Fields of a line, and the heads of their columns."""

_MONEY: Final = {"cost": "COST USD", "saved": "SAVED USD"}
"""The same for amounts of money."""

_TOKENS: Final = ("prompt", "cached", "completion")

_CENTS: Final = 2
"""Decimals of a USD that are always shown."""


def _parts(_context: click.Context, _option: click.Parameter, value: str) -> tuple[Part, ...]:
    """Each once, in the order in which a report has them."""
    from proxy.store.ledger.usage import PARTS

    asked = {name.strip() for name in value.split(",")}
    if unknown := asked.difference(PARTS):
        raise click.BadParameter(f"{min(unknown)!r} is none of {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in asked)


@click.command()
@click.option("--team", help="Only this team.")
@click.option(
    "--since", type=Milliseconds(), default="7d", show_default=True, help="How far back, in whole quarter hours."
)
@click.option(
    "--by", callback=_parts, default="team", show_default=True, help="Divided by which of team,model,key,day."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON, with exact amounts.")
@config_option
def usage(team: str | None, since: int, by: tuple[Part, ...], as_json: bool, config: Path | None) -> None:
    """Show requests, tokens and what they cost.

    Days are those of server.time_zone. ESTIMATED are requests whose tokens the provider did not count, UNPRICED those
    without a price: their cost is in no sum. SAVED is what the answers that came from the cache had cost.
    """
    from zoneinfo import ZoneInfo

    from proxy.commands.opening import opened
    from proxy.store.ledger.usage import report

    with opened(config, os.environ, "Usage reports") as found:
        end = unix_milliseconds() + 1
        zone = ZoneInfo(found.settings.server.time_zone)
        lines = report(found.database, max(0, end - since), end, by=by, team=team, zone=zone)
        if team is not None and not lines and team not in found.teams:
            stop(f"There is no team {team!r} in {found.file}, and it has used nothing.", WRONG)
    click.echo(json.dumps(objects(lines, by), indent=2) if as_json else text(lines, by))


def objects(lines: Sequence[Line], by: Sequence[Part]) -> list[dict[str, Any]]:
    """For programs: money as a decimal number in a string, and as a whole number of nano-USD."""
    return [_object(line, by) for line in lines]


def _object(line: Line, by: Sequence[Part]) -> dict[str, Any]:
    made: dict[str, Any] = {part: _part(line, part) for part in by}
    for name in _COUNTS:
        made[f"{name}_tokens" if name in _TOKENS else name] = getattr(line, name)
    for name in _MONEY:
        amount = getattr(line, name)
        made |= {f"{name}_usd": decimal(amount), f"{name}_nano_usd": amount}
    return made


def text(lines: Sequence[Line], by: Sequence[Part]) -> str:
    """For people: a table with a total."""
    rows = [
        [*(_part(line, part) or "-" for part in by), *(str(getattr(line, name)) for name in _COUNTS)] for line in lines
    ]
    total = ["total", *[""] * (len(by) - 1), *(str(_sum(lines, name)) for name in _COUNTS)]
    amounts = [_amounts([*(getattr(line, name) for line in lines), _sum(lines, name)]) for name in _MONEY]
    head = [*(part.upper() for part in by), *_COUNTS.values(), *_MONEY.values()]
    body = [[*row, *money] for row, *money in zip([*rows, total], *amounts, strict=True)]
    return table([head, *body], numbers=frozenset(range(len(by), len(head))))


def _part(line: Line, part: Part) -> str | None:
    """None for what has none: not every request names a model."""
    value = getattr(line, part)
    return str(value) if value else None


def _sum(lines: Sequence[Line], name: str) -> int:
    return sum(getattr(line, name) for line in lines)


def _amounts(nano: Sequence[int]) -> list[str]:
    """Rounded to micro-USD, with as many decimals as the one that needs most: the points are one below the other."""
    written = [decimal((amount + 500) // 1000 * 1000).partition(".") for amount in nano]
    decimals = max(_CENTS, *(len(fraction) for _, _, fraction in written))
    return [f"{whole}.{fraction:0<{decimals}}" for whole, _, fraction in written]
