from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.errors import BodyTooLarge, InvalidJson, ProxyError, UnsupportedMediaType
from proxy.providers.mistral.embeddings import EMBEDDINGS
from proxy.providers.mistral.models import MODELS
from proxy.stages import body
from tests.asgi import Headers, call, exchange, ok, services

JSON = [(b"content-type", b"application/json")]


async def read(pieces: list[bytes], headers: Headers = JSON, limit: int = 100, leaves: bool = False):
    stage = body.build(limit, EMBEDDINGS, services())
    assert stage
    found = exchange(headers)
    answer = await call(stage(ok), body=pieces, leaves=leaves, exchange=found)
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
        [*JSON, (b"content-encoding", b"identity")],
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
        [*JSON, (b"content-encoding", b"gzip")],
    ],
)
async def test_any_other_media_type_is_415(headers: Headers) -> None:
    with pytest.raises(UnsupportedMediaType):
        await read([b"{}"], headers)


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
    "text",
    [
        b"", b" ", b"null", b"[]", b'"x"', b"1", b"{", b'{"a": 1}}', b'{"a": 1} {}', b"{'a': 1}", b'{"a": 1,}',
        b"// no\n{}", b'{"a": NaN}', b'{"a": Infinity}', b'{"a": "\\ud800"}', b'{"a": "\xff"}', b"\xef\xbb\xbf{}",
        b"\xff\xfe{\x00}\x00", b'{"a":' * 5000, b"[" * 100_000,
    ],
)  # fmt: skip
async def test_what_is_no_json_object_is_400(text: bytes) -> None:
    with pytest.raises(InvalidJson):
        await read([text], limit=1_000_000)


@given(st.lists(st.binary(max_size=60), max_size=4))
async def test_no_bytes_do_worse_than_an_error_of_ours(pieces: list[bytes]) -> None:
    try:
        await read([*pieces, b""])
    except ProxyError as error:
        assert error.status in (400, 413)
