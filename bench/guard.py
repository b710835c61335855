"""What the door costs: CPU time of our HTTP protocol and our JSON checks beside the plain ones they replace.

    python -m bench.guard [ROUNDS]

No socket and no process is in it: the same bytes are fed to uvicorn's HttpToolsProtocol and to ours, each with a
transport that keeps nothing and an application that only answers; and the same bodies to msgspec and to the strict
parse. Both sides of a row take turns within a round, so a difference of one round is not touched by what drifts.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Callable

import msgspec
import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from bench.measure import Cores, on_cores
from bench.traffic import MODEL
from proxy.core import strict_json
from proxy.http.protocol import Protocol

Samples = dict[str, dict[str, list[float]]]
"""Row → `plain` or `ours` → CPU µs, one figure per round."""

SIZES = {"600 B": 600, "20 kB": 20_000}
"""Bodies: an ordinary question, and a long conversation."""

WHOLE = "guard and checks, request of 600 B"
"""The row that has a goal: the protocol and the parse of one request together."""

PROTOCOLS: dict[str, type[asyncio.Protocol]] = {"plain": HttpToolsProtocol, "ours": Protocol}
PARSES: dict[str, Callable[[bytes], object]] = {"plain": msgspec.json.Decoder().decode, "ours": strict_json.parse}

_TURNS = 100
"""Of the loop: more than any answer takes."""
_BYTES_A_ROUND = 4_000_000
_HEADERS = (
    "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nAuthorization: Bearer sk-{key}\r\n"
    "Accept: application/json\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n"
    "Content-Type: application/json\r\nUser-Agent: OpenAI/Python 2.8.0\r\nX-Stainless-Arch: x64\r\n"
    "X-Stainless-Async: false\r\nX-Stainless-Lang: python\r\nX-Stainless-OS: Linux\r\n"
    "X-Stainless-Package-Version: 2.8.0\r\nX-Stainless-Retry-Count: 0\r\nX-Stainless-Runtime: CPython\r\n"
    "X-Stainless-Runtime-Version: 3.11.7\r\nContent-Length: {length}\r\n\r\n"
)
"""As OpenAI's Python SDK sends them."""


def body(size: int) -> bytes:
    """A chat request of about `size` bytes, a message of some 180 bytes at a time."""
    said = "Which of our three copies of the atlas may leave the reading room, and who has to sign? é \n"
    messages: list[dict[str, str]] = []
    made = b""
    while len(made) < size - 90:
        messages.append({"role": "assistant" if len(messages) % 2 else "user", "content": said * 2})
        made = msgspec.json.encode(
            {"model": MODEL, "messages": messages, "temperature": 0.3, "max_tokens": 200, "stream": False}
        )
    return made


def request(body: bytes) -> bytes:
    """The bytes of one request with this body."""
    return _HEADERS.format(key="0" * 40, length=len(body)).encode() + body


class Nowhere(asyncio.Transport):
    """A connection whose peer takes everything at once. `sock` is a real socket, for what is set on it."""

    def __init__(self, sock: socket.socket) -> None:
        peer = {"peername": ("127.0.0.1", 50000), "sockname": ("127.0.0.1", 8080)}
        super().__init__({"socket": sock, **peer})
        self.closed = False

    def write(self, data: object) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    abort = close

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


class Answering:
    """An application that reads the body, says OK and counts."""

    def __init__(self) -> None:
        self.answers = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}"})
        self.answers += 1


class Door:
    """What makes connections that `kind` speaks on, and the application behind them. Needs a running loop."""

    def __init__(self, kind: type[asyncio.Protocol]) -> None:
        self.app = Answering()
        self._config = uvicorn.Config(
            self.app, http=kind, ws="none", interface="asgi3", log_config=None, access_log=False, proxy_headers=False
        )
        self._config.load()
        self._state = ServerState()
        self._state.default_headers = [(b"date", b"Fri, 20 Nov 2026 12:00:00 GMT")]

    def open(self, sock: socket.socket) -> asyncio.Protocol:
        """A new connection."""
        protocol = self._config.http_protocol_class(  # type: ignore[call-arg]
            config=self._config, server_state=self._state, app_state={}
        )
        self._wire = Nowhere(sock)
        protocol.connection_made(self._wire)
        return protocol

    def close(self, protocol: asyncio.Protocol) -> None:
        """The client leaves the connection that was opened last."""
        self._wire.close()
        protocol.connection_lost(None)

    async def ask(self, protocol: asyncio.Protocol, data: bytes) -> None:
        """Wait for the answer to one request."""
        number = self.app.answers
        protocol.data_received(data)
        for _ in range(_TURNS):
            if self.app.answers > number:
                return
            await asyncio.sleep(0)
        raise RuntimeError(f"{type(protocol).__name__} does not answer")


async def serve(kind: type[asyncio.Protocol], data: bytes, count: int, *, kept: bool = True) -> float:
    """CPU µs per request when `kind` gets `data` `count` times, each after the last answer; on one connection, or with
    `kept=False` each on its own, whose opening and closing count."""
    door, (near, far) = Door(kind), socket.socketpair()
    with near, far:
        protocol, start = door.open(near), time.process_time()
        for _ in range(count):
            await door.ask(protocol, data)
            if not kept:
                door.close(protocol)
                protocol = door.open(near)
        used = time.process_time() - start
        door.close(protocol)
    return used / count * 1e6


def parse(read: Callable[[bytes], object], data: bytes, count: int) -> float:
    """CPU µs that `read` takes for `data`."""
    start = time.process_time()
    for _ in range(count):
        read(data)
    return (time.process_time() - start) / count * 1e6


async def one_round(samples: Samples, number: int) -> None:
    """Add one figure to each row; who goes first changes with `number`."""
    for name in list(PROTOCOLS)[:: 1 if number % 2 else -1]:
        for title, size in SIZES.items():
            data = body(size)
            count = max(_BYTES_A_ROUND // (len(data) + 600), 20)
            samples[f"protocol, request of {title}"][name].append(await serve(PROTOCOLS[name], request(data), count))
            samples[f"parse, body of {title}"][name].append(parse(PARSES[name], data, 4 * count))
        alone = request(body(SIZES["600 B"]))
        samples["protocol, 600 B on a connection of its own"][name].append(
            await serve(PROTOCOLS[name], alone, 1000, kept=False)
        )
        row = [samples[f"{part} of 600 B"][name][-1] for part in ("protocol, request", "parse, body")]
        samples[WHOLE][name].append(sum(row))


def nothing() -> Samples:
    """No figures yet."""
    return defaultdict(lambda: defaultdict(list))


def measure(rounds: int) -> Samples:
    """All rows, after one round that is thrown away."""
    samples = nothing()
    uvloop.run(one_round(nothing(), 0))
    for number in range(rounds):
        uvloop.run(one_round(samples, number))
    return samples


def main() -> None:
    """Measure and print."""
    from bench.report import guard_table, text

    with on_cores(Cores.split().target):
        samples = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 30)
    print(text(guard_table(samples)))


if __name__ == "__main__":
    main()
