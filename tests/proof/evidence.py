"""Made-up trials in which all is well, to be spoilt one thing at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from proxy import data
from proxy.core.quota import Unit
from proxy.proof.audit import Counters
from proxy.proof.clients import Seen
from proxy.proof.plan import CHAT, Ask, Trial
from proxy.proof.prices import Prices
from proxy.proof.provider import Billed
from proxy.proof.recount import Evidence
from proxy.proof.rows import Row

PRICES = Prices.read(data.read("models.yaml"))
MODEL = "mistral-medium-latest"
TEAM = "proof-0-1"
COST = 10 * 1500 + 4 * 7500
"""nano-USD of ten tokens of prompt and four of answer, at 1.5 and 7.5 USD per million."""


def mark(at: int) -> str:
    return f"{TEAM}.{at}"


def trial(kind: Unit, limit: int, calls: int, waves: int = 1) -> Trial:
    made = [[[Ask(mark(at + wave * calls), CHAT, {"model": MODEL})] for at in range(calls)] for wave in range(waves)]
    return Trial(kind, TEAM, limit, made, [])


def seen(at: int, **differing: Any) -> Seen:
    return replace(Seen(mark(at), "answered", 200), **differing)


def refused(at: int, **differing: Any) -> Seen:
    return replace(
        Seen(mark(at), "refused", 429, error={"rule": "", "code": "rate_limit_exceeded"}, wait="1"), **differing
    )


def billed(at: int, **differing: Any) -> Billed:
    return replace(Billed(mark(at), MODEL, 10, 4, float(at), at + 0.5), **differing)


def row(at: int, **differing: Any) -> Row:
    made = Row(
        call=f"w-{at}",
        mark=mark(at),
        team=TEAM,
        operation="chat",
        stream=False,
        status="settled",
        error=None,
        expected_prompt=12,
        most_cost=3 * COST,
        prompt=10,
        completion=4,
        cost=COST,
        estimated=False,
    )
    return replace(made, **differing)


def evidence(
    of: Trial,
    clients: Sequence[Sequence[Seen]],
    calls: Sequence[Billed],
    rows: Sequence[Row],
    counters: Counters | None,
    *,
    killed: bool = False,
) -> Evidence:
    return Evidence(of, clients, calls, rows, counters, killed)


def requests() -> Evidence:
    """Two of three are let in."""
    clients = [[seen(0), seen(1), refused(2)]]
    return evidence(
        trial(Unit.REQUESTS, 2, 3), clients, [billed(0), billed(1)], [row(0), row(1)], Counters(used=2, reserved=0)
    )


def money() -> Evidence:
    """One is answered, one leaves a stream that goes on for a while, one dies with its process, one is refused."""
    left = 12 * 1500 + 3 * 7500
    rows = [
        row(0),
        row(
            1, stream=True, status="cancelled", error="client_gone", estimated=True, prompt=12, completion=3, cost=left
        ),
        row(2, status="cancelled", error="process_died", estimated=True, cost=3 * COST),
    ]
    numbers = {"used": "0 USD", "reserved": "0.0003 USD", "limit": "0.0004 USD", "asked": "0.000135 USD"}
    turned_away = refused(3, error={"rule": "", "code": "insufficient_quota", **numbers}, wait=None)
    clients = [[seen(0), seen(1, end="left", tokens=2), seen(2, end="broken", status=None), turned_away]]
    calls = [billed(0), billed(1, completion=5), billed(2, completion=4)]
    used = sum(one.cost or 0 for one in rows)
    return evidence(trial(Unit.SPEND, 400_000, 4), clients, calls, rows, Counters(used, 0), killed=True)


def slots() -> Evidence:
    """One slot: of two at once one is let in, and then another."""
    clients = [[seen(0), refused(1)], [seen(2)]]
    return evidence(
        trial(Unit.CONCURRENCY, 1, 2, waves=2), clients, [billed(0), billed(2)], [row(0), row(2)], Counters(0, 0, 0)
    )
