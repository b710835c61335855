"""An upstream that the test plays itself, on a port that the proxy under test was started with."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from tests.upstream.scripted import Peer, Received, answer

Reply = Callable[[Peer, Received], Awaitable[object]]
"""What the upstream does with one request."""

JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def listener() -> socket.socket:
    """A free port of the loopback, kept for as long as the socket is open."""
    # The protocol is named because asyncio turns Nagle's delay off only where it is.
    held = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    held.listen(4096)
    held.setblocking(False)
    return held


def url_of(held: socket.socket) -> str:
    return f"http://127.0.0.1:{held.getsockname()[1]}"


@dataclass
class Seen:
    """What has come to the upstream."""

    connections: int = 0
    requests: list[Received] = field(default_factory=list)
    mistakes: list[BaseException] = field(default_factory=list)


@asynccontextmanager
async def upstream(held: socket.socket, reply: Reply) -> AsyncIterator[Seen]:
    """Answer every request on every connection with `reply`, until the block ends."""
    running: set[asyncio.Task[None]] = set()
    seen = Seen()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        running.add(task)
        seen.connections += 1
        try:
            while True:
                received = await Peer(reader, writer).request()
                seen.requests.append(received)
                await reply(Peer(reader, writer), received)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the proxy closed the connection, or the test is over
        except Exception as mistake:
            seen.mistakes.append(mistake)
        finally:
            writer.close()
            with suppress(Exception, asyncio.CancelledError):
                await writer.wait_closed()
            running.discard(task)

    server = await asyncio.start_server(serve, sock=held.dup(), backlog=4096)
    try:
        yield seen
    finally:
        server.close()
        for task in list(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await server.wait_closed()
    assert not seen.mistakes


def prompt(received: Received) -> str:
    """What the last message says."""
    text: str = json.loads(received.body)["messages"][-1]["content"]
    return text


def event(text: str, finish: str | None = None, **delta: Any) -> bytes:
    """One event of a stream, as Mistral writes it."""
    choice = {"index": 0, "delta": {"content": text} | delta, "finish_reason": finish}
    body: dict[str, Any] = {"id": "cmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    body["choices"] = [choice]
    if finish:
        body["usage"] = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def events(count: int) -> list[bytes]:
    """A whole stream of so many words."""
    return [*(event(f"word {i} ") for i in range(count)), event("", "stop"), DONE]


def completion(text: str = "Hello!") -> bytes:
    """A whole answer to a chat request, with its head."""
    body = {
        "id": "cmpl-1", "object": "chat.completion", "created": 1, "model": "mistral-small-latest",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
    }  # fmt: skip
    return answer(json.dumps(body).encode(), JSON)
