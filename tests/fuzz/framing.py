"""The door itself: any bytes at all, fed to the protocol as one segment and then byte by byte."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field, replace
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from proxy.http.framing import Limits
from proxy.http.progress import QUIET
from proxy.http.protocol import Protocol

LIMITS = Limits(request_line=200, header_block=600, headers=10, padding=100)
"""Small ones, so that small inputs reach them."""


class Wire(asyncio.Transport):
    """A connection to a client that is played by the test. `unsent` is what the client has not read yet."""

    def __init__(self, client: str = "192.0.2.7") -> None:
        super().__init__({"peername": (client, 4711), "sockname": ("127.0.0.1", 8080)})
        self.written = bytearray()
        self.writes: list[int] = []
        """How many bytes each time."""
        self.unsent = 0
        self.closed = self.aborted = self.half_closed = False
        self.reading = True

    def write(self, data: Any) -> None:
        assert not self.half_closed
        assert not self.closed
        self.writes.append(len(data))
        self.written += data

    def write_eof(self) -> None:
        self.half_closed = True

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def statuses(self) -> list[int]:
        """Of all answers, the interim ones not counted."""
        found = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) [\w -]*\r\n", self.written)]
        return [status for status in found if status != 100]


@dataclass
class App:
    """Reads the body and answers 200. `begun` and `served` are the requests it was called for, and those it read whole;
    it answers no earlier than `go_on` says."""

    begun: list[Scope] = field(default_factory=list)
    served: list[tuple[str, str, bytes]] = field(default_factory=list)
    left: int = 0
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.go_on.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.begun.append(scope)
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left += 1
                return
            body, more = body + message["body"], message["more_body"]
        self.served.append((scope["method"], scope["raw_path"].decode(), body))
        await self.go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


def connection(
    app: Any, kind: type[Protocol] = Protocol, state: ServerState | None = None, client: str = "192.0.2.7"
) -> tuple[Protocol, Wire]:
    """A connection that is open. Needs a running loop."""
    config = uvicorn.Config(
        app, http=kind, ws="none", lifespan="off", interface="asgi3", log_config=None, access_log=False,
        proxy_headers=False, timeout_keep_alive=75,
    )  # fmt: skip
    protocol = kind(config=config, server_state=state or ServerState(), app_state={})
    wire = Wire(client)
    protocol.connection_made(wire)
    return protocol, wire


async def settled(protocol: Protocol) -> None:
    """Let everything happen that needs no more bytes."""
    for _ in range(20):
        await asyncio.sleep(0)


Outcome = tuple[list[tuple[str, str, bytes]], list[int]]


async def outcome(segments: list[bytes], *, patient: bool = False, remembers: bool = True) -> Outcome:
    """What was served and what was answered. Who is `patient` waits for an answer before it goes on."""
    refusals: list[int] = []
    app = App()
    kind = Protocol.bounded(LIMITS, lambda error, request_id, client: refusals.append(error.status))
    protocol, wire = connection(app, kind)
    if not remembers:
        protocol._tries = 0
    for segment in segments:
        if not wire.closed:
            protocol.data_received(segment)
        if patient:
            await settled(protocol)
    await settled(protocol)
    answers = wire.statuses()
    served = list(app.served)
    assert len(refusals) <= 1
    assert answers == [200] * len(app.served) + refusals, "one answer for each request that was read, then a refusal"
    if refusals:
        assert wire.closed or wire.half_closed
        protocol.data_received(b"GET /after HTTP/1.1\r\nhost: a\r\n\r\n")
        await settled(protocol)
        assert app.served == served, "something ran after a refusal"
    elif protocol._progress.phase == QUIET and not (wire.closed or wire.half_closed):
        protocol.data_received(b"GET /after HTTP/1.1\r\nhost: a\r\n\r\n")
        await settled(protocol)
        assert wire.statuses() == [*answers, 200], "an open connection does not answer"
    for scope in app.begun:
        _look_at(scope)
    wire.close()
    protocol.connection_lost(None)
    await settled(protocol)
    assert not protocol.tasks, "an application did not end when its client left"
    return served, answers


def _look_at(scope: Scope) -> None:
    """What every request is, whatever it was made of."""
    names = [name for name, _ in scope["headers"]]
    assert names.count(b"host") == 1
    assert not (b"content-length" in names and b"transfer-encoding" in names)
    assert max(names.count(b"content-length"), names.count(b"transfer-encoding")) <= 1
    assert scope["method"] != "CONNECT"
    assert scope["http_version"] in ("1.0", "1.1")
    assert scope["raw_path"].startswith(b"/")
    assert len(names) <= LIMITS.headers
    assert sum(len(name) + len(value) + 4 for name, value in scope["headers"]) <= LIMITS.header_block
    assert not any(set(name + value) & set(b"\r\n\0") for name, value in scope["headers"])


PLAIN = b"POST /a HTTP/1.1\r\nx-request-id: a\r\nhost: a\r\ncontent-length: 1\r\n\r\n1"
"""A request whose head is remembered when it comes again."""


def check(data: bytes) -> None:
    """No exception; one answer for each request; nothing runs after a refusal; and where one segment ends and the next
    one begins makes no difference, except to how soon too much is noticed. Nor does it whether heads are remembered."""
    asyncio.run(_check(data))


async def _check(data: bytes) -> None:
    whole = await outcome([data])
    apart = await outcome([data[at : at + 1] for at in range(len(data))])
    if len(data) <= LIMITS.padding:
        assert whole == apart
    for before in (PLAIN, data):
        again = [before, before, data]
        assert await outcome(again, patient=True) == await outcome(again, patient=True, remembers=False)


def limits(**changes: Any) -> Limits:
    """Those of the product, with changes."""
    return replace(Limits(), **changes)
