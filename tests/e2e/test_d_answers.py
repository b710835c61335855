"""Faults of the upstream's answers: what is no answer never reaches a client as one, and nobody gets another's."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import zlib
from random import Random
from typing import Any
from uuid import uuid4

import psutil
import pytest

from tests.conftest import OTHER_KEY, PROVIDER_KEY, TEAM_KEY
from tests.e2e.conftest import PLACES, Stage
from tests.e2e.upstream import DONE, JSON, STREAM, completion, event, prompt
from tests.e2e.wire import Answer, ask, chat, request, soon, turns
from tests.fuzz.mutate import mutated
from tests.upstream.scripted import Peer, Received, answer, chunk

KEYS = (TEAM_KEY, OTHER_KEY)
ROUNDS = 1000
ERROR = b"HTTP/1.1 %d No\r\ncontent-type: application/json\r\n"


def says(data: bytes) -> Any:
    """An upstream that answers everything with these bytes, and closes."""

    async def script(peer: Peer, received: Received) -> None:
        await peer.send(data)
        raise ConnectionError

    return script


async def told(stage: Stage, data: bytes, **fields: Any) -> Answer:
    """What a client is told when the upstream sends `data`."""
    async with stage.upstream(says(data)):
        return await ask(stage.url, chat(**fields))


def failed(answer: Answer, status: int = 502, code: str = "upstream_error") -> None:
    assert (answer.status, answer.error()["code"]) == (status, code)
    assert answer.error()["message"]
    assert "SECRET" not in answer.body.decode()


def text(answer: Answer) -> str:
    content: str = answer.json()["choices"][0]["message"]["content"]
    return content


WHOLE = completion("SECRET")
BODY = WHOLE.partition(b"\r\n\r\n")[2]


# answers that are cut


CUT = {
    "length": WHOLE[:-10],
    "all but one byte": WHOLE[:-1],
    "no body": answer(b"", JSON).replace(b"length: 0", b"length: 10"),
    "chunk": JSON + b"transfer-encoding: chunked\r\n\r\n" + chunk(BODY)[:-20],
    "last chunk": JSON + b"transfer-encoding: chunked\r\n\r\n" + chunk(BODY),
}


@pytest.mark.parametrize("data", CUT.values(), ids=CUT)
async def test_d8_an_answer_shorter_than_it_said(stage: Stage, data: bytes) -> None:
    failed(await told(stage, data))


@pytest.mark.parametrize("size", [0, 1, len(BODY) // 2, len(BODY) - 1])
async def test_d9_an_answer_without_a_length_that_is_cut(stage: Stage, size: int) -> None:
    """Nothing but its JSON tells."""
    failed(await told(stage, JSON + b"\r\n" + BODY[:size]))


async def test_d9_an_answer_without_a_length_that_is_whole(stage: Stage) -> None:
    assert text(await told(stage, JSON + b"\r\n" + BODY)) == "SECRET"


# answers that are too much


@pytest.mark.parametrize("late", [False, True], ids=["with the answer", "after the answer"])
async def test_d10_surplus_bytes_reach_nobody(stage: Stage, late: bool) -> None:
    """Two teams in turn, and after every answer a second one that nobody has asked for."""

    async def script(peer: Peer, received: Received) -> None:
        await peer.send(completion(prompt(received)) + (b"" if late else completion("SECRET")))
        if late:
            peer.writer.write(completion("SECRET"))

    async with stage.upstream(script):
        for at in range(ROUNDS):
            mark = f"round {at}"
            data = chat(mark, headers={"authorization": f"Bearer {KEYS[at % 2]}"})
            assert text(await ask(stage.url, data)) == mark


SEEDS = [
    WHOLE,
    JSON + b"transfer-encoding: chunked\r\n\r\n" + chunk(BODY[:50]) + chunk(BODY[50:]) + chunk(b""),
    WHOLE + WHOLE,
    b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + WHOLE,
    answer(b'{"object": "error", "message": "SECRET", "code": "1"}', ERROR % 400),
    STREAM + b"".join(map(chunk, [event("SECRET"), event("", "stop"), DONE, b""])),
]


async def test_d10_a_thousand_bad_answers_reach_nobody_else(stage: Stage) -> None:
    """Mutations of valid answers, each with the mark of its own request; between them somebody else is answered."""
    random = Random("answers")
    held: dict[str, Peer] = {}

    async def script(peer: Peer, received: Received) -> None:
        mark = prompt(received)
        if mark.startswith("good"):
            await peer.send(completion(mark))
            return
        held[mark] = peer
        peer.writer.write(mutated(SEEDS, random, 4096).replace(b"SECRET", mark.encode()))

    async def bad(at: int) -> None:
        mark, key = f"bad-{at:06}", KEYS[at % 2]
        reply = await ask(stage.url, chat(mark, stream=at % 3 == 0, headers={"authorization": f"Bearer {key}"}))
        assert reply.status in (200, 400, 404, 429, 500, 502, 503, 504), reply
        assert set(re.findall(rb"(?:bad|good)-\d{6}", reply.body)) <= {mark.encode()}

    async def ended(at: int) -> None:
        """What still waits for more after a while is told that there is none."""
        asking = asyncio.create_task(bad(at))
        await good(at)
        while not asking.done():
            await turns(stage.url, 1)
            if peer := held.pop(f"bad-{at:06}", None):
                await peer.cut()
        await asking

    async def good(at: int) -> None:
        assert text(await ask(stage.url, chat(f"good-{at:06}"))) == f"good-{at:06}"

    async with stage.upstream(script):
        for at in range(0, ROUNDS, 2):
            await soon(asyncio.gather(ended(at), ended(at + 1)))


# answers of another kind


HTML = b"<!doctype html><title>SECRET</title>"
KINDS = {
    "a page": (b"text/html", HTML),
    "a page called JSON": (b"application/json", HTML),
    "JSON called a page": (b"text/html; charset=utf-8", BODY),
    "a stream": (b"text/event-stream", event("SECRET") + DONE),
    "a stream called JSON": (b"application/json", event("SECRET") + DONE),
    "nothing": (b"application/json", b""),
}
STREAM_KINDS = {
    "a page": (b"text/html", HTML),
    "a page called a stream": (b"text/event-stream", HTML),
    "JSON": (b"application/json", BODY),
    "JSON called a stream": (b"text/event-stream", BODY),
    "an error": (b"application/json", b'{"object":"error","message":"SECRET"}'),
    "nothing": (b"text/event-stream", b""),
}


@pytest.mark.parametrize(("kind", "body"), KINDS.values(), ids=KINDS)
async def test_d13_something_else_than_json(stage: Stage, kind: bytes, body: bytes) -> None:
    failed(await told(stage, answer(body, b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n" % kind)))


@pytest.mark.parametrize(("kind", "body"), STREAM_KINDS.values(), ids=STREAM_KINDS)
async def test_d13_something_else_than_a_stream(stage: Stage, kind: bytes, body: bytes) -> None:
    failed(await told(stage, answer(body, b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n" % kind), stream=True))


async def test_d13_a_stream_without_end_is_not_waited_for(stage: Stage) -> None:
    """The head says enough."""
    closed = asyncio.Event()

    async def script(peer: Peer, received: Received) -> None:
        await peer.send(STREAM + chunk(event("SECRET")))
        await peer.gone()
        closed.set()

    async with stage.upstream(script):
        failed(await ask(stage.url, chat()))
        await soon(closed.wait())


async def test_d13_the_type_of_a_stream_in_capitals(stage: Stage) -> None:
    head = STREAM.replace(b"text/event-stream", b"Text/Event-Stream")
    data = head + b"".join(map(chunk, [event("Hi"), event("", "stop"), DONE, b""]))
    assert (await told(stage, data, stream=True)).body.endswith(DONE)


PACKED = {"gzip": gzip.compress(BODY), "deflate": zlib.compress(BODY), "br": b"\x0b\x02\x80", "zstd": b"(\xb5/\xfd"}


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize(("name", "body"), [*PACKED.items(), ("gzip", b"broken"), ("GZIP", PACKED["gzip"])])
async def test_d14_a_compressed_answer(stage: Stage, name: str, body: bytes, stream: bool) -> None:
    head = (STREAM.partition(b"transfer")[0] if stream else JSON) + b"content-encoding: %b\r\n" % name.encode()
    failed(await told(stage, answer(body, head), stream=stream))


async def test_d14_a_compressed_error_is_still_that_error(stage: Stage) -> None:
    head = ERROR % 429 + b"content-encoding: gzip\r\nretry-after: 7\r\n"
    reply = await told(stage, answer(gzip.compress(b'{"message": "SECRET"}'), head))
    failed(reply, 429, "rate_limit_exceeded")
    assert reply.header("retry-after") == "7"


async def test_d14_identity_is_no_compression(stage: Stage) -> None:
    assert text(await told(stage, answer(BODY, JSON + b"content-encoding: identity\r\n"))) == "SECRET"


# answers that are large


class Memory:
    """How much the proxy has grown."""

    def __init__(self, stage: Stage) -> None:
        self._process = psutil.Process(stage.proxy.program.process.pid)
        self._before = self.now()

    def now(self) -> int:
        return int(self._process.memory_info().rss)

    def grown(self) -> int:
        return self.now() - self._before


LARGE = {
    "json": (JSON, b"x" * 1_000_000, 100),
    "a bomb": (JSON + b"content-encoding: gzip\r\n", gzip.compress(bytes(200_000_000), 1), 1),
    "a line of a stream": (STREAM.partition(b"transfer")[0], b"x" * 1_000_000, 50),
    "lines of a stream": (STREAM.partition(b"transfer")[0], b": x\n" * 250_000, 50),
}


@pytest.mark.parametrize(("head", "piece", "count"), LARGE.values(), ids=LARGE)
async def test_d25_a_large_answer_is_cut(stage: Stage, head: bytes, piece: bytes, count: int) -> None:
    """It costs the proxy at most what it may hold: 32 MiB of JSON, 1 MiB of an event; four times, to be sure."""
    stream = b"event-stream" in head
    memory, most = Memory(stage), 0

    async def script(peer: Peer, received: Received) -> None:
        nonlocal most
        await peer.send(head + b"content-length: %d\r\n\r\n" % (len(piece) * count))
        for _ in range(count):
            await peer.send(piece)
            most = max(most, memory.grown())
        await peer.gone()

    async with stage.upstream(script):
        for _ in range(PLACES):
            failed(await ask(stage.url, chat(stream=stream)))
    assert most < 64 << 20
    assert memory.grown() < 48 << 20


MANY = {
    "values": (b"200 OK", b"{}," * 10_000_000, (502, "upstream_error")),
    "escapes": (b"200 OK", b'"' + b"\\\\u00" * 5_000_000 + b'",', (502, "upstream_error")),
    "values of a refusal": (b"429 No", b"{}," * 10_000_000, (429, "rate_limit_exceeded")),
}


@pytest.mark.parametrize(("status", "values", "becomes"), MANY.values(), ids=MANY)
async def test_d25_an_answer_that_would_cost_more_than_it_is_long(
    stage: Stage, status: bytes, values: bytes, becomes: tuple[int, str]
) -> None:
    """As Python's objects it would be 2 GB. It is refused before there are any."""
    memory, most = Memory(stage), 0
    data = answer(BODY[:-1] + b',"x":[' + values + b"0]}", JSON.replace(b"200 OK", status))

    async def look() -> None:
        nonlocal most
        while True:
            most = max(most, memory.grown())
            await asyncio.sleep(0.005)

    looking = asyncio.create_task(look())
    failed(await told(stage, data), *becomes)
    looking.cancel()
    assert most < 192 << 20


