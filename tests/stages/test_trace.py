from __future__ import annotations

from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy import data
from proxy.core.catalogue import Catalogue
from proxy.core.errors import BadRequest, CircuitOpen, Draining, UpstreamFailed
from proxy.core.exchange import Exchange, Team, exchange_of
from proxy.core.model import Price
from proxy.core.table import Context
from proxy.core.trace import RANDOM, SAMPLED, Span
from proxy.providers.mistral.chat import CHAT
from proxy.providers.mistral.embeddings import EMBEDDINGS
from proxy.providers.mistral.models import MODEL, MODELS
from proxy.stages import rescue, trace
from tests.asgi import call, exchange, ok, services

CATALOGUE = Catalogue(data.read("models.yaml"), {}, {"house/priced": Price(1, None, None, None, None)}, ["house"])
CONFIG = trace.Config(
    [CHAT, EMBEDDINGS, MODELS, MODEL],
    {"mistral": ("mistral", "https://api.mistral.ai"), "house": ("openai", "http://10.0.0.1:8000/deep")},
    1.0,
)
TRACE, SPAN, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "b7ad6b7169203331"
SECRET = "text of the client's"


class Kept:
    """A Tracer that keeps its spans here."""

    lost = 0

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def record(self, span: Span) -> None:
        self.spans.append(span)


class Route:
    def __init__(self, path: str) -> None:
        self.path = path


def begun(**fields: Any) -> Exchange:
    ids: dict[str, Any] = {"trace_id": TRACE, "span_id": SPAN, "parent_id": PARENT, "trace_flags": SAMPLED | RANDOM}
    return exchange(**({"started": 1.0} | ids | fields))


async def told(found: Exchange, app: ASGIApp = ok, method: str = "POST", path: str = CHAT.path) -> list[Span]:
    """The spans of one request to this path."""
    kept = Kept()
    made = services(catalogue=CATALOGUE, tracer=kept)
    stage = trace.build(CONFIG, made)
    assert stage
    await call(stage(rescue.build(made)(app)), method, path, exchange=found, route=Route(path))
    return kept.spans


async def attributes(found: Exchange, **options: Any) -> dict[str, Any]:
    (span,) = await told(found, **options)
    return dict(span.attributes)


def test_nobody_who_keeps_spans_no_stage() -> None:
    assert trace.build(CONFIG, services(catalogue=CATALOGUE)) is None
    assert trace.asked(CONFIG, {"a": ["b"]}, CHAT, services(catalogue=CATALOGUE)) is None
    assert trace.asked(CONFIG, {}, CHAT, services(catalogue=CATALOGUE, tracer=Kept())) is None


async def test_a_request_is_a_span_within_the_clients() -> None:
    (span,) = await told(begun(started=-1.5))
    assert (span.trace_id, span.span_id, span.parent_id, span.is_remote) == (TRACE, SPAN, PARENT, True)
    assert (span.flags, span.failed) == (SAMPLED | RANDOM, False)
    assert (span.start, span.end) == (-1.5, 1.0)  # the clock of the test shows its first second


@pytest.mark.parametrize(
    ("row", "fields", "name"),
    [
        (CHAT, {}, "chat.create"),
        (CHAT, {"streamed": True}, "chat.create_stream"),
        (CHAT, {"body": {"stream": True}}, "chat.create_stream"),
        (CHAT, {"body": {"stream": False}}, "chat.create"),
        (EMBEDDINGS, {}, "embeddings.create"),
        (MODELS, {}, "models.list"),
        (MODEL, {}, "models.retrieve"),
    ],
)
async def test_its_name_is_what_was_asked_for(row: Any, fields: dict[str, Any], name: str) -> None:
    (span,) = await told(begun(**fields), method=row.method, path=row.path)
    assert span.name == f"mistral.client.{name}"
    assert span.attributes["mistral.operation"] == name


async def test_all_that_it_tells() -> None:
    context = Context(CATALOGUE.model("mistral-small-latest"), {})
    for reason in ("stop", "length", SECRET, 7):
        context.ended(reason)
    found = begun(
        team=Team("research", lambda model: True), model="mistral-small-latest", attempts=3, status=200, cache="miss",
        usage={"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}, context=context, model_asked=SECRET,
    )  # fmt: skip
    assert await attributes(found) == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "http.request.resend_count": 2,
        "server.address": "api.mistral.ai",
        "server.port": 443,
        "mistral.operation": "chat.create",
        "mistral.request_id": "id-1",
        "mistral.model": "mistral-small-latest",
        "mistral.prompt_tokens": 3,
        "mistral.completion_tokens": 4,
        "mistral.total_tokens": 7,
        "mistral.finish_reason": "stop",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "mistral_ai",
        "gen_ai.request.model": "mistral-small-latest",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.response.finish_reasons": ("stop", "length"),
        "mistral_proxy.team": "research",
        "mistral_proxy.cache": "miss",
    }


