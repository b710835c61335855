"""One request and its answer, as every stage sees it."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from proxy.core.charge import Charge, Estimate, both
from proxy.core.errors import Headers, ProxyError
from proxy.core.json import Json
from proxy.core.provider import MAIN

_KEY = "mistral_proxy.exchange"


@dataclass(frozen=True, slots=True)
class Team:
    """Who pays. `allows(model)` is the team's allow-list, asked with the name after aliasing."""

    name: str
    allows: Callable[[str], bool]
    log_content: bool = False


@dataclass(frozen=True, slots=True)
class Before:
    """What calls to other models took, before the one that is asked now."""

    attempts: int = 0
    charge: Charge | None = None


@dataclass(slots=True, repr=False)
class Exchange:
    """Kept in `scope["state"]`; each field has one writer, the stage named beside it.

    Times are monotonic seconds. `headers` is a snapshot from before the body: a chunk trailer cannot add to it.
    `request_id` may be the client's own, and come again; `call` is ours, and never does. `client` is who sent the
    request, as far as those in front of us can be believed. `model` is the name after aliasing, `sent_as` the one that
    it has at its provider. Of the latest attempt, `sent` says whether some of it may have reached the provider,
    `answered` whether that has begun to answer with a success; `lost` is what earlier ones may have cost. What is
    counted, reserved and charged is of the model that is asked now; `before` is of those that were asked first, and
    failed, `others` whether there are more to turn to.
    """

    # begin
    request_id: str
    method: str
    path: str
    headers: tuple[tuple[bytes, bytes], ...]
    client: str
    started: float
    status: int | None = None
    first_byte: float | None = None
    last_byte: float | None = None
    bytes_out: int = 0

    # auth
    team: Team | None = None
    key_id: str | None = None

    # body
    body: Json | None = None

    # model; fallback, when it turns to another one
    model_asked: str | None = None
    model: str | None = None
    provider: str = MAIN
    sent_as: str | None = None
    before: Before = field(default_factory=lambda: Before())
    others: bool = False

    # context and dispatch
    rewrites: dict[str, None] = field(default_factory=dict)

    # estimate
    call: str = ""
    estimate: Estimate | None = None

    # quota
    quota_headers: Headers = field(default_factory=list)
    shadow_refusals: tuple[str, ...] = ()

    # breaker
    attempt_failed: Callable[[], bool] | None = None

    # dispatch; `end` is when the time of all of it is over
    end: float | None = None
    streamed: bool = False
    upstream: str | None = None
    attempts: int = 0
    sent: bool = False
    answered: bool = False
    lost: Charge | None = None
    answer_headers: Headers = field(default_factory=list)
    usage: Json | None = None
    charge: Charge | None = None
    client_gone: bool = False

    # rescue; dispatch, for an error after the first byte of a stream
    error: ProxyError | None = None

    def __repr__(self) -> str:
        return f"<Exchange {self.request_id}>"  # it holds a key and a prompt, and a traceback may print it

    def turn_to(self, model: str, provider: str, sent_as: str) -> None:
        """Begin again with another model. Of the call that failed only what it took is kept."""
        self.before = Before(self.all_attempts, self.whole_charge)
        self.model, self.provider, self.sent_as = model, provider, sent_as
        self.rewrites.clear()
        self.quota_headers, self.shadow_refusals, self.answer_headers = [], (), []
        self.attempts, self.upstream, self.streamed = 0, None, False
        self.sent = self.answered = False
        self.estimate = self.attempt_failed = self.lost = self.usage = self.charge = self.error = None

    @property
    def all_attempts(self) -> int:
        return self.before.attempts + self.attempts

    @property
    def whole_charge(self) -> Charge | None:
        if self.charge is None or self.before.charge is None:
            return self.charge or self.before.charge
        return both(self.charge, self.before.charge)

    def header(self, name: bytes) -> bytes | None:
        """The first value of a request header, by its lower-case name."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    def keep_in(self, scope: MutableMapping[str, Any]) -> None:
        # Not every server and test client makes a `state`.
        scope.setdefault("state", {})[_KEY] = self

    @staticmethod
    def of(scope: MutableMapping[str, Any]) -> Exchange:
        exchange: Exchange = scope["state"][_KEY]
        return exchange