# answers that are no JSON, or not the right one


def with_usage(usage: str) -> bytes:
    return answer(re.sub(rb'"usage": \{[^}]*\}', b'"usage": ' + usage.encode(), BODY), JSON)


BAD_JSON = {
    "not UTF-8": BODY.replace(b"SECRET", b"\xff\xfe"),
    "NaN": BODY.replace(b'"created": 1', b'"created": NaN'),
    "Infinity": BODY.replace(b'"created": 1', b'"created": -Infinity'),
    "two documents": BODY + BODY,
    "a lone surrogate": BODY.replace(b"SECRET", b"\\ud800"),
    "a depth of 100,000": BODY.replace(b'"created": 1', b'"created": ' + b"[" * 100_000 + b"]" * 100_000),
    "null": b"null", "a list": b"[]", "a text": b'"SECRET"', "no choices": b'{"id": "SECRET"}',
    "choices that are none": b'{"choices": [1, "SECRET"]}',
}  # fmt: skip


@pytest.mark.parametrize("body", BAD_JSON.values(), ids=BAD_JSON)
async def test_d15_json_that_cannot_be_read(stage: Stage, body: bytes) -> None:
    failed(await told(stage, answer(body, JSON)))


ODD = {
    "null": "null", "a text": '"many"', "a list": "[1]", "empty": "{}", "negative": '{"prompt_tokens": -5, '
    '"completion_tokens": 5, "total_tokens": 0}', "10^18": '{"prompt_tokens": 1000000000000000000, '
    '"completion_tokens": 5, "total_tokens": 5}', "numbers in texts": '{"prompt_tokens": "5", "completion_tokens": '
    '"5", "total_tokens": "10"}', "twice": '{"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}, '
    '"usage": {"prompt_tokens": -1}',
}  # fmt: skip


