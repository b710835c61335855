from __future__ import annotations

import asyncio
import io
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from proxy import data
from proxy.core import json
from proxy.core.catalogue import Catalogue
from proxy.core.charge import Charge
from proxy.core.errors import (
    BadRequest,
    InvalidApiKey,
    ModelNotAllowed,
    NotInCache,
    RateLimited,
    TooManyAuthFailures,
    UpstreamFailed,
)
from proxy.core.exchange import Before, Exchange, Team, exchange_of
from proxy.core.redact import Redactor
from proxy.core.secret import Secret
from proxy.logs import Writer
from proxy.stages import access_log
from tests.asgi import Log, call, exchange, ok, services

CATALOGUE = Catalogue(data.read("models.yaml"))
KEY = Secret("sk-team-key-0123456789")


def stage(log: Log, app=ok, *, content: bool = True):
    redact = Redactor(data.read("redaction.yaml"), [KEY])
    made = replace(services(log, CATALOGUE), redact=redact)
    return access_log.build(access_log.Config(), made, content=content)(app)


async def line(
    app=ok, found: Exchange | None = None, route: str | None = "/v1/chat/completions", *, content: bool = True
):
    log = Log()
    scope: Any = {"route": SimpleNamespace(path=route, operation="chat.create")} if route else {}
    await call(stage(log, app, content=content), exchange=found or exchange(status=200), **scope)
    [(level, event, fields)] = log.lines
    assert event == "request"
    return level, fields


async def test_a_request_is_one_line() -> None:
    team = Team("research", lambda model: True)
    found = exchange(
        status=200, team=team, key_id="0123", model_asked="gpt-4o", model="mistral-large-latest", attempts=1,
        upstream="mistral/mistral-large-latest", first_byte=0.25, last_byte=0.5, bytes_out=7,
        usage={"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}, rewrites={"drop:user": None},
        charge=Charge(prompt=3, completion=4, cost=7_500),
    )  # fmt: skip
    level, fields = await line(found=found)
    assert level == "info"
    assert fields == {
        "request_id": "id-1", "trace_id": "", "team": "research", "key_id": "0123", "method": "POST",
        "endpoint": "/v1/chat/completions", "operation": "chat.create", "model": "mistral-large-latest",
        "model_asked": "gpt-4o",
        "upstream": "mistral", "status_code": 200, "duration_ms": 500.0, "first_byte_ms": 250.0,
        "stream": False, "bytes_out": 7, "attempts": 1, "client": "192.0.2.7", "prompt_tokens": 3,
        "completion_tokens": 4, "total_tokens": 7, "cost_usd": "0.0000075", "rewrites": "drop:user", "generation": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("nano", "told"),
    [(0, "0"), (1, "0.000000001"), (100_000_000, "0.1"), (3 * 10**9, "3"), (2**63 + 1, "9223372036.854775809")],
)
async def test_a_cost_is_exact(nano: int, told: str) -> None:
    assert (await line(found=exchange(status=200, charge=Charge(cost=nano))))[1]["cost_usd"] == told


async def test_a_cost_is_that_of_all_models_that_were_asked() -> None:
    found = exchange(status=200, before=Before(1, Charge(cost=2)), charge=Charge(cost=3))
    assert (await line(found=found))[1]["cost_usd"] == "0.000000005"


@pytest.mark.parametrize("charge", [None, Charge(cost=None)])
async def test_what_nobody_knows_the_price_of_has_no_cost(charge: Charge | None) -> None:
    assert "cost_usd" not in (await line(found=exchange(status=200, charge=charge)))[1]


async def test_what_is_no_endpoint_of_the_provider_does_nothing() -> None:
    assert (await line(route=None))[1]["operation"] is None


async def test_the_line_comes_after_the_last_byte() -> None:
    log, seen = Log(), []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await ok(scope, receive, send)
        seen.append(len(log.lines))

    await call(stage(log, app), exchange=exchange(status=200))
    assert seen == [0]
    assert len(log.lines) == 1


async def test_shadow_rules_report() -> None:
    _, fields = await line(found=exchange(status=200, shadow_refusals=("tokens 5/day", "requests 1/hour")))
    assert fields["shadow_refusals"] == "tokens 5/day, requests 1/hour"
    assert "shadow_refusals" not in (await line())[1]


@pytest.mark.parametrize(
    ("status", "error", "level"),
    [
        (200, None, "info"),
        (404, BadRequest("no"), "warning"),
        (429, RateLimited("no", about="tokens", wait=1, detail={}), "warning"),
        (403, ModelNotAllowed("no"), "warning"),
        (401, InvalidApiKey("no"), "error"),
        (429, TooManyAuthFailures("no", wait=1), "error"),
        (504, NotInCache("no"), "warning"),
        (502, UpstreamFailed("no"), "error"),
        (200, UpstreamFailed("cut"), "error"),
    ],
)
async def test_levels(status: int, error: Exception | None, level: str) -> None:
    assert (await line(found=exchange(status=status, error=error)))[0] == level


async def test_an_error_is_told_by_its_names_not_its_text() -> None:
    _, fields = await line(found=exchange(status=400, error=BadRequest("what the client wrote", param="messages[0]")))
    assert fields["error_type"] == "invalid_request_error"
    assert fields["error_code"] == "invalid_value"
    assert fields["error_param"] == "messages[0]"
    assert "what the client wrote" not in str(fields)


async def test_a_client_that_left_before_an_answer_is_a_499() -> None:
    _, fields = await line(found=exchange(client_gone=True))
    assert (fields["status_code"], fields["client_gone"]) == (499, True)


async def test_a_cancelled_request_is_logged_too() -> None:
    async def cancelled(scope: Scope, receive: Receive, send: Send) -> None:
        raise asyncio.CancelledError

    log = Log()
    with pytest.raises(asyncio.CancelledError):
        await call(stage(log, cancelled), exchange=exchange())
    assert len(log.lines) == 1


async def test_an_unknown_path_is_redacted_and_cut() -> None:
    found = exchange(status=404)
    found.path = f"/x/{KEY.reveal()}/" + "y" * 1000
    _, fields = await line(found=found, route=None)
    assert KEY.reveal() not in fields["endpoint"]
    assert len(fields["endpoint"]) <= 256


async def test_a_key_in_the_place_of_a_name_is_redacted() -> None:
    error = BadRequest("no", param=KEY.reveal())
    found = exchange(
        status=400, model_asked=KEY.reveal(), model=f"x-{KEY.reveal()}", upstream=f"mistral/{KEY.reveal()}", error=error
    )
    _, fields = await line(found=found)
    assert KEY.reveal() not in str(fields)
    assert fields["model_asked"] == fields["error_param"] == "***"


async def answering(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"the answer " + KEY.reveal().encode()})


