"""The traffic of the soak: an upstream that is honest to who asks for it by name, and clients of every kind."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec

from bench.load import Route
from bench.traffic import MODEL
from tests.fuzz import targets as fuzz
from tests.fuzz.mutate import mutated

PATIENCE = 30.0
"""Seconds after which an answer to a good request counts as missing."""


def _completion(text: str) -> bytes:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return msgspec.json.encode(
        {"id": "a", "object": "chat.completion", "created": 1, "model": MODEL, "choices": [choice], "usage": usage}
    )


def _event(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    chunk = {"id": "a", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": [choice]}
    return b"data: %b\n\n" % msgspec.json.encode(chunk)


class Upstream:
    """Answers with the prompt when it begins with `good`; otherwise mostly with something broken."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._answers = [file.read_bytes() for file in fuzz.kept("answers")]
        self._streams = [file.read_bytes() for file in fuzz.kept("sse")]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._answer(reader, writer):
                pass
        except (OSError, RuntimeError, asyncio.IncompleteReadError):
            pass  # it has left, which uvloop tells a writer by a RuntimeError
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
        body = msgspec.json.decode(await reader.readexactly(int(length or b"2")))
        prompt = body["messages"][-1]["content"]
        if not prompt.startswith("good"):
            return await self._broken(writer)
        kept = b"connection: close" not in head
        if body.get("stream"):
            await self._stream(writer, prompt)
            return kept
        answer = _completion(prompt)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(answer))
        writer.write(answer)
        return kept

    async def _stream(self, writer: asyncio.StreamWriter, prompt: str) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        events = [*(_event(prompt[at]) for at in range(len(prompt))), _event("", "stop"), b"data: [DONE]\n\n"]
        for event in events:
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await writer.drain()
            await asyncio.sleep(0.005)
        writer.write(b"0\r\n\r\n")

    async def _broken(self, writer: asyncio.StreamWriter) -> bool:
        dice = self._dice
        if dice.random() < 0.5:
            answer = mutated(self._answers, dice)
        else:
            answer = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + mutated(self._streams, dice)
        writer.write(answer)
        await writer.drain()
        await asyncio.sleep(dice.choice((0, 0, 0.05, 0.5)))
        return dice.random() < 0.3


@dataclass(slots=True)
class Clients:
    """What the traffic is made of; every method is one client from its connect to its leaving."""

    route: Route
    dice: random.Random
    seen: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _number: int = 0

    def kinds(self) -> list[Callable[[], Awaitable[None]]]:
        """Who comes how often."""
        often = [self.good, self.good_stream, self.good, self.good_stream]
        return [
            *often,
            self.leaves,
            self.leaves_a_stream,
            self.garbage,
            self.garbage,
            self.bad_body,
            self.slow,
            self.broken,
        ]

    async def good(self) -> None:
        self._number += 1
        prompt = f"good {self._number}"
        answer = await self._call(self._request(prompt))
        self._judge(b'"content":"%b"' % prompt.encode() in answer.replace(b": ", b":"), "answer", answer)

    async def good_stream(self) -> None:
        self._number += 1
        prompt = f"good {self._number}"
        answer = await self._call(self._request(prompt, stream=True))
        events = [line[6:] for line in answer.split(b"\n") if line.startswith(b"data: {")]
        said = "".join(msgspec.json.decode(event)["choices"][0]["delta"].get("content", "") for event in events)
        self._judge(said == prompt and b"data: [DONE]" in answer, "stream", answer)

    async def broken(self) -> None:
        answer = await self._call(self._request("broken", stream=self.dice.random() < 0.5))
        self._judge(answer.startswith(b"HTTP/1.1 ") and b"internal_error" not in answer, "broken upstream", answer)

    async def leaves(self) -> None:
        await self._leave(self._request(self.dice.choice(("good", "broken"))), self.dice.random() * 0.01)

    async def leaves_a_stream(self) -> None:
        await self._leave(self._request("good " + "x" * 50, stream=True), self.dice.random() * 0.3)

    async def garbage(self) -> None:
        await self._leave(mutated([file.read_bytes() for file in fuzz.kept("framing")], self.dice), 0.02)

    async def bad_body(self) -> None:
        body = mutated([file.read_bytes() for file in fuzz.kept("bodies")], self.dice)
        answer = await self._call(self._around(body))
        self._judge(answer.startswith(b"HTTP/1.1 ") and b"internal_error" not in answer, "bad body", answer)

    async def slow(self) -> None:
        request = self._request("good")
        await self._leave(request[: self.dice.randrange(len(request))], 2.0)

    def _request(self, prompt: str, stream: bool = False) -> bytes:
        messages = [{"role": "user", "content": prompt}]
        return self._around(msgspec.json.encode({"model": MODEL, "messages": messages, "stream": stream}))

    def _around(self, body: bytes) -> bytes:
        key = self.route.headers["authorization"]
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: {key}\r\nconnection: close\r\n"
        return f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body

    async def _call(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.route.port)
        try:
            writer.write(request)
            return await asyncio.wait_for(reader.read(-1), PATIENCE)
        except TimeoutError:
            return b"(no answer)"
        except OSError as error:
            return f"({type(error).__name__})".encode()
        finally:
            writer.close()

    async def _leave(self, data: bytes, after: float) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", self.route.port)
        writer.write(data)
        await asyncio.sleep(after)
        if self.dice.random() < 0.5:
            writer.transport.abort()
        writer.close()

    def _judge(self, right: bool, what: str, answer: bytes) -> None:
        self.seen[what] += 1
        if not right:
            self.wrong.append(f"{what}: {answer[:300]!r}")
