"""One request and its answer, as every stage sees it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Final, Literal

import msgspec
from starlette.types import Receive, Send

from proxy.core.cache import Known, Outcome
from proxy.core.charge import Charge, Estimate, both
from proxy.core.circuit import Pass
from proxy.core.departure import Departure
from proxy.core.errors import Headers, ProxyError
from proxy.core.gaps import Gaps
from proxy.core.head import Head
from proxy.core.json import Data, Json
from proxy.core.provider import MAIN
from proxy.core.table import Context
from proxy.core.trace import SAMPLED, Span, traceparent

KEY: Final = "mistral_proxy.exchange"
"""Where a scope has it."""

Replay = Callable[["Exchange", Receive, Send], Awaitable[None]]
"""Answers with what is there already. It is told whom, and does not keep that: what holds on to itself stays in memory
until the collector comes."""


@dataclass(frozen=True, slots=True)
class Team:
    """Who pays. `allows(model)` is the team's allow-list, asked with the name after aliasing. Of each of its prompts
    and answers as many characters as `log_content` are logged; 0: nothing is."""

    name: str
    allows: Callable[[str], bool]
    log_content: int = 0


@dataclass(frozen=True, slots=True)
class Stale:
    """What a `model` answered before, should it be needed."""

    model: str
    replay: Replay


@dataclass(frozen=True, slots=True)
class Before:
    """What calls to other models took, before the one that is asked now: together, and each (the model, its provider
    and the charge)."""

    attempts: int = 0
    charge: Charge | None = None
    each: tuple[tuple[str, str, Charge], ...] = ()


Then = Literal["again", "another model", "an older answer", "nothing"]


@dataclass(frozen=True, slots=True)
class Failed:
    """An attempt that did not answer, its `number` among those of its provider's calls, and what came then: nothing,
    if all models have failed, or if nobody waited for more. `code` is the error's."""

    provider: str
    number: int
    code: str
    then: Then = "again"


class Stand(msgspec.Struct, frozen=True, gc=False):
    """How the team stands with the rule whose end is nearest: its name, and the numbers as they are told."""

    rule: str
    used: str
    reserved: str
    limit: str


