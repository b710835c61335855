"""Where every request begins: its id, its Exchange, and the headers that every answer carries."""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.core import decision, departure
from proxy.core.exchange import Exchange
from proxy.core.head import of as head_of
from proxy.core.money import decimal
from proxy.core.sent import SENT
from proxy.core.services import Middleware, Services
from proxy.core.trace import RANDOM, Parent, parent_of

# Such as can stand in a URL's path: `GET /admin/explain/{id}` asks for it.
_VALID_ID = re.compile(rb"(?!.*\.\.)(?=.*[A-Za-z0-9])[A-Za-z0-9._-]{1,128}")

_REQUEST, _TRACE, _SPAN = 32, 32, 16
"""Digits of the ids of a request."""

_AT_ONCE = 64
"""Requests for which ids are drawn at a time."""

_RANDOM_FROM = 18
"""The digits of a trace id from here on are random for certain, and decide whether it is sampled."""

_MOST_HOPS = 32
"""Addresses of x-forwarded-for that are looked at, from its end."""

# An address alone, or as some proxies write it: with its port, an IPv6 one in brackets.
_HOP = re.compile(r"([0-9.]{7,15})(?::[0-9]{1,5})?|([0-9A-Fa-f:.]{2,45})|\[([0-9A-Fa-f:.]{2,45})\](?::[0-9]{1,5})?")


def build(trusted: Sequence[str], services: Services, *, sample: float = 0.0) -> Middleware:
    """`trusted` are the addresses and networks (10.0.0.0/8) of the proxies in front of this one. `sample` is the part
    of the traces that begin here of which somebody keeps spans."""
    proxies = Proxies(trusted) if trusted else None

    def middleware(app: ASGIApp) -> ASGIApp:
        return Begin(app, proxies, sample, services)

    return middleware


class Begin:
    """Keeps a valid `x-request-id` of the client, else makes one, so that one id leads through all logs; and goes on
    with the trace that its `traceparent` names, else begins one."""

    def __init__(self, app: ASGIApp, proxies: Proxies | None, sample: float, services: Services) -> None:
        self._app = app
        self._proxies = proxies
        self._clock = services.monotonic
        self._traffic = services.traffic
        self._redact = services.redact
        self._ids = Ids()
        self._sampled_from = _least(sample)
        self._always = [(b"x-proxy-simulated", b"true")] if services.simulated else []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = self._exchange(scope)
        exchange.keep_in(scope)
        streaming = False

        def watched(message: Message) -> Awaitable[None]:
            nonlocal streaming
            is_start = message["type"] == "http.response.start"
            if is_start:
                exchange.begun = now = self._clock()
                if exchange.streamed and not streaming:
                    streaming = True
                    self._traffic.streams += 1
                message["headers"] = [*message.get("headers", ()), *self._always, *_headers(exchange, now)]
            elif exchange.ending and not message.get("more_body"):
                ending, exchange.ending = exchange.ending, None
                ending()
            sending = send(message)
            if sending is not SENT:
                return self._wait(sending, exchange, message)
            if is_start:
                exchange.status = message["status"]
            else:
                self._note(exchange, message)
            return sending

        try:
            await self._app(scope, receive, watched)
        finally:
            if streaming:
                self._traffic.streams -= 1

    def _exchange(self, scope: Scope) -> Exchange:
        """A new one, with all that the head says of the request as a whole."""
        head = head_of(scope)
        scope["headers"] = head.headers
        client = scope.get("client")
        peer = client[0] if client else ""
        request_id, trace_id, span_id = self._ids.next()
        who = self._proxies.client(peer, head.headers) if self._proxies else peer
        exchange = Exchange(request_id, scope["method"], scope["path"], head, who, self._clock())
        exchange.trace_id, exchange.span_id = trace_id, span_id
        exchange.trace_flags = RANDOM | (trace_id[_RANDOM_FROM:] >= self._sampled_from)
        exchange.departure = departure.of(scope)
        asked = head.first.get(b"x-request-id")
        if asked and _VALID_ID.fullmatch(asked) and self._is_harmless(asked.decode()):
            exchange.request_id = asked.decode()
        parents = head.values(b"traceparent")
        if parents and (parent := self._parent(parents)):
            exchange.trace_id, exchange.parent_id, exchange.trace_flags = parent
        return exchange

    async def _wait(self, sending: Awaitable[None], exchange: Exchange, message: Message) -> None:
        await sending
        # What is cancelled before here was not sent.
        if message["type"] == "http.response.start":
            exchange.status = message["status"]
        else:
            self._note(exchange, message)

    def _note(self, exchange: Exchange, message: Message) -> None:
        """This piece has been sent."""
        now = exchange.last_byte = self._clock()
        if exchange.first_byte is None:
            exchange.first_byte = now
        exchange.bytes_out += len(message.get("body", b""))

    def _parent(self, headers: Sequence[bytes]) -> Parent | None:
        """The one that the client has named. Of two nobody knows which is meant; a key may be hexadecimal, too."""
        parent = parent_of(headers[0]) if len(headers) == 1 else None
        return None if parent is None or self._redact.knows(parent.trace_id) else parent

    def _is_harmless(self, text: str) -> bool:
        """Whether it may be logged: a key sent as an id must not be."""
        return self._redact.text(text) == text


