"""The commands that work on the ledger's database, and what they share: options, exit codes, tables.

Whatever takes its time to import is imported by the command that needs it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click

WRONG, CANNOT_START = 1, 2
"""Exit codes: what was asked for is wrong; usage, configuration, database."""

_LONGEST: Final = 100 * 366 * 86_400.0
"""Seconds. Nobody plans further ahead, and every calendar goes as far."""

Command = TypeVar("Command", bound=Callable[..., Any])


class Milliseconds(click.ParamType[int]):
    """A duration as proxy.yaml writes it: 30s, 24h, 90d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from pydantic import TypeAdapter, ValidationError

        from proxy.core.config import Duration

        try:
            seconds: float = TypeAdapter(Duration).validate_python(value)
        except ValidationError:
            self.fail(f"{value!r} is not a duration such as 30s, 24h or 90d", param, ctx)
        if seconds > _LONGEST:
            self.fail(f"{value!r} is more than a hundred years", param, ctx)
        return round(seconds * 1000)


def config_option(command: Command) -> Command:
    """`--config`, as every command has it."""
    help_ = "The configuration; default ./proxy.yaml if it exists."
    return click.option("--config", type=click.Path(path_type=Path), help=help_)(command)


def unix_milliseconds() -> int:
    """The time of day."""
    return time.time_ns() // 1_000_000


def moment(at: int) -> str:
    """Unix milliseconds as a time of day in UTC, in ISO 8601."""
    return datetime.fromtimestamp(at // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def stop(text: str, code: int) -> NoReturn:
    """End the command with this sentence."""
    click.echo(f"mistral-proxy: {text}", err=True)
    sys.exit(code)


def table(rows: Sequence[Sequence[str]], numbers: frozenset[int] = frozenset()) -> str:
    """The rows, the first of which is the head, in columns; those of `numbers` are aligned at their ends."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(_cells(row, widths, numbers)).rstrip() for row in rows)


def _cells(row: Sequence[str], widths: Sequence[int], numbers: frozenset[int]) -> list[str]:
    cells = zip(row, widths, strict=True)
    return [cell.rjust(width) if at in numbers else cell.ljust(width) for at, (cell, width) in enumerate(cells)]