@pytest.mark.parametrize("usage", ODD.values(), ids=ODD)
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_d15_usage_that_cannot_be_believed_is_an_alarm_and_no_error(
    stage: Stage, usage: str, stream: bool
) -> None:
    mark = uuid4().hex
    last = re.sub(rb'"usage":\{[^}]*\}', b'"usage":' + usage.encode(), event("", "stop"))
    data = STREAM + b"".join(map(chunk, [event("Hi"), last, DONE, b""])) if stream else with_usage(usage)
    reply = await told(stage, data, stream=stream, headers={"x_request_id": mark})
    assert reply.status == 200
    assert b'"usage":' not in reply.body.replace(b'"usage":null', b"")
    await asyncio.to_thread(stage.proxy.program.line, request_id=mark)
    [alarm] = stage.proxy.program.logged("alarm", request_id=mark)
    assert alarm["code"] == "usage_anomaly"


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_d15_usage_in_order_is_no_alarm(stage: Stage, stream: bool) -> None:
    mark = uuid4().hex
    data = STREAM + b"".join(map(chunk, [event("Hi"), event("", "stop"), DONE, b""])) if stream else WHOLE
    assert b'"total_tokens":8' in (await told(stage, data, stream=stream, headers={"x_request_id": mark})).body
    await asyncio.to_thread(stage.proxy.program.line, request_id=mark)
    assert not stage.proxy.program.logged("alarm", request_id=mark)


