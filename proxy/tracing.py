"""Spans on their way to a collector, by OTLP over HTTP. OpenTelemetry's libraries are the extra `otel`: this module is
imported only by a proxy that is told of a collector.

A collector that is gone, slow or full costs spans, which are counted, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from threading import Thread
from typing import Any

import requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from proxy import __version__
from proxy.core.services import Log
from proxy.core.trace import Span

MOST_WAITING, AT_ONCE = 2048, 512
"""Spans that wait for the collector, and that are sent together. Those beyond are lost."""

EVERY = 1000
"""Milliseconds that a span waits for others."""

PATIENCE = 5.0
"""Seconds that a collector has for what is sent together, however often it is tried."""

LAST_ATTEMPT = 1.0
"""Seconds that the end of the process waits for it."""

QUIET = 60.0
"""Seconds between two log lines about it."""

_PATH = "/v1/traces"

_NANOSECONDS, _MILLISECOND = 1_000_000_000, 1_000_000

_OK, _ERROR = Status(StatusCode.UNSET), Status(StatusCode.ERROR)
_SCOPE = InstrumentationScope("mistral-proxy", __version__)


class Otlp:
    """A Tracer (core/trace.py) whose spans a thread of the library's takes to `endpoint`. Make it in the process that
    serves: no thread outlives a fork. `log` may be called from any thread. `instance` tells this process from others.
    `monotonic` gives seconds, `wall` Unix milliseconds.
    """

    def __init__(
        self, endpoint: str, instance: str, log: Log, monotonic: Callable[[], float], wall: Callable[[], int]
    ) -> None:
        # The library tells of each failure; `_Delivery` does once.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)
        self._resource = _resource(instance)
        self._delivery = _Delivery(endpoint, log, monotonic)
        self._processor = BatchSpanProcessor(self._delivery, MOST_WAITING, EVERY, AT_ONCE)
        self._given = self._refused = self._offset = 0
        self._monotonic = monotonic
        self._wall = wall

    @property
    def lost(self) -> int:
        return self._refused + self._delivery.lost

    def record(self, span: Span) -> None:
        # The library's own bound says nothing to whoever counts.
        if self._given - self._delivery.taken >= MOST_WAITING:
            self._refused += 1
            return
        self._given += 1
        self._processor.on_end(self._readable(span))

    async def close(self) -> None:
        """Send what waits, within LAST_ATTEMPT."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        # The library would wait for half a minute.
        ending = Thread(target=self._processor.shutdown, name="last spans", daemon=True)
        ending.start()
        ending.join(LAST_ATTEMPT)

    def _readable(self, span: Span) -> ReadableSpan:
        self._look_at_the_clock()
        trace_id, flags = int(span.trace_id, 16), TraceFlags(span.flags)
        parent = span.parent_id and SpanContext(trace_id, int(span.parent_id, 16), span.is_remote, flags)
        return ReadableSpan(
            span.name,
            context=SpanContext(trace_id, int(span.span_id, 16), is_remote=False, trace_flags=flags),
            parent=parent or None,
            resource=self._resource,
            attributes=span.attributes,
            kind=SpanKind.CLIENT,
            status=_ERROR if span.failed else _OK,
            start_time=self._offset + int(span.start * _NANOSECONDS),
            end_time=self._offset + int(span.end * _NANOSECONDS),
            instrumentation_scope=_SCOPE,
        )

    def _look_at_the_clock(self) -> None:
        """It shows milliseconds only, and may be set: it is followed, so that the spans of a request are in order."""
        offset = self._wall() * _MILLISECOND - int(self._monotonic() * _NANOSECONDS)
        if abs(offset - self._offset) > 2 * _MILLISECOND:
            self._offset = offset


class _Delivery(SpanExporter):
    """The library's exporter, and what has come of it: `taken` spans have left the queue, of which `lost` were not
    delivered. All of it happens in the library's thread."""

    def __init__(self, endpoint: str, log: Log, now: Callable[[], float]) -> None:
        self.taken = self.lost = 0
        self._session = _Session()
        url = endpoint.removesuffix(_PATH) + _PATH
        self._exporter = OTLPSpanExporter(url, timeout=PATIENCE, session=self._session)
        self._log = log
        self._now = now
        self._fails, self._quiet_until = False, float("-inf")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken += len(spans)
        try:
            # The library takes a redirect for a success.
            delivered = self._exporter.export(spans) is SpanExportResult.SUCCESS and self._session.took
        except Exception as error:  # nothing that goes wrong here may end the thread
            delivered, self._session.said = False, type(error).__name__
        if not delivered:
            self.lost += len(spans)
        self._tell(fails=not delivered)
        return SpanExportResult.SUCCESS if delivered else SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def _tell(self, *, fails: bool) -> None:
        """A line when it begins to fail and when it is well again; of one that changes all the time, the latest."""
        if fails == self._fails or self._now() < self._quiet_until:
            return
        self._fails, self._quiet_until = fails, self._now() + QUIET
        if fails:
            self._log("warning", "spans_lost", lost=self.lost, collector=self._session.said)
        else:
            self._log("info", "spans_delivered", lost=self.lost)


class _Session(requests.Session):
    """Remembers how the latest request ended: what the collector `said`, in a word of ours, and whether it `took` what
    it was sent."""

    said, took = "", False

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False  # no proxy and no password that is meant for others

    def request(self, *args: Any, **options: Any) -> requests.Response:
        self.took = False
        try:
            response = super().request(*args, **options)
        except Exception as error:
            self.said = type(error).__name__
            raise
        self.said, self.took = f"status {response.status_code}", response.status_code // 100 == 2
        return response


def _resource(instance: str) -> Resource:
    """What all spans are of. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES have the last word."""
    ours: dict[str, Any] = {
        "service.name": "mistral-proxy",
        "service.version": __version__,
        "service.instance.id": instance,
    }
    return Resource.create({**ours, **OTELResourceDetector().detect().attributes})
