"""Two providers: which one answers, what it is paid, and that nothing goes where it must not."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.conftest import PROVIDER_KEY
from tests.e2e.openai_upstream import OpenAIUpstream, openai_reply
from tests.e2e.quotas import Book, Row, key_of, teams
from tests.e2e.test_f_retries import refusal
from tests.e2e.upstream import STREAM, completion, event, listener, upstream, url_of
from tests.e2e.wire import Answer, ask, chat, soon
from tests.programs import Program, until
from tests.redis_server import RedisServer
from tests.upstream.scripted import Peer, Received, chunk

LARGE, MEDIUM, GPT = "mistral-large-latest", "mistral-medium-latest", "openai/gpt-4o"
OPENAI_KEY = "sk-proj-the-other-providers-key-42"
COST = 9 * 2_500 + 2 * 10_000
"""nano-USD of what the other provider answers here (openai_upstream.USAGE), at its own price."""

CONFIG = """
server: {{port: 0, drain: 5s}}
store: {{url: "{store}"}}
ledger: {{url: "${{LEDGER}}"}}
providers:
  mistral:
    base_url: {mistral}
    api_keys: ["${{PROVIDER_KEY}}"]
    retry: {{max_attempts: {attempts}, initial_delay: 50ms}}
    circuit_breaker: {{open_duration: {open}, failure_threshold: {threshold}}}
    timeouts: {{connect: 30s, first_byte: {first_byte}, idle: 30s}}
  openai:
    base_url: {openai}
    api_keys: ["${{OPENAI_KEY}}"]
    retry: {{max_attempts: 1}}
    circuit_breaker: {{open_duration: {open}, failure_threshold: {threshold}}}
models:
  aliases: {{best: openai/gpt-4o, small-vectors: openai/text-embedding-3-small}}
  fallbacks: {{mistral-large-latest: [{chain}]{others}}}
  prices:
    openai/gpt-4o: {{input: 2.5, output: 10, context: 128000}}
    openai/text-embedding-3-small: {{input: 0.02}}
cache: {cache}
teams:
{teams}
"""


@dataclass
class Two:
    """A proxy in front of two providers, each on a port of its own."""

    url: str
    program: Program
    book: Book
    mistral: Any
    openai: Any

    async def ask(self, team: str = "a", **fields: Any) -> Answer:
        headers = {"authorization": f"Bearer {key_of(team)}"}
        return await ask(self.url, chat(headers=headers, **{"model": LARGE} | fields))

    def client(self, team: str = "a") -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key_of(team), max_retries=0)


Begin = Callable[..., Two]


@pytest.fixture
def begin(tmp_path: Path, ends: ExitStack) -> Begin:
    def begun(rules: dict[str, str] | None = None, **options: Any) -> Two:
        one, other = ends.enter_context(listener()), ends.enter_context(listener())
        book = Book(f"sqlite:///{tmp_path}/ledger.db")
        given = {
            "attempts": 1, "chain": GPT, "first_byte": "30s", "open": "30s", "store": "memory://",
            "threshold": 1_000_000, "mistral": url_of(one), "openai": url_of(other),
            "teams": teams(rules or {"a": "[]"}), "cache": "{}", "others": "",
        } | options  # fmt: skip
        file = tmp_path / "proxy.yaml"
        file.write_text(CONFIG.format(**given))
        env = {"PROVIDER_KEY": PROVIDER_KEY, "OPENAI_KEY": OPENAI_KEY, "LEDGER": book.url}
        program = Program("serve", "--config", str(file), env=env, cwd=tmp_path)
        ends.callback(program.stop)
        return Two(program.url(), program, book, one, other)

    return begun


@pytest.fixture
def other() -> OpenAIUpstream:
    return openai_reply(["gpt-4o", "text-embedding-3-small"], OPENAI_KEY)


def says(data: bytes) -> Any:
    async def reply(peer: Peer, _: Received) -> None:
        await peer.send(data)

    return reply


TOO_LONG = b'{"message": "Prompt contains 300000 tokens and 0 draft tokens, too large for model with 262144 maximum"}'


async def hangs_up(peer: Peer, _: Received) -> None:
    await peer.cut()


# another model answers


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fails",
    [says(refusal(b"503")), says(refusal(b"429")), says(refusal(b"401")), says(refusal(b"402")), hangs_up],
    ids=["503", "429", "401", "402", "reset"],
)
async def test_f11_the_other_provider_answers(begin: Begin, other: OpenAIUpstream, fails: Any, stream: bool) -> None:
    two = begin()
    async with upstream(two.mistral, fails) as seen, upstream(two.openai, other):
        found = await two.ask(stream=stream)
    assert found.status == 200
    assert b"Hello" in found.body
    assert (found.header("x-proxy-upstream"), found.header("x-proxy-attempts")) == (GPT, "2")
    assert len(seen.requests) == len(other.bodies) == 1
    assert other.bodies[0]["model"] == "gpt-4o"
    assert other.authorizations == [f"Bearer {OPENAI_KEY}"]
    assert all(OPENAI_KEY not in repr(received) for received in seen.requests)
    rows = await asyncio.to_thread(two.book.ended, "a", 2)
    assert [(row.priced_as, row.status, row.attempts) for row in rows][1] == (GPT, "settled", 1)
    assert (rows[0].status, rows[1].cost, rows[1].request_id) == ("failed", COST, rows[0].request_id)
    line = await asyncio.to_thread(two.program.line, event="fallback")
    assert line["to"] == GPT


async def test_f11_the_price_is_reserved_before_it_is_called(begin: Begin, other: OpenAIUpstream) -> None:
    """A hundred tokens of Mistral's fit into what is left, those of the other do not."""
    two = begin({"a": "[{spend: 0.0005 USD/month}]", "b": "[{spend: 1 USD/month}]"})
    async with upstream(two.mistral, says(refusal(b"503"))) as seen, upstream(two.openai, other):
        found = await two.ask(max_tokens=100)
        assert (found.status, found.error()["code"]) == (503, "upstream_error")  # the first one's error
        assert (len(seen.requests), other.bodies) == (1, [])
        assert found.header("x-proxy-upstream") == f"mistral/{LARGE}"
        assert (await two.ask("b", max_tokens=100)).status == 200
    [row] = await asyncio.to_thread(two.book.ended, "a", 1)
    assert (row.priced_as, row.cost) == ("mistral-large-2512", 0)
    told = await asyncio.to_thread(two.book.ended, "b", 2)
    assert told[1].most_cost >= 100 * 10_000


