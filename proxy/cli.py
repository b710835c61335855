"""The command line: `mistral-proxy serve | simulate | check | models`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from proxy import __version__

DEFAULT_CONFIG = Path("proxy.yaml")

WRONG, CANNOT_START, INTERRUPTED = 1, 2, 130
"""Exit codes: the thing checked is wrong; usage, configuration, port; SIGINT after the drain."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mistral-proxy")
def main() -> None:
    """OpenAI SDKs in front, Mistral behind: the proxy a team trusts with its AI key."""


@main.command()
@click.option("--config", type=click.Path(path_type=Path), help="The configuration; default ./proxy.yaml if it exists.")
@click.option("--host", help="Address to listen on; default server.host of the configuration, else 127.0.0.1.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; default server.port, else 8080.")
@click.option("--workers", type=click.IntRange(1), help="Processes; more than 1 needs a shared store.")
@click.option("--simulate", is_flag=True, help="Answer from a simulated Mistral: no key and no network needed.")
def serve(config: Path | None, host: str | None, port: int | None, workers: int | None, simulate: bool) -> None:
    """Run the proxy.

    Without a configuration, MISTRAL_API_KEY is all it needs: it listens on 127.0.0.1:8080 and prints a key for your
    SDK.
    """
    if os.environ.pop("SSLKEYLOGFILE", None):  # before anything opens it: with it, a recording tells the provider's key
        click.echo("mistral-proxy: SSLKEYLOGFILE is ignored.", err=True)
    from proxy.serving import server as alone
    from proxy.serving.plan import CannotStart, plan
    from proxy.settings.load import SettingsError, Sources

    options = {"server.host": host, "server.port": port, "server.workers": workers}
    # A configuration that names the usual variable can be tried before there is a key.
    environ = {"MISTRAL_API_KEY": "simulated"} | dict(os.environ) if simulate else os.environ
    try:
        given = {path: value for path, value in options.items() if value is not None}
        planned = plan(Sources.read(_config_file(config), environ, given), simulate=simulate)
        if planned.settings.server.workers == 1:
            alone.run(planned)
        else:
            from proxy.serving import workers as several

            several.run(planned)
    except SettingsError as error:
        _stop("\n".join(str(problem) for problem in error.problems))
    except CannotStart as error:
        _stop(str(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8081, show_default=True, help="Port to listen on.")
def simulate(host: str, port: int) -> None:
    """Run a simulated Mistral API, for tests without a key: point MISTRAL_BASE_URL or any Mistral client at it."""
    from proxy.simulator.server import run

    try:
        sys.exit(run(host, port))
    except OSError as error:
        _stop(f"Cannot listen on {host}:{port}: {error.strerror or error}.")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


@main.command()
@click.option("--config", type=click.Path(path_type=Path), help="The configuration; default ./proxy.yaml.")
def check(config: Path | None) -> None:
    """Validate a configuration: exit 0, or 1 with every error as `file:line: path: what is wrong`."""
    from proxy.serving.plan import exposure
    from proxy.settings.load import SettingsError, Sources, settings_of

    file = config or DEFAULT_CONFIG
    try:
        loaded = settings_of(Sources.read(file, os.environ))
    except SettingsError as error:
        click.echo("\n".join(str(problem) for problem in error.problems))
        sys.exit(WRONG)
    for warning in loaded.warnings:
        click.echo(f"warning: {warning}", err=True)
    if exposed := exposure(loaded.settings):
        click.echo(f"{file}: server.host: {exposed}")
        sys.exit(WRONG)
    click.echo(f"{file}: ok, {len(loaded.settings.teams)} team(s)")


@main.command()
@click.option("--all", "everything", is_flag=True, help="Retired models too.")
def models(everything: bool) -> None:
    """List the models this version knows: aliases, context, prices, capabilities, retirement."""
    from proxy import data
    from proxy.core.catalogue import Catalogue
    from proxy.models_table import table

    click.echo(table(Catalogue(data.read("models.yaml")), everything=everything))


def _config_file(asked: Path | None) -> Path | None:
    return asked or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)


def _stop(text: str) -> None:
    click.echo(f"mistral-proxy: {text}" if "\n" not in text else text, err=True)
    sys.exit(CANNOT_START)