@dataclass(slots=True, repr=False, eq=False)
class Exchange:
    """Kept in the scope. A field is written by those that are named above it: one stage, but for how an answer comes
    about, which has more than one way. `turn_to` begins anew.

    Times are monotonic seconds. `request_id` may be the client's own, and come again; `call` is ours, and never
    does. `client` is who sent the request, as far as those in front of us can be believed, and `departure` tells when
    it leaves. `model` is the name after aliasing, `sent_as` the one that it has at its provider, `sending` the body as
    the provider gets it. Of the latest attempt, `sent` says whether some of it may have reached the provider,
    `answered` whether that has begun to answer with a success; `lost` is what earlier ones may have cost, `alone` what
    the answer has cost without them. What is counted, reserved and charged is of the model that is asked now; `before`
    is of those that were asked first, and failed, `others` whether there are more to turn to, `turned` whether this is
    not the first.

    The request is the span `span_id` of the trace `trace_id`, within the client's `parent_id` if it said so;
    `span_before` tells of the model that was asked before.

    `cache` says what the cache did, `cache_key` is the digest of what it looked for, `age` how many seconds ago the
    answer was made and `saved` what it cost then, in nano-USD. `replay` answers without a call, `stale` does if the
    call fails, as it did when it was `rescued`; `stays` is asked when the client leaves (core/flight.py). `known` is
    what the body, `raw`, has come to.

    When it had come through the door, its body was there, what it asks was understood, whether there is an answer was
    looked up, the provider was called first and its answer was there last: `admitted`, `received`, `understood`,
    `looked_up`, `called`, `returned`. `waited` is for how many seconds somebody else was waited for besides the client
    and the provider. `begun` is when the answer begins, `took` the time of the proxy's own until then
    (core/overhead.py); `ending` is called once, before the last of the answer is sent. `gaps` are those between the
    pieces of a stream, `in_vain` the attempts that did not answer. `cancelled`: a call was ended because its client had
    left.
    """

    # begin; `status` also capture.py, when it is sure to be sent
    request_id: str
    method: str
    path: str
    head: Head
    client: str
    started: float
    trace_id: str = ""
    span_id: str = ""
    parent_id: str | None = None
    trace_flags: int = 0
    departure: Departure | None = None
    status: int | None = None
    begun: float | None = None
    decision: str | None = None
    took: tuple[float | None, ...] = ()
    first_byte: float | None = None
    last_byte: float | None = None
    bytes_out: int = 0

    # metrics
    ending: Callable[[], object] | None = None

    # auth
    team: Team | None = None
    key_id: str | None = None

    # body
    raw: Data | None = None
    admitted: float | None = None
    received: float | None = None

    # parse
    body: Json | None = None

    # model; fallback, when it turns to another one
    model_asked: str | None = None
    model: str | None = None
    provider: str = MAIN
    sent_as: str | None = None
    before: Before = Before()
    others: bool = False
    turned: bool = False

    # trace
    span_before: Span | None = None

    # context, translate and dispatch
    rewrites: dict[str, None] = field(default_factory=dict)

    # translate
    context: Context | None = None
    sending: Json | None = None

    # cache
    understood: float | None = None
    waited: float = 0.0
    stale: Stale | None = None
    stays: Callable[[Callable[[], object]], bool] | None = None
    known: Known | None = None

    # cache; player.py, of what it plays
    cache_key: str | None = None
    age: int | None = None
    saved: int = 0

    # cache, recall and player.py; replay and fallback, which turn to what is stale; quota, which refuses it
    cache: Outcome | None = None
    replay: Replay | None = None
    rescued: ProxyError | None = None

    # estimate
    looked_up: float | None = None
    call: str = ""
    estimate: Estimate | None = None

    # quota
    stand: Callable[[], Stand | None] | None = None
    quota_headers: Headers = field(default_factory=list)
    shadow_refusals: tuple[str, ...] = ()

    # breaker; pass_over, which takes the place of a probe before it
    circuit: str | None = None
    probe: Pass | None = None
    attempt_failed: Callable[[], bool] | None = None

    # dispatch, with calls.py; fallback, replay and player.py write to `in_vain` and `upstream`, too; `end` is when the
    # time of all of it is over, for whoever waits in the cache, too
    end: float | None = None
    called: float | None = None
    returned: float | None = None
    gaps: Gaps | None = None
    in_vain: tuple[Failed, ...] = ()
    upstream: str | None = None
    attempts: int = 0
    sent: bool = False
    answered: bool = False
    lost: Charge | None = None
    answer_headers: Headers = field(default_factory=list)
    usage: Json | None = None
    alone: Charge | None = None
    cancelled: bool = False

    # dispatch, or player.py in its place
    streamed: bool = False
    charge: Charge | None = None

    # whoever was reading from it or writing to it: body, dispatch, cache with capture.py, player.py
    client_gone: bool = False

    # rescue; dispatch or player.py, for an error after the first byte of a stream
    error: ProxyError | None = None

    def __repr__(self) -> str:
        return f"<Exchange {self.request_id}>"  # it holds a key and a prompt, and a traceback may print it

    def turn_to(self, model: str, provider: str, sent_as: str) -> None:
        """Begin again with another model. Of the call that failed only what it took is kept."""
        charge, each = self.charge, self.before.each
        if charge:
            each = (*each, (self.model or "", self.provider, charge))
        self.before, self.turned = Before(self.all_attempts(), self.whole_charge(), each), True
        self.model, self.provider, self.sent_as = model, provider, sent_as
        self.rewrites.clear()
        self.context = self.sending = None
        self.cache = self.cache_key = self.age = self.replay = self.stays = self.rescued = None
        self.saved = 0
        self.quota_headers, self.answer_headers = [], []
        self.stand = self.circuit = None
        self.attempts, self.upstream, self.streamed = 0, None, False
        self.sent = self.answered = False
        self.estimate = self.attempt_failed = self.lost = self.usage = self.charge = self.error = None
        self.alone = None

    def forgo(self) -> None:
        """Whatever is kept, or under way, for this: nothing comes of it."""
        self.cache = self.age = None

    @property
    def is_only(self) -> bool:
        """Whether no other model was asked, or will be."""
        return not self.others and not self.turned

    @property
    def ids(self) -> dict[str, str]:
        """What every log line about the request begins with."""
        return {"request_id": self.request_id, "trace_id": self.trace_id}

    @property
    def sampled(self) -> bool:
        return bool(self.trace_flags & SAMPLED)

    def traceparent(self) -> str:
        """For whoever is called for this request."""
        return traceparent(self.trace_id, self.span_id, self.trace_flags)

    # These are no properties: Python calls a function of another one faster than it reads them.

    def status_told(self) -> int | None:
        """499, as nginx has it: the client left before there was an answer."""
        return 499 if self.client_gone and self.status is None else self.status

    def all_attempts(self) -> int:
        return self.before.attempts + self.attempts

    def whole_charge(self) -> Charge | None:
        if self.charge is None or self.before.charge is None:
            return self.charge or self.before.charge
        return both(self.charge, self.before.charge)

    def keep_in(self, scope: MutableMapping[str, Any]) -> None:
        scope[KEY] = self


exchange_of: Final[Callable[[Mapping[str, Any]], Exchange]] = itemgetter(KEY)
"""That of a scope. Every stage asks for it, so it is no function of Python."""
