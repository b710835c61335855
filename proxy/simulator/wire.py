"""How an answer is put on the wire: in which writes, after which waits, and how it ends before its time.

The client may leave in any phase. It is watched from the first moment this side waits for anything, so that a test can
ask when the call was given up.
"""

import asyncio
import socket
import struct
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Literal

from proxy.simulator.calls import Call, Ending
from proxy.simulator.faults import Fault
from proxy.simulator.reply import Header, Reply

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: the ASGI extension by which server.py hands over the connection, so that it can be cut
TRANSPORT = "proxy.simulator.transport"


class ClientGone(Exception):
    """The client closed the connection."""


class Client:
    """The caller's end of one exchange."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self._gone: asyncio.Task[None] | None = None

    async def body(self) -> bytes:
        parts = []
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                return b"".join(parts)

    async def wait(self, seconds: float | None) -> None:
        """Let time pass (None: until the client goes; 0: one turn of the loop). Raises ClientGone."""
        if self._gone is None:
            self._gone = asyncio.ensure_future(self._until_gone())
        if seconds == 0:
            await asyncio.sleep(0)
        else:
            await asyncio.wait({self._gone}, timeout=seconds)
        if self._gone.done():
            raise ClientGone

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def start(self, status: int, headers: list[Header]) -> None:
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def cut(self, *, reset: bool) -> None:
        """Close the connection under the answer, what was written included; with `reset` by RST."""
        transport = self.scope.get("extensions", {}).get(TRANSPORT)
        if transport is None:
            raise RuntimeError("faults that cut the connection need proxy.simulator.server")
        if reset:
            now = struct.pack("ii", 1, 0)
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
        transport.close()
        while (await self._receive())["type"] != "http.disconnect":
            pass  # until the server knows it too: it would complain of an unfinished answer

    def release(self) -> None:
        if self._gone is not None:
            self._gone.cancel()


@dataclass(slots=True)
class Plan:
    """What is written: the body, the offsets at which its events end and at which writes end, and how it is over.

    `tokens` are those of the events up to each of them, the first of none.
    """

    body: bytes
    event_ends: list[int]
    tokens: list[int]
    write_ends: list[int]
    ending: Literal["complete", "cut", "stall"]

    def writes(self) -> Iterator[tuple[bytes, int]]:
        """Each write, with the number of events that are complete after it."""
        for start, end in pairwise([0, *self.write_ends]):
            yield self.body[start:end], bisect_right(self.event_ends, end)


def plan(reply: Reply, fault: Fault) -> Plan:
    events = reply.events or []
    frames = [event.data for event in events]
    ends = list(accumulate(map(len, frames)))
    tokens = [0, *accumulate(event.tokens for event in events)]
    body = b"".join(frames) if reply.events is not None else reply.body
    size = len(body)
    ending: Literal["complete", "cut", "stall"] = "complete"
    if fault.cut_bytes is not None:
        size, ending = min(size, fault.cut_bytes), "cut"
    if fault.cut_events is not None and reply.events is not None:
        size, ending = sum(map(len, frames[: fault.cut_events])), "cut"
    if fault.stall_events is not None and reply.events is not None:
        size, ending = sum(map(len, frames[: fault.stall_events])), "stall"
    if fault.fragment:
        write_ends = [*range(fault.fragment, size, fault.fragment), size]
    elif fault.coalesce or not ends:
        write_ends = [size]
    else:
        write_ends = [*(end for end in ends if end < size), size]
    return Plan(body[:size], ends, tokens, write_ends if size else [], ending)


async def deliver(
    client: Client, call: Call, reply: Reply, headers: list[Header], fault: Fault, latency: float
) -> Ending:
    """Write the reply as the fault wants it; how the call ended."""
    if latency:
        await client.wait(latency)
    if fault.stall:
        await client.wait(None)
    if fault.cut_headers:
        await client.cut(reset=fault.reset)
        return "cut"
    script = plan(reply, fault)
    if reply.events is None:
        headers = [*headers, (b"content-length", b"%d" % len(reply.body))]
    await client.start(reply.status, headers)
    call.status = reply.status
    if fault.first_event:
        await client.wait(fault.first_event)
    await _write(client, call, script, fault.delay)
    if script.ending == "stall":
        await client.wait(None)
    if script.ending == "cut":
        await client.cut(reset=fault.reset)
        return "cut"
    await client.write(b"", more=False)
    return "complete"


async def _write(client: Client, call: Call, script: Plan, delay: float) -> None:
    for at, (data, events) in enumerate(script.writes()):
        if at:
            await client.wait(delay)
        await client.write(data)
        call.events_sent = events
        if script.event_ends:
            call.completion = script.tokens[events]
