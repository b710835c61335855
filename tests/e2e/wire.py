"""An HTTP/1.1 client that hides nothing: every byte of the answer, and every way of leaving."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tests.conftest import TEAM_KEY
from tests.programs import PATIENCE

T = TypeVar("T")

CHAT = "/v1/chat/completions"


async def soon(awaitable: Awaitable[T]) -> T:
    """What is awaited here happens at once or never."""
    async with asyncio.timeout(PATIENCE):
        return await awaitable


@dataclass
class Answer:
    """Header names are lower-case; `chunks` are the body as it was written, or the whole of it."""

    status: int
    headers: list[tuple[str, str]]
    chunks: list[bytes] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    def json(self) -> Any:
        return json.loads(self.body)

    def error(self) -> dict[str, Any]:
        """The error object, after a look at everything that every error answer has."""
        error: dict[str, Any] = self.json()["error"]
        assert {"message", "type", "param", "code"} <= set(error)
        assert error["message"]
        assert self.header("content-type") == "application/json"
        assert self.header("x-request-id")
        return error


class Connection:
    """One connection to a server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await soon(self.writer.drain())

    async def head(self) -> Answer:
        """The status line and the headers of an answer."""
        head = (await soon(self.reader.readuntil(b"\r\n\r\n"))).decode("latin-1")
        line, *fields = head[:-4].split("\r\n")
        pairs = (one.partition(": ") for one in fields)
        return Answer(int(line.split()[1]), [(name.lower(), value) for name, _, value in pairs])

    async def chunk(self) -> bytes:
        """The next chunk of a chunked body; the empty one is its end."""
        size = int(await soon(self.reader.readuntil(b"\r\n")), 16)
        return (await soon(self.reader.readexactly(size + 2)))[:-2]

    async def answer(self) -> Answer:
        """One whole answer."""
        answer = await self.head()
        if (length := answer.header("content-length")) is not None:
            answer.chunks.append(await soon(self.reader.readexactly(int(length))))
        elif answer.header("transfer-encoding") == "chunked":
            while piece := await self.chunk():
                answer.chunks.append(piece)
        return answer

    async def end(self) -> bytes:
        """What comes until the server closes, gracefully or not."""
        received = b""
        with suppress(ConnectionError):
            while piece := await soon(self.reader.read(1 << 16)):
                received += piece
        return received

    def leave(self, how: str) -> None:
        """By FIN, as a closed program does, or by RST, as a crashed machine or an impatient one does."""
        if how == "rst":
            linger = struct.pack("ii", 1, 0)
            self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.writer.transport.abort()
        self.writer.close()


@asynccontextmanager
async def connect(url: str, receive: int = 0) -> AsyncIterator[Connection]:
    """`receive` is how many bytes the kernel may hold for a client that does not read; 0 leaves that to the kernel."""
    parts = urlsplit(url)
    sock = socket.socket(socket.AF_INET6 if ":" in (parts.hostname or "") else socket.AF_INET)
    if receive:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    sock.setblocking(False)
    try:
        await soon(asyncio.get_running_loop().sock_connect(sock, (parts.hostname, parts.port)))
    except BaseException:
        sock.close()
        raise
    reader, writer = await soon(asyncio.open_connection(sock=sock))
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def request(method: str = "GET", target: str = "/health", body: bytes = b"", **headers: str) -> bytes:
    """A request with the team's key. A header's name is written with `_`; one that is empty is left out."""
    fields = {"host": "127.0.0.1", "authorization": f"Bearer {TEAM_KEY}"} | headers
    if body:
        fields = {"content-type": "application/json", "content-length": str(len(body))} | fields
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items() if value]
    return "\r\n".join([f"{method} {target} HTTP/1.1", *lines, "", ""]).encode("latin-1") + body


def chat(
    prompt: str = "Hello there", stream: bool = False, headers: dict[str, str] | None = None, **fields: Any
) -> bytes:
    """A chat request with one message of the user."""
    body = {"model": "mistral-small-latest", "messages": [{"role": "user", "content": prompt}]} | fields
    if stream:
        body["stream"] = True
    return request("POST", CHAT, json.dumps(body).encode(), **(headers or {}))


async def ask(url: str, data: bytes) -> Answer:
    """One request on a connection of its own."""
    async with connect(url) as connection:
        await connection.send(data)
        return await connection.answer()


async def turns(url: str, count: int = 3) -> None:
    """Let the proxy's event loop go round: what had reached its sockets before is done afterwards."""
    async with connect(url) as connection:
        for _ in range(count):
            await connection.send(request())
            assert (await connection.answer()).status == 200