async def test_f11_what_was_held_for_the_first_is_free_for_the_second(
    begin: Begin, other: OpenAIUpstream, ends: ExitStack
) -> None:
    redis = RedisServer()
    ends.callback(redis.stop)
    two = begin({"a": "[{concurrency: 1}, {spend: 0.0026 USD/month}]"}, store=redis.url.reveal())
    async with upstream(two.mistral, says(refusal(b"503"))), upstream(two.openai, other):
        # The reserve of each fits alone; of both together, they would not.
        found = [(await two.ask(max_tokens=90)).status for _ in range(5)]
    assert found == [200] * 5


async def test_f11_nothing_is_translated_for_the_one_that_does_not_answer(begin: Begin, other: OpenAIUpstream) -> None:
    """`seed` is `random_seed` at Mistral, and `user` nothing at all."""
    two = begin()
    async with upstream(two.mistral, says(refusal(b"503"))) as seen, upstream(two.openai, other):
        found = await two.ask(seed=3, user="someone")
    assert b'"random_seed":3' in seen.requests[0].body
    assert b"someone" not in seen.requests[0].body
    assert (other.bodies[0]["seed"], other.bodies[0]["user"]) == (3, "someone")
    assert found.header("x-proxy-rewrites") is None


async def test_f11_a_long_retry_after_is_not_waited_for(begin: Begin, other: OpenAIUpstream) -> None:
    two = begin(attempts=3)
    async with upstream(two.mistral, says(refusal(b"429", retry_after="30"))) as seen, upstream(two.openai, other):
        found = await two.ask()
        assert (found.status, found.header("x-proxy-upstream"), len(seen.requests)) == (200, GPT, 1)
        found = await two.ask()  # the key rests, and nobody is asked again
        assert (found.status, found.header("x-proxy-upstream"), len(seen.requests)) == (200, GPT, 1)


async def test_f11_silence_is_a_failure_too(begin: Begin, other: OpenAIUpstream) -> None:
    async def never(peer: Peer, _: Received) -> None:
        await peer.gone()

    two = begin(first_byte="200ms")
    async with upstream(two.mistral, never), upstream(two.openai, other):
        found = await two.ask(max_tokens=10)
    assert found.status == 200
    rows = await asyncio.to_thread(two.book.ended, "a", 2)
    assert rows[0].cost == rows[0].most_cost > 0  # it may have been answered: nobody knows
    assert rows[1].cost == COST
    assert found.header("x-proxy-cost-usd") == f"{(rows[0].cost + COST) / 1e9:.9f}".rstrip("0")