# refusals


def flat(message: str, code: str = "1", kind: str = "x", **more: Any) -> bytes:
    return json.dumps(
        {"object": "error", "message": message, "type": kind, "param": None, "code": code} | more
    ).encode()


async def refused(stage: Stage, status: int, body: bytes, *headers: bytes, stream: bool = False) -> Answer:
    head = ERROR % status + b"".join(b"%b\r\n" % header for header in headers)
    return await told(stage, answer(body, head), stream=stream)


LOC = b'{"detail": [{"type": "float_type", "loc": ["body", "temperature"], "msg": "Not a number", "input": "SECRET"}]}'


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_d16_the_callers_mistake_in_both_shapes_of_mistral(stage: Stage, stream: bool) -> None:
    reply = await refused(stage, 400, flat("Expected last role User", "3230"), stream=stream)
    assert (reply.status, reply.error()["param"]) == (400, "messages")
    reply = await refused(stage, 422, LOC, stream=stream)
    failed(reply, 400, "invalid_type")
    assert (reply.error()["type"], reply.error()["param"]) == ("invalid_request_error", "temperature")


@pytest.mark.parametrize("status", [401, 403])
async def test_d17_our_key_is_refused(stage: Stage, status: int) -> None:
    """The client must not give up its own key, and somebody is told."""
    reply = await refused(stage, status, flat(f"SECRET {PROVIDER_KEY}"))
    failed(reply, 502, "upstream_auth_failed")
    assert reply.header("x-should-retry") == "false"
    mark = reply.header("x-request-id")
    await asyncio.to_thread(stage.proxy.program.line, request_id=mark)
    assert [line["code"] for line in stage.proxy.program.logged("alarm", request_id=mark)] == ["upstream_auth_failed"]


async def test_d18_no_credit(stage: Stage) -> None:
    reply = await refused(stage, 402, flat("SECRET account"))
    failed(reply, 429, "insufficient_quota")
    assert reply.header("x-should-retry") == "false"


