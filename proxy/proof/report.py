"""What is printed: a column for each kind of trial, and every single thing that was wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from proxy.core.money import decimal, usd
from proxy.core.quota import Unit
from proxy.proof.recount import Evidence, Verdict
from proxy.proof.run import Proved

KINDS: Final = (Unit.REQUESTS, Unit.CONCURRENCY, Unit.SPEND)

MOST_PROBLEMS: Final = 40
"""Lines of what was wrong; the JSON has all."""


@dataclass(frozen=True, slots=True)
class Line:
    """The trials of one kind together. Money is nano-USD; `overshoot` is the worst of any trial."""

    kind: Unit
    trials: int
    clients: int
    limits: tuple[int, ...]
    admitted: int
    refused: int
    overshoot: int
    shortfall: int
    ledger: int
    recount: int
    difference: int
    estimated: int
    charged: int
    bill: int
    without_end: int
    seconds: float

    def amount(self, amount: int) -> str:
        """In the unit of its limit."""
        return usd(amount) if self.kind is Unit.SPEND else str(amount)

    @property
    def limit(self) -> str:
        """All that there were, or between which they were."""
        several = sorted(set(self.limits))
        if len(several) > len(KINDS):
            return f"{self.amount(several[0])} to {self.amount(several[-1])}"
        return ", ".join(map(self.amount, several))


_ROWS: Final[tuple[tuple[str, Callable[[Line], str]], ...]] = (
    ("trials", lambda line: str(line.trials)),
    ("clients at once, at most", lambda line: str(line.clients)),
    ("limit", lambda line: line.limit),
    ("admitted", lambda line: str(line.admitted)),
    ("refused", lambda line: str(line.refused)),
    ("overshoot", lambda line: line.amount(line.overshoot)),
    ("shortfall", lambda line: str(line.shortfall)),
    ("ledger, exact rows", lambda line: usd(line.ledger)),
    ("recount of these", lambda line: usd(line.recount)),
    ("difference", lambda line: usd(line.difference)),
    ("estimated rows", lambda line: str(line.estimated)),
    ("charged for these", lambda line: usd(line.charged)),
    ("provider's bill of these", lambda line: usd(line.bill)),
    ("rows without end", lambda line: str(line.without_end)),
    ("seconds", lambda line: f"{line.seconds:.1f}"),
)


def lines(proved: Proved) -> list[Line]:
    """One for each kind that there was."""
    by_kind = {kind: [one for one in proved.found if one[0].trial.kind is kind] for kind in KINDS}
    return [_line(kind, found) for kind, found in by_kind.items() if found]


def _line(kind: Unit, found: Sequence[tuple[Evidence, Verdict]]) -> Line:
    def total(name: str) -> int:
        return sum(getattr(one, name) for _, one in found)

    return Line(
        kind=kind,
        trials=len(found),
        clients=max(one.trial.clients for one, _ in found),
        limits=tuple(one.trial.limit for one, _ in found),
        admitted=total("admitted"),
        refused=total("refused"),
        overshoot=max(one.overshoot for _, one in found),
        shortfall=total("shortfall"),
        ledger=total("ledger"),
        recount=total("recount"),
        difference=total("difference"),
        estimated=total("estimated"),
        charged=total("charged"),
        bill=total("bill"),
        without_end=total("without_end"),
        seconds=sum(one.seconds for one, _ in found),
    )


def problems(proved: Proved) -> list[str]:
    """All that is wrong; nothing else makes a proof fail."""
    return [problem for _, one in proved.found for problem in one.problems]


def rows(proved: Proved) -> list[list[str]]:
    """Of a table, with its head."""
    made = lines(proved)
    return [["", *(line.kind.value for line in made)], *([name, *map(told, made)] for name, told in _ROWS)]


def head(proved: Proved, store: str) -> str:
    """What was proved, and how to do it again."""
    options = proved.plan.options
    processes = f"{options.replicas} replica(s) × {options.workers} worker(s)"
    prices = (
        "shipped prices" if proved.plan.prices.factor == 1 else f"prices × {proved.plan.prices.factor.normalize():f}"
    )
    return f"{store}: {processes}, {proved.kills} killed, {prices}, seed {options.seed}"


def end(proved: Proved) -> str:
    """The verdict, with what is wrong."""
    wrong = problems(proved)
    if not wrong:
        return "Proved: nothing over, nothing short, every call has one row that has ended, nothing is still reserved."
    more = [f"and {len(wrong) - MOST_PROBLEMS} more: --json shows all"] if len(wrong) > MOST_PROBLEMS else []
    logged = [f"logged {times} time(s): {what}" for what, times in proved.errors.items()]
    return "\n".join([f"NOT PROVED, {len(wrong)} problem(s):", *wrong[:MOST_PROBLEMS], *more, *logged])


def as_object(proved: Proved, store: str) -> dict[str, Any]:
    """For programs: all amounts of money in nano-USD and, of the ledger, as decimal text."""
    options, wrong = proved.plan.options, problems(proved)
    return {
        "proved": not wrong,
        "store": store,
        "replicas": options.replicas,
        "workers": options.workers,
        "killed": proved.kills,
        "price_factor": f"{proved.plan.prices.factor.normalize():f}",
        "seed": options.seed,
        "kinds": [_object(line) for line in lines(proved)],
        "problems": wrong,
        "logged": dict(proved.errors),
    }


def _object(line: Line) -> dict[str, Any]:
    return {
        "kind": line.kind.value,
        "trials": line.trials,
        "clients": line.clients,
        "limits": line.limits,
        "admitted": line.admitted,
        "refused": line.refused,
        "overshoot": line.overshoot,
        "shortfall": line.shortfall,
        "ledger_usd": decimal(line.ledger),
        "ledger_nano_usd": line.ledger,
        "recount_nano_usd": line.recount,
        "difference_nano_usd": line.difference,
        "estimated_rows": line.estimated,
        "charged_nano_usd": line.charged,
        "billed_nano_usd": line.bill,
        "rows_without_end": line.without_end,
        "seconds": round(line.seconds, 1),
    }