async def test_f11_what_a_stream_costs_is_not_said_before_it_is_known(begin: Begin, other: OpenAIUpstream) -> None:
    two = begin()
    async with upstream(two.mistral, hangs_up), upstream(two.openai, other):
        found = await two.ask(stream=True)
    assert (found.status, found.header("x-proxy-cost-usd")) == (200, None)


async def test_f12_what_is_meant_for_a_provider_that_is_gone_goes_nowhere(
    begin: Begin, tmp_path: Path, other: OpenAIUpstream
) -> None:
    two = begin(chain=MEDIUM)
    file = tmp_path / "proxy.yaml"
    file.write_text(re.sub(r"  openai:\n(    .*\n)+|    openai/.*\n|  aliases: .*\n", "", file.read_text()))
    two.program.signal(signal.SIGHUP)
    await asyncio.to_thread(two.program.line, event="reloaded")
    async with upstream(two.mistral, says(completion())) as seen, upstream(two.openai, other):
        found = await two.ask(model=GPT)
    assert (found.status, found.error()["code"]) == (404, "model_not_found")
    assert (seen.connections, other.authorizations) == (0, [])


async def test_f4_a_stream_that_has_begun_stays_where_it_is(begin: Begin, other: OpenAIUpstream) -> None:
    async def cuts(peer: Peer, _: Received) -> None:
        await peer.send(STREAM + chunk(event("Half an answer")))
        await peer.cut()

    two = begin()
    async with upstream(two.mistral, cuts), upstream(two.openai, other):
        found = await two.ask(stream=True)
    assert found.status == 200
    assert found.header("x-proxy-upstream") == f"mistral/{LARGE}"
    assert b'"code":"upstream_error"' in found.body
    assert other.authorizations == []


async def test_f11_a_bad_request_is_nobody_elses(begin: Begin, other: OpenAIUpstream) -> None:
    two = begin()
    async with upstream(two.mistral, says(refusal(b"400"))), upstream(two.openai, other):
        assert (await two.ask()).status == 400
        assert (await two.ask(temperature="hot")).status == 400
    assert other.authorizations == []


async def test_f11_a_conversation_that_is_too_long_goes_to_a_larger_model_alone(
    begin: Begin, other: OpenAIUpstream
) -> None:
    """Mistral's large one takes 262,144 tokens, the other 128,000."""

    async def too_long(peer: Peer, _: Received) -> None:
        head = b"HTTP/1.1 400 No\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(TOO_LONG)
        await peer.send(head + TOO_LONG)

    two = begin()
    async with upstream(two.mistral, too_long), upstream(two.openai, other):
        found = await two.ask()
    assert (found.status, found.error()["code"]) == (400, "context_length_exceeded")
    assert other.authorizations == []


async def test_f11_a_chain_goes_on(begin: Begin, other: OpenAIUpstream) -> None:
    two = begin(chain=f"{MEDIUM}, {GPT}")
    async with upstream(two.mistral, says(refusal(b"503"))) as seen, upstream(two.openai, other):
        found = await two.ask()
    assert [LARGE.encode() in seen.requests[0].body, MEDIUM.encode() in seen.requests[1].body] == [True, True]
    assert (found.header("x-proxy-upstream"), found.header("x-proxy-attempts")) == (GPT, "3")


# none does


async def test_f11_if_both_fail_the_first_ones_error_is_told(begin: Begin, other: OpenAIUpstream) -> None:
    two = begin()
    other.fail(500, 400)
    async with upstream(two.mistral, says(refusal(b"503"))), upstream(two.openai, other):
        for _ in range(2):
            found = await two.ask()
            assert (found.status, found.header("x-should-retry")) == (503, None)
            assert found.error()["upstream"] == {"provider": "mistral", "status": 503, "code": None}
            assert found.header("x-proxy-attempts") == "2"


@pytest.fixture
def pinned(begin: Begin) -> Two:
    return begin({"a": "[], providers: [mistral]"}, threshold=2)


async def test_f12_a_team_that_is_pinned_goes_nowhere_else(pinned: Two, other: OpenAIUpstream) -> None:
    async with upstream(pinned.mistral, says(refusal(b"503"))), upstream(pinned.openai, other) as seen:
        codes = [(await pinned.ask()).error()["code"] for _ in range(4)]
        assert codes == ["upstream_error", "upstream_error", "circuit_open", "circuit_open"]
        direct = await pinned.ask(model=GPT)
        assert (direct.status, direct.error()["code"]) == (403, "model_not_allowed")
        assert (await pinned.ask(model="best")).status == 403
    assert seen.connections == 0


