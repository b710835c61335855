"""What `serve` decides before it listens, and again at every reload: who is let in, and with which key it pays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from proxy.core.access import AccessKey
from proxy.core.provider import MAIN
from proxy.core.secret import Secret
from proxy.serving import local_key
from proxy.settings.load import SettingsError, Sources, settings_of
from proxy.settings.model import Settings, Team
from proxy.settings.problems import Problem
from proxy.stages.quota import Quota
from proxy.upstream.config import is_loopback

FIXED = {
    "server": ("host", "port", "workers", "key_pepper"),
    "store": ("url", "on_outage"),
    "ledger": ("url", "retention"),
    "tracing": ("otlp_endpoint",),
}
"""What the settings say of the socket, the processes, and where counters, rows and spans are: no running proxy changes
it."""

LOCAL_SPEND = "5 USD/day"
"""What the key of a start without a configuration can cost."""


class CannotStart(Exception):
    """The text is one sentence that says what to do."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What has been decided. `local` is the minted key's text and place, when there are no teams; `waiting` names what
    the sources say of FIXED and only a restart brings about."""

    sources: Sources
    settings: Settings
    simulate: bool
    local: tuple[Secret, Path] | None = None
    warnings: tuple[Problem, ...] = ()
    waiting: tuple[str, ...] = ()


def plan(sources: Sources, *, simulate: bool) -> Plan:
    """Settle what the settings leave open. Raises SettingsError or CannotStart."""
    loaded = settings_of(sources)
    if loaded.settings.tracing.otlp_endpoint:
        _import_tracing()
    settings, local = complete(loaded.settings, sources.environ, simulate=simulate)
    return Plan(sources, settings, simulate, local, loaded.warnings)


def _import_tracing() -> None:
    """Before there are workers, so that it is in memory once for all of them."""
    try:
        import_module("proxy.tracing")
    except ImportError:
        raise CannotStart(
            "tracing.otlp_endpoint needs OpenTelemetry, which is not installed: pip install 'mistral-proxy[otel]'."
        ) from None


def complete(
    settings: Settings, environ: Mapping[str, str], *, simulate: bool
) -> tuple[Settings, tuple[Secret, Path] | None]:
    """With a team in them: without any there is one, `local`, with a key of its own. Raises CannotStart."""
    if not simulate and not settings.mistral.api_keys and not _all_pay(settings):
        raise CannotStart("Set MISTRAL_API_KEY to your Mistral key, or try the proxy without one: serve --simulate.")
    if settings.teams:
        return settings, None
    if exposed := exposure(settings):
        raise CannotStart(exposed)
    try:
        file = local_key.path(environ)
        secret = local_key.read_or_mint(file)
    except OSError as error:
        raise CannotStart(
            f"The local key could not be kept: {error}. Configure a team, or set XDG_STATE_HOME."
        ) from None
    if any(key.digest == secret.digest() for key in settings.server.admin_keys):
        raise CannotStart(f"The local key ({file}) is one of server.admin_keys, too: an admin needs another one.")
    quotas = [Quota.model_validate({"spend": LOCAL_SPEND})]
    teams = {"local": Team(keys=[AccessKey(secret.digest(), secret)], quotas=quotas)}
    return settings.model_copy(update={"teams": teams}), (secret, file)


def _all_pay(settings: Settings) -> bool:
    """Whether every team has a key of its own for the main provider."""
    return bool(settings.teams) and all(MAIN in team.provider_keys for team in settings.teams.values())


def exposure(settings: Settings) -> str | None:
    """Why these settings would let strangers in, or None."""
    if settings.teams or is_loopback(settings.server.host):
        return None
    return (
        f"Listening on {settings.server.host} needs at least one team with a key under `teams`: "
        "without one, anybody who reaches the port could spend your Mistral key."
    )


def next_plan(sources: Sources, running: Plan) -> Plan:
    """What these sources make of a running proxy. Raises SettingsError or CannotStart, as a start would with them."""
    if sources.file and not sources.data.strip():
        # Most likely somebody is about to write it; and every key would be gone.
        raise SettingsError([Problem(sources.file, None, "", "the file is empty")])
    planned = _with_fixed_of(running, plan(sources, simulate=running.simulate))
    if planned.local and (exposed := exposure(planned.settings.model_copy(update={"teams": {}}))):
        raise CannotStart(exposed)
    return planned


def _with_fixed_of(running: Plan, planned: Plan) -> Plan:
    sections, waiting = {}, []
    for name, fixed in FIXED.items():
        before, asked = getattr(running.settings, name), getattr(planned.settings, name)
        kept = {option: getattr(before, option) for option in fixed}
        sections[name] = asked.model_copy(update=kept)
        waiting += [f"{name}.{option}" for option, value in kept.items() if getattr(asked, option) != value]
    return replace(planned, settings=planned.settings.model_copy(update=sections), waiting=tuple(waiting))
