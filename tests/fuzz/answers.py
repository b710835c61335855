"""Any bytes at all as the whole answer of the upstream, through the default transport and the translation, no socket.

It comes as the answer to every kind of request, in pieces whose size its checksum chooses.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from types import SimpleNamespace
from typing import Any
from zlib import crc32

from proxy import data as files
from proxy.core import sse
from proxy.core.catalogue import Catalogue
from proxy.core.endpoint import Endpoint
from proxy.core.errors import ProxyError
from proxy.core.secret import Secret
from proxy.dispatch import Dispatch, Way
from proxy.providers.mistral import PROVIDER
from proxy.providers.mistral.chat import CHAT
from proxy.providers.mistral.embeddings import EMBEDDINGS
from proxy.providers.mistral.models import MODELS
from proxy.stages import translate
from proxy.upstream.client import Upstream
from proxy.upstream.config import Config, Retry
from proxy.upstream.http1_transport import Http1Transport, _Connection
from tests.asgi import Answer, call, exchange, services

KEY = "provider-key-0123456789"
LARGEST = 1 << 15
"""Bytes that come at once, at most."""

TURNS = 50
"""Turns of the event loop after which nothing more can be under way."""

_HELLO = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
_ASKED: list[tuple[Endpoint, dict[str, Any] | None]] = [
    (CHAT, _HELLO),
    (CHAT, _HELLO | {"stream": True}),
    (CHAT, _HELLO | {"stream": True, "n": 2, "stream_options": {"include_usage": True}}),
    (EMBEDDINGS, {"model": "m", "input": ["x", "y"]}),
    (MODELS, None),
]
_PIECES = (1, 7, 100, LARGEST)


class _Wire(asyncio.Transport):
    """A connection whose other side says what the input says, as soon as it is asked anything, and hangs up."""

    def __init__(self, loop: asyncio.AbstractEventLoop, data: bytes, size: int) -> None:
        super().__init__({"socket": _SOCKET})
        self._loop, self._data, self._size = loop, data, size
        self._closing, self._lost, self._paused = False, False, False
        self._feeding = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol: Any = protocol

    def writelines(self, pieces: Any) -> None:
        if not self._feeding:
            self._feeding = True
            self._loop.call_soon(self._feed)

    def _feed(self) -> None:
        if self._closing or self._paused:
            return
        if self._data:
            piece, self._data = self._data[: self._size], self._data[self._size :]
            self.protocol.get_buffer(-1)[: len(piece)] = piece
            self.protocol.buffer_updated(len(piece))
            self._loop.call_soon(self._feed)
        elif not self.protocol.eof_received():
            self.close()

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            self._loop.call_soon(self._feed)

    def is_reading(self) -> bool:
        return not self._paused

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True
        if not self._lost:
            self._lost = True
            self._loop.call_soon(self.protocol.connection_lost, None)

    abort = close


class _Dialler:
    """Stands for the network: every connection is a new _Wire."""

    def __init__(self, data: bytes, size: int) -> None:
        self._data, self._size = data, size
        self.made = 0

    async def connected(self) -> _Connection:
        self.made += 1
        loop = asyncio.get_running_loop()
        connection, wire = _Connection(loop, memoryview(bytearray(LARGEST))), _Wire(loop, self._data, self._size)
        wire.set_protocol(connection)
        connection.opened(wire)
        return connection


async def _ask(endpoint: Endpoint, body: dict[str, Any] | None, data: bytes, size: int) -> Answer | None:
    """What the client is told; None: an error. Raises when anything else comes of it, or anything is left behind."""
    config = Config(base_url="http://127.0.0.1", api_keys=[Secret(KEY)], retry=Retry(max_attempts=1))
    transport = Http1Transport(config)
    dialler = _Dialler(data, size)
    transport._connected = dialler.connected  # type: ignore[method-assign]
    ways = {"mistral": Way(endpoint, PROVIDER, Upstream(config, transport))}
    translation = translate.Config(lambda row: {"mistral": row}, strict=False, defaults={}, aliases={})
    dispatch = translate.build(translation, endpoint, _SERVICES)(Dispatch(ways, _SERVICES))
    model = "mistral-small-latest" if body else None
    about = exchange(body=body, model=model, model_asked=model)
    try:
        async with asyncio.timeout(5):
            return await call(dispatch, exchange=about, body=[], stays=True)
    except ProxyError as error:
        assert 400 <= error.status <= 599
        assert KEY not in error.message
        return None
    finally:
        assert dialler.made == 1  # nothing is asked twice
        await transport.close()
        for _ in range(TURNS):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}


def check(data: bytes) -> None:
    """Raises when `data`, as the upstream's answer, becomes anything but an answer of ours or a ProxyError."""
    asyncio.run(_ask_all(data, _PIECES[crc32(data) % len(_PIECES)]))


async def _ask_all(data: bytes, size: int) -> None:
    for endpoint, body in _ASKED:
        told = await _ask(endpoint, body, data, size)
        if told is None:
            continue
        assert told.status == 200
        assert KEY.encode() not in told.body
        if told.exchange.streamed:
            *_, last = sse.Splitter().feed(told.body)
            assert (sse.data(last) or b"").strip() == b"[DONE]"
        else:
            json.loads(told.body)


_QUIET, _ = os.pipe()  # nothing ever arrives on it
_SOCKET = SimpleNamespace(family=socket.AF_UNIX, fileno=lambda: _QUIET)
_SERVICES = services(None, Catalogue(files.read("models.yaml"), {}))