AFTER = {
    b"retry-after: 1": "1", b"retry-after: 0": "1", b"retry-after: 9999": "3600", b"retry-after: 1.5": "2",
    b"retry-after: -5": "60", b"retry-after: soon": "60", b"retry-after: 1e9": "60", b"retry-after:": "60",
    b"x-nothing: 1": "60", b"retry-after-ms: 2500": "3",
    b"date: Thu, 20 Nov 2026 10:00:00 GMT\r\nretry-after: Thu, 20 Nov 2026 10:00:30 GMT": "30",
    b"date: Thu, 20 Nov 2026 10:00:00 GMT\r\nretry-after: Thu, 20 Nov 2025 10:00:30 GMT": "1",
    b"date: Thu, 20 Nov 2026 10:00:00 GMT\r\nretry-after: Thu, 20 Nov 2036 10:00:30 GMT": "3600",
}  # fmt: skip


@pytest.mark.parametrize(("header", "wait"), AFTER.items())
async def test_d19_when_to_come_back(stage: Stage, header: bytes, wait: str) -> None:
    reply = await refused(stage, 429, flat("SECRET limits"), header)
    failed(reply, 429, "rate_limit_exceeded")
    assert reply.header("retry-after") == wait


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize(
    ("status", "becomes", "code"),
    [(500, 500, "upstream_error"), (502, 502, "upstream_error"), (503, 503, "upstream_error"),
     (504, 504, "upstream_timeout"), (520, 502, "upstream_error"), (999, 502, "upstream_error")],
)  # fmt: skip
@pytest.mark.parametrize("body", [HTML, flat("SECRET"), b"", b"\xff"], ids=["page", "JSON", "nothing", "bytes"])
async def test_d20_the_upstream_is_broken(
    stage: Stage, status: int, becomes: int, code: str, body: bytes, stream: bool
) -> None:
    failed(await refused(stage, status, body, stream=stream), becomes, code)


ERRORS = [
    flat("SECRET", raw_status_code=503), b'{"error": {"message": "SECRET", "code": 1}}', b'{"error": "SECRET"}',
    b'{"object": "error", "choices": [{"index": 0, "message": {"content": "SECRET"}}]}',
]  # fmt: skip


@pytest.mark.parametrize("body", ERRORS)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings", "/v1/models", "/v1/models/x"])
async def test_d21_an_error_with_status_200(stage: Stage, body: bytes, path: str) -> None:
    bodies = {
        "/v1/chat/completions": chat().partition(b"\r\n\r\n")[2],
        "/v1/embeddings": b'{"model": "mistral-embed", "input": "x"}',
    }
    data = bodies.get(path, b"")
    async with stage.upstream(says(answer(body, JSON))):
        failed(await ask(stage.url, request("POST" if data else "GET", path, data)))


@pytest.mark.parametrize("body", ERRORS)
async def test_d21_an_error_in_a_stream(stage: Stage, body: bytes) -> None:
    error = chunk(b"data: " + body + b"\n\n")
    failed(await told(stage, STREAM + error + chunk(DONE) + chunk(b""), stream=True))
    reply = await told(stage, STREAM + chunk(event("Hi")) + error + chunk(DONE) + chunk(b""), stream=True)
    first, frame, done, _ = reply.body.split(b"\n\n")
    assert (first + b"\n\n", done + b"\n\n") == (event("Hi"), DONE)
    assert json.loads(frame.removeprefix(b"data: "))["error"]["code"] == "upstream_error"
    assert b"SECRET" not in reply.body


async def test_d23_another_models_name_in_the_answer(stage: Stage) -> None:
    """It is the upstream's word; what was asked for stays in the log."""
    mark = uuid4().hex
    data = answer(BODY.replace(b"mistral-small-latest", b"some-other-model"), JSON)
    reply = await told(stage, data, headers={"x_request_id": mark})
    assert (reply.status, reply.json()["model"]) == (200, "some-other-model")
    assert reply.header("x-proxy-upstream") == "mistral/mistral-small-latest"
    line = await asyncio.to_thread(stage.proxy.program.line, request_id=mark)
    assert line["model"] == "mistral-small-latest"
