"""A request that has been understood before, to the letter, need not be understood again: if its answer is kept, that
is all there is to do.

What a body comes to is the same for as long as its sender and the configuration are: which model, what is sent, the key
under which the answer is kept. It takes longer to find out than everything else that is done for a hit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable
from hashlib import blake2b
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
"""Requests that are remembered, half a kilobyte each besides their letters."""

MOST_BYTES: Final = 8 << 20
"""Of all these letters."""

LARGEST: Final = 1 << 16
"""Bytes of a body that is remembered: most requests are not kept at all, and hashing a large one takes a while."""

SMALL: Final = 1 << 12
"""Bytes of a body that is remembered as it is: to look for it costs less than to hash it."""

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
        self._known: OrderedDict[bytes, Known] = OrderedDict()
        """By the letters, what they have come to."""
        self._bytes = 0
        """Of these letters."""

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        exchange = exchange_of(scope)
        raw = exchange.raw or b""
        assert exchange.team
        if exchange.team.log_content or len(raw) > LARGEST:  # what it says is wanted, or it is much
            return self._app(scope, receive, send)
        said = letters(exchange, raw)
        known = self._known.get(said)
        if known and self._recall(exchange, known):
            self._known.move_to_end(said)
            exchange.raw = None
            return self._answered(scope, receive, send)
        return self._understood(exchange, said, scope, receive, send)

    async def _understood(self, exchange: Exchange, said: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)
        if exchange.known and exchange.status is not None:
            self._remember(said, exchange.known)

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

    def _remember(self, said: bytes, known: Known) -> None:
        if said not in self._known:
            self._bytes += len(said)
        self._known[said] = known
        while len(self._known) > MOST or self._bytes > MOST_BYTES:
            gone, _ = self._known.popitem(last=False)
            self._bytes -= len(gone)


def letters(exchange: Exchange, raw: Data) -> bytes:
    """Who says what, to the letter: of a large body a digest."""
    assert exchange.team
    who = f"{exchange.team.name}\n{exchange.key_id}\n".encode() + exchange.head.once(_said_aside)
    if len(raw) <= SMALL:
        return who + b"=" + raw
    return who + b"#" + blake2b(raw, digest_size=32).digest()


def _said_aside(head: Head) -> bytes:
    said = [b"%b:%b\n" % (name, head.first[name]) for name in _SAID_ASIDE if name in head.first]
    return b"".join([*said, b"\n"])
