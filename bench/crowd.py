"""The clients of the soak: who comes how often, what each asks for, and which answers are right."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec

from bench.load import Connection, Reply, Route, connect
from bench.mischief import PATIENCE, Mischief
from bench.moody import GARBAGE, MOODS, vector
from bench.traffic import MODEL

SLOTS: Final = 2
"""Requests that the team `narrow` may have at the same time."""

LEFT: Final = "left"
"""In place of a status: the client did not wait for one."""

KEPT: Final = 0.8
"""What part of the connections is kept for the next request."""

BIG: Final = 200_000
"""Bytes of a big body."""

AGAIN: Final = 20
"""Texts of which embeddings are asked for over and over."""

TOGETHER: Final = 4
PARDON: Final = 10.0
"""Seconds after a worker was killed in which an answer may be cut, and its successor be missing."""

Status = int | str


@dataclass(slots=True)
class Crowd:
    """`routes` are the ways of the teams `soak`, `limited` and `narrow`, and of `nobody`, who has no key. `seen` counts
    answers by kind and status, `wrong` those that were not as expected; `example` is the first of each.
    `numbers` tell texts apart."""

    routes: Mapping[str, Route]
    dice: random.Random
    seen: Counter[tuple[str, Status]] = field(default_factory=Counter)
    wrong: Counter[tuple[str, Status]] = field(default_factory=Counter)
    example: dict[tuple[str, Status], str] = field(default_factory=dict)
    pardoned_until: float = 0.0
    _kept: list[Connection] = field(default_factory=list)
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    @property
    def mischief(self) -> Mischief:
        return Mischief(self.routes["soak"], self.dice)

    async def one(self, kind: Kind) -> None:
        """One client of this kind, from its coming to its leaving."""
        try:
            await kind.client(self, kind)
        except Exception as error:  # no connection, or an answer that cannot be read: the run goes on and tells of it
            self.judge(kind, type(error).__name__, detail=str(error))

    async def come_and_go(self, end: float, pause: float) -> None:
        """One after the other, with up to twice `pause` seconds between them, until `end`, on time.monotonic."""
        weights = [kind.often for kind in KINDS]
        while time.monotonic() < end:
            [kind] = self.dice.choices(KINDS, weights)
            await self.one(kind)
            await asyncio.sleep(self.dice.random() * 2 * pause)

    def killed(self) -> None:
        """A worker was killed: what it was about to answer is gone."""
        self.pardoned_until = time.monotonic() + PARDON

    def leave(self) -> None:
        """Close the connections that are kept."""
        for connection in self._kept:
            connection.close()
        self._kept.clear()

    def judge(self, kind: Kind, status: Status, right: bool = True, detail: str = "") -> None:
        """Count an answer, and whether it is right."""
        answer = kind.name, status
        self.seen[answer] += 1
        if status in kind.expected and right:
            return
        if time.monotonic() < self.pardoned_until and status not in range(500):
            return
        self.wrong[answer] += 1
        self.example.setdefault(answer, detail)

    def told(self) -> list[str]:
        """What was wrong, for people."""
        return [
            f"{count:,} × {name}: {status}, the first: {self.example[name, status]}"
            for (name, status), count in self.wrong.items()
        ]

    async def ask(self, kind: Kind, request: bytes, right: Callable[[bytes], bool] = lambda _: True) -> None:
        """A whole answer, which must be `right` if it is a 200."""
        reply = await self._reply(request)
        body = reply.body or b""
        good = right(body) if reply.status == 200 else b'"error"' in body and b"internal_error" not in body
        self.judge(kind, reply.status, good, reply.brief())

    async def _reply(self, request: bytes) -> Reply:
        reused = bool(self._kept)
        connection = self._kept.pop() if reused else await connect(self.routes["soak"], keep_bodies=True)
        try:
            reply = await asyncio.wait_for(connection.call(request), PATIENCE)
        except BaseException as error:
            connection.close()
            if reused and isinstance(error, ConnectionError) and not connection.reply.first:
                return await self._reply(request)  # as every client does whose server had just closed it
            raise
        if connection.parser.should_keep_alive() and self.dice.random() < KEPT:
            self._kept.append(connection)
        else:
            connection.close()
        return reply

    def text(self) -> str:
        """One that nobody has said before."""
        return f"good {next(self.numbers)}"

    def chat(self, text: str, team: str = "soak", **fields: Any) -> bytes:
        messages = [{"role": "user", "content": text}]
        body = {"model": MODEL, "messages": messages, "max_tokens": 16, "stream": False} | fields
        return self.routes[team].chat(msgspec.json.encode(body))

    def embedding(self, text: str) -> bytes:
        body = {"model": "mistral-embed", "input": [text]}
        return self.routes["soak"].request("/v1/embeddings", msgspec.json.encode(body))


class Kind(NamedTuple):
    """`often` compares with the others. Another status than those `expected` is wrong."""

    name: str
    often: int
    client: Callable[[Crowd, Kind], Awaitable[None]]
    expected: frozenset[Status]


def _says(text: str) -> Callable[[bytes], bool]:
    return lambda body: msgspec.json.decode(body)["choices"][0]["message"]["content"] == text


def _streams(text: str) -> Callable[[bytes], bool]:
    def right(body: bytes) -> bool:
        events = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: {")]
        said = (msgspec.json.decode(one)["choices"][0]["delta"].get("content", "") for one in events)
        return "".join(said) == text and body.endswith(b"data: [DONE]\n\n")

    return right


def _has_vector(text: str) -> Callable[[bytes], bool]:
    return lambda body: msgspec.json.decode(body)["data"][0]["embedding"] == [vector(text)]


async def _chat(crowd: Crowd, kind: Kind) -> None:
    text = crowd.text()
    await crowd.ask(kind, crowd.chat(text), _says(text))


async def _big(crowd: Crowd, kind: Kind) -> None:
    text = crowd.text()
    system = {"role": "system", "content": "x" * BIG}
    await crowd.ask(kind, crowd.chat(text, messages=[system, {"role": "user", "content": text}]), _says(text))


async def _stream(crowd: Crowd, kind: Kind) -> None:
    text = crowd.text()
    await crowd.ask(kind, crowd.chat(text, stream=True), _streams(text))


async def _embedding(crowd: Crowd, kind: Kind) -> None:
    text = crowd.text()
    await crowd.ask(kind, crowd.embedding(text), _has_vector(text))


async def _again(crowd: Crowd, kind: Kind) -> None:
    text = f"again {crowd.dice.randrange(AGAIN)}"
    await crowd.ask(kind, crowd.embedding(text), _has_vector(text))


async def _together(crowd: Crowd, kind: Kind) -> None:
    text = crowd.text()
    await _all(crowd.ask(kind, crowd.embedding(text), _has_vector(text)) for _ in range(TOGETHER))


async def _all(asked: Iterable[Awaitable[None]]) -> None:
    """At once, and all to their end."""
    for failed in await asyncio.gather(*asked, return_exceptions=True):
        if failed:
            raise failed


async def _models(crowd: Crowd, kind: Kind) -> None:
    await crowd.ask(kind, crowd.routes["soak"].request("/v1/models", method="GET"))


async def _no_key(crowd: Crowd, kind: Kind) -> None:
    await crowd.ask(kind, crowd.chat("good", team="nobody"))


async def _bad_request(crowd: Crowd, kind: Kind) -> None:
    await crowd.ask(kind, crowd.routes["soak"].chat(crowd.dice.choice((b"{", b"[]", b'{"messages": 1}'))))


async def _no_such_url(crowd: Crowd, kind: Kind) -> None:
    await crowd.ask(kind, crowd.routes["soak"].request(f"/v1/nothing/{next(crowd.numbers)}", b"{}"))


async def _limited(crowd: Crowd, kind: Kind) -> None:
    await crowd.ask(kind, crowd.chat(crowd.text(), team="limited"))


async def _narrow(crowd: Crowd, kind: Kind) -> None:
    await _all(crowd.ask(kind, crowd.chat(crowd.text(), team="narrow", stream=True)) for _ in range(SLOTS + 1))


async def _moody(crowd: Crowd, kind: Kind) -> None:
    await _in_a_mood(crowd, kind, crowd.dice.choice(MOODS))


async def _garbled(crowd: Crowd, kind: Kind) -> None:
    await _in_a_mood(crowd, kind, GARBAGE)


async def _in_a_mood(crowd: Crowd, kind: Kind, mood: str) -> None:
    request = crowd.chat(f"{mood} {next(crowd.numbers)}", model=f"moody/{MODEL}", stream=crowd.dice.random() < 0.5)
    await crowd.ask(kind, request, lambda body: b"internal_error" not in body)


async def _leaves(crowd: Crowd, kind: Kind) -> None:
    moody = {"model": f"moody/{MODEL}"} if crowd.dice.random() < 0.5 else {}
    text = f"{crowd.dice.choice(('good', 'slow', 'hang'))} {next(crowd.numbers)}"
    await crowd.mischief.leaves(crowd.chat(text, **moody), crowd.dice.random() * 0.05)
    crowd.judge(kind, LEFT)


async def _leaves_a_stream(crowd: Crowd, kind: Kind) -> None:
    await crowd.mischief.leaves(crowd.chat(crowd.text() + "x" * 50, stream=True), crowd.dice.random() * 0.3)
    crowd.judge(kind, LEFT)


async def _leaves_others(crowd: Crowd, kind: Kind) -> None:
    """The one that asked first for what others wait for."""
    request = crowd.embedding(crowd.text())
    leaving = asyncio.ensure_future(crowd.mischief.leaves(request, 0.01))
    try:
        await crowd.ask(kind, request)
    finally:
        await leaving
    crowd.judge(kind, LEFT)


async def _garbage(crowd: Crowd, kind: Kind) -> None:
    await crowd.mischief.garbage()
    crowd.judge(kind, LEFT)


async def _drips(crowd: Crowd, kind: Kind) -> None:
    await crowd.mischief.drips(crowd.chat("good"))
    crowd.judge(kind, LEFT)


async def _bad_body(crowd: Crowd, kind: Kind) -> None:
    route = Route(crowd.routes["soak"].port, {**crowd.routes["soak"].headers, "connection": "close"})
    answer = await crowd.mischief.bad_body(route.chat)
    status = answer[9:12].decode("latin-1") if answer.startswith(b"HTTP/1.1 ") else "no answer"
    right = b"internal_error" not in answer
    crowd.judge(kind, int(status) if status.isdigit() else status, right, f"{answer[:300]!r}")


def _kind(name: str, often: int, client: Callable[[Crowd, Kind], Awaitable[None]], *expected: Status) -> Kind:
    return Kind(name, often, client, frozenset(expected))


KINDS: Final = (
    _kind("chat", 12, _chat, 200),
    _kind("chat, big body", 1, _big, 200),
    _kind("stream", 8, _stream, 200),
    _kind("embedding, new", 4, _embedding, 200),
    _kind("embedding, again", 6, _again, 200),
    _kind("embedding, together", 2, _together, 200),
    _kind("models", 2, _models, 200),
    _kind("no key", 2, _no_key, 401),
    _kind("bad request", 2, _bad_request, 400),
    _kind("no such URL", 2, _no_such_url, 404),
    _kind("limited", 2, _limited, 200, 429),
    _kind("narrow", 2, _narrow, 200, 429),
    _kind("moody upstream", 7, _moody, 200, 429, 500, 502, 503, 504),
    # A refusal that says what is wrong with the request is passed on, and changed bytes may say any of them.
    _kind("garbled upstream", 1, _garbled, 200, *range(400, 500), 500, 502, 503, 504),
    _kind("leaves", 3, _leaves, LEFT),
    _kind("leaves a stream", 3, _leaves_a_stream, LEFT),
    _kind("leaves joiners", 2, _leaves_others, 200, LEFT),
    _kind("garbage", 3, _garbage, LEFT),
    _kind("drips", 1, _drips, LEFT),
    _kind("bad body", 2, _bad_body, 200, 400, 403, 404, 413),  # 403: a model whose price nobody knows
)
