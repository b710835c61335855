"""`mistral-proxy prove-quota`: whether limits hold to the last request, shown on the store that is configured."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from proxy.commands import CANNOT_START, WRONG, config_option, stop, table, unix_milliseconds

if TYPE_CHECKING:  # aiohttp and SQLAlchemy take their time
    from proxy.proof.run import Proved

_KINDS: Final = ("requests", "concurrency", "spend")
_MOST_CLIENTS: Final = 2_000
_MOST_SPEND: Final = 1_000_000


def _kinds(_context: click.Context, _option: click.Parameter, value: str) -> frozenset[str]:
    asked = frozenset(name.strip() for name in value.split(","))
    if unknown := asked.difference(_KINDS):
        raise click.BadParameter(f"{min(unknown)!r} is none of {', '.join(_KINDS)}")
    return asked


def _spend(_context: click.Context, _option: click.Parameter, value: str | None) -> int | None:
    """In nano-USD."""
    from decimal import Decimal, InvalidOperation

    from proxy.core.money import NANO

    if value is None:
        return None
    try:
        nano = Decimal(value) * NANO
    except InvalidOperation:
        raise click.BadParameter(f"{value!r} is not an amount in USD") from None
    if not 0 < nano <= _MOST_SPEND * NANO or nano != nano.to_integral_value():
        raise click.BadParameter(f"{value!r} is not an amount from a nano-USD to {_MOST_SPEND} USD")
    return int(nano)


@click.command("prove-quota")
@config_option
@click.option(
    "--clients", type=click.IntRange(2, _MOST_CLIENTS), default=150, show_default=True, help="At once, at most."
)
@click.option("--workers", type=click.IntRange(1, 64), help="Of each replica; default 2, of a store in memory 1.")
@click.option("--replicas", type=click.IntRange(1, 16), help="Default 2, of a store in memory 1.")
@click.option("--limit", type=click.IntRange(1, 1_000), help="Requests and slots; default 1, 7 and 100 in turn.")
@click.option("--spend", callback=_spend, metavar="USD", help="Limit on spend; default what fits the shipped prices.")
@click.option("--trials", type=click.IntRange(1, 10_000), default=3, show_default=True, help="Of each kind.")
@click.option("--only", "kinds", callback=_kinds, default=",".join(_KINDS), show_default=True, help="Kinds of trials.")
@click.option("--kills/--no-kills", default=True, show_default=True, help="Kill a process in each trial of spend.")
@click.option("--seed", type=click.IntRange(0), help="Makes the same trials again; default another each time.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, with exact amounts.")
def prove_quota(as_json: bool, config: Path | None, **wanted: Any) -> None:
    """Prove that limits hold, on the configured store: exit 0, or 1 with everything that differs.

    Starts a simulated provider and real proxies with teams of their own, asks more of them than is allowed, lets
    clients leave and processes die, and compares what was let in, the ledger and the provider's own count. Nothing is
    sent to Mistral, and no other team is touched.
    """
    from proxy.proof.cluster import CannotProve
    from proxy.proof.start import Interrupted, Wanted, start

    try:
        proved, store = start(Wanted(**wanted), config, os.environ, unix_milliseconds())
    except CannotProve as error:
        stop(str(error), CANNOT_START)
    except Interrupted as interrupted:
        sys.exit(128 + interrupted.signal)
    _show(proved, store, as_json=as_json)


def _show(proved: Proved, store: str, *, as_json: bool) -> None:
    from proxy.proof.report import as_object, end, head, problems, rows

    if as_json:
        click.echo(json.dumps(as_object(proved, store), indent=2))
    else:
        written = rows(proved)
        click.echo(f"{head(proved, store)}\n\n{table(written, frozenset(range(1, len(written[0]))))}\n\n{end(proved)}")
    if problems(proved):
        sys.exit(WRONG)
