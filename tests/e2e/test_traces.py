"""Traces: from the client through the log and to the provider, and as spans to a collector."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.collector import Collector, Got, collecting
from tests.conftest import PROVIDER_KEY, TEAM_KEY, Proxy
from tests.e2e.upstream import JSON, STREAM, completion, events, prompt, upstream, url_of
from tests.e2e.wire import Answer, ask, chat, request
from tests.programs import Program, until
from tests.redis_server import RedisServer
from tests.upstream.scripted import Peer, Received, answer, chunk

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
COLLECTOR_KEY = "key-that-only-the-collector-sees-42"
USAGE = {"mistral.prompt_tokens": 3, "mistral.completion_tokens": 5, "mistral.total_tokens": 8}

CONFIG = """
server: {{port: 0, drain: 5s, workers: {workers}}}
store: {{url: "{store}"}}
providers:
  mistral:
    base_url: {mistral}
    api_keys: ["${{PROVIDER_KEY}}"]
    retry: {{max_attempts: {attempts}, initial_delay: 1ms, max_delay: 1ms, budget: 100%}}
    circuit_breaker: {{failure_threshold: 1000000}}
models:
  fallbacks: {{mistral-large-latest: [mistral-medium-latest]}}
teams:
  research: {{keys: ["${{TEAM_KEY}}"], log_content: true}}