class Ids:
    """Random ids, for which the system is asked once for many: it may take longer than everything else here."""

    def __init__(self) -> None:
        self._drawn = ""
        self._at = 0

    def next(self) -> tuple[str, str, str]:
        """Of a request, a trace and a span."""
        at = self._at
        if at == len(self._drawn):
            self._drawn, at = os.urandom((_REQUEST + _TRACE + _SPAN) // 2 * _AT_ONCE).hex(), 0
        trace, span = at + _REQUEST, at + _REQUEST + _TRACE
        self._at = end = span + _SPAN
        drawn = self._drawn
        return drawn[at:trace], drawn[trace:span], drawn[span:end]


def _least(sample: float) -> str:
    """The least of those digits of a trace that is sampled, when this part of all are."""
    digits = _TRACE - _RANDOM_FROM
    return f"{round((1 - sample) * 16**digits):0{digits}x}" if sample else "g"  # no digit is as much


class Proxies:
    """The proxies in front of this one, whose word about who sent a request counts."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ip_network(network) for network in networks]

    def client(self, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """The address nearest to us that is none of theirs. Each proxy adds at the end of x-forwarded-for whom it heard
        it from, so what stands before the first stranger is hearsay; so is what stands before an entry that is no
        address."""
        address = _address(peer.partition("%")[0])  # without the zone of a link-local address
        said = b",".join([value for name, value in headers if name == b"x-forwarded-for"]).decode("latin-1")
        hops = said.rsplit(",", _MOST_HOPS)[-_MOST_HOPS:]
        while address and hops and self._are(address):
            before = _address(hops.pop().strip(" \t"))
            if before is None:
                break
            address = before
        return str(address or peer)

    def _are(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._networks)


@lru_cache(1024)  # the proxies in front of us are few, and clients come again
def _address(text: str) -> IPv4Address | IPv6Address | None:
    match = _HOP.fullmatch(text)
    try:
        address = ip_address(match[match.lastindex or 0]) if match else None
    except ValueError:
        return None
    # What others say of their clients may have them as IPv6 addresses (::ffff:192.0.2.7).
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def _headers(exchange: Exchange, now: float) -> list[tuple[bytes, bytes]]:
    headers = [(b"x-request-id", exchange.request_id.encode())]
    if exchange.upstream:
        headers.append((b"x-proxy-upstream", exchange.upstream.encode()))
        headers.append((b"x-proxy-attempts", str(exchange.all_attempts()).encode()))
    if exchange.cache:
        headers.append((b"x-proxy-cache", exchange.cache.encode()))
        if exchange.cache_key:
            headers.append((b"x-proxy-cache-key", exchange.cache_key.encode()))
        if exchange.age is not None:
            headers.append((b"age", b"%d" % exchange.age))
    if exchange.rewrites:
        headers.append((b"x-proxy-rewrites", ", ".join(exchange.rewrites).encode()))
    # A stream's own is known when its headers are gone.
    charge = exchange.charge and exchange.whole_charge()
    if charge and charge.cost is not None:
        headers.append((b"x-proxy-cost-usd", decimal(charge.cost).encode() if charge.cost else b"0"))
    return headers + decision.headers(exchange, now) + exchange.quota_headers + exchange.answer_headers
