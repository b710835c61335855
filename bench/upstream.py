"""The upstream of the benchmark: a process that answers canned bytes as cheaply as Python can.

An asyncio.Protocol on uvloop with httptools, no framework: it must cost a fraction of what any target costs (bench.run
prints that fraction). It answers POST /v1/chat/completions by the plan the request names (bench/traffic.py), and two
control paths: GET /counts says what was answered so far, POST /release lets the held streams go on.

    python -m bench.upstream PORT
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from typing import cast

import httptools
import msgspec
import uvloop

from bench.traffic import ANSWER, PLANS, Plan, json_response, mark

_ANSWER = json_response(ANSWER)
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
_STREAM_TRUE = (b'"stream":true', b'"stream": true')


class Counts(msgspec.Struct):
    """What the upstream has done since it started."""

    json: int = 0
    streams: int = 0
    held: int = 0
    """Streams waiting for a release now."""


@dataclass(slots=True)
class State:
    """What all connections share."""

    counts: Counts = field(default_factory=Counts)
    held: list[Stream] = field(default_factory=list)

    def release(self) -> None:
        """Let every held stream go on."""
        held, self.held = self.held, []
        self.counts.held = 0
        for stream in held:
            stream.step()


class Stream:
    """Writes one plan, segment by segment."""

    __slots__ = ("plan", "position", "state", "transport")

    def __init__(self, plan: Plan, transport: asyncio.WriteTransport, state: State) -> None:
        self.plan, self.transport, self.state, self.position = plan, transport, state, 0

    def step(self) -> None:
        """Write the next segment and arrange for the one after it."""
        if self.transport.is_closing():
            return
        data, pause = self.plan[self.position]
        self.transport.write(data)
        self.position += 1
        if self.position == len(self.plan):
            return
        if pause is None:
            self.state.held.append(self)
            self.state.counts.held += 1
        else:
            asyncio.get_running_loop().call_later(pause, self.step)


class UpstreamProtocol(asyncio.Protocol):
    """One connection; requests on it come one after the other."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.parser = httptools.HttpRequestParser(self)
        self.url = self.body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio.Transport
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        """httptools: a request line was read."""
        self.url, self.body = url, b""

    def on_body(self, body: bytes) -> None:
        """httptools: a piece of the body was read."""
        self.body += body

    def on_message_complete(self) -> None:
        """httptools: the request is whole."""
        if self.url == b"/v1/chat/completions":
            self.chat()
        else:
            self.control()

    def chat(self) -> None:
        """Answer with the canned answer, or with the stream the request names."""
        if not any(form in self.body for form in _STREAM_TRUE):
            self.state.counts.json += 1
            self.transport.write(_ANSWER)
            return
        self.state.counts.streams += 1
        plan = next(name for name in PLANS if mark(name) in self.body)
        Stream(PLANS[plan], self.transport, self.state).step()

    def control(self) -> None:
        """Answer the two control paths."""
        if self.url == b"/release":
            self.state.release()
        elif self.url != b"/counts":
            self.transport.write(_NOT_FOUND)
            return
        self.transport.write(json_response(msgspec.json.encode(self.state.counts)))


async def serve(port: int) -> None:
    """Answer on 127.0.0.1:`port` until cancelled."""
    state = State()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: UpstreamProtocol(state), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