async def test_what_is_not_known_it_does_not_tell() -> None:
    assert await attributes(begun(), method="GET", path=MODELS.path) == {
        "http.request.method": "GET",
        "http.route": "/v1/models",
        "mistral.operation": "models.list",
        "mistral.request_id": "id-1",
    }


@pytest.mark.parametrize(
    ("model", "name"),
    [("mistral-small-latest", "mistral-small-latest"), ("house/priced", "house/priced"), (SECRET, "other"),
     ("ft:mistral-small-latest:x:20260101:y", "other")],
)  # fmt: skip
async def test_a_name_that_nobody_knows_is_the_clients_text(model: str, name: str) -> None:
    found = await attributes(begun(model=model, provider="house" if "/" in model else "mistral"))
    assert (found["mistral.model"], found["gen_ai.request.model"]) == (name, name)


async def test_an_endpoint_that_makes_nothing_is_no_generation() -> None:
    found = await attributes(begun(model="mistral-small-latest"), method="GET", path=MODEL.path)
    assert found["mistral.model"] == "mistral-small-latest"
    assert not [name for name in found if name.startswith("gen_ai")]


@pytest.mark.parametrize("count", [True, -1, 1 << 53, "3", 1.5, None, [3]])
async def test_what_is_no_count_is_not_told(count: Any) -> None:
    found = await attributes(begun(usage={"prompt_tokens": count, "completion_tokens": 1}))
    assert "mistral.prompt_tokens" not in found
    assert found["mistral.completion_tokens"] == 1


async def test_an_error_is_told_by_its_code() -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        exchange_of(scope).attempts = 1
        raise UpstreamFailed(SECRET)

    found = begun(model="house/priced", provider="house")
    (span,) = await told(found, fails)
    assert span.failed
    assert span.attributes["error.type"] == "upstream_error"
    assert (span.attributes["server.address"], span.attributes["server.port"]) == ("10.0.0.1", 8000)
    assert SECRET not in str(span)


async def test_a_client_that_leaves_is_no_failure() -> None:
    (span,) = await told(begun(client_gone=True))
    assert not span.failed
    assert span.attributes["mistral_proxy.client_gone"] is True
    assert "error.type" not in span.attributes


@pytest.mark.parametrize("path", ["/health", "/admin/cache", "/v1/chat"])
async def test_what_is_no_endpoint_is_not_told(path: str) -> None:
    assert await told(begun(), path=path) == []


async def test_nor_what_is_not_sampled() -> None:
    assert await told(begun(trace_flags=RANDOM)) == []


async def test_nor_what_no_route_took() -> None:
    kept = Kept()
    stage = trace.build(CONFIG, services(catalogue=CATALOGUE, tracer=kept))
    assert stage
    await call(stage(ok), exchange=begun())
    assert kept.spans == []


def turning(kept: Kept, errors: list[Any]) -> ASGIApp:
    """The stage for each model, around calls that end so."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        exchange_of(scope).attempts = 1
        error = errors.pop(0)
        if error:
            raise error

    made = services(catalogue=CATALOGUE, tracer=kept)
    stage = trace.asked(CONFIG, {"a": ["b"]}, CHAT, made)
    assert stage
    return stage(app)


async def test_a_model_that_was_asked_in_vain_is_a_span_within_the_requests() -> None:
    kept = Kept()
    app = turning(kept, [CircuitOpen("no", wait=1), None])
    found = begun(model="mistral-large-latest", others=True)
    with pytest.raises(CircuitOpen):
        await call(app, exchange=found)
    assert kept.spans == []
    found.turn_to("house/priced", "house", "priced")
    found.others = False
    await call(app, exchange=found)
    (span,) = kept.spans
    assert (span.trace_id, span.parent_id, span.is_remote, span.failed) == (TRACE, SPAN, False, True)
    assert span.span_id != SPAN
    assert span.attributes["mistral.model"] == "mistral-large-latest"
    assert span.attributes["error.type"] == "circuit_open"
    assert span.start < span.end


async def test_each_one_is_told_of_once() -> None:
    kept = Kept()
    errors = [CircuitOpen("no", wait=1), UpstreamFailed("no"), BadRequest("no")]
    app = turning(kept, errors)
    found = begun(model="mistral-large-latest", others=True)
    for error in errors.copy():
        with pytest.raises(type(error)):
            await call(app, exchange=found)
        found.turn_to("house/priced", "house", "priced")
    assert [span.attributes["error.type"] for span in kept.spans] == ["circuit_open", "upstream_error"]
    assert len({span.span_id for span in kept.spans}) == 2


async def test_the_last_one_is_told_by_the_request() -> None:
    kept = Kept()
    with pytest.raises(Draining):
        await call(turning(kept, [Draining("no")]), exchange=begun(model="mistral-large-latest"))
    assert kept.spans == []


async def test_nothing_is_told_of_what_is_not_sampled() -> None:
    kept = Kept()
    app = turning(kept, [BadRequest("no"), None])
    found = begun(model="mistral-large-latest", trace_flags=RANDOM)
    with pytest.raises(BadRequest):
        await call(app, exchange=found)
    await call(app, exchange=found)
    assert kept.spans == []
