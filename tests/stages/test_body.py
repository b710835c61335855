from __future__ import annotations

import asyncio
from itertools import cycle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from proxy.core.arrived import EXTENSION
from proxy.core.errors import (
    BodyTooLarge,
    Draining,
    DuplicateKey,
    InvalidEncoding,
    InvalidJson,
    JsonTooDeep,
    JsonTooLarge,
    NumberOutOfRange,
    ProxyError,
    RequestTimeout,
    UnsupportedMediaType,
)
from proxy.core.json import Malformed
from proxy.pipeline import fold
from proxy.providers.mistral.embeddings import EMBEDDINGS
from proxy.providers.mistral.models import MODELS
from proxy.stages import body, parse
from proxy.stages.body import Pace
from tests.asgi import Headers, call, exchange, ok, services
from tests.programs import PATIENCE

JSON = [(b"content-type", b"application/json")]
QUICK = Pace(idle=0.02, rate=1e12, tick=0.005)
CLOSE = (b"connection", b"close")


async def read(
    pieces: list[bytes], headers: Headers = JSON, limit: int = 100, pace: Pace = QUICK, around: Any = None, **how: Any
):
    made = around or services()
    stages = (body.build(limit, EMBEDDINGS, made, pace), parse.build(EMBEDDINGS, made))
    found = exchange(headers)
    answer = await call(fold(stages, ok), body=pieces, exchange=found, **how)
    return answer, found


def test_an_endpoint_without_a_body_has_no_such_stage() -> None:
    assert body.build(100, MODELS, services()) is None


@pytest.mark.parametrize("pieces", [[b'{"a": 1}'], [b'{"a"', b": 1}"], [b"", b'{"a": 1}', b""]])
async def test_a_body_is_parsed_however_it_arrives(pieces: list[bytes]) -> None:
    _, found = await read(pieces)
    assert found.body == {"a": 1}


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-type", b"application/json; charset=utf-8")],
        [(b"content-type", b'Application/JSON;charset="UTF-8"')],
        [(b"content-type", b"application/json; odata=verbose;charset=utf-8")],
        [*JSON, (b"content-encoding", b"identity")],
        [*JSON, (b"content-encoding", b"")],
    ],
)
async def test_json_in_its_usual_spellings(headers: Headers) -> None:
    assert (await read([b"{}"], headers))[1].body == {}


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"content-type", b"text/plain")],
        [(b"content-type", b"application/x-www-form-urlencoded")],
        [(b"content-type", b"multipart/form-data; boundary=x")],
        [(b"content-type", b"application/json; charset=utf-16")],
        [(b"content-type", b"application/json; charset=utf-8; charset=utf-16")],
        [(b"content-type", b"application/jsonx")],
        [(b"content-type", b"application/json, text/plain")],
        [(b"content-type", b"")],
        [*JSON, *JSON],
        [*JSON, (b"content-type", b"text/plain")],
        *([*JSON, (b"content-encoding", coding)] for coding in (b"gzip", b"br", b"zstd", b"deflate", b"GZIP")),
        [*JSON, (b"content-encoding", b"identity, gzip")],
        [*JSON, (b"content-encoding", b"identity"), (b"content-encoding", b"gzip")],
    ],
)
async def test_any_other_media_type_is_415(headers: Headers) -> None:
    with pytest.raises(UnsupportedMediaType) as caught:
        await read([b"{}"], headers)
    assert CLOSE in caught.value.headers


@pytest.mark.parametrize(
    "pieces",
    [[b'{"a": "%s"}' % (b"x" * 100)], [b'{"a": "', b"x" * 60, b"x" * 60, b'"}'], [b" " * 101]],
)
async def test_a_body_over_the_limit_is_413_and_ends_the_connection(pieces: list[bytes]) -> None:
    with pytest.raises(BodyTooLarge) as caught:
        await read(pieces)
    assert (b"connection", b"close") in caught.value.headers


async def test_a_declared_length_over_the_limit_is_refused_before_a_byte_is_read() -> None:
    with pytest.raises(BodyTooLarge):
        await read([b"{}"], [*JSON, (b"content-length", b"101")])


async def test_a_body_at_the_limit_passes() -> None:
    assert (await read([b'{"a":"%s"}' % (b"x" * 92)]))[1].body == {"a": "x" * 92}


async def test_a_client_that_leaves_while_sending_is_no_request() -> None:
    answer, found = await read([b'{"a"', b""], leaves=True)
    assert found.client_gone
    assert answer.status == 0


@pytest.mark.parametrize(
    ("text", "kind", "param"),
    [
        (b"[]", InvalidJson, None),
        (b'{"a": 1,}', InvalidJson, None),
        (b'{"a": "\xff"}', InvalidEncoding, None),
        (b'{"a":' * 5000, JsonTooDeep, None),
        (b"[" * 100_000, JsonTooDeep, None),
        (b'{"a":[' + b"1," * 100_000, JsonTooLarge, None),
        (b"{" + b",".join(b'"%d":1' % at for at in range(2000)) + b"}", JsonTooLarge, None),
        (b'{"a": NaN}', NumberOutOfRange, None),
        (b'{"model":1,"mod\\u0065l":1}', DuplicateKey, "model"),
        (b'{"sk-secret":1,"sk-secret":1}', DuplicateKey, None),
    ],
)
async def test_what_is_wrong_is_told_by_its_code(text: bytes, kind: type[ProxyError], param: str | None) -> None:
    with pytest.raises(ProxyError) as caught:
        await read([text], limit=1_000_000)
    assert type(caught.value) is kind
    assert caught.value.param == param
    assert "secret" not in caught.value.message


