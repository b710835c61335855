"""The smallest HTTP/2 server: one script per stream, over TLS with ALPN."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from tests.upstream.scripted import Peer, Upstream, upstream


class Stream:
    """The server's end of one stream."""

    def __init__(self, peer: Peer, http: h2.connection.H2Connection, number: int, headers: dict[str, str]) -> None:
        self._peer, self._http, self._number = peer, http, number
        self.headers, self.body = headers, b""

    async def head(self, *headers: tuple[str, str]) -> None:
        self._http.send_headers(self._number, [(":status", "200"), *headers])
        await self._flush()

    async def data(self, data: bytes, end: bool = False) -> None:
        self._http.send_data(self._number, data, end_stream=end)
        await self._flush()

    async def reset(self) -> None:
        self._http.reset_stream(self._number)
        await self._flush()

    async def go_away(self) -> None:
        self._http.close_connection()
        await self._flush()

    async def hang_up(self) -> None:
        await self._peer.cut()

    async def _flush(self) -> None:
        await self._peer.send(self._http.data_to_send())


StreamScript = Callable[[Stream], Awaitable[object]]


@asynccontextmanager
async def http2_upstream(
    tls: ssl.SSLContext, script: StreamScript
) -> AsyncIterator[tuple[Upstream, asyncio.Queue[None]]]:
    """The server, and a queue that gets an item for every connection its client has closed."""
    tls.set_alpn_protocols(["h2"])
    gone: asyncio.Queue[None] = asyncio.Queue()

    async def connection(peer: Peer) -> None:
        http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        http.initiate_connection()
        await peer.send(http.data_to_send())
        streams: dict[int, Stream] = {}
        running: set[asyncio.Task[object]] = set()
        try:
            while data := await peer.reader.read(1 << 16):
                for event in http.receive_data(data):
                    match event:
                        case h2.events.RequestReceived(stream_id=int(number), headers=headers):
                            assert headers
                            fields = {str(name): str(value) for name, value in headers}
                            streams[number] = Stream(peer, http, number, fields)
                        case h2.events.DataReceived(stream_id=int(number), data=bytes(piece)):
                            streams[number].body += piece
                            http.acknowledge_received_data(len(piece), number)
                        case h2.events.StreamEnded(stream_id=int(number)):
                            running.add(asyncio.ensure_future(script(streams[number])))
                await peer.send(http.data_to_send())
        except h2.exceptions.ProtocolError:
            await peer.gone()  # the script has said good-bye; whatever still comes is out of order
        finally:
            gone.put_nowait(None)
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async with upstream(connection, tls) as server:
        yield server, gone
