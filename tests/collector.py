"""A collector of spans on a real socket: OTLP over HTTP, in protobuf, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.programs import until


@dataclass
class Got:
    """One span; ids are hexadecimal."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    flags: int
    start: int
    end: int
    attributes: dict[str, Any]
    failed: bool
    is_client: bool
    resource: dict[str, Any]


class Collector:
    """`status` is what it answers; `hold()` lets nobody have an answer until `release()`."""

    def __init__(self) -> None:
        self.status = 200
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.bodies: list[bytes] = []
        self.asked = 0
        self._free = threading.Event()
        self._free.set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.asked += 1
                collector._free.wait()
                if collector.status == 200:
                    collector.bodies.append(body)
                    collector.paths.append(self.path)
                    collector.headers.append({name.lower(): value for name, value in self.headers.items()})
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(collector.status)
                self.send_header("location", "/elsewhere")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def hold(self) -> None:
        self._free.clear()

    def release(self) -> None:
        self._free.set()

    def close(self) -> None:
        self.release()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def spans(self, **attributes: Any) -> list[Got]:
        """Those so far with these attributes, `__` for `.`."""
        found = [span for body in list(self.bodies) for span in _decoded(body)]
        wanted = {name.replace("__", "."): value for name, value in attributes.items()}
        return [span for span in found if wanted.items() <= span.attributes.items()]

    def of(self, trace_id: str, count: int = 1) -> list[Got]:
        """The spans of a trace, once there are so many."""

        def there() -> list[Got]:
            found = [span for span in self.spans() if span.trace_id == trace_id]
            return found if len(found) >= count else []

        found: list[Got] = until(there, f"{count} span(s) of {trace_id}")
        assert len(found) == count
        return found


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()
    try:
        yield collector
    finally:
        collector.close()


def _decoded(body: bytes) -> Iterator[Got]:
    request = ExportTraceServiceRequest.FromString(body)
    for resource in request.resource_spans:
        about = _plain(resource.resource.attributes)
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Got(
                    name=span.name,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    flags=span.flags,
                    start=span.start_time_unix_nano,
                    end=span.end_time_unix_nano,
                    attributes=_plain(span.attributes),
                    failed=span.status.code == Status.STATUS_CODE_ERROR,
                    is_client=span.kind == Span.SPAN_KIND_CLIENT,
                    resource=about,
                )
                assert not span.status.message
                assert not span.events


def _plain(attributes: Any) -> dict[str, Any]:
    return {one.key: _value(one.value) for one in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind)