async def test_f13_when_both_are_left_alone_the_sooner_one_is_told(begin: Begin, other: OpenAIUpstream) -> None:
    two = begin(threshold=2)
    other.fail(500, 500, 500, 500)
    async with upstream(two.mistral, says(refusal(b"503"))) as seen, upstream(two.openai, other):
        assert [(await two.ask(model=GPT)).status for _ in range(2)] == [500, 500]
        await asyncio.sleep(1.1)  # so that the waits differ by more than a second
        assert [(await two.ask()).status for _ in range(2)] == [503, 503]
        found = await two.ask()
        assert (found.status, found.error()["code"]) == (503, "circuit_open")
        assert 20_000 < int(found.header("retry-after-ms") or 0) <= 29_000
        assert found.header("x-should-retry") == "false"
        assert (len(seen.requests), len(other.authorizations)) == (2, 2)


async def test_f11_a_model_that_is_left_alone_is_not_asked_and_nothing_is_held_for_it(
    begin: Begin, other: OpenAIUpstream
) -> None:
    two = begin(threshold=2)
    async with upstream(two.mistral, says(refusal(b"503"))) as seen, upstream(two.openai, other):
        found = [await two.ask() for _ in range(6)]
    assert [one.status for one in found] == [200] * 6
    assert len(seen.requests) == 2
    assert [one.header("x-proxy-attempts") for one in found] == ["2", "2", "1", "1", "1", "1"]
    rows = await asyncio.to_thread(two.book.ended, "a", 8)
    assert Counter(row.priced_as for row in rows) == {GPT: 6, "mistral-large-2512": 2}


# the other provider by itself


