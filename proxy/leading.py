"""A request that makes the call, for itself and for all who ask the same meanwhile.

What becomes of the answer is settled when its flight is over: kept, or given up. That is not when its client has taken
it, for which nobody else waits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.capture import Capture
from proxy.core.cache import Answers
from proxy.core.errors import ClientGone
from proxy.core.exchange import Exchange
from proxy.core.flight import Flight
from proxy.guard import Deadlines, Guard
from proxy.search import Search


class Leading:
    """`app` makes the call; `wall` gives Unix milliseconds."""

    def __init__(self, app: ASGIApp, answers: Answers, wall: Callable[[], int]) -> None:
        self._app = app
        self._answers = answers
        self._backend = answers.backend
        self._flights = answers.flights
        self._wall = wall

    async def lead(self, search: Search, flight: Flight, scope: Scope, receive: Receive, send: Send) -> None:
        exchange, terms = search.exchange, search.terms
        exchange.cache = "miss"
        exchange.stays = flight.stays
        flight.asked, flight.key_id = exchange.body, exchange.key_id
        flight.payer = terms.payer(exchange) if terms.payers else ""
        capture = Capture(flight, exchange, send, self._wall, terms.row.inert)
        flight.at_end(partial(self._settle, search.key, flight))
        try:
            try:
                await self._app(scope, receive, capture.send)
                capture.ended()
            except BaseException as error:
                capture.failed(error)
                raise
            if capture.writing:
                if not capture.writing.done():
                    await _written(exchange, capture, receive)
                capture.result()
        finally:
            capture.stop()

    def _settle(self, key: str, flight: Flight) -> None:
        if flight.entry is None or flight.spoiled:
            self._backend.drop(key, flight)
            self._answers.forget(key, flight)
            return
        other = self._flights.get(key)
        if other and other is not flight and not other.is_newer_than(flight) and flight.entry.size <= flight.most:
            other.spoiled = True  # there is a newer answer: nobody joins that one any more
        try:
            # Not forgotten before it is kept: whoever came meanwhile would ask once more.
            self._backend.keep(key, flight.entry, flight, self._answers.forget)
        except BaseException:
            self._answers.forget(key, flight)
            raise


async def _written(exchange: Exchange, capture: Capture, receive: Receive) -> None:
    """Others have the answer; its own client still takes it, for as long as it does. The time and the drain are about
    calls: what has come of one, the error that says so included, may still be taken."""
    try:
        with Guard(receive, Deadlines.together(inf), set(), departure=exchange.departure):
            await capture.written()
    except ClientGone:
        exchange.client_gone = True
