from __future__ import annotations

import asyncio

from starlette.types import Receive, Scope, Send

from proxy.core.errors import BadRequest
from proxy.core.exchange import exchange_of
from proxy.stages import rescue
from tests.asgi import Log, call, exchange, ok, services


def raising(error: Exception, *, after_start: bool = False):
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if after_start:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            exchange_of(scope).status = 200
        raise error

    return app


async def test_a_proxy_error_becomes_its_answer() -> None:
    error = BadRequest("No.", param="messages[0]", headers=[(b"connection", b"close")], detail={"more": 1})
    found = exchange()
    answer = await call(rescue.build(services())(raising(error)), exchange=found)
    assert answer.status == 400
    assert answer.error() == {
        "message": "No.",
        "type": "invalid_request_error",
        "param": "messages[0]",
        "code": "invalid_value",
        "more": 1,
    }
    assert answer.header("content-type") == "application/json"
    assert answer.header("cache-control") == "no-store"
    assert answer.header("content-length") == str(len(answer.body))
    assert answer.header("connection") == "close"
    assert found.error is error


async def test_the_unexpected_is_a_500_that_tells_the_log_where_but_nobody_what() -> None:
    log = Log()
    app = rescue.build(services(log))(raising(ValueError("the secret is hunter2")))
    answer = await call(app, exchange=exchange())
    assert answer.status == 500
    assert answer.error()["type"] == "server_error"
    [(level, event, fields)] = log.lines
    assert (level, event, fields["kind"], fields["request_id"]) == ("error", "unexpected", "ValueError", "id-1")
    assert "raising.<locals>.app:" in fields["place"]
    assert "hunter2" not in answer.body.decode() + str(log.lines)


async def test_after_the_answer_has_begun_nothing_more_is_sent() -> None:
    found = exchange()
    answer = await call(rescue.build(services())(raising(ValueError(), after_start=True)), exchange=found)
    assert (answer.status, answer.body) == (200, b"")
    assert found.error is not None


async def test_a_request_that_the_server_ends_is_told_so() -> None:
    async def cancelled(scope: Scope, receive: Receive, send: Send) -> None:
        raise asyncio.CancelledError

    answer = await call(rescue.build(services())(cancelled), exchange=exchange())
    assert (answer.status, answer.error()["code"]) == (503, "draining")


async def test_an_answer_passes() -> None:
    assert (await call(rescue.build(services())(ok), exchange=exchange())).body == b"ok"