async def test_f17_openais_own_client_speaks_to_openai_through_us(begin: Begin, other: OpenAIUpstream) -> None:
    two = begin()
    async with upstream(two.openai, other):
        client = two.client()
        for model in (GPT, "best"):
            said = await soon(client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hi"}]))
            assert said.choices[0].message.content == "Hello!"
            assert said.usage
            assert said.usage.total_tokens == 11
            stream = await client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "Hi"}], stream=True
            )
            texts = [one.choices[0].delta.content async for one in stream]  # each chunk has a choice
            assert "".join(text or "" for text in texts) == "Hello!"
        counted = await client.chat.completions.create(
            model=GPT,
            messages=[{"role": "user", "content": "Hi"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        last = [one async for one in counted][-1]
        assert last.usage
        assert (last.choices, last.usage.total_tokens) == ([], 11)
        vectors = await client.embeddings.create(model="small-vectors", input=["a", "b"])
        assert [len(one.embedding) for one in vectors.data] == [4, 4]
        assert (await client.models.retrieve("best")).id == "best"
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="openai/none", messages=[{"role": "user", "content": "Hi"}])
        await client.close()
    assert set(other.authorizations) == {f"Bearer {OPENAI_KEY}"}
    rows = await asyncio.to_thread(two.book.ended, "a", 8)
    assert [row.cost for row in rows] == [COST] * 5 + [5 * 20, 0, 0]
    assert OPENAI_KEY not in two.program.everything()


async def test_f17_its_errors_are_openais_but_for_our_own_account(begin: Begin, other: OpenAIUpstream) -> None:
    two = begin()
    other.key = "another-key"
    async with upstream(two.openai, other):
        found = await two.ask(model=GPT)
        assert (found.status, found.error()["code"]) == (502, "upstream_auth_failed")
        assert OPENAI_KEY.encode() not in found.body
        other.key = OPENAI_KEY
        found = await two.ask(model=GPT, no_such_parameter=1)
        assert (found.status, found.error()["type"]) == (400, "invalid_request_error")
        assert "no_such_parameter" in found.error()["message"]
        found = await two.ask(model=GPT, safe_prompt=True)
        assert (found.status, found.error()["param"]) == (400, "safe_prompt")


async def test_f17_without_a_price_a_limit_on_spend_refuses_it(begin: Begin, other: OpenAIUpstream) -> None:
    two = begin({"a": "[{spend: 5 USD/month}]", "b": "[]"})
    async with upstream(two.openai, other):
        found = await two.ask(model="openai/text-embedding-ada-002")
        assert (found.status, found.error()["code"]) == (403, "model_not_allowed")
        assert (await two.ask(model=GPT)).status == 200
    assert len(other.authorizations) == 1


# under load


async def test_with_another_model_no_request_fails(begin: Begin, other: OpenAIUpstream) -> None:
    """50 requests a second; the provider dies under them, and comes back."""
    two = begin(open="1s", threshold=5, attempts=3)
    found: list[Answer] = []

    async def load(seconds: float) -> None:
        asked = []
        for _ in range(int(50 * seconds)):
            asked.append(asyncio.create_task(two.ask()))
            await asyncio.sleep(0.02)
        found.extend([await soon(one) for one in asked])

    async with upstream(two.openai, other):
        async with upstream(two.mistral, says(completion())):
            await load(1)
        async with upstream(two.mistral, hangs_up):
            await load(3)
        began = time.monotonic()
        async with upstream(two.mistral, says(completion())):
            while (await two.ask()).header("x-proxy-upstream") != f"mistral/{LARGE}":
                assert time.monotonic() - began < 2 + 1
                await asyncio.sleep(0.05)
            await load(1)
    assert Counter(one.status for one in found) == {200: len(found)}
    by = Counter(one.header("x-proxy-upstream") for one in found)
    assert by[f"mistral/{LARGE}"] >= 50
    assert by[GPT] >= 50


# and what was answered before


def answers(text: str) -> Any:
    return says(completion(text))


async def test_h1_f11_the_next_model_answers_for_this_request_alone(begin: Begin, other: OpenAIUpstream) -> None:
    """What was asked for is never to be kept (`store: true`), what answered in its place is: the same request, to the
    letter, asks again when the first one is well."""
    two = begin(others=f", {GPT}: [{MEDIUM}]")
    async with upstream(two.mistral, answers("from the other")), upstream(two.openai, other):
        other.fail(503)
        found = [await two.ask(model=GPT, store=True, temperature=0) for _ in range(3)]
    assert [one.header("x-proxy-upstream") for one in found] == [f"mistral/{MEDIUM}", GPT, GPT]
    assert [one.header("x-proxy-cache") for one in found] == ["miss", "bypass", "bypass"]
    assert b"from the other" in found[0].body
    assert b"from the other" not in found[2].body


@pytest.mark.parametrize("second", ["fails", "refused"])
async def test_h11_f11_when_all_have_failed_what_was_answered_before_is_better(
    begin: Begin, other: OpenAIUpstream, second: str
) -> None:
    """The other one fails too, or the team may not pay it. The answer is the first one's, and says so; a crowd gets it
    as a single request does."""
    rules = {"a": "[]" if second == "fails" else "[{requests: 0/day, model: openai/gpt-4o}]"}
    two = begin(rules, cache="{ttl: 50ms}")
    async with upstream(two.mistral, answers("before")), upstream(two.openai, other):
        first = await two.ask(temperature=0)
    await asyncio.sleep(0.1)
    async with upstream(two.mistral, says(refusal(b"503"))), upstream(two.openai, other):
        other.fail(*[503] * 20)
        found = [await two.ask(temperature=0), *await asyncio.gather(*(two.ask(temperature=0) for _ in range(6)))]
    assert {(one.status, one.body) for one in found} == {(200, first.body)}
    assert {one.header("x-proxy-cache") for one in found} == {"stale"}
    assert {one.header("x-proxy-cache-key") for one in found} == {first.header("x-proxy-cache-key")}
    assert {one.header("x-proxy-upstream") for one in found} == {f"mistral/{LARGE}"}

    def stale() -> list[Row]:
        return [row for row in two.book.rows("a") if row.cache == "stale" and row.ended]

    rows = await asyncio.to_thread(until, lambda: len(stale()) == 7 and stale(), "all are in the ledger")
    assert {(row.priced_as, row.status, row.http_status, row.cost) for row in rows} == {
        (rows[0].priced_as, "settled", 200, 0)
    }
    assert "large" in rows[0].priced_as


async def test_h11_f11_without_anything_from_before_the_first_ones_error_is_told(
    begin: Begin, other: OpenAIUpstream
) -> None:
    two = begin(cache="{ttl: 50ms}")
    async with upstream(two.mistral, says(refusal(b"503"))), upstream(two.openai, other):
        other.fail(500)
        found = await two.ask(temperature=0)
    assert (found.status, found.header("x-proxy-upstream")) == (503, f"mistral/{LARGE}")
