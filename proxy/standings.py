"""How all teams stand with their quotas, for whoever watches them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Final

from proxy.core.metrics import families
from proxy.core.metrics.page import Sample
from proxy.core.money import decimal
from proxy.core.quota import Claim, Counter, QuotaStore, Rule, Standing, Unit

AT_ONCE: Final = 100
"""Counters that a store is asked for at a time: in Redis nobody else gets a turn meanwhile."""


class Standings:
    """`rules` by team. A rule that counts each key apart has no one number, and is left out."""

    def __init__(self, rules: Mapping[str, Sequence[Rule]], store: QuotaStore) -> None:
        self._store = store
        # A rule that is written twice is one series.
        self._rules = {
            (team, _name(rule)): rule for team, of_team in rules.items() for rule in of_team if not rule.per_key
        }
        self._claims = [
            Claim(Counter(team, rule.unit, rule.window, None, rule.model, rule.shadow), rule.limit, 0)
            for (team, _), rule in self._rules.items()
        ]

    async def samples(self) -> list[Sample]:
        """Raises StoreGone."""
        standings: list[Standing] = []
        for at in range(0, len(self._claims), AT_ONCE):
            standings += (await self._store.look(self._claims[at : at + AT_ONCE])).standings
        samples: list[Sample] = []
        least: dict[Unit, tuple[Fraction, int]] = {}
        for (labels, rule), standing in zip(self._rules.items(), standings, strict=True):
            shown = _SHOWN[rule.unit]
            samples += (
                (families.QUOTA_USED, labels, shown(standing.used)),
                (families.QUOTA_RESERVED, labels, shown(standing.reserved)),
                (families.QUOTA_LIMIT, labels, shown(rule.limit)),
            )
            if not rule.shadow:
                left = max(rule.limit - standing.used - standing.reserved, 0)
                part = Fraction(left, rule.limit or 1)
                least[rule.unit] = min(least.get(rule.unit, (part, left)), (part, left))
        return [*samples, *((families.LEFT, (unit.value,), _SHOWN[unit](left)) for unit, (_, left) in least.items())]


def _name(rule: Rule) -> str:
    return f"{rule.name}, shadow" if rule.shadow else rule.name


_SHOWN: Final = {unit: decimal if unit is Unit.SPEND else str for unit in Unit}