def with_content(log_content: int = 100_000) -> Exchange:
    body = {"messages": [{"role": "user", "content": f"my key is {KEY.reveal()}"}]}
    return exchange(status=200, team=Team("t", lambda model: True, log_content), body=body)


async def test_l1_content_is_not_logged_by_default() -> None:
    for content in (False, True):
        _, fields = await line(answering, with_content(0), content=content)
        assert "content" not in str(fields.keys())
        assert "my key" not in str(fields)


async def test_where_no_content_is_logged_nobody_listens() -> None:
    seen: list[Send] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(send)

    async def answer(message: Any) -> None: ...

    scope: Scope = {"type": "http"}
    exchange(status=200).keep_in(scope)
    for content in (False, True):
        await stage(Log(), app, content=content)(scope, answer, answer)
    assert [send is answer for send in seen] == [True, False]


@pytest.mark.parametrize(
    ("mode", "said", "characters"),
    [
        ("none", True, 0), ("truncated", True, 50), ("full", True, 100_000),
        ("full", False, 0), ("full", "none", 0), ("full", "truncated", 50), ("none", "full", 100_000),
    ],
)  # fmt: skip
def test_a_word_of_a_team_goes_before_that_of_all(mode: Any, said: Any, characters: int) -> None:
    assert access_log.Config(content=mode, content_max_chars=50).characters(said) == characters


async def test_l1_content_that_is_asked_for_is_redacted() -> None:
    _, fields = await line(answering, with_content())
    assert "my key is ***" in fields["request_content"]
    assert fields["answer_content"] == "the answer ***"


async def test_truncated_content_never_ends_in_half_a_secret() -> None:
    for length in range(1, 60):
        _, fields = await line(answering, with_content(length))
        assert "sk-team" not in fields["request_content"] + fields["answer_content"]
        assert len(fields["request_content"]) <= length + 1


