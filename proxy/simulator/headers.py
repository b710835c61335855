"""The headers around every answer, and the sliding minute that the rate-limit ones report.

Names and presence as measured in 2026: chat answers carry both pairs and the cost of the call, embeddings the request
pair, the model list none; a 429 whose request rung is empty has no token pair. The simulator reports, it never refuses.
"""

import uuid
from collections import deque
from collections.abc import Callable

from proxy.simulator.reply import Header, Reply

_REQUESTS, _TOKENS = 1_000_000, 2_000_000_000  # more than anybody asks of it: what has nothing left would be held back
_WINDOW = 60.0  # seconds


class Window:
    """The calls of the last minute against one model, whose aliases share it."""

    def __init__(self) -> None:
        self._calls: deque[tuple[float, int]] = deque()
        self._tokens = 0

    def add(self, now: float, tokens: int) -> tuple[int, int]:
        """Count a call; the requests and tokens used in the minute up to `now`."""
        self._calls.append((now, tokens))
        self._tokens += tokens
        while self._calls[0][0] <= now - _WINDOW:
            self._tokens -= self._calls.popleft()[1]
        return len(self._calls), self._tokens


class Headers:
    """Makes the headers; one instance per server, because the windows outlive a call."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._windows: dict[str, Window] = {}

    def around(self, reply: Reply, digest: bytes) -> list[Header]:
        correlation = str(uuid.UUID(bytes=digest[:16], version=4)).encode()
        return [
            *reply.headers,
            (b"server", b"cloudflare"),
            (b"mistral-correlation-id", correlation),
            (b"x-kong-request-id", correlation),
            (b"x-kong-upstream-latency", b"%d" % (120 + digest[0])),
            (b"x-kong-proxy-latency", b"6"),
            (b"x-envoy-upstream-service-time", b"%d" % (100 + digest[0])),
            (b"cf-ray", digest[:8].hex().encode() + b"-CDG"),
            (b"set-cookie", b"__cf_bm=%b; path=/; HttpOnly; Secure; SameSite=None" % digest.hex().encode()),
            *self._limits(reply),
        ]

    def _limits(self, reply: Reply) -> list[Header]:
        if reply.model is None:
            return []
        window = self._windows.setdefault(reply.model, Window())
        requests, tokens = window.add(self._monotonic(), reply.tokens or 0)
        limit = _REQUESTS if reply.limit is None else reply.limit
        left = max(limit - requests, 0) if reply.remaining is None else reply.remaining
        pair = [(b"x-ratelimit-limit-req-minute", b"%d" % limit), (b"x-ratelimit-remaining-req-minute", b"%d" % left)]
        if reply.tokens is None:
            return pair
        return [
            *pair,
            (b"x-ratelimit-limit-tokens-minute", b"%d" % _TOKENS),
            (b"x-ratelimit-remaining-tokens-minute", b"%d" % max(_TOKENS - tokens, 0)),
            (b"x-ratelimit-tokens-query-cost", b"%d" % reply.tokens),
        ]
