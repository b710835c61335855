from __future__ import annotations

import re

import pytest
from starlette.types import Receive, Scope, Send

from proxy.core.exchange import Exchange
from proxy.stages import begin
from tests.asgi import call, ok, services


def stage(app=ok, **options):
    return begin.build(services(**options))(app)


@pytest.mark.parametrize("valid", [b"abc", b"A-1_b.c", b"x" * 128])
async def test_a_valid_request_id_is_kept(valid: bytes) -> None:
    answer = await call(stage(), headers=[(b"x-request-id", valid)])
    assert answer.header("x-request-id") == valid.decode()


@pytest.mark.parametrize("invalid", [b"", b"x" * 129, b"a b", b"a\r\nset-cookie: x", b"caf\xe9", b'"', b"a/b"])
async def test_any_other_request_id_is_replaced(invalid: bytes) -> None:
    first = await call(stage(), headers=[(b"x-request-id", invalid)])
    second = await call(stage(), headers=[(b"x-request-id", invalid)])
    assert re.fullmatch(r"[0-9a-f]{32}", first.header("x-request-id") or "")
    assert first.header("x-request-id") != second.header("x-request-id")


async def test_headers_are_a_snapshot_that_a_trailer_cannot_add_to() -> None:
    headers = [(b"host", b"a")]

    async def with_trailer(scope: Scope, receive: Receive, send: Send) -> None:
        scope["headers"].append((b"authorization", b"Bearer evil"))
        assert Exchange.of(scope).header(b"authorization") is None
        await ok(scope, receive, send)

    assert (await call(stage(with_trailer), headers=headers)).status == 200


async def test_what_later_stages_found_out_is_on_the_answer() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange.of(scope)
        exchange.upstream, exchange.attempts = "mistral/m", 2
        exchange.rewrites.update({"drop:user": None, "rename:seed>random_seed": None})
        exchange.answer_headers = [(b"x-upstream-request-id", b"u-1")]
        await ok(scope, receive, send)

    answer = await call(stage(app))
    assert answer.header("x-proxy-upstream") == "mistral/m"
    assert answer.header("x-proxy-attempts") == "2"
    assert answer.header("x-proxy-rewrites") == "drop:user, rename:seed>random_seed"
    assert answer.header("x-upstream-request-id") == "u-1"
    assert answer.header("content-type") == "text/plain"


async def test_what_is_not_known_is_not_on_the_answer() -> None:
    answer = await call(stage())
    assert {name for name, _ in answer.headers} == {b"content-type", b"x-request-id"}


async def test_simulated_answers_say_so() -> None:
    assert (await call(stage(simulated=True))).header("x-proxy-simulated") == "true"


async def test_status_times_and_size_are_recorded() -> None:
    exchange = (await call(stage())).exchange
    assert (exchange.status, exchange.bytes_out) == (200, 2)
    assert (exchange.started, exchange.first_byte, exchange.last_byte) == (1, 2, 3)
