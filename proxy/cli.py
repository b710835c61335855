"""The command line: `mistral-proxy serve | simulate | check | models | keys | usage | cache | prove-quota`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import click

from proxy import __version__
from proxy.commands.cache import cache
from proxy.commands.keys import keys
from proxy.commands.prove_quota import prove_quota
from proxy.commands.usage import usage

DEFAULT_CONFIG = Path("proxy.yaml")

WRONG, CANNOT_START, INTERRUPTED = 1, 2, 130
"""Exit codes: the thing checked is wrong; usage, configuration, port; SIGINT after the drain."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mistral-proxy")
def main() -> None:
    """OpenAI SDKs in front, Mistral behind: the proxy a team trusts with its AI key."""
    _open_streams()


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
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until somebody listens to it, and looks at the files then anyway
    options = {"server.host": host, "server.port": port, "server.workers": workers}
    given = {path: value for path, value in options.items() if value is not None}
    try:
        _serve(config, given, simulate=simulate)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _serve(config: Path | None, options: dict[str, str | int], *, simulate: bool) -> None:
    if os.environ.pop("SSLKEYLOGFILE", None):  # before anything opens it: with it, a recording tells the provider's key
        click.echo("mistral-proxy: SSLKEYLOGFILE is ignored.", err=True)
    from proxy.serving import server as alone
    from proxy.serving.plan import CannotStart, plan
    from proxy.settings.load import SettingsError, Sources

    # A configuration that names the usual variable can be tried before there is a key.
    environ = {"MISTRAL_API_KEY": "simulated"} | dict(os.environ) if simulate else os.environ
    try:
        planned = plan(Sources.read(_config_file(config), environ, options), simulate=simulate)
        if planned.settings.server.workers == 1:
            alone.run(planned)
        else:
            from proxy.serving import workers as several

            several.run(planned)
    except SettingsError as error:
        _stop(str(error))
    except CannotStart as error:
        _stop(f"mistral-proxy: {error}")


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8081, show_default=True, help="Port to listen on.")
def simulate(host: str, port: int) -> None:
    """Run a simulated Mistral API, for tests without a key: point MISTRAL_BASE_URL or any Mistral client at it."""
    try:
        from proxy.simulator.server import run

        sys.exit(run(host, port))
    except OSError as error:
        _stop(f"mistral-proxy: Cannot listen on {host}:{port}: {error.strerror or error}.")
    except UnicodeError:
        _stop(f"mistral-proxy: Cannot listen on {host}:{port}: this is no host name.")
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
        click.echo(error)
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


main.add_command(keys)
main.add_command(usage)
main.add_command(cache)
main.add_command(prove_quota)


def _config_file(asked: Path | None) -> Path | None:
    return asked or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)


def _stop(text: str) -> None:
    click.echo(text, err=True)
    sys.exit(CANNOT_START)


def _open_streams() -> None:
    """Without one of the standard streams, the next file that is opened would have its number, and be written to."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (nobody closes it)
