"""The upstream of the soak: honest under /v1; under /moody/v1 it does what the first word of the prompt names."""

from __future__ import annotations

import asyncio
import random
import zlib
from typing import Any, Final

import msgspec

from bench.leaving import leave
from bench.traffic import MODEL
from tests.fuzz import targets as fuzz
from tests.fuzz.mutate import mutated

MOODS: Final = ("good", "slow", "429", "500", "reset", "hang", "cut")
"""`hang` gives no answer at all, `cut` ends in the middle of one."""

GARBAGE: Final = "garbage"
"""One of the answers of tests/fuzz, changed at random."""

PAUSE: Final = 0.005
"""Seconds between two events of a stream."""

SLOW: Final = 0.7
"""Seconds that a slow answer takes longer."""

_MOST_ECHOED = 100
_USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
_JSON = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_REFUSED = {"429": b"429 Too Many Requests", "500": b"500 Internal Server Error"}


def completion(text: str) -> bytes:
    """A chat completion that says `text`."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    made = {"id": "a", "object": "chat.completion", "created": 1, "model": MODEL, "choices": [choice]}
    return msgspec.json.encode(made | {"usage": _USAGE})


def event(text: str, finish: str | None = None) -> bytes:
    """One event of a stream."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    chunk = {"id": "a", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": [choice]}
    return b"data: %b\n\n" % msgspec.json.encode(chunk | ({"usage": _USAGE} if finish else {}))


def vector(text: str) -> int:
    """What an embedding of this text has in its one dimension."""
    return zlib.crc32(text.encode())


def _vectors(inputs: object) -> bytes:
    texts = inputs if isinstance(inputs, list) else [inputs]
    data = [{"object": "embedding", "index": at, "embedding": [vector(str(text))]} for at, text in enumerate(texts)]
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    return msgspec.json.encode({"id": "e", "object": "list", "model": "mistral-embed", "data": data, "usage": usage})


def _said(body: dict[str, Any]) -> str:
    """The last message; what changed bodies have in its place is no matter."""
    try:
        return str(body["messages"][-1]["content"])[:_MOST_ECHOED] or "nothing"
    except (KeyError, IndexError, TypeError):
        return "nothing"


class Upstream:
    """`calls` counts those so far."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._answers = [file.read_bytes() for file in fuzz.kept("answers")]
        self._streams = [file.read_bytes() for file in fuzz.kept("sse")]
        self.calls = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            while await self._answer(reader, writer):
                pass
        except (OSError, RuntimeError, asyncio.IncompleteReadError):
            pass  # it has left, which uvloop tells a writer by a RuntimeError
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether another request may follow."""
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
        data = await reader.readexactly(int(length or b"0"))
        self.calls += 1
        path = head.split(b" ", 2)[1].decode()
        body = msgspec.json.decode(data) if data else {}
        if path.endswith("/models"):
            _send(writer, b"200 OK", b'{"object":"list","data":[]}')
        elif path.endswith("/embeddings"):
            await asyncio.sleep(self._dice.random() * 0.02)  # time for others to ask for the same
            _send(writer, b"200 OK", _vectors(body.get("input")))
        else:
            said, stream = _said(body), bool(body.get("stream"))
            mood = said.partition(" ")[0] if path.startswith("/moody") else "good"
            if not await self._in_the_mood(reader, writer, mood, said, stream):
                return False
        return b"connection: close" not in head

    async def _in_the_mood(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, mood: str, said: str, stream: bool
    ) -> bool:
        match mood:
            case "good" | "slow":
                await asyncio.sleep(SLOW if mood == "slow" else 0)
                if stream:
                    await _play(writer, [*map(event, said), event("", "stop"), b"data: [DONE]\n\n"])
                    writer.write(b"0\r\n\r\n")
                else:
                    _send(writer, b"200 OK", completion(said))
                return True
            case "429" | "500":
                _send(writer, _REFUSED[mood], b'{"message":"not now"}')
                return True
            case "reset":
                leave(writer, reset=True)
            case "hang":
                await reader.read(1)  # until it leaves
            case "cut" if stream:
                await _play(writer, [*map(event, said)])
            case "cut":
                writer.write(_JSON % (b"200 OK", 500) + completion(said)[:100])
            case _:
                return await self._garbage(writer)
        return False

    async def _garbage(self, writer: asyncio.StreamWriter) -> bool:
        dice = self._dice
        if dice.random() < 0.5:
            answer = mutated(self._answers, dice)
        else:
            answer = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + mutated(self._streams, dice)
        writer.write(answer)
        await writer.drain()
        await asyncio.sleep(dice.choice((0, 0, 0.05, 0.5)))
        return dice.random() < 0.3


def _send(writer: asyncio.StreamWriter, status: bytes, body: bytes) -> None:
    writer.write(_JSON % (status, len(body)) + body)


async def _play(writer: asyncio.StreamWriter, events: list[bytes]) -> None:
    writer.write(_STREAM)
    for one in events:
        writer.write(b"%x\r\n%b\r\n" % (len(one), one))
        await writer.drain()
        await asyncio.sleep(PAUSE)