def test_every_fault_has_an_error() -> None:
    assert set(parse._ERRORS) == {Malformed, *Malformed.__subclasses__()}


@given(st.lists(st.binary(max_size=60), max_size=4))
async def test_no_bytes_do_worse_than_an_error_of_ours(pieces: list[bytes]) -> None:
    try:
        await read([*pieces, b""])
    except ProxyError as error:
        assert error.status in (400, 413)


# Its arrival.


@pytest.mark.parametrize("pieces", [[], [b'{"a"'], [b"{", b" "]])
async def test_a_body_that_stops_coming_is_408(pieces: list[bytes]) -> None:
    around = services()
    with pytest.raises(RequestTimeout) as caught:
        async with asyncio.timeout(PATIENCE):
            await read(pieces, around=around, leaves=True, stays=True)
    assert CLOSE in caught.value.headers
    assert not around.drainables
    assert not asyncio.current_task().cancelling()  # type: ignore[union-attr]


async def drip(pace: Pace) -> None:
    """A body of which a byte comes at every turn of the loop, without an end."""
    bytes_ = cycle([b" "])

    async def receive() -> Message:
        await asyncio.sleep(0)
        return {"type": "http.request", "body": next(bytes_), "more_body": True}

    stage = body.build(1 << 30, EMBEDDINGS, services(), pace)
    assert stage
    scope = {"type": "http"}
    exchange(JSON).keep_in(scope)
    async with asyncio.timeout(PATIENCE):
        await stage(ok)(scope, receive, receive)  # type: ignore[arg-type]


async def test_a_body_that_drips_is_408() -> None:
    with pytest.raises(RequestTimeout):
        await drip(QUICK)


async def test_bytes_give_time() -> None:
    """Two bytes at a rate of one a second are two seconds, but never more than `idle` from now."""
    arrivals = body.Arrivals(Pace(idle=15, rate=1, tick=60), set())
    with arrivals.arrival() as arrival:
        start = arrival.due - 15
        arrival.loop = Later(arrival.loop, start + 10)  # type: ignore[assignment]
        arrival.received(2)
        assert arrival.due == start + 2 + 15
        arrival.received(2000)
        assert arrival.due == start + 10 + 15


class Later:
    def __init__(self, loop: asyncio.AbstractEventLoop, now: float) -> None:
        self.time = lambda: now


async def test_a_body_in_time_is_not_disturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One timer for all of them, and none of their own."""
    set_ = []
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "call_later", lambda *args: set_.append(args))
    arrivals = body.Arrivals(Pace(), set())
    for _ in range(100):
        with arrivals.arrival(), arrivals.arrival() as second:
            second.received(10)
    [(delay, look)] = set_
    assert delay == Pace().tick
    look()
    assert len(set_) == 1  # nobody is waiting
    with arrivals.arrival():
        assert len(set_) == 2
        look()
        assert len(set_) == 3


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_body_on_its_way_is_told_of_the_drain() -> None:
    around = services()
    task = asyncio.create_task(read([b"{"], around=around, pace=Pace(), leaves=True, stays=True))
    await turns()
    assert around.drainables
    for part in list(around.drainables):
        part.drain()
        part.drain()
    with pytest.raises(Draining) as caught:
        await task
    assert CLOSE in caught.value.headers
    assert not around.drainables


async def test_a_body_that_is_waited_for_after_the_drain() -> None:
    around = services()
    around.drainables.drain()
    with pytest.raises(Draining) as caught:
        await read([b"{"], around=around, pace=Pace(), leaves=True, stays=True)
    assert CLOSE in caught.value.headers
    assert not around.drainables


async def test_a_cancellation_of_others_passes() -> None:
    around = services()
    task = asyncio.create_task(read([b"{"], around=around, pace=Pace(), leaves=True, stays=True))
    await turns()
    assert around.drainables
    for part in list(around.drainables):
        part.drain()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not around.drainables


# What has come with its head.


def at_hand(body: bytes | None) -> dict[str, Any]:
    return {"extensions": {EXTENSION: lambda: body}}


async def test_what_has_come_with_its_head_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body.Arrivals, "arrival", None)
    _, found = await read([], **at_hand(b'{"a": 1}'))
    assert found.body == {"a": 1}


async def test_what_has_not_is() -> None:
    _, found = await read([b'{"a": 1}'], **at_hand(None))
    assert found.body == {"a": 1}


async def test_it_may_be_no_larger_either() -> None:
    with pytest.raises(BodyTooLarge) as caught:
        await read([], limit=7, **at_hand(b'{"a": 1}'))
    assert CLOSE in caught.value.headers