logging: {{content: full, level: debug}}
tracing: {tracing}
"""


def traced(folder: Path, mistral: str, tracing: str, **options: Any) -> Proxy:
    """A proxy with these settings of `tracing`."""
    given = {"workers": 1, "store": "memory://", "attempts": 1} | options
    file = folder / "proxy.yaml"
    file.write_text(CONFIG.format(mistral=mistral, tracing=tracing, **given))
    env = {"PROVIDER_KEY": PROVIDER_KEY, "TEAM_KEY": TEAM_KEY}
    env["OTEL_EXPORTER_OTLP_HEADERS"] = f"api-key={COLLECTOR_KEY}"
    program = Program("serve", "--config", str(file), env=env, cwd=folder)
    return Proxy(program.url(), program)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as one:
        yield one


@pytest.fixture(scope="module")
def proxy(held: socket.socket, collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("traced")
    one = traced(folder, url_of(held), f"{{otlp_endpoint: {collector.url}}}", attempts=2)
    yield one
    one.program.stop()


async def reply(peer: Peer, received: Received) -> None:
    """As Mistral; what a prompt begins with decides how it ends."""
    if "/models" in received.line:
        row = {"id": "mistral-small-latest", "object": "model", "created": 1, "owned_by": "mistralai"}
        found = row if "/models/" in received.line else {"object": "list", "data": [row]}
        await peer.send(answer(json.dumps(found).encode(), JSON))
    elif "embeddings" in received.line:
        body = {
            "id": "e", "object": "list", "model": "mistral-embed",
            "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3},
        }  # fmt: skip
        await peer.send(answer(json.dumps(body).encode(), JSON))
    elif prompt(received).startswith("fail") or "large" in json.loads(received.body)["model"]:
        await peer.send(answer(b'{"message": "no"}', JSON.replace(b"200 OK", b"500 No")))
    elif json.loads(received.body).get("stream"):
        await peer.send(STREAM + b"".join(chunk(one) for one in events(3)) + chunk(b""))
    else:
        await peer.send(completion())


def within(trace: str, flags: str = "01") -> dict[str, str]:
    """A header of a client that has a trace."""
    return {"traceparent": parent(trace, flags)}


def parent(trace: str, flags: str = "01") -> str:
    return f"00-{trace}-{SPAN}-{flags}"


def trace_of(number: int) -> str:
    return f"{number:032x}"


async def told(proxy: Proxy, held: socket.socket, collector: Collector, data: bytes, trace: str) -> tuple[Answer, Got]:
    """The answer to a request of this trace, and its one span."""
    async with upstream(held, reply):
        found = await ask(proxy.url, data)
    (span,) = await asyncio.to_thread(collector.of, trace)
    return found, span


async def test_the_clients_trace_goes_through(proxy: Proxy, held: socket.socket, collector: Collector) -> None:
    others = {"tracestate": "vendor=their-own", "baggage": "user=alice", "x_request_id": "goes-through"}
    async with upstream(held, reply) as seen:
        await ask(proxy.url, chat("goes through", headers=within(TRACE) | others))
    (span,) = await asyncio.to_thread(collector.of, TRACE)
    assert (span.parent_id, span.is_client, span.failed) == (SPAN, True, False)
    (sent,) = seen.requests
    assert sent.header("traceparent") == f"00-{TRACE}-{span.span_id}-01"
    assert [name for name, _ in sent.headers if name.lower() in ("tracestate", "baggage")] == []
    assert proxy.program.line(request_id="goes-through")["trace_id"] == TRACE


async def test_every_attempt_is_of_the_same_span(proxy: Proxy, held: socket.socket, collector: Collector) -> None:
    trace = trace_of(0xA1)
    async with upstream(held, reply) as seen:
        found = await ask(proxy.url, chat("fail twice", headers=within(trace) | {"x_request_id": "fails-twice"}))
    (span,) = await asyncio.to_thread(collector.of, trace)
    assert found.status == 500
    assert {one.header("traceparent") for one in seen.requests} == {f"00-{trace}-{span.span_id}-01"}
    assert len(seen.requests) == 2
    assert (span.failed, span.attributes["error.type"]) == (True, "upstream_error")
    assert span.attributes["http.response.status_code"] == 500
    assert span.attributes["http.request.resend_count"] == 1
    (retry,) = proxy.program.logged("retry", request_id="fails-twice")
    assert retry["trace_id"] == trace


@pytest.mark.parametrize("headers", [{}, {"traceparent": f"00-{TRACE}-{SPAN}-01x"}, {"traceparent": "ff" + "0" * 53}])
async def test_without_one_a_trace_begins_here(
    proxy: Proxy, held: socket.socket, collector: Collector, headers: dict[str, str]
) -> None:
    async with upstream(held, reply) as seen:
        found = await ask(proxy.url, chat(f"begins here {len(str(headers))}", headers=headers))
    line = proxy.program.line(request_id=found.header("x-request-id"))
    assert re.fullmatch("[0-9a-f]{32}", line["trace_id"])
    assert line["trace_id"] != TRACE
    (span,) = await asyncio.to_thread(collector.of, line["trace_id"])
    assert span.parent_id == ""
    assert seen.requests[0].header("traceparent") == f"00-{line['trace_id']}-{span.span_id}-03"


async def test_two_of_them_are_none(proxy: Proxy, held: socket.socket) -> None:
    data = chat("two of them", headers=within(trace_of(0xA2)) | {"x_request_id": "two-of-them"})
    data = data.replace(b"\r\n\r\n", f"\r\ntraceparent: 00-{trace_of(0xA3)}-{SPAN}-01\r\n\r\n".encode(), 1)
    async with upstream(held, reply):
        assert (await ask(proxy.url, data)).status == 200
    assert proxy.program.line(request_id="two-of-them")["trace_id"] not in (trace_of(0xA2), trace_of(0xA3))


async def test_a_client_may_ask_that_nobody_keeps_it(proxy: Proxy, held: socket.socket, collector: Collector) -> None:
    async with upstream(held, reply) as seen:
        await ask(proxy.url, chat("unkept", headers=within(trace_of(0xB1), "00")))
        await ask(proxy.url, chat("kept", headers=within(trace_of(0xB2))))
    await asyncio.to_thread(collector.of, trace_of(0xB2))
    assert [span for span in collector.spans() if span.trace_id == trace_of(0xB1)] == []
    assert (seen.requests[0].header("traceparent") or "").endswith("-00")


async def test_what_a_chat_tells(proxy: Proxy, held: socket.socket, collector: Collector) -> None:
    headers = within(trace_of(1)) | {"x_request_id": "tells-all"}
    found, span = await told(proxy, held, collector, chat("tells all", headers=headers), trace_of(1))
    assert found.status == 200
    assert span.name == "mistral.client.chat.create"
    assert span.attributes == USAGE | {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "server.address": "127.0.0.1",
        "server.port": held.getsockname()[1],
        "mistral.operation": "chat.create",
        "mistral.request_id": "tells-all",
        "mistral.model": "mistral-small-latest",
        "mistral.finish_reason": "stop",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "mistral_ai",
        "gen_ai.request.model": "mistral-small-latest",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.response.finish_reasons": ["stop"],
        "mistral_proxy.team": "research",
        "mistral_proxy.cache": "bypass",
    }
    line = proxy.program.line(request_id="tells-all")
    assert (span.end - span.start) / 1e6 >= line["duration_ms"] - 0.01
    assert span.resource["service.name"] == "mistral-proxy"


async def test_what_a_stream_tells(proxy: Proxy, held: socket.socket, collector: Collector) -> None:
    _, span = await told(proxy, held, collector, chat("streams", True, within(trace_of(2))), trace_of(2))
    assert span.name == "mistral.client.chat.create_stream"
    assert USAGE.items() <= span.attributes.items()
    assert span.attributes["mistral.finish_reason"] == "stop"


async def test_what_embeddings_tell(proxy: Proxy, held: socket.socket, collector: Collector) -> None:
    body = json.dumps({"model": "mistral-embed", "input": "told by a trace"}).encode()
    data = request("POST", "/v1/embeddings", body, traceparent=parent(trace_of(3)))
    _, span = await told(proxy, held, collector, data, trace_of(3))
    assert span.name == "mistral.client.embeddings.create"
    assert span.attributes["gen_ai.operation.name"] == "embeddings"
    assert span.attributes["mistral.prompt_tokens"] == 3
    assert span.attributes["mistral_proxy.cache"] == "miss"


@pytest.mark.parametrize(
    ("path", "name", "route"),
    [("/v1/models", "list", "/v1/models"), ("/v1/models/mistral-small-latest", "retrieve", "/v1/models/{id}")],
)
async def test_what_models_tell(
    proxy: Proxy, held: socket.socket, collector: Collector, path: str, name: str, route: str
) -> None:
    trace = trace_of(0x40 + len(path))
    _, span = await told(proxy, held, collector, request(target=path, traceparent=parent(trace)), trace)
    assert (span.name, span.attributes["http.route"]) == (f"mistral.client.models.{name}", route)
    assert span.attributes["http.response.status_code"] == 200


async def test_whoever_is_not_let_in_is_told_of_too(proxy: Proxy, held: socket.socket, collector: Collector) -> None:
    data = chat("let me in", True, within(trace_of(5)) | {"authorization": "Bearer sk-nobody-has-this-key-0123"})
    found, span = await told(proxy, held, collector, data, trace_of(5))
    assert found.status == 401
    assert (span.failed, span.attributes["error.type"]) == (True, "invalid_api_key")
    assert "mistral_proxy.team" not in span.attributes
    assert "server.address" not in span.attributes


async def test_a_hit_has_a_trace_of_its_own(proxy: Proxy, held: socket.socket, collector: Collector) -> None:
    def asking(number: int) -> bytes:
        return chat("hit", headers=within(trace_of(number)), temperature=0)

    _, miss = await told(proxy, held, collector, asking(6), trace_of(6))
    found, hit = await told(proxy, held, collector, asking(7), trace_of(7))
    assert found.header("x-proxy-cache") == "hit"
    assert [span.attributes["mistral_proxy.cache"] for span in (miss, hit)] == ["miss", "hit"]
    assert hit.attributes["mistral.model"] == "mistral-small-latest"
    assert not {*USAGE, "server.address", "mistral.finish_reason"} & set(hit.attributes)  # nothing was used for it


async def test_a_model_that_was_asked_in_vain(proxy: Proxy, held: socket.socket, collector: Collector) -> None:
    async with upstream(held, reply):
        found = await ask(proxy.url, chat("in vain", headers=within(trace_of(8)), model="mistral-large-latest"))
    spans = await asyncio.to_thread(collector.of, trace_of(8), 2)
    assert found.status == 200
    whole, part = sorted(spans, key=lambda span: span.parent_id != SPAN)
    assert (whole.parent_id, whole.attributes["mistral.model"], whole.failed) == (SPAN, "mistral-medium-latest", False)
    assert (part.parent_id, part.attributes["mistral.model"], part.failed) == (
        whole.span_id, "mistral-large-latest", True,
    )  # fmt: skip
    assert whole.start <= part.start <= part.end <= whole.end
    (line,) = proxy.program.logged("fallback", trace_id=trace_of(8))
    assert line["to"] == "mistral-medium-latest"


async def test_what_nobody_calls_is_not_told(proxy: Proxy, held: socket.socket, collector: Collector) -> None:
    await ask(proxy.url, request(traceparent=parent(trace_of(0xC1))))
    await ask(proxy.url, request(target="/v1/nowhere", traceparent=parent(trace_of(0xC2))))
    await told(proxy, held, collector, chat("called", headers=within(trace_of(0xC3))), trace_of(0xC3))
    assert {span.trace_id for span in collector.spans()} & {trace_of(0xC1), trace_of(0xC2)} == set()


async def test_nothing_that_is_secret_goes_to_a_collector(
    proxy: Proxy, held: socket.socket, collector: Collector
) -> None:
    canary = "canary-of-a-client-5150"
    wrong = f"Bearer sk-{canary}"
    headers = {"tracestate": f"a={canary}", "baggage": f"a={canary}", "user_agent": canary, "x_canary": canary}
    tool = {"type": "function", "function": {"name": canary, "parameters": {"type": "object", "properties": {}}}}
    async with upstream(held, reply):
        for at, data in enumerate(
            [
                chat(canary, headers=within(trace_of(0xD0)) | headers, user=canary, tools=[tool]),
                chat(f"fail {canary}", True, within(trace_of(0xD1)) | headers),
                chat("hello", headers=within(trace_of(0xD2)), model=canary),
                chat(canary, headers=within(trace_of(0xD3)) | {"authorization": wrong}),
                request(target=f"/v1/models/{canary}?key={canary}", traceparent=parent(trace_of(0xD4))),
                chat("hello", headers=within(trace_of(0xD5)) | {"x_request_id": TEAM_KEY}),
            ]
        ):
            await ask(proxy.url, data)
            await asyncio.to_thread(collector.of, trace_of(0xD0 + at))
    sent = b"".join(collector.bodies)
    assert [
        secret for secret in (canary, TEAM_KEY, PROVIDER_KEY, COLLECTOR_KEY, "Hello!") if secret.encode() in sent
    ] == []
    assert b"research" in sent
    assert collector.headers[0]["api-key"] == COLLECTOR_KEY
    assert COLLECTOR_KEY not in proxy.program.everything()


# Without a collector, or with one that does not answer.


async def test_traces_need_no_collector(held: socket.socket, tmp_path: Path, ends: ExitStack) -> None:
    proxy = traced(tmp_path, url_of(held), "{sample: 1.0}")
    ends.callback(proxy.program.stop)
    async with upstream(held, reply) as seen:
        await ask(proxy.url, chat("no collector", headers=within(TRACE)))
        await ask(proxy.url, chat("no collector, no trace"))
    continued, begun = [one.header("traceparent") or "" for one in seen.requests]
    assert re.fullmatch(f"00-{TRACE}-(?!{SPAN})[0-9a-f]{{16}}-01", continued)
    assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-02", begun)  # nobody keeps it
    lines = await asyncio.to_thread(until, lambda: proxy.program.logged()[1:] and proxy.program.logged(), "two lines")
    assert [line["trace_id"] for line in lines] == [TRACE, begun[3:35]]


async def test_l4_a_collector_that_is_not_there_costs_nobody_anything(
    held: socket.socket, tmp_path: Path, ends: ExitStack
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    proxy = traced(tmp_path, url_of(held), f"{{otlp_endpoint: 'http://127.0.0.1:{port}'}}")
    async with upstream(held, reply):
        for at in range(20):
            assert (await ask(proxy.url, chat(f"not there {at}"))).status == 200
    await asyncio.to_thread(until, lambda: proxy.program.logged("spans_lost"), "it is said")
    assert proxy.program.stop() == -signal.SIGTERM
    (line,) = proxy.program.logged("spans_lost")
    assert (line["level"], line["collector"]) == ("warning", "ConnectionError")
    assert line["lost"] > 0
    assert proxy.program.logged("library") == []
    assert proxy.program.err == []


async def test_l4_a_collector_that_hangs_costs_nobody_anything(
    held: socket.socket, tmp_path: Path, ends: ExitStack
) -> None:
    with collecting() as collector:
        collector.hold()
        proxy = traced(tmp_path, url_of(held), f"{{otlp_endpoint: '{collector.url}'}}")
        async with upstream(held, reply):
            assert (await ask(proxy.url, chat("hangs"))).status == 200
            await asyncio.to_thread(until, lambda: collector.asked, "it hangs")
            for at in range(20):
                assert (await ask(proxy.url, chat(f"hangs {at}"))).status == 200
        assert proxy.program.stop() == -signal.SIGTERM


async def test_every_worker_tells(held: socket.socket, tmp_path: Path, collector: Collector) -> None:
    redis = RedisServer()
    proxy = traced(
        tmp_path, url_of(held), f"{{otlp_endpoint: {collector.url}}}", workers=2, store=redis.url.reveal()
    )  # fmt: skip
    instances: set[str] = set()
    async with upstream(held, reply):
        for at in range(0x1000, 0x1100):
            await ask(proxy.url, chat(f"every worker {at}", headers=within(trace_of(at))))
            (span,) = await asyncio.to_thread(collector.of, trace_of(at))
            instances.add(span.resource["service.instance.id"])
            if len(instances) == 2:
                break
    proxy.program.stop()
    redis.stop()
    assert len(instances) == 2


# Starts and reloads.


async def test_another_collector_needs_a_restart(held: socket.socket, tmp_path: Path, ends: ExitStack) -> None:
    with collecting() as first, collecting() as second:
        proxy = traced(tmp_path, url_of(held), f"{{otlp_endpoint: {first.url}}}")
        ends.callback(proxy.program.stop)
        file = tmp_path / "proxy.yaml"
        text = file.read_text().replace(first.url, second.url).replace("sample: 1.0", "sample: 0.0")
        aside = tmp_path / "aside"
        aside.write_text(text)
        aside.replace(file)
        proxy.program.signal(signal.SIGHUP)
        line = await asyncio.to_thread(proxy.program.line, event="needs_restart")
        assert line["settings"] == "tracing.otlp_endpoint"
        async with upstream(held, reply):
            await ask(proxy.url, chat("after a reload", headers=within(TRACE)))
        await asyncio.to_thread(first.of, TRACE)
        assert second.spans() == []


def test_without_the_library_it_cannot_start(tmp_path: Path) -> None:
    file = tmp_path / "proxy.yaml"
    file.write_text(CONFIG.format(
        mistral="http://127.0.0.1:1", workers=1, store="memory://", attempts=1,
        tracing="{otlp_endpoint: 'http://otel-collector:4318'}",
    ))  # fmt: skip
    hidden = "import sys; sys.modules['opentelemetry'] = None; import proxy.cli; proxy.cli.main()"
    program = Program(
        "serve", "--config", str(file), env={"PROVIDER_KEY": PROVIDER_KEY, "TEAM_KEY": TEAM_KEY}, cwd=tmp_path,
        command=(sys.executable, "-c", hidden),
    )  # fmt: skip
    assert program.ended() == 2
    assert "".join(program.err) == (
        "mistral-proxy: tracing.otlp_endpoint needs OpenTelemetry, which is not installed: "
        "pip install 'mistral-proxy[otel]'.\n"
    )


def test_nobody_pays_for_it_who_does_not_want_it(tmp_path: Path) -> None:
    """Neither the library nor what it brings along is imported."""
    code = (
        "import sys, proxy.cli, proxy.serving.server, proxy.serving.workers; from proxy.settings.load import Sources; "
        "from proxy.serving.plan import plan; plan(Sources.read(None, {'MISTRAL_API_KEY': 'k'}, {}), simulate=True); "
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'requests', 'google'))])"
    )
    program = Program("-c", code, cwd=tmp_path, command=(sys.executable,))
    assert program.ended() == 0, program.everything()
    assert "".join(program.out) == "[]\n"
