from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core import json
from proxy.core.exchange import Failed
from proxy.logs import Writer
from proxy.stages import details
from tests.asgi import Headers, Log, call, exchange, ok, services


def stage(log: Any, app: ASGIApp = ok) -> ASGIApp:
    built = details.build("debug", services(log))
    assert built
    return built(app)


async def line(headers: Headers, query: bytes = b"", **fields: Any) -> dict[str, Any]:
    log = Log()
    await call(stage(log), exchange=exchange(headers, **fields), query_string=query)
    [(level, event, told)] = log.lines
    assert (level, event) == ("debug", "request_details")
    return told


async def test_what_the_request_was_like() -> None:
    headers = [(b"accept", b"*/*"), (b"user-agent", b"OpenAI/Python 3.0"), (b"content-length", b"120"), (b"x-a", b"1")]
    failed = (Failed("mistral", 1, "upstream_error"), Failed("mistral", 2, "upstream_timeout"))
    more: dict[str, Any] = {"rewrites": {"drop:user": None, "drop:seed": None}, "in_vain": failed}
    assert await line(headers, b"api-version=2024&x=y", **more) == {
        "request_id": "id-1",
        "trace_id": "",
        "query_bytes": 20,
        "headers": [("accept", "*/*"), ("user-agent", 17), ("content-length", "120")],
        "other_headers": 1,
        "rewrites": "drop:user, drop:seed",
        "failed": "upstream_error, upstream_timeout",
    }


async def test_a_request_of_which_there_is_little_to_tell() -> None:
    assert await line([]) == {
        "request_id": "id-1", "trace_id": "", "query_bytes": 0, "headers": [], "other_headers": 0, "rewrites": None,
        "failed": None,
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(details._NAMES))
@pytest.mark.parametrize("secret", ["hunter2", "application/json; secret=1", "1" * 10, "1.2.3.4", " no-cache", ""])
async def test_no_header_shows_what_may_be_a_secret(name: str, secret: str) -> None:
    assert (await line([(name.encode(), secret.encode())]))["headers"] == [(name, len(secret))]


@pytest.mark.parametrize("name", sorted(details._NAMES - details._OPEN))
async def test_of_a_secrets_header_not_even_a_number_is_shown(name: str) -> None:
    assert (await line([(name.encode(), b"1234")]))["headers"] == [(name, 4)]


async def test_a_header_that_nobody_knows_is_counted() -> None:
    headers = [(b"x-my-secret-is-hunter2", b"1"), *[(b"accept", b"*/*")] * 5]
    told = await line(headers)
    assert (told["headers"], told["other_headers"]) == ([("accept", "*/*")] * 3, 3)


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
        assert len(told["headers"]) + told["other_headers"] == 2 * count + 1


@given(headers=st.lists(st.tuples(st.binary(max_size=300), st.binary(max_size=600))), query=st.binary(max_size=600))
async def test_c22_whatever_a_client_sends_the_line_is_one_json_object(headers: Headers, query: bytes) -> None:
    out = await written(headers, query, "json")
    assert len(out) <= 8192
    assert out.count(b"\n") == 1
    assert json.decode(out)["event"] == "request_details"
