"""The way to a collector, with the library's own thread and a real one at its end."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

from proxy import tracing
from proxy.core.trace import Span
from proxy.tracing import AT_ONCE, MOST_WAITING, QUIET, Otlp
from tests.asgi import Log
from tests.collector import Collector, collecting
from tests.programs import until

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "b7ad6b7169203331"
ONE = Span(
    name="mistral.client.chat.create", trace_id=TRACE, span_id="00f067aa0ba902b7", parent_id=PARENT, is_remote=True,
    flags=3, start=10.25, end=10.75, attributes={"a": "text", "b": 3, "c": True, "d": ("x", "y")}, failed=False,
)  # fmt: skip


class Hours:
    """A clock that stands until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def wall() -> int:
    return 1_000_000_000_000


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tracing, "EVERY", 1)
    before = logging.getLogger("opentelemetry").level
    yield
    logging.getLogger("opentelemetry").setLevel(before)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as one:
        yield one


def test_what_is_told_arrives(collector: Collector) -> None:
    otlp = Otlp(collector.url, "worker-1", Log(), Hours(), wall)
    otlp.record(ONE)
    otlp.record(replace(ONE, span_id=PARENT, parent_id=None, failed=True))
    first, second = collector.of(TRACE, 2)
    asyncio.run(otlp.close())
    assert (first.name, first.span_id, first.parent_id) == (ONE.name, ONE.span_id, PARENT)
    assert (first.start, first.end) == (1_000_000_010_250_000_000, 1_000_000_010_750_000_000)
    assert (first.failed, first.is_client) == (False, True)
    assert first.attributes == {"a": "text", "b": 3, "c": True, "d": ["x", "y"]}
    assert first.resource["service.name"] == "mistral-proxy"
    assert first.resource["service.instance.id"] == "worker-1"
    assert (second.parent_id, second.failed) == ("", True)
    assert set(collector.paths) == {"/v1/traces"}
    assert otlp.lost == 0


def test_what_waits_at_the_end_is_sent(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "EVERY", 3_600_000)
    otlp = Otlp(f"{collector.url}/v1/traces", "w", Log(), Hours(), wall)
    otlp.record(ONE)
    asyncio.run(otlp.close())
    assert len(collector.spans()) == 1
    assert collector.paths == ["/v1/traces"]


def test_the_environment_of_opentelemetry_counts(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "our-proxy")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=the-collectors")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    otlp = Otlp(collector.url, "w", Log(), Hours(), wall)
    otlp.record(ONE)
    (span,) = collector.of(TRACE)
    asyncio.run(otlp.close())
    assert span.resource["service.name"] == "our-proxy"
    assert span.resource["deployment.environment.name"] == "test"
    assert collector.headers[0]["api-key"] == "the-collectors"


@pytest.mark.parametrize("status", [400, 401, 307])
def test_l4_what_is_refused_is_counted_and_told_once(collector: Collector, status: int) -> None:
    log, clock = Log(), Hours()
    otlp = Otlp(collector.url, "w", log, clock, wall)
    collector.status = status
    for count in range(1, 4):
        otlp.record(ONE)
        until(partial(lambda count: otlp.lost == count, count), "it is counted")
    assert log.lines == [("warning", "spans_lost", {"lost": 1, "collector": f"status {status}"})]
    collector.status = 200
    otlp.record(ONE)
    until(collector.spans, "it is well again")
    assert len(log.lines) == 1  # it has just been said that it is not
    clock.now += QUIET
    otlp.record(ONE)
    until(lambda: len(log.lines) == 2, "that is said")
    assert log.lines[1] == ("info", "spans_delivered", {"lost": 3})
    asyncio.run(otlp.close())


def test_l4_what_finds_no_room_is_counted(collector: Collector) -> None:
    collector.hold()
    otlp = Otlp(collector.url, "w", Log(), Hours(), wall)
    otlp.record(ONE)
    until(lambda: collector.asked, "the thread is busy")

    async def record() -> None:
        for _ in range(MOST_WAITING + 500):
            otlp.record(ONE)

    asyncio.run(record())  # which no lock of the library's holds up
    assert otlp.lost == 500
    collector.release()
    until(lambda: len(collector.spans()) == MOST_WAITING + 1, "the rest has arrived")
    asyncio.run(otlp.close())
    assert otlp.lost == 500
    assert all(len(body) < AT_ONCE * 500 for body in collector.bodies)


def test_l4_nobody_waits_for_a_collector_that_hangs(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "PATIENCE", 60.0)
    monkeypatch.setattr(tracing, "LAST_ATTEMPT", 0.01)
    collector.hold()
    otlp = Otlp(collector.url, "w", Log(), Hours(), wall)
    otlp.record(ONE)
    until(lambda: collector.asked, "the thread is busy")
    asyncio.run(otlp.close())
    (ending,) = [thread for thread in threading.enumerate() if thread.name == "last spans"]
    assert ending.daemon  # and the end of the process waits for it no more than this test
    collector.release()
    ending.join()


def test_what_cannot_be_written_is_counted(collector: Collector) -> None:
    otlp = Otlp(collector.url, "w", Log(), Hours(), wall)
    otlp.record(replace(ONE, start=-1e12))
    until(lambda: otlp.lost == 1, "it is counted")
    otlp.record(ONE)
    collector.of(TRACE)
    asyncio.run(otlp.close())


def test_a_fault_of_the_library_ends_no_thread(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    otlp = Otlp(collector.url, "w", log, Hours(), wall)
    with monkeypatch.context() as broken:
        broken.setattr(OTLPSpanExporter, "export", lambda self, spans: 1 / 0)
        otlp.record(ONE)
        until(lambda: otlp.lost == 1, "it is counted")
    otlp.record(ONE)
    collector.of(TRACE)
    asyncio.run(otlp.close())
    assert log.lines == [("warning", "spans_lost", {"lost": 1, "collector": "ZeroDivisionError"})]


def test_the_clock_is_followed_and_not_believed_to_the_millisecond(collector: Collector) -> None:
    shown = iter([1_000, 1_001, 5_000])
    otlp = Otlp(collector.url, "w", Log(), Hours(), lambda: next(shown))
    for _ in range(3):
        otlp.record(ONE)
    spans = collector.of(TRACE, 3)
    asyncio.run(otlp.close())
    assert [span.end // 1_000_000 for span in spans] == [11_750, 11_750, 15_750]
