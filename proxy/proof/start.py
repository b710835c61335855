"""From the command line and the configuration to a proof: which store, which ledger, how many processes."""

from __future__ import annotations

import asyncio
import secrets
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from urllib.parse import urlsplit

from proxy import data
from proxy.core.quota import Unit
from proxy.core.secret import Secret
from proxy.proof.cluster import CannotProve
from proxy.proof.configuration import Places, zone
from proxy.proof.plan import Options, Plan, plan
from proxy.proof.prices import Prices
from proxy.proof.run import Proved, prove
from proxy.settings.load import SettingsError, Sources, settings_of
from proxy.settings.model import Settings

_DEFAULT: Final = Path("proxy.yaml")
_PATIENCE: Final = 2.0
"""Seconds for the first word of a Redis."""


class Interrupted(Exception):
    """Somebody has ended the proof; everything is cleaned up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


@dataclass(frozen=True, slots=True)
class Wanted:
    """As the command line has it; None is left to us. `spend` is nano-USD."""

    clients: int = 150
    workers: int | None = None
    replicas: int | None = None
    limit: int | None = None
    spend: int | None = None
    trials: int = 3
    kills: bool = True
    seed: int | None = None
    kinds: frozenset[str] = frozenset({"requests", "concurrency", "spend"})


def start(wanted: Wanted, config: Path | None, environ: Mapping[str, str], now: int) -> tuple[Proved, str]:
    """The proof, and the store that it is of. `now` is Unix milliseconds. Raises CannotProve and Interrupted."""
    settings = _settings(config, environ)
    planned = _plan(wanted, settings)
    shown = _shown(settings.store.url)
    with TemporaryDirectory(prefix="mistral-proxy-proof-", ignore_cleanup_errors=True) as folder:
        places = _places(settings, Path(folder), now)

        async def proved() -> Proved:
            if settings.store.shared:
                await _meet(settings.store.url, shown)
            return await prove(planned, places, Path(folder))

        return _run(proved), shown


def _settings(config: Path | None, environ: Mapping[str, str]) -> Settings:
    file = config or (_DEFAULT if _DEFAULT.exists() else None)
    try:
        return settings_of(Sources.read(file, environ)).settings
    except SettingsError as error:
        raise CannotProve(str(error)) from None


def _plan(wanted: Wanted, settings: Settings) -> Plan:
    """Raises CannotProve when these processes cannot share this store."""
    several = 2 if settings.store.shared else 1
    workers, replicas = wanted.workers or several, wanted.replicas or several
    if workers * replicas > 1 and not settings.store.shared:
        raise CannotProve("Counters in memory are one process's: set store.url to a redis:// that all can share.")
    if wanted.kills and workers > 1 and sys.platform != "linux":
        raise CannotProve("A single worker can be killed on Linux only: use --workers 1 or --no-kills.")
    seed = secrets.randbelow(2**32) if wanted.seed is None else wanted.seed
    options = Options(
        clients=wanted.clients,
        workers=workers,
        replicas=replicas,
        trials=wanted.trials,
        limit=wanted.limit,
        spend=wanted.spend,
        kills=wanted.kills,
        seed=seed,
        kinds=frozenset(map(Unit, wanted.kinds)),
    )
    return plan(options, Prices.read(data.read("models.yaml")), secrets.token_hex(4))


def _places(settings: Settings, folder: Path, now: int) -> Places:
    """A ledger of one's own, but in PostgreSQL where that is what is configured."""
    ledger, url = Secret(f"sqlite:///{folder}/ledger.db"), settings.ledger.url
    if url and url.reveal().startswith("postgresql:"):
        ledger = url
    return Places(settings.store.url, ledger, settings.store.on_outage, zone(datetime.fromtimestamp(now // 1000, UTC)))


def _shown(url: Secret) -> str:
    """Without who and with which password."""
    parts = urlsplit(url.reveal())
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


async def _meet(url: Secret, shown: str) -> None:
    """Proxies start without their store, and wait for it; a proof of it cannot. Raises CannotProve."""
    from redis.asyncio import Redis
    from redis.exceptions import RedisError

    client = Redis.from_url(url.reveal(), socket_connect_timeout=_PATIENCE, socket_timeout=_PATIENCE)
    try:
        await client.get("mistral-proxy:proof")
    except (RedisError, OSError) as error:
        raise CannotProve(f"The store {shown} does not answer: {type(error).__name__}.") from None
    finally:
        await client.aclose()


def _run(proved: Callable[[], Coroutine[Any, Any, Proved]]) -> Proved:
    """In a loop of its own, which SIGINT and SIGTERM end in order. Raises Interrupted."""
    received: list[int] = []

    async def signalled() -> Proved:
        task = asyncio.ensure_future(proved())

        def cancel(number: int) -> None:
            received.append(number)
            if len(received) == 1:  # the clean-up is not ended by another
                task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, cancel, number)
        return await task

    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(signalled())
    except asyncio.CancelledError:
        raise Interrupted(received[0]) from None


def _loop_factory() -> Any:
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop
