"""Which key a provider is paid with, as the provider itself sees it."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import OTHER_KEY, TEAM_KEY, Proxy
from tests.e2e.upstream import Reply, completion, listener, upstream, url_of
from tests.e2e.wire import Answer, ask, chat, soon
from tests.programs import Program
from tests.redis_server import RedisServer
from tests.upstream.scripted import Peer, Received, answer

KEYS = {f"KEY_{name}": f"provider-key-{name.lower()}-0123456789" for name in ("A", "B", "C")}
CONFIG = """
server: {{port: 0, drain: 60s, workers: {workers}}}
store: {{url: "{store}"}}
providers:
  mistral:
    base_url: {upstream}
    api_keys: [{keys}]
    retry: {{max_attempts: {attempts}, initial_delay: 100ms}}
    circuit_breaker: {{failure_threshold: 1000000}}
teams:
  research: {{keys: ["${{TEAM_KEY}}"], provider_keys: {{{own}}}}}
  support: {{keys: ["${{OTHER_KEY}}"]}}
"""

Begin = Callable[..., Proxy]


@pytest.fixture
def begin(tmp_path: Path, ends: ExitStack) -> Begin:
    def begun(url: str, keys: str = "AB", **options: Any) -> Proxy:
        given = {"attempts": 1, "own": "", "workers": 1, "store": "memory://"} | options
        listed = ", ".join(f'"${{KEY_{name}}}"' for name in keys)
        file = tmp_path / "proxy.yaml"
        file.write_text(CONFIG.format(upstream=url, keys=listed, **given))
        env = KEYS | {"TEAM_KEY": TEAM_KEY, "OTHER_KEY": OTHER_KEY}
        program = Program("serve", "--config", str(file), env=env, cwd=tmp_path)
        ends.callback(program.stop)
        return Proxy(program.url(), program)

    return begun


@pytest.fixture
def port() -> Iterator[Any]:
    with listener() as held:
        yield held


def paid_with(received: Received) -> str:
    """The letter of the key."""
    key = (received.header("authorization") or "").removeprefix("Bearer ")
    [name] = [name for name, text in KEYS.items() if text == key]
    return name[-1]


def refusing(refusals: dict[str, bytes]) -> Reply:
    async def reply(peer: Peer, received: Received) -> None:
        await peer.send(refusals.get(paid_with(received)) or completion())

    return reply


def refusal(status: int, body: bytes = b'{"message": "no"}', **headers: str) -> bytes:
    head = b"HTTP/1.1 %d No\r\ncontent-type: application/json\r\n" % status
    return answer(body, head + b"".join(f"{k.replace('_', '-')}: {v}\r\n".encode() for k, v in headers.items()))


LIMITED = refusal(429, b'{"message": "Rate limit exceeded", "code": "1300"}', retry_after="30")
NOT_THE_MODEL = refusal(429, x_ratelimit_limit_req_minute="0", x_ratelimit_remaining_req_minute="0")


async def asked(proxy: Proxy, count: int, **fields: Any) -> list[Answer]:
    return [await ask(proxy.url, chat(**fields)) for _ in range(count)]


async def test_f16_calls_are_shared_out(begin: Begin, port: Any) -> None:
    """Ten at once have five each; the answers come when all have been asked."""
    there, go = asyncio.Semaphore(0), asyncio.Event()

    async def reply(peer: Peer, received: Received) -> None:
        there.release()
        await go.wait()
        await peer.send(completion())

    proxy = begin(url_of(port))
    async with upstream(port, reply) as seen:
        calls = [asyncio.create_task(ask(proxy.url, chat())) for _ in range(10)]
        for _ in calls:
            await soon(there.acquire())
        go.set()
        assert {(await call).status for call in calls} == {200}
    assert Counter(map(paid_with, seen.requests)) == {"A": 5, "B": 5}


@pytest.mark.parametrize(
    "refused",
    [refusal(401), refusal(402), refusal(403), NOT_THE_MODEL, LIMITED],
    ids=["401", "402", "403", "429 with a limit of 0", "429"],
)
async def test_f16_one_bad_key_fails_nobody(begin: Begin, port: Any, refused: bytes) -> None:
    proxy = begin(url_of(port))
    async with upstream(port, refusing({"A": refused})) as seen:
        found = await asked(proxy, 12)
    assert [one.status for one in found] == [200] * 12
    assert Counter(map(paid_with, seen.requests)) == {"A": 1, "B": 12}
    assert sorted(one.header("x-proxy-attempts") or "" for one in found) == ["1"] * 11 + ["2"]
    event = "key_rests" if refused is LIMITED else "key_out"
    line = await asyncio.to_thread(proxy.program.line, event=event)
    assert line["key"] == "mistral key 1"
    assert len(proxy.program.logged(event)) == 1


async def test_f16_a_prompt_that_every_key_is_refused_for_takes_none_out(begin: Begin, port: Any) -> None:
    firewall = True

    async def reply(peer: Peer, received: Received) -> None:
        await peer.send(refusal(403) if firewall else completion())

    proxy = begin(url_of(port))
    async with upstream(port, reply) as seen:
        assert {one.status for one in await asked(proxy, 4)} == {502}
        firewall = False
        seen.requests.clear()
        assert {one.status for one in await asked(proxy, 10)} == {200}
    assert Counter(map(paid_with, seen.requests)) == {"A": 5, "B": 5}
    assert not proxy.program.logged("key_out")


async def test_f16_with_all_keys_at_rest_nobody_is_asked(begin: Begin, port: Any) -> None:
    proxy = begin(url_of(port))
    async with upstream(port, refusing({"A": LIMITED, "B": refusal(429, retry_after="20")})) as seen:
        first, second = await asked(proxy, 2)
        assert (first.status, first.error()["code"]) == (429, "rate_limit_exceeded")
        assert len(seen.requests) == 2
        assert (second.status, second.error()["code"]) == (429, "rate_limit_exceeded")
        assert second.header("retry-after") == "20"
        assert len(seen.requests) == 2
        assert (
            await ask(proxy.url, chat(model="mistral-large-latest"))
        ).status == 429  # is asked: limits are a model's
        assert len(seen.requests) == 4


async def test_f16_a_stream_is_paid_like_any_other(begin: Begin, port: Any) -> None:
    async def reply(peer: Peer, received: Received) -> None:
        if paid_with(received) == "A":
            await peer.send(refusal(401))
        else:
            await peer.send(refusal(503))

    proxy = begin(url_of(port))
    async with upstream(port, reply) as seen:
        found = await ask(proxy.url, chat(stream=True))
    assert (found.status, len(seen.requests)) == (503, 2)  # the other key's own error, which is told as it is
    assert not proxy.program.logged("key_out")  # nobody has shown that it is the key


async def test_f16_a_team_pays_for_itself(begin: Begin, port: Any) -> None:
    proxy = begin(url_of(port), "AB", own='mistral: "${KEY_C}"')
    async with upstream(port, refusing({"C": refusal(401)})) as seen:
        own = await ask(proxy.url, chat())
        assert (own.status, own.error()["code"]) == (502, "upstream_auth_failed")
        theirs = [await ask(proxy.url, chat(headers={"authorization": f"Bearer {OTHER_KEY}"})) for _ in range(4)]
        assert [one.status for one in theirs] == [200] * 4
    assert Counter(map(paid_with, seen.requests)) == {"A": 2, "B": 2, "C": 1}
    assert KEYS["KEY_C"] not in proxy.program.everything()


async def test_f16_a_teams_own_bad_key_is_nobody_elses_trouble(tmp_path: Path, begin: Begin, port: Any) -> None:
    """Its circuit opens, and only for it."""
    proxy = begin(url_of(port), "A", own='mistral: "${KEY_C}"')
    file = tmp_path / "proxy.yaml"
    file.write_text(file.read_text().replace("failure_threshold: 1000000", "failure_threshold: 3"))
    proxy.program.signal(signal.SIGHUP)
    await asyncio.to_thread(proxy.program.line, event="reloaded")
    async with upstream(port, refusing({"C": refusal(401)})) as seen:
        assert {one.status for one in await asked(proxy, 6)} == {502}
        assert len(seen.requests) == 3
        assert (await ask(proxy.url, chat(headers={"authorization": f"Bearer {OTHER_KEY}"}))).status == 200
    line = await asyncio.to_thread(proxy.program.line, event="circuit_opened")
    assert line["circuit"] == "mistral key of research"


class Minute:
    """A provider that counts in a minute that slides, says what is left, and refuses what is more."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.calls: dict[str, deque[float]] = {}
        self.refused = 0

    async def reply(self, peer: Peer, received: Received) -> None:
        now = asyncio.get_running_loop().time()
        calls = self.calls.setdefault(paid_with(received), deque())
        while calls and calls[0] <= now - 60:
            calls.popleft()
        left = self.limit - len(calls)
        said = b"x-ratelimit-remaining-req-minute: %d\r\n" % max(0, left - 1)
        if left <= 0:
            self.refused += 1
            await peer.send(refusal(429, x_ratelimit_remaining_req_minute="0"))
            return
        calls.append(now)
        status, _, rest = completion().partition(b"\r\n")
        await peer.send(status + b"\r\n" + said + rest)


