"""Ten thousand bodies through the whole application: each gets an answer or an error of ours, and leaves nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from copy import deepcopy
from io import BytesIO
from typing import Any

import psutil
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.core.access import AccessKey
from proxy.core.secret import Secret
from proxy.generation import Generation, Process, prepare
from proxy.logs import Writer
from proxy.providers.mistral.chat import CHAT as CHAT_ROW
from proxy.providers.mistral.embeddings import EMBEDDINGS as EMBEDDINGS_ROW
from proxy.settings.model import Settings, Team
from proxy.upstream.client import Upstream
from proxy.upstream.config import Config
from tests import asgi
from tests.conftest import TEAM_KEY, Proxy
from tests.e2e.wire import CHAT, connect, request
from tests.test_dispatch import DONE, EVENT, LAST, Network, Sent, reply, streamed

EMBEDDINGS = "/v1/embeddings"
PROVIDER_NAMES = {name for row in (CHAT_ROW, EMBEDDINGS_ROW) if row.request for name in row.request.rows}
COUNT = 10_000
OVER_SOCKETS = 300
MOST_GROWTH = 20 << 20

WHOLE: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"model": "mistral-small-latest", "messages": [{"role": "user", "content": "Hi"}]}),
    (
        CHAT,
        {
            "model": "mistral-small-latest",
            "messages": [
                {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]},
                {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]},
                {"role": "tool", "tool_call_id": "c", "content": "1"},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}},
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    ),
    (EMBEDDINGS, {"model": "codestral-embed", "input": ["a", "b"], "dimensions": 8, "encoding_format": "base64"}),
]
HOSTILE: list[Any] = [
    None, True, 0, -1, 1.5, 2**53 + 1, 2**63, 10**40, 1e308, "", "\x00\r\n", "\ud800", "x" * 5000, "auto", "text",
    [], {}, [[]], [None], [{}], [{"type": "text"}], {"type": "function"}, {"": {}}, ["a"] * 300,
]  # fmt: skip
NAMES = sorted({*PROVIDER_NAMES, "role", "content", "type", "text", "tool_calls", "name", "url", "api_key", "x"})
PIECES = [
    b"",
    b'"',
    b"\\",
    b",",
    b"{",
    b"]",
    b"NaN",
    b"1e999",
    b"\xff",
    b'"model":1,',
    b"[" * 70,
    b"\\ud800",
    b"\xef\xbb\xbf",
]


@st.composite
def altered(draw: st.DrawFn) -> tuple[str, bytes]:
    """A right request, in which values have been replaced and others added."""
    target, whole = draw(st.sampled_from(WHOLE))
    body = json.loads(json.dumps(whole))
    for value in draw(st.lists(st.sampled_from(HOSTILE), max_size=2)):
        places = [*_places(body), *((body, name) for name in NAMES)]
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        holder[key] = deepcopy(value)
    return target, json.dumps(body).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Where a value stands in another, and a new one could."""
    if isinstance(value, dict):
        yield value, "x"
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    """A request with other bytes in it."""
    target, data = draw(altered())
    start = draw(st.integers(0, len(data)))
    return target, data[:start] + draw(st.sampled_from(PIECES)) + data[start + draw(st.integers(0, 3)) :]


def drawn(count: int, bodies: st.SearchStrategy[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Drawn before anything is measured, as hypothesis remembers what it has drawn."""
    found: list[tuple[str, bytes]] = []

    @settings(max_examples=count, database=None, suppress_health_check=list(HealthCheck))
    @given(bodies)
    def draw(body: tuple[str, bytes]) -> None:
        found.append(body)

    draw()
    return found


BODIES = altered() | damaged() | st.tuples(st.sampled_from([CHAT, EMBEDDINGS]), st.binary(max_size=60))


def answer(sent: Sent) -> Any:
    """An upstream that is content with everything."""
    if sent.path == EMBEDDINGS:
        data = [{"object": "embedding", "index": at, "embedding": [0.5]} for at in range(_texts(sent.body["input"]))]
        return reply({"object": "list", "data": data, "model": "m"})
    if sent.body.get("stream"):
        return streamed(EVENT, LAST, DONE)
    message = {"role": "assistant", "content": "Hello"}
    return reply({"id": "1", "object": "chat.completion", "created": 1, "model": "m",
                  "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})  # fmt: skip


def _texts(value: Any) -> int:
    return 1 if isinstance(value, str) else len(value)


class Forgetful(Network):
    """A network that does not keep what was sent."""

    def call(self, *args: Any, **more: Any) -> Any:
        self.sent.clear()
        return super().call(*args, **more)


def application(log: BytesIO) -> Generation:
    key = Secret(TEAM_KEY)
    settings_ = Settings().model_copy(update={"teams": {"a": Team(keys=[AccessKey(key.digest(), key)])}})
    provider = Config(api_keys=[Secret("provider-key-0123456789")])
    upstream = Upstream(provider, Forgetful(answer))
    return Generation(1, settings_, None, prepare(settings_), {"mistral": upstream}, Process(Writer(log)))


HEADERS = [
    (b"host", b"127.0.0.1"),
    (b"authorization", f"Bearer {TEAM_KEY}".encode()),
    (b"content-type", b"application/json"),
]


async def asked(app: Any, target: str, data: bytes, mode: bytes) -> int:
    """The status of the answer, after a look at the whole of it."""
    headers = [*HEADERS, (b"x-proxy-translation", mode)]
    answered = await asgi.call(app, path=target, headers=headers, body=[data], stays=True)
    try:
        if answered.status == 200:
            assert b'"error"' not in answered.body
        else:
            assert 400 <= answered.status < 500
            error = answered.error()
            assert {"message", "type", "param", "code"} == set(error)
            assert error["type"] == "invalid_request_error"
            assert error["message"]
            assert error["message"].isprintable()
    except AssertionError as wrong:
        wrong.add_note(f"{mode!r} {target} {data!r}: {answered}")
        raise
    return answered.status


async def test_b2_ten_thousand_bodies() -> None:
    """No 5xx, no traceback, no memory that stays."""
    log = BytesIO()
    app = application(log).app
    bodies = drawn(COUNT, BODIES)
    process = psutil.Process(os.getpid())
    statuses: dict[int, int] = {}
    for at, (target, data) in enumerate(bodies):
        if at == COUNT // 5:  # what is made once is there
            log.truncate(0)
            before = process.memory_info().rss
        status = await asked(app, target, data, (b"strict", b"lenient")[at % 2])
        statuses[status] = statuses.get(status, 0) + 1
        if at % 500 == 0:
            assert b"unexpected" not in log.getvalue()
            log.seek(0)
            log.truncate(0)
    assert process.memory_info().rss - before < MOST_GROWTH
    assert sum(statuses.values()) >= COUNT * 0.9
    assert statuses[200] > 500
    assert statuses[400] > 2000


async def test_b2_some_of_them_over_sockets(proxy: Proxy) -> None:
    """One after another on one connection: none leaves anything behind for the next."""
    async with connect(proxy.url) as client:
        for target, data in drawn(OVER_SOCKETS, BODIES):
            head = request("POST", target, b"", content_type="application/json", content_length=str(len(data)))
            await client.send(head + data)
            answered = await client.answer()
            assert answered.status < 500
            if answered.status != 200:
                assert answered.error()["type"]
            assert answered.header("connection") is None
    assert not proxy.program.logged("unexpected")