async def test_a_secret_spread_over_the_events_of_a_stream_is_found() -> None:
    async def streaming(scope: Scope, receive: Receive, send: Send) -> None:
        exchange_of(scope).streamed = True
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for piece in [*KEY.reveal(), " and more"]:
            chunk = {"choices": [{"index": 0, "delta": {"content": piece}}]}
            event = b"data: %b\n\n" % json.encode(chunk)
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    _, fields = await line(streaming, with_content())
    assert fields["answer_content"] == '{"0.content":"*** and more"}'


@pytest.mark.parametrize("most", [1, 300, 1000])
async def test_a_stream_that_is_not_seen_to_its_end_shows_no_half_secret(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log, "_MOST_CAPTURED", most)
    for error in (None, UpstreamFailed("cut")):

        async def breaking(scope: Scope, receive: Receive, send: Send, error: UpstreamFailed | None = error) -> None:
            exchange_of(scope).streamed, exchange_of(scope).error = True, error
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for piece in ["so ", *KEY.reveal()[:-1]]:
                event = b"data: %b\n\n" % json.encode({"choices": [{"index": 0, "delta": {"content": piece}}]})
                await send({"type": "http.response.body", "body": event, "more_body": True})

        _, fields = await line(breaking, with_content())
        assert fields["answer_content"] == '{"0.content":"so"}'


async def test_a_mark_that_is_shorter_than_its_find_moves_no_half_secret_into_view() -> None:
    for length in range(4700, 4900, 7):
        found = with_content(200)
        found.body = {"x": "password=" + "x" * length + " " + KEY.reveal()}
        _, fields = await line(answering, found)
        assert "sk-te" not in fields["request_content"]
    for length in range(1900, 2000):
        found = exchange(status=404)
        found.path = "/password=" + "x" * length + ";" + KEY.reveal()
        assert "sk-te" not in (await line(found=found, route=None))[1]["endpoint"]


def worst(text: str) -> Exchange:
    """An exchange in which a client says the same nasty thing wherever something it says is logged."""
    found = exchange(
        status=400, team=Team("t" * 64, lambda model: True), key_id="0" * 12, model_asked=text, model=text + "x",
        upstream=f"mistral/{text}", error=BadRequest("no", param=text), usage={"prompt_tokens": text},
        client="2001:db8:ffff:ffff:ffff:ffff:255.255.255.255", charge=Charge(cost=2**63),
    )  # fmt: skip
    found.path, found.request_id = text, "x" * 128
    found.rewrites = {f"drop:{number:02}{'x' * 80}": None for number in range(32)}  # the most that a table reports
    return found


async def written(found: Exchange, format: str) -> bytes:
    """The bytes of its line."""
    out = io.BytesIO()
    writer = Writer(out, format=format, now=lambda: 0.0)
    await call(stage(writer, answering), exchange=found)  # type: ignore[arg-type]
    writer.flush()
    return out.getvalue()


NASTY = [
    "\0",
    "\x1b[31m",
    "\U0001f600",
    "\u2028",
    '"',
    "\\",
    "\r\n",
    "key=a ",
    "a@b.de ",
    "%s",
    "${jndi:x} ",
    "é",
    "\x7f",
]


@pytest.mark.parametrize("text", [f"{nasty * 3000}" for nasty in NASTY] + ["x", "x" * 100_000, " " * 5000, "{"])
async def test_c22_a_line_is_one_line_of_8_kib_at_most(text: str) -> None:
    line = await written(worst(text), "json")
    assert len(line) <= 8192
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.decode(line)["request_id"] == "x" * 128
    console = (await written(worst(text), "console")).decode()
    assert console.removesuffix("\n").isprintable()


@given(text=st.text(max_size=3000))
async def test_c22_whatever_a_client_says_its_line_is_one_json_object(text: str) -> None:
    line = await written(worst(text), "json")
    assert len(line) <= 8192
    assert line.count(b"\n") == 1
    fields = json.decode(line)
    assert (fields["event"], fields["status_code"], fields["level"]) == ("request", 400, "warning")
    assert (await written(worst(text), "console")).decode().removesuffix("\n").isprintable()


@pytest.mark.parametrize("told", ["many", -1, 1.5, None, True, [1], 10**30, {"a": 1}])
async def test_c22_an_upstream_writes_nothing_but_numbers_into_a_line(told: Any) -> None:
    _, fields = await line(found=exchange(status=200, usage={"prompt_tokens": told, "completion_tokens": 4}))
    assert (fields["prompt_tokens"], fields["completion_tokens"]) == (None, 4)