async def test_f16_nobody_is_asked_for_more_than_is_left(begin: Begin, port: Any) -> None:
    """Two accounts of 20 calls a minute, and two teams that want 60 between them."""
    minute = Minute(20)
    proxy = begin(url_of(port))
    async with upstream(port, minute.reply) as seen:
        await asked(proxy, 2)  # what is not known yet cannot be kept
        both = [chat(), chat(headers={"authorization": f"Bearer {OTHER_KEY}"})]
        found = await asyncio.gather(*(ask(proxy.url, both[n % 2]) for n in range(60)))
    assert (minute.refused, len(seen.requests)) == (0, 40)
    assert Counter(one.status for one in found) == {200: 38, 429: 22}
    told = [one for one in found if one.status == 429]
    assert all(0 < int(one.header("retry-after") or 0) <= 61 for one in told)
    assert {one.header("x-should-retry") for one in told} <= {"true", "false"}


async def test_f16_workers_share_what_is_left(begin: Begin, port: Any, ends: ExitStack) -> None:
    redis = RedisServer()
    ends.callback(redis.stop)
    minute = Minute(40)
    proxy = begin(url_of(port), "A", workers=2, store=redis.url.reveal())
    async with upstream(port, minute.reply):
        await asyncio.gather(*(ask(proxy.url, chat()) for _ in range(8)))
        for _ in range(8):
            await asyncio.gather(*(ask(proxy.url, chat()) for _ in range(8)))
    # What a worker heard last may be old: the other one has been asked since. Without all this 32 would be refused.
    assert minute.refused <= 8
    assert len(minute.calls["A"]) >= 30
