from __future__ import annotations

import asyncio
import io
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy import data
from proxy.core import json
from proxy.core.redact import Redactor
from proxy.core.secret import Secret
from proxy.logs import Writer
from proxy.stages import details
from tests.asgi import Headers, Log, call, exchange, ok, services

KEY = Secret("sk-team-key-0123456789")
REDACT = Redactor(data.read("redaction.yaml"), [KEY])


def stage(log: Any, app: ASGIApp = ok) -> ASGIApp:
    built = details.build("debug", replace(services(log), redact=REDACT))
    assert built
    return built(app)


async def line(headers: Headers, query: bytes = b"", **fields: Any) -> dict[str, Any]:
    log = Log()
    await call(stage(log), exchange=exchange(headers, **fields), query_string=query)
    [(level, event, told)] = log.lines
    assert (level, event) == ("debug", "request_details")
    return told


async def test_what_the_request_was_like() -> None:
    headers = [(b"accept", b"*/*"), (b"user-agent", b"OpenAI/Python 3.0"), (b"accept", b"text/plain")]
    assert await line(headers, b"api-version=2024&x=y", rewrites={"drop:user": None, "drop:seed": None}) == {
        "request_id": "id-1",
        "trace_id": "",
        "query": "api-version=2024&x=y",
        "headers": [["accept", "*/*"], ["user-agent", "OpenAI/Python 3.0"], ["accept", "text/plain"]],
        "headers_left_out": 0,
        "rewrites": "drop:user, drop:seed",
    }


async def test_a_request_of_which_there_is_little_to_tell() -> None:
    assert await line([]) == {
        "request_id": "id-1", "trace_id": "", "query": None, "headers": [], "headers_left_out": 0, "rewrites": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "authorization", "proxy-authorization", "x-api-key", "api-key", "cookie", "set-cookie", "x-goog-api-key",
        "x-auth-request-user", "x-amz-security-token", "x-session-id", "x-client-secret", "x-password",
    ],
)  # fmt: skip
async def test_the_value_of_a_secrets_header_is_not_shown(name: str) -> None:
    assert (await line([(name.encode(), b"plain words")]))["headers"] == [[name, "***"]]


async def test_a_key_is_shown_nowhere() -> None:
    key = KEY.reveal().encode()
    headers = [(b"referer", b"https://x/?k=" + key), (b"x-" + key, b"1"), (b"x-a", b"Bearer abcdefghijklmnop12345")]
    told = await line(headers, b"q=" + key + b"&api_key=hunter2hunter2&to=ann@example.com")
    assert told["headers"] == [["referer", "https://x/?k=***"], ["x-***", "***"], ["x-a", "Bearer [redacted:bearer]"]]
    assert told["query"] == "q=***&api_key=[redacted:credential]&to=[redacted:email]"


async def test_the_line_comes_at_the_end_also_of_a_request_that_is_cancelled() -> None:
    async def cancelled(scope: Scope, receive: Receive, send: Send) -> None:
        assert not log.lines
        raise asyncio.CancelledError

    log = Log()
    with pytest.raises(asyncio.CancelledError):
        await call(stage(log, cancelled), exchange=exchange())
    assert len(log.lines) == 1


@pytest.mark.parametrize("level", ["info", "warning", "error"])
def test_where_nobody_would_see_it_there_is_no_stage(level: str) -> None:
    assert details.build(level, services()) is None


async def written(headers: Headers, query: bytes, format: str) -> bytes:
    out = io.BytesIO()
    writer = Writer(out, level="debug", format=format, now=lambda: 0.0)
    rewrites = {f"drop:{number:02}{'x' * 80}": None for number in range(32)}  # the most that a table reports
    found = exchange(headers, rewrites=rewrites, request_id="x" * 128)
    await call(stage(writer), exchange=found, query_string=query)
    writer.flush()
    return out.getvalue()


NASTY = [b"\0", b"\x1b[31m", b"\xf0\x9f\x98\x80", b'"', b"\\", b"\r\n", b"key=a ", b"a@b.de ", b"\x7f", b"\x85", b"x"]


@pytest.mark.parametrize("nasty", NASTY)
@pytest.mark.parametrize("format", ["json", "console"])
@pytest.mark.parametrize("count", [1, 100])
async def test_c22_the_line_is_one_line_of_8_kib_at_most(nasty: bytes, format: str, count: int) -> None:
    text, words = nasty * 3000, (nasty * 60 + b" ") * 40  # of a word that is too long nothing is shown
    out = await written([(text, text)] * count + [(b"a", words)] * count + [(b"b", b"c")], words, format)
    assert len(out) <= 8192
    assert out.count(b"\n") == 1
    assert out.decode().removesuffix("\n").isprintable()
    if format == "json":
        told = json.decode(out)
        assert len(told["headers"]) + told["headers_left_out"] == 2 * count + 1


@given(headers=st.lists(st.tuples(st.binary(max_size=300), st.binary(max_size=600))), query=st.binary(max_size=600))
async def test_c22_whatever_a_client_sends_the_line_is_one_json_object(headers: Headers, query: bytes) -> None:
    out = await written(headers, query, "json")
    assert len(out) <= 8192
    assert out.count(b"\n") == 1
    assert json.decode(out)["event"] == "request_details"
