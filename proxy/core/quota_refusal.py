"""What a client is told whose request does not fit: which rule, by how much, and when to come again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from proxy.core.errors import InsufficientQuota, ProxyError, RateLimited
from proxy.core.money import usd
from proxy.core.quota import SLOT_WAIT, Claim, Rule, Standing, Unit
from proxy.core.rate_headers import span

NEVER: Final = float("inf")


def refusal(team: str, rules: Sequence[Rule], claims: Sequence[Claim], standings: Sequence[Standing]) -> ProxyError:
    """Names the rule that keeps the request out for the longest time."""
    refusing = [
        (_wait(rule, standing), rule, claim, standing)
        for rule, claim, standing in zip(rules, claims, standings, strict=True)
        if standing.wait != 0 and not rule.shadow
    ]
    milliseconds, rule, claim, standing = max(refusing, key=lambda one: one[0])
    wait = None if milliseconds == NEVER else int(milliseconds)
    facts = _facts(rule, claim, standing)
    told = ", ".join(f"{name} {fact}" for name, fact in facts.items())
    advice = f"Try again in {span(wait)}" if wait is not None else _never(rule)
    text = f"Quota of team '{team}': {rule.name}: {told}. {advice}."
    detail = {"rule": rule.name, **facts, "reset": span(standing.reset)}
    if rule.unit is Unit.SPEND:
        return InsufficientQuota(text, wait=wait, detail=detail)
    return RateLimited(text, about="tokens" if rule.unit is Unit.TOKENS else "requests", wait=wait, detail=detail)


def _never(rule: Rule) -> str:
    if rule.limit == 0:
        return "The limit is 0, so nothing is let in"
    return "It can never fit: ask for less, with a shorter prompt or a lower max_tokens"


def _facts(rule: Rule, claim: Claim, standing: Standing) -> dict[str, str]:
    numbers = {"used": standing.used, "reserved": standing.reserved, "limit": claim.limit, "asked": claim.amount}
    shown = usd if rule.unit is Unit.SPEND else str
    return {name: shown(number) for name, number in numbers.items()}


def _wait(rule: Rule, standing: Standing) -> float:
    """Milliseconds, or NEVER."""
    if rule.unit is Unit.CONCURRENCY:
        return SLOT_WAIT if rule.limit else NEVER
    return NEVER if standing.wait is None else standing.wait
