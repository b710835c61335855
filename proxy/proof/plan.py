"""What is asked in each trial, and of what: everything that chance decides is decided here, by one seed.

A team of its own in every trial, and a mark in every prompt: by it the client's view of a call, the provider's and the
ledger's are found to be one. Money is nano-USD.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from random import Random
from typing import Any, Final

from proxy.core.quota import Unit
from proxy.proof.prices import Prices

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"

LIMITS: Final = (1, 7, 100)
"""Of the trials of admission, in turn."""

ROUNDS: Final = 2
"""Calls that each client makes, one after the other, where money is limited: the second finds what the first gave
back."""

PATIENT: Final = 3
"""Attempts of who comes when all slots are free: one is free a moment after the last byte that it was for."""

_SHARE: Final = Decimal("0.4")
"""A limit on spend is this part of what all calls could cost: it binds, and is nearly reached."""

_MARGIN: Final = 600
"""Tokens that a short prompt can cost at most, about: what a limit is drawn up from need not be exact."""

_CHATS: Final = ("mistral-small-latest", "mistral-medium-latest", "mistral-large-latest")
_EMBEDDER: Final = "mistral-embed"
_FINEST: Final = Decimal("0.001")
"""Of the factor of prices: with it they still have no more than six decimals."""


@dataclass(frozen=True, slots=True)
class Options:
    """As the command line has them. `limit`: of the trials of admission, None: LIMITS in turn. `spend`: the limit of
    those of money in nano-USD, for which prices are made to fit; None: the shipped prices, and a limit that fits."""

    clients: int = 150
    workers: int = 1
    replicas: int = 1
    trials: int = 4
    limit: int | None = None
    spend: int | None = None
    kills: bool = True
    seed: int = 0
    kinds: frozenset[Unit] = frozenset({Unit.REQUESTS, Unit.CONCURRENCY, Unit.SPEND})


@dataclass(frozen=True, slots=True)
class Ask:
    """One call. Its client leaves after so many seconds, or when it has seen so many tokens, or stays; where a quota
    refuses it, it makes so many `attempts`."""

    mark: str
    path: str
    body: Mapping[str, Any]
    leaves_after: float | None = None
    leaves_at: int | None = None
    attempts: int = 1

    @property
    def is_stream(self) -> bool:
        return bool(self.body.get("stream"))


Client = Sequence[Ask]
"""What one client asks, one after the other."""

Wave = Sequence[Client]
"""Clients that ask at the same time."""


@dataclass(frozen=True, slots=True)
class Trial:
    """`limit` is of requests, slots or nano-USD. `faults` are what the provider does with each call, in the order in
    which they come. A process is killed `kill` seconds after the first has come, or none."""

    kind: Unit
    team: str
    limit: int
    waves: Sequence[Wave]
    faults: Sequence[str]
    kill: float | None = None
    key: str = field(default_factory=lambda: f"proof-{secrets.token_urlsafe(24)}", repr=False)

    @property
    def clients(self) -> int:
        return max(map(len, self.waves))

    @property
    def asks(self) -> Iterator[Ask]:
        return (ask for wave in self.waves for client in wave for ask in client)


@dataclass(frozen=True, slots=True)
class Plan:
    """`run` tells the teams of one proof from those of any other that uses the same store. Trials of money come first:
    what their killed processes had is free again when the others are over."""

    options: Options
    prices: Prices
    run: str
    trials: Sequence[Trial]


def plan(options: Options, prices: Prices, run: str) -> Plan:
    """All trials; with the same seed and run the same ones, but for keys."""
    maker = _Maker(Random(options.seed), options, prices, run)  # noqa: S311 (not a secret: it can be repeated)
    trials: list[Trial] = []
    if Unit.SPEND in options.kinds:
        prices, spends = maker.spends()
        trials += spends
    if Unit.REQUESTS in options.kinds:
        trials += [maker.requests(at) for at in range(options.trials)]
    if Unit.CONCURRENCY in options.kinds:
        trials += [maker.concurrency(at) for at in range(-(-options.trials // 8))]
    return Plan(options, prices, run, trials)


class _Maker:
    def __init__(self, random: Random, options: Options, prices: Prices, run: str) -> None:
        self._random = random
        self._options = options
        self._prices = prices
        self._run = run
        self._teams = 0

    # Admission.

    def requests(self, at: int) -> Trial:
        team, limit = self._team(), self._limit(at)
        wave = self._short_calls(team, self._crowd(limit))
        return Trial(Unit.REQUESTS, team, limit, [wave], ["full+jitter=0.2"] * len(wave))

    def concurrency(self, at: int) -> Trial:
        """The second wave finds every slot free again."""
        team, limit = self._team(), self._limit(at + 1)
        crowd = self._crowd(limit)
        calls = [*self._short_calls(team, crowd), *self._short_calls(team, limit, crowd, attempts=PATIENT)]
        faults = ["full+latency=0.05+jitter=0.3"] * len(calls)
        return Trial(Unit.CONCURRENCY, team, limit, [calls[:crowd], calls[crowd:]], faults)

    def _limit(self, at: int) -> int:
        return self._options.limit or LIMITS[at % len(LIMITS)]

    def _crowd(self, limit: int) -> int:
        """How many at once: more than there is room for."""
        most = self._options.clients
        return self._random.randint(min(most, max(2 * limit, most // 4)), most)

    def _short_calls(self, team: str, count: int, first: int = 0, *, attempts: int = 1) -> list[Client]:
        return [[self._chat(f"{team}.{first + at}", 4, attempts=attempts)] for at in range(count)]

    # Money.

    def spends(self) -> tuple[Prices, list[Trial]]:
        """With the prices at which all that is asked for is more than what may be spent."""
        made = [self._team_and_clients() for _ in range(self._options.trials)]
        worst = [sum(self._worst(ask) for client in clients for ask in client) for _, clients in made]
        spend, prices = self._options.spend, self._prices
        limits = [int(cost * _SHARE) for cost in worst]
        if spend is not None:
            factor = (spend * len(limits) / Decimal(sum(limits))).quantize(_FINEST, ROUND_HALF_UP)
            prices, limits = prices.times(max(factor, _FINEST)), [spend] * len(limits)
        return prices, [self._spend(*one, limit) for one, limit in zip(made, limits, strict=True)]

    def _spend(self, team: str, clients: list[Client], limit: int) -> Trial:
        count = sum(map(len, clients))
        kill = self._random.uniform(0.0, 0.4) if self._options.kills else None
        return Trial(Unit.SPEND, team, limit, [clients], [self._fault() for _ in range(count)], kill)

    def _team_and_clients(self) -> tuple[str, list[Client]]:
        team = self._team()
        calls = [self._any_call(f"{team}.{at}") for at in range(self._options.clients * ROUNDS)]
        return team, [calls[at : at + ROUNDS] for at in range(0, len(calls), ROUNDS)]

    def _any_call(self, mark: str) -> Ask:
        kind = self._random.choices(("chat", "stream", "embeddings"), (5, 4, 1))[0]
        if kind == "embeddings":
            text = f"{mark} " + "word " * self._random.randint(1, 400)
            return Ask(mark, EMBEDDINGS, {"model": _EMBEDDER, "input": text}, self._impatience())
        if kind == "chat":
            return self._chat(mark, self._random.randint(200, 2000), leaves_after=self._impatience())
        at = self._random.randint(1, 20) if self._random.random() < 0.15 else None
        most = self._random.randint(10, 90)  # words of at most eight bytes: each counts as one token
        return self._chat(mark, most, stream=True, leaves_after=self._impatience(), leaves_at=at)

    def _impatience(self) -> float | None:
        """Seconds after which somebody leaves, which mostly is before the first byte."""
        return self._random.uniform(0.0, 0.3) if self._random.random() < 0.1 else None

    def _chat(self, mark: str, most: int, *, stream: bool = False, **behaviour: Any) -> Ask:
        message = {"role": "user", "content": f"{mark} " + "word " * self._random.randint(0, 40)}
        body = {"model": self._random.choice(_CHATS), "messages": [message], "max_tokens": most}
        return Ask(mark, CHAT, body | {"stream": True} if stream else body, **behaviour)

    def _fault(self) -> str:
        often, seldom = ("",), ("status=500", "status=503", "cut_bytes=200", f"cut_events={self._random.randint(1, 9)}")
        fault = self._random.choice(seldom if self._random.random() < 0.2 else often)
        return "+".join(filter(None, ("full+jitter=0.4+delay=0.004", fault)))

    def _worst(self, ask: Ask) -> int:
        text = ask.body["input"] if ask.path == EMBEDDINGS else ask.body["messages"][0]["content"]
        return self._prices.cost(ask.body["model"], len(text) + _MARGIN, ask.body.get("max_tokens", 0))

    def _team(self) -> str:
        self._teams += 1
        return f"proof-{self._run}-{self._teams}"
