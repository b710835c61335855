"""The response cache, in a process of its own and in two workers that share a Redis: what is answered without a call,
byte for byte what a call would have brought, and what never is."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import re
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis

from tests.e2e.quotas import INPUT, OUTPUT, Deploy, Deployment, asking, deployed, is_stream, meets, rows_of, text_of
from tests.e2e.upstream import DONE, JSON, STREAM, event, upstream, url_of
from tests.e2e.wire import Answer, ask, connect, request
from tests.programs import until
from tests.redis_server import RedisServer
from tests.upstream.scripted import Peer, Received, answer, chunk

CROWD = 500
SAMPLED: list[dict[str, Any]] = [{}, {"temperature": 0.7}]
COST = 3 * INPUT + 5 * OUTPUT
"""nano-USD of every answer here."""

TEAMS = ("a", "b", "json", "stream", "left", "fails", "control", "order", "whole")
RULES = dict.fromkeys(TEAMS, "[]") | {
    "rate": "[requests: 3/day]",
    "slots": "[concurrency: 1]",
    "spent": "[tokens: 40/day]",
    "money": "[spend: 0.0001 USD/day]",
}


@pytest.fixture(scope="module", params=["memory", "redis"])
def deployment(request: pytest.FixtureRequest, held: socket.socket, tmp_path_factory) -> Iterator[Deployment]:
    with deployed(request.param, tmp_path_factory.mktemp(request.param), url_of(held), RULES) as one:
        yield one


@dataclass
class Numbered:
    """An upstream none of whose answers is like another. `gate` holds them: streams after their first event. `plan` is
    what goes wrong with the first calls."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    plan: list[str] = field(default_factory=list)
    calls: int = 0
    answered: int = 0
    aborted: int = 0
    words: int = 20

    def __post_init__(self) -> None:
        self.gate.set()

    async def has(self, what: str, count: int) -> None:
        async def seen() -> int:
            number: int = getattr(self, what)
            return number

        await meets(seen, count)

    async def __call__(self, peer: Peer, received: Received) -> None:
        self.calls += 1
        number, fault = self.calls, self.plan.pop(0) if self.plan else ""
        try:
            await self._answer(peer, received, number, fault)
        except (asyncio.CancelledError, ConnectionError):
            self.aborted += 1
            raise
        self.answered += 1

    async def _answer(self, peer: Peer, received: Received, number: int, fault: str) -> None:
        if fault == "500":
            await self._held(peer)
            await peer.send(answer(b"{}", JSON.replace(b"200 OK", b"500 Oh")))
        elif fault == "400":
            await peer.send(answer(b'{"object":"error","message":"no"}', JSON.replace(b"200 OK", b"400 No")))
        elif is_stream(received):
            await self._stream(peer, number, fault)
        else:
            await self._held(peer)
            await peer.send(answer(body(f"answer {number} to {text_of(received)}", fault), JSON))

    async def _held(self, peer: Peer) -> None:
        """Until the gate is open. Whoever closes the connection meanwhile has given up the call."""
        gone, opened = asyncio.ensure_future(peer.reader.read(1)), asyncio.ensure_future(self.gate.wait())
        try:
            await asyncio.wait([gone, opened], return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                raise ConnectionError
        finally:
            for task in (gone, opened):
                task.cancel()
            await asyncio.gather(gone, opened, return_exceptions=True)

    async def _stream(self, peer: Peer, number: int, fault: str) -> None:
        await peer.send(STREAM + chunk(event(f"stream {number} ")))
        await self._held(peer)
        for word in range(self.words):
            await peer.send(chunk(event(f"word {word} ")))
            await asyncio.sleep(0)
        if fault == "cut":
            peer.writer.close()
            return
        await peer.send(chunk(event("", "error" if fault == "error" else "stop")) + chunk(DONE) + chunk(b""))


def body(text: str, fault: str = "") -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    made: dict[str, Any] = {"id": "cmpl-1", "object": "chat.completion", "created": 1, "model": "m"}
    made["choices"] = [choice | ({"finish_reason": "error"} if fault == "error" else {})]
    if fault != "unmetered":
        made["usage"] = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    return json.dumps(made).encode()


def same(team: str, text: str = "the same", **fields: Any) -> bytes:
    return asking(team, text, **({"temperature": 0} | fields))


def controlled(team: str, text: str, control: str, **fields: Any) -> bytes:
    return same(team, text, **fields).replace(b"\r\n\r\n", b"\r\ncache-control: " + control.encode() + b"\r\n\r\n", 1)


def outcomes(answers: list[Answer]) -> Counter[str | None]:
    return Counter(one.header("x-proxy-cache") for one in answers)


def in_turn(answers: list[Answer]) -> list[str | None]:
    """The same of answers one after the other. Who comes before an answer has got to Redis, behind the one who was
    given it, has joined it."""
    return [hit(one.header("x-proxy-cache")) for one in answers]


def hit(outcome: str | None) -> str | None:
    return "hit" if outcome == "joined" else outcome


# One after the other.


@pytest.mark.parametrize("stream", [False, True])
async def test_h8_a_hit_is_byte_for_byte_what_the_miss_was(
    deployment: Deployment, held: socket.socket, stream: bool
) -> None:
    async with upstream(held, Numbered()) as seen:
        found = [await ask(deployment.url, same("a", f"bytes {stream}", stream=stream)) for _ in range(4)]
    assert len(seen.requests) == 1
    assert in_turn(found) == ["miss", "hit", "hit", "hit"]
    assert len({hashlib.sha256(one.body).digest() for one in found}) == 1
    assert len({one.header("x-proxy-cache-key") for one in found}) == 1
    assert len({one.header("x-request-id") for one in found}) == 4
    assert len({one.header("content-type") for one in found}) == 1
    assert all((one.header("age") is None) == (one.header("x-proxy-cache") != "hit") for one in found)
    assert found[1].header("x-proxy-upstream") is None


async def test_h8_a_stream_and_a_whole_answer_are_two_entries(deployment: Deployment, held: socket.socket) -> None:
    async with upstream(held, Numbered()) as seen:
        found = [await ask(deployment.url, same("whole", stream=stream)) for stream in (False, True, False, True)]
    assert len(seen.requests) == 2
    assert in_turn(found) == ["miss", "miss", "hit", "hit"]
    assert found[0].json()["object"] == "chat.completion"
    assert found[3].body.endswith(DONE)


async def test_h1_two_teams_have_nothing_in_common(deployment: Deployment, held: socket.socket) -> None:
    async with upstream(held, Numbered()) as seen:
        found = [await ask(deployment.url, same(team, "alike")) for team in ("a", "b", "a-2", "b-2")]
    assert len(seen.requests) == 2
    assert in_turn(found) == ["miss", "miss", "hit", "hit"]
    assert found[0].body == found[2].body != found[1].body == found[3].body
    assert found[0].header("x-proxy-cache-key") != found[1].header("x-proxy-cache-key")


async def test_h2_what_means_the_same_is_the_same(deployment: Deployment, held: socket.socket) -> None:
    first = same("order", "how", top_p=1, stop=["x"], user="one", metadata={"a": "b"})
    head, _, sent = first.partition(b"\r\n\r\n")
    mixed = json.dumps(dict(reversed(json.loads(sent).items())), indent=3)
    for one, other in (('"one"', '"two"'), ('"top_p": 1', '"top_p": 1e0'), ('"temperature": 0', '"temperature": 0.0')):
        assert one in mixed
        mixed = mixed.replace(one, other)
    head = head.replace(b"content-length: %d" % len(sent), b"content-length: %d" % len(mixed)) + b"\r\n\r\n"
    async with upstream(held, Numbered()) as seen:
        found = [await ask(deployment.url, data) for data in (first, head + mixed.encode())]
        assert in_turn(found) == ["miss", "hit"]
        assert len(seen.requests) == 1
        for changed in ({"stop": ["y"]}, {"max_tokens": 17}, {"seed": 1}, {"n": 2}, {"temperature": 0.0001}):
            kept = {"top_p": 1, "stop": ["x"]} | changed
            found.append(await ask(deployment.url, same("order", "how", **kept)))
        assert len(seen.requests) == 6
    assert "hit" not in in_turn(found[2:])


@pytest.mark.parametrize(
    ("fault", "stream"),
    [("500", False), ("400", False), ("error", False), ("unmetered", False), ("cut", True), ("error", True)],
)
async def test_h3_nothing_but_a_complete_answer_is_kept(
    deployment: Deployment, held: socket.socket, fault: str, stream: bool
) -> None:
    """The next one, of the same request, is asked again; what comes of that is kept."""
    data = same("a", f"wrong {fault} {stream}", stream=stream)
    async with upstream(held, Numbered(plan=[fault])) as seen:
        found = [await ask(deployment.url, data) for _ in range(3)]
    assert len(seen.requests) == 2
    assert in_turn(found) == ["miss", "miss", "hit"]
    assert found[1].body == found[2].body != found[0].body


async def test_h3_what_is_sampled_is_not_kept(deployment: Deployment, held: socket.socket) -> None:
    async with upstream(held, Numbered()) as seen:
        found = [await ask(deployment.url, asking("a", "sampled", **one)) for one in SAMPLED * 2]
    assert len(seen.requests) == 4
    assert outcomes(found) == {"bypass": 4}
    assert found[0].header("x-proxy-cache-key") is None


# What it costs.


async def test_g11_a_hit_costs_nothing_and_counts_as_a_request(deployment: Deployment, held: socket.socket) -> None:
    async with upstream(held, Numbered()):
        found = [await ask(deployment.url, same("rate")) for _ in range(4)]
    assert [one.status for one in found] == [200, 200, 200, 429]
    assert [one.header("x-ratelimit-remaining-requests") for one in found] == ["2", "1", "0", "0"]
    assert [one.header("x-proxy-cost-usd") for one in found[1:3]] == ["0", "0"]
    rows = await rows_of(deployment.book, "rate", 3)
    assert [(hit(row.cache), row.cost, row.saved, row.prompt, row.completion, row.attempts) for row in rows] == [
        ("miss", COST, 0, 3, 5, 1),
        ("hit", 0, COST, 0, 0, 0),
        ("hit", 0, COST, 0, 0, 0),
    ]
    assert {(row.status, row.http_status, row.estimated) for row in rows} == {("settled", 200, False)}
    used = json.loads(await asyncio.to_thread(deployment.run, "usage", "--team", "rate", "--json"))
    assert [(one["requests"], one["cost_nano_usd"], one["saved_nano_usd"]) for one in used] == [(3, COST, 2 * COST)]


@pytest.mark.parametrize("team", ["spent", "money"])
async def test_g11_who_has_nothing_left_still_gets_what_is_there(
    deployment: Deployment, held: socket.socket, team: str
) -> None:
    async with upstream(held, Numbered()) as seen:
        assert (await ask(deployment.url, same(team, "kept"))).header("x-proxy-cache") == "miss"
        while (await ask(deployment.url, same(team, f"more {len(seen.requests)}"))).status == 200:
            pass
        found = await ask(deployment.url, same(team, "kept"))
    assert (found.status, hit(found.header("x-proxy-cache"))) == (200, "hit")


@pytest.mark.parametrize("stream", [False, True])
async def test_g11_what_makes_no_call_needs_no_slot(deployment: Deployment, held: socket.socket, stream: bool) -> None:
    numbered = Numbered()
    numbered.gate.clear()
    data = same("slots", f"slots {stream}", stream=stream)
    async with upstream(held, numbered), crowd(deployment, data, 30) as tasks:
        await numbered.has("calls", 1)
        await all_in(deployment, 30)
        assert (await ask(deployment.url, same("slots", f"another {stream}"))).status == 429
        numbered.gate.set()
        found = await asyncio.gather(*tasks)
        found += await asyncio.gather(*(ask(deployment.url, data) for _ in range(20)))
        assert numbered.calls == 1
    assert Counter(one.status for one in found) == {200: 50}
    assert outcomes(found)["miss"] == 1


async def test_h9_what_is_asked_of_the_cache(deployment: Deployment, held: socket.socket) -> None:
    async with upstream(held, Numbered()) as seen:

        async def said(control: str) -> tuple[int, str | None, int]:
            found = await ask(deployment.url, controlled("control", "say", control))
            return found.status, hit(found.header("x-proxy-cache")), len(seen.requests)

        assert await said("only-if-cached") == (504, None, 0)
        assert await said("no-store") == (200, "bypass", 1)
        assert await said("only-if-cached") == (504, None, 1)
        assert await said("max-age=60") == (200, "miss", 2)

        async def kept() -> tuple[int, str | None, int]:
            return await said("only-if-cached")

        await meets(kept, (200, "hit", 2))  # a Redis has it behind the answer
        assert await said("max-age=60") == (200, "hit", 2)
        assert await said("no-store") == (200, "bypass", 3)
        assert await said("only-if-cached") == (200, "hit", 3)
        before = await ask(deployment.url, same("control", "say"))
        assert await said("no-cache") == (200, "miss", 4)

        async def renewed() -> bool:
            after = await ask(deployment.url, same("control", "say"))
            assert hit(after.header("x-proxy-cache")) == "hit"
            return after.body != before.body

        await meets(renewed, True)
        refused = await ask(deployment.url, controlled("control", "another", "only-if-cached"))
        assert refused.error()["code"] == "not_in_cache"
        assert refused.header("x-should-retry") == "false"


# All at once.


@asynccontextmanager
async def crowd(deployment: Deployment, data: bytes, count: int, *, spread: bool = False) -> AsyncIterator[list[Any]]:
    """So many that ask the same, all at once or at random moments."""
    dice = random.Random(7)

    async def one() -> Answer:
        if spread:
            await asyncio.sleep(dice.random() * 0.5)
        return await ask(deployment.url, data)

    tasks = [asyncio.create_task(one()) for _ in range(count)]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def all_in(deployment: Deployment, count: int) -> None:
    """So many requests are under way: those who follow wait by now, if they do."""

    async def there() -> bool:
        found = await ask(deployment.url, request("GET", "/metrics", authorization=""))
        [line] = re.findall(rb"^mistral_proxy_requests_in_flight (\d+)", found.body, re.MULTILINE)
        return int(line) >= count

    await meets(there, True)


@pytest.mark.parametrize("stream", [False, True])
async def test_h4_a_crowd_makes_one_call(deployment: Deployment, held: socket.socket, stream: bool) -> None:
    numbered = Numbered()
    numbered.gate.clear()
    team = "stream" if stream else "json"
    async with upstream(held, numbered), crowd(deployment, same(team, "crowd", stream=stream), CROWD) as tasks:
        await numbered.has("calls", 1)
        await all_in(deployment, CROWD)
        numbered.gate.set()
        found = await asyncio.gather(*tasks)
        assert numbered.calls == 1
    assert Counter(one.status for one in found) == {200: CROWD}
    assert len({one.body for one in found}) == 1
    seen = outcomes(found)
    assert seen["miss"] == 1
    assert seen["joined"] > 0
    rows = await rows_of(deployment.book, team, CROWD)
    assert Counter(row.cache for row in rows) == seen
    assert sum(row.cost or 0 for row in rows) == COST
    assert {row.saved for row in rows if row.cache != "miss"} == {COST}


@pytest.mark.parametrize("stream", [False, True])
async def test_h4_those_who_come_later_get_all_of_it(deployment: Deployment, held: socket.socket, stream: bool) -> None:
    """At random moments of an answer that takes half a second, also after its end."""
    numbered = Numbered(words=200)
    data = same("a", f"later {stream}", stream=stream)

    numbered.gate.clear()
    async with upstream(held, numbered), crowd(deployment, data, 60, spread=True) as tasks:
        await all_in(deployment, 20)
        numbered.gate.set()
        found = await asyncio.gather(*tasks)
    assert numbered.calls == 1
    assert len({one.body for one in found}) == 1
    assert outcomes(found)["joined"] > 0


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("stream", [False, True])
async def test_h4_the_first_one_leaves_and_the_others_do_not_notice(
    deployment: Deployment, held: socket.socket, stream: bool, how: str
) -> None:
    numbered = Numbered()
    numbered.gate.clear()
    data = same("left", f"left {stream} {how}", stream=stream)
    async with upstream(held, numbered), connect(deployment.url) as first:
        await first.send(data)
        await numbered.has("calls", 1)
        async with crowd(deployment, data, 40) as tasks:
            await all_in(deployment, 41)
            first.leave(how)
            await asyncio.sleep(0.3)
            assert (numbered.aborted, numbered.calls) == (0, 1)
            numbered.gate.set()
            found = await asyncio.gather(*tasks)
    assert Counter(one.status for one in found) == {200: 40}
    assert len({one.body for one in found}) == 1
    assert numbered.calls == 1
    assert "miss" not in outcomes(found)


class Endless:
    """A stream that goes on by as many events as there are `more`."""

    def __init__(self) -> None:
        self.more, self.ended = asyncio.Semaphore(0), asyncio.Event()

    async def __call__(self, peer: Peer, received: Received) -> None:
        gone = asyncio.ensure_future(peer.gone())
        try:
            await peer.send(STREAM + chunk(event("begins")))
            while not gone.done():
                more = asyncio.ensure_future(self.more.acquire())
                await asyncio.wait([gone, more], return_when=asyncio.FIRST_COMPLETED)
                await peer.send(chunk(event("x" * 50_000)))
        except ConnectionError:
            pass
        finally:
            self.ended.set()
            gone.cancel()


async def test_h4_who_does_not_read_is_cut_and_its_call_is_for_those_who_do(
    deploy: Deploy, held: socket.socket
) -> None:
    """Until they leave, too."""
    one, endless = deploy(url_of(held), {"a": "[concurrency: 1]"}, cache="{max_entry: 1MB}"), Endless()
    data = same("a", stream=True)
    async with upstream(held, endless), connect(one.url, receive=4096) as idle, connect(one.url) as reads:
        await idle.send(data)
        await idle.head()
        await reads.send(data)
        joined = await reads.head()
        assert joined.header("x-proxy-cache") == "joined"
        await reads.chunk()
        for _ in range(250):  # 12 MB: more than what is between the two
            endless.more.release()
            assert len(await reads.chunk()) > 50_000
        assert not endless.ended.is_set()
        reads.leave("rst")
        await asyncio.wait_for(endless.ended.wait(), 30)
        assert len(await idle.end()) < 250 * 50_000
        rows = await rows_of(one.book, "a", 2)
        assert sorted(str(row.cache) for row in rows) == ["joined", "miss"]
        assert {row.status for row in rows} == {"cancelled"}


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_h4_who_stops_and_asks_again_does_not_join_what_it_has_stopped(
    deployment: Deployment, held: socket.socket, how: str
) -> None:
    numbered = Numbered(words=1)
    async with upstream(held, numbered):
        for attempt in range(15):
            numbered.gate.clear()
            data = same("left", f"again {attempt} {how}", stream=True)
            async with connect(deployment.url) as first:
                await first.send(data)
                await first.head()
                first.leave(how)
                again = asyncio.create_task(ask(deployment.url, data))
                await asyncio.sleep(0.05)
                numbered.gate.set()
                found = await again
            assert (found.status, found.body.count(b"[DONE]"), found.body.count(b"error")) == (200, 1, 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_h4_when_all_have_left_the_call_is_over(
    deployment: Deployment, held: socket.socket, stream: bool
) -> None:
    numbered = Numbered()
    numbered.gate.clear()
    data = same("left", f"all leave {stream}", stream=stream)
    async with upstream(held, numbered):
        async with crowd(deployment, data, 20):
            await numbered.has("calls", 1)
            await all_in(deployment, 20)
        await numbered.has("aborted", 1)
        numbered.gate.set()
        found = await ask(deployment.url, data)
    assert (found.status, found.header("x-proxy-cache")) == (200, "miss")


async def test_h4_a_call_that_fails_is_made_once_more_for_all_of_them(
    deployment: Deployment, held: socket.socket
) -> None:
    numbered = Numbered(plan=["500"])
    numbered.gate.clear()
    async with upstream(held, numbered), crowd(deployment, same("fails", "once"), 50) as tasks:
        await numbered.has("calls", 1)
        await all_in(deployment, 50)
        numbered.gate.set()
        found = await asyncio.gather(*tasks)
    assert numbered.calls == 2
    assert Counter(one.status for one in found) == {200: 49, 500: 1}
    assert len({one.body for one in found if one.status == 200}) == 1


async def test_h4_a_provider_that_fails_is_not_asked_by_a_whole_crowd(
    deployment: Deployment, held: socket.socket
) -> None:
    numbered = Numbered(plan=["500"] * 100)
    numbered.gate.clear()
    async with upstream(held, numbered), crowd(deployment, same("fails", "twice"), 100) as tasks:
        await numbered.has("calls", 1)
        await all_in(deployment, 100)
        numbered.gate.set()
        found = await asyncio.gather(*tasks)
    assert Counter(one.status for one in found) == {500: 100}
    assert numbered.calls <= 4  # each worker finds out for itself


# Redis, and those who share it.


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    one = RedisServer()
    yield one
    one.stop()


def shared(server: RedisServer) -> dict[str, Any]:
    return {"workers": 2, "store": server.url.reveal()}


@pytest.mark.parametrize("stream", [False, True])
async def test_h4_the_worker_that_asks_is_killed(
    deploy: Deploy, held: socket.socket, server: RedisServer, stream: bool
) -> None:
    """Those of the other worker find out within seconds. Who has had nothing of a stream yet has it from the start; who
    has a part of it is told that it broke."""
    one, numbered = deploy(url_of(held), {"a": "[]"}, **shared(server)), Numbered()
    numbered.gate.clear()
    data = same("a", f"killed {stream}", stream=stream)
    async with upstream(held, numbered), crowd(one, data, 60) as tasks:
        await numbered.has("calls", 1)
        await all_in(one, 60)
        rows = await asyncio.to_thread(until, lambda: one.book.rows("a"), "the row of the one who asks")
        owner = rows[0].call.partition("-")[0]
        [pid] = [pid for pid in one.pids() if one.owner(pid) == owner]
        os.kill(pid, signal.SIGKILL)
        numbered.gate.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
    answers = [answer for answer in found if isinstance(answer, Answer)]
    assert 0 < len(answers) < 60  # the others were connected to the dead one
    assert {answer.status for answer in answers} == {200}
    if stream:
        assert all(answer.body.endswith(DONE) for answer in answers)
        assert {b"stream 1 " in answer.body for answer in answers if b'"error"' in answer.body} <= {True}
    else:
        assert len({answer.body for answer in answers}) == 1
        assert numbered.calls == 2


def told(found: Answer) -> str:
    text: str = found.json()["choices"][0]["message"]["content"]
    return text


async def echo(peer: Peer, received: Received) -> None:
    """What is right can be told from the question."""
    await peer.send(answer(body(f"answer to {text_of(received)}"), JSON))


def spoil(server: RedisServer) -> None:
    """Cut, flip, swap and overwrite whatever the cache has there."""
    dice = random.Random(3)
    with redis.Redis.from_url(server.url.reveal()) as client:
        names = [name for name in client.scan_iter(b"mistral-proxy:{cache}:*") if client.type(name) == b"string"]
        kept = {name: client.get(name) or b"" for name in names}
        for name, value in kept.items():
            other = dice.choice(list(kept.values()))
            flipped = bytes([value[0] ^ 1]) + value[1:] if value else b"x"
            choice = dice.choice(
                [b"", value[: len(value) // 2], flipped, other, dice.randbytes(50), b"\x80\x05cos\nsystem\n"]
            )
            client.set(name, choice, px=60_000)
        client.lpush(b"mistral-proxy:{cache}:a/" + b"0" * 64, b"not a string")


@pytest.mark.parametrize("trouble", ["garbage", "frozen", "killed", "flushed"])
async def test_h5_h6_whatever_becomes_of_redis_answers_are_right(
    deploy: Deploy, held: socket.socket, trouble: str
) -> None:
    server = RedisServer()
    try:
        one = deploy(url_of(held), {"a": "[]"}, **shared(server))
        found: list[tuple[str, Answer]] = []
        over = False

        async def load(seed: int) -> None:
            dice = random.Random(seed)
            while not over:
                text = f"question {dice.randrange(30)}"
                found.append((text, await ask(one.url, same("a", text))))

        async with upstream(held, echo):
            tasks = [asyncio.create_task(load(seed)) for seed in range(6)]
            await asyncio.sleep(0.7)
            if trouble == "garbage":
                for _ in range(5):
                    await asyncio.to_thread(spoil, server)
                    await asyncio.sleep(0.1)
            elif trouble == "flushed":
                await asyncio.to_thread(server.command, "FLUSHALL")
            elif trouble == "frozen":
                server.freeze()
                await asyncio.sleep(1.0)
                server.cont()
            else:
                server.kill()
                await asyncio.sleep(0.7)
                await asyncio.to_thread(server.restart)
            before = len(found)
            await asyncio.to_thread(
                until, lambda: "hit" in in_turn([answer for _, answer in found[before:]]), "hits again"
            )
            over = True
            await asyncio.gather(*tasks)
    finally:
        server.stop()
    assert {answer.status for _, answer in found} == {200}
    assert all(told(answer) == f"answer to {text}" for text, answer in found)
    assert len(outcomes([answer for _, answer in found])) >= 2


# When the provider fails.

SHORT = "{ttl: 50ms, stale_if_error: 1h}"
"""Old at once, and kept."""


async def test_h11_what_is_old_is_better_than_nothing(deploy: Deploy, held: socket.socket) -> None:
    """A provider that fails, and one that is not asked any more because it does: whoever has asked before has his
    answer, and who has not has the error."""
    one = deploy(url_of(held), {"a": "[]"}, cache=SHORT, breaker="{failure_threshold: 3, open_duration: 60s}")
    async with upstream(held, numbered := Numbered(plan=["", *["500"] * 50])):
        first = await ask(one.url, same("a", "old"))
        await asyncio.sleep(0.1)
        failing = [await ask(one.url, same("a", "old")) for _ in range(8)]
        unknown = await ask(one.url, same("a", "new"))
        strict = [await ask(one.url, controlled("a", "old", wish)) for wish in ("no-cache", "max-age=0", "no-store")]
    assert {found.body for found in failing} == {first.body}
    assert {found.header("x-proxy-cache") for found in failing} == {"stale"}
    assert all(int(found.header("age") or -1) >= 0 for found in failing)
    assert numbered.calls == 1 + 3
    assert (unknown.status, unknown.error()["code"]) == (503, "circuit_open")
    assert {found.status for found in strict} == {503}
    rows = [row for row in await rows_of(one.book, "a", 1 + 8 + 1 + 3) if row.cache == "stale"]
    assert {(row.status, row.http_status, row.cost, row.saved) for row in rows} == {("settled", 200, 0, COST)}


async def test_h11_a_bad_request_is_told_and_not_answered_with_what_is_old(deploy: Deploy, held: socket.socket) -> None:
    one = deploy(url_of(held), {"a": "[]"}, cache=SHORT)
    async with upstream(held, Numbered(plan=["", "400"])):
        assert (await ask(one.url, same("a", "old"))).status == 200
        await asyncio.sleep(0.1)
        assert (await ask(one.url, same("a", "old"))).status == 400


async def test_h11_nothing_is_older_than_it_may_be(deploy: Deploy, held: socket.socket) -> None:
    one = deploy(url_of(held), {"a": "[]"}, cache="{ttl: 50ms, stale_if_error: 200ms}")
    async with upstream(held, Numbered(plan=["", "500", "500"])):
        assert (await ask(one.url, same("a", "old"))).status == 200
        await asyncio.sleep(0.3)
        assert (await ask(one.url, same("a", "old"))).status == 500


# How it is set.


@pytest.mark.parametrize(
    ("cache", "found"),
    [
        ("{mode: off}", [None] * 8),
        ("{mode: all}", ["miss", "hit", "hit", "hit", "miss", "hit", "miss", "hit"]),
        ("{scope: key}", ["miss", "hit", "miss", "hit", "bypass", "bypass", "miss", "hit"]),
        ("{scope: global}", ["miss", "hit", "hit", "hit", "bypass", "bypass", "hit", "hit"]),
        ("{max_entry: 10B}", ["miss", "miss", "miss", "miss", "bypass", "bypass", "miss", "miss"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_h1_h10_who_shares_what(deploy: Deploy, held: socket.socket, cache: str, found: list[str | None]) -> None:
    one = deploy(url_of(held), {"a": "[]", "b": "[]"}, cache=cache)
    async with upstream(held, Numbered()):
        asked = [same("a", "x"), same("a-2", "x"), same("a", "x", temperature=1), same("b", "x")]
        seen = [(await ask(one.url, data)).header("x-proxy-cache") for data in asked for _ in range(2)]
    assert seen == found


async def test_h8_a_stream_as_fast_as_it_once_came(deploy: Deploy, held: socket.socket) -> None:
    """The second half comes 0.4 s after the first, both times."""
    one = deploy(url_of(held), {"a": "[]"}, cache="{cadence: original}")
    numbered = Numbered()

    async def timed() -> tuple[bytes, float]:
        async with connect(one.url) as connection:
            await connection.send(same("a", "cadence", stream=True))
            await connection.head()
            pieces, began = [await connection.chunk()], asyncio.get_running_loop().time()
            if not numbered.gate.is_set():
                await asyncio.sleep(0.4)
                numbered.gate.set()
            pieces.append(await connection.chunk())
            took = asyncio.get_running_loop().time() - began
            while piece := await connection.chunk():
                pieces.append(piece)
            return b"".join(pieces), took

    numbered.gate.clear()
    async with upstream(held, numbered):
        (first, slow), (second, again) = await timed(), await timed()
    assert numbered.calls == 1
    assert first == second
    assert slow >= 0.4
    assert again >= 0.35


async def test_h_a_reload_takes_effect_and_keeps_what_is_there(deploy: Deploy, held: socket.socket) -> None:
    one = deploy(url_of(held), {"a": "[]"})
    async with upstream(held, Numbered()):
        assert (await ask(one.url, same("a", "x"))).header("x-proxy-cache") == "miss"
        one.write({"a": "[]"}, cache="{mode: off}")
        await one.reloaded(2)
        assert (await ask(one.url, same("a", "x"))).header("x-proxy-cache") is None
        one.write({"a": "[]"}, cache="{ttl: 2h}")
        await one.reloaded(3)
        assert (await ask(one.url, same("a", "x"))).header("x-proxy-cache") == "hit"
