"""A request that has been understood before, to the letter, need not be understood again: if its answer is kept, that
is all there is to do.

What a body comes to is the same for as long as its sender and the configuration are: which model, what is sent, the key
under which the answer is kept. It takes longer to find out than everything else that is done for a hit.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Awaitable
from hashlib import sha256
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core import cache_control
from proxy.core.cache import Backend, Known
from proxy.core.cache_policy import Policy
from proxy.core.endpoint import Cache, Endpoint
from proxy.core.exchange import Exchange, exchange_of
from proxy.core.head import Head
from proxy.core.json import Data
from proxy.core.services import Middleware, Services
from proxy.player import Player

MOST: Final = 8_192
"""Requests that are remembered, half a kilobyte each."""

LARGEST: Final = 1 << 16
"""Bytes of a body that is remembered: most requests are not kept at all, and hashing a large one takes a while."""

SMALL: Final = 1 << 12
"""Bytes of a body that a request may hold until its end, so as not to be hashed before it is known whether that is of
use."""

_SAID_ASIDE: Final = (b"x-proxy-context", b"x-proxy-translation")
"""Headers that bear on what a body comes to."""


def build(
    policy: Policy, player: Player, endpoint: Endpoint, services: Services, answered: ASGIApp, *, on: bool
) -> Middleware | None:
    """`answered` is where a request goes whose answer is there. `on`: there is a cache."""
    if not on or endpoint.cache is Cache.NEVER or services.answers is None or not services.answers.backend.near:
        return None
    backend = services.answers.backend

    def middleware(app: ASGIApp) -> ASGIApp:
        return Recall(app, answered, policy, player, backend)

    return middleware


class Recall:
    def __init__(self, app: ASGIApp, answered: ASGIApp, policy: Policy, player: Player, backend: Backend) -> None:
        self._app = app
        self._answered = answered
        self._policy = policy
        self._player = player
        self._at_hand = backend.at_hand
        self._known: OrderedDict[bytes, tuple[Known, int]] = OrderedDict()
        """By the letters: what they have come to, and the size of the body."""
        self._sizes: Counter[int] = Counter()
        """Of those bodies: most requests that were never here have another one, and need not be hashed to know it."""

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        exchange = exchange_of(scope)
        raw = exchange.raw or b""
        assert exchange.team
        if exchange.team.log_content or len(raw) > LARGEST:  # what it says is wanted, or it is much
            return self._app(scope, receive, send)
        size, said = len(raw), None
        if size in self._sizes or size > SMALL:
            said = letters(exchange, raw)
            raw = b""
            known = self._known.get(said)
            if known and self._recall(exchange, known[0]):
                self._known.move_to_end(said)
                exchange.raw = None
                return self._answered(scope, receive, send)
        return self._understood(exchange, said, raw, size, scope, receive, send)

    async def _understood(
        self, exchange: Exchange, said: bytes | None, raw: Data, size: int, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Without the letters, `raw` is there to have them from."""
        await self._app(scope, receive, send)
        if exchange.known and exchange.status is not None:
            self._remember(said or letters(exchange, raw), exchange.known, size)

    def _recall(self, exchange: Exchange, known: Known) -> bool:
        """Whether there is an answer that may be given."""
        wishes = exchange.head.once(cache_control.wishes)
        if wishes.no_cache or wishes.no_store:
            return False
        entry = self._at_hand(known.key)
        if entry is None or not self._policy.is_fresh(entry, wishes):
            return False
        exchange.model_asked, exchange.model = known.model_asked, known.model
        exchange.provider, exchange.sent_as = known.provider, known.sent_as
        exchange.rewrites.update(dict.fromkeys(known.rewrites))
        self._player.found(entry, exchange, known.key)
        return True

    def _remember(self, said: bytes, known: Known, size: int) -> None:
        if said not in self._known:
            self._sizes[size] += 1
        self._known[said] = known, size
        if len(self._known) > MOST:
            _, (_, gone) = self._known.popitem(last=False)
            self._sizes[gone] -= 1
            if not self._sizes[gone]:
                del self._sizes[gone]


def letters(exchange: Exchange, raw: Data) -> bytes:
    """Who says what, to the letter."""
    assert exchange.team
    who = f"{exchange.team.name}\n{exchange.key_id}\n".encode()
    return sha256(who + exchange.head.once(_said_aside) + raw).digest()


def _said_aside(head: Head) -> bytes:
    said = [b"%b:%b\n" % (name, head.first[name]) for name in _SAID_ASIDE if name in head.first]
    return b"".join([*said, b"\n"])
