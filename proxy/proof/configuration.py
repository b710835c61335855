"""What the proxies of a proof are told: teams of their own, the store that is proved, and a provider that is none."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import yaml

from proxy.core.money import decimal
from proxy.core.quota import Unit
from proxy.core.secret import Secret
from proxy.proof.plan import Plan, Trial

STORE, LEDGER, KEY = "PROOF_STORE_URL", "PROOF_LEDGER_URL", "PROOF_PROVIDER_KEY"
"""Variables by which secrets reach the proxies: a file would outlive a proof that is killed."""

_NOON: Final = 12


@dataclass(frozen=True, slots=True)
class Places:
    """Where counters and rows are kept; `zone` is one in which no day ends soon."""

    store: Secret
    ledger: Secret
    on_outage: str
    zone: str

    @property
    def environ(self) -> dict[str, str]:
        return {STORE: self.store.reveal(), LEDGER: self.ledger.reveal(), KEY: "simulated"}


def configuration(plan: Plan, places: Places, provider: str, *, audit: bool = False) -> str:
    """As YAML. For an `audit` every limit is 0: a refusal then tells what is used and what is reserved."""
    rules = _nothing if audit else _rules
    made = {
        "server": {"port": 0, "workers": plan.options.workers, "drain": "2s", "time_zone": places.zone},
        "store": {"url": f"${{{STORE}}}", "on_outage": places.on_outage},
        "ledger": {"url": f"${{{LEDGER}}}"},
        "providers": {"mistral": {"base_url": provider, "api_keys": [f"${{{KEY}}}"], "max_connections": 4000}},
        "models": {"prices": _prices(plan)},
        "teams": {trial.team: {"keys": [_hash(trial.key)], "quotas": rules(trial)} for trial in plan.trials},
    }
    return yaml.safe_dump(made, sort_keys=False)


def zone(now: datetime) -> str:
    """A time zone in which it is about noon; `now` in UTC. (POSIX counts them the other way round.)"""
    west = (now.hour - _NOON) % 24
    return f"Etc/GMT{west - 24:+}" if west > _NOON else f"Etc/GMT{west:+}"


def _rules(trial: Trial) -> list[Mapping[str, Any]]:
    if trial.kind is Unit.REQUESTS:
        return [{"requests": f"{trial.limit}/hour"}]
    if trial.kind is Unit.CONCURRENCY:
        return [{"concurrency": trial.limit}]
    return [{"spend": f"{decimal(trial.limit)} USD/day"}, {"concurrency": trial.clients * 2}]


def _nothing(trial: Trial) -> list[Mapping[str, Any]]:
    if trial.kind is Unit.REQUESTS:
        return [{"requests": "0/hour"}]
    slots: list[Mapping[str, Any]] = [{"concurrency": 0}]
    return slots if trial.kind is Unit.CONCURRENCY else [{"spend": "0 USD/day"}, *slots]


def _prices(plan: Plan) -> dict[str, Any]:
    """None where the shipped ones hold."""
    if plan.prices.factor == 1:
        return {}
    models = {ask.body["model"] for trial in plan.trials for ask in trial.asks}
    return {model: _price(*plan.prices.of[model]) for model in sorted(models)}


def _price(paid: Decimal, said: Decimal) -> dict[str, str]:
    return {"input": f"{paid:f}"} | ({"output": f"{said:f}"} if said else {})


def _hash(key: str) -> str:
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"
