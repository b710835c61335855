"""What is asked for once more, and what for nothing in the world: the network counts."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from proxy.core.charge import NOTHING, Estimate
from proxy.core.endpoint import Retry as Repeatable
from proxy.core.errors import Draining, ProxyError, UpstreamFailed
from proxy.providers.mistral.chat import CHAT
from proxy.providers.mistral.embeddings import EMBEDDINGS
from proxy.providers.mistral.models import MODELS
from proxy.upstream.config import Retry
from proxy.upstream.transport import TransportError
from tests.test_dispatch import (
    DONE,
    EVENT,
    LAST,
    USAGE,
    Network,
    Reply,
    Setting,
    asked,
    completion,
    refused,
    reply,
    streamed,
)

AT_ONCE = 1e-9
FAILED = reply({"message": "x"}, 503)
ESTIMATE = Estimate(prompt=10, completion=20, tokens=30, cost=7_000)


def persistent(*replies: Any, **retry: Any) -> Setting:
    config = Retry.model_construct(**(Retry(jitter=0.0).model_dump() | {"initial_delay": AT_ONCE} | retry))
    return Setting(CHAT, Network(list(replies)), retry=config)


def advice(error: ProxyError) -> dict[bytes, bytes]:
    return dict(error.headers)


def transport(kind: str) -> TransportError:
    return TransportError(kind, "text of the transport")


@pytest.mark.parametrize(
    "trouble",
    [
        reply({"message": "Rate limit exceeded", "code": "1300"}, 429),
        reply({"message": "Service tier capacity exceeded for this model.", "code": "3505"}, 429),
        reply({"message": "Internal error", "code": "3000"}, 500),
        Reply(502), FAILED, Reply(529), transport("connect"), transport("connect_timeout"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
async def test_f1_what_was_not_done_is_asked_for_again(trouble: Any, stream: bool) -> None:
    good = streamed(EVENT, LAST + DONE) if stream else completion()
    setting = persistent(trouble, trouble, good)
    answer = await setting.ask(asked(stream=stream), estimate=ESTIMATE)
    assert answer.status == 200
    assert answer.exchange.attempts == len(setting.network.sent) == 3
    assert [sent.body for sent in setting.network.sent[1:]] == [setting.network.sent[0].body] * 2
    assert answer.exchange.charge
    assert not answer.exchange.charge.estimated
    assert answer.exchange.charge.completion == 2
    assert [line[:2] for line in setting.log.lines] == [("warning", "retry")] * 2
    assert setting.log.lines[0][2]["attempts"] == 1


async def test_f1_three_attempts_and_the_client_is_told_that_it_was_enough() -> None:
    setting = persistent(*[FAILED] * 9)
    error = await refused(setting, asked(), estimate=ESTIMATE)
    assert (error.status, len(setting.network.sent)) == (503, 3)
    assert advice(error)[b"x-should-retry"] == b"false"
    assert setting.exchange.charge
    assert setting.exchange.charge.cost == 0


@pytest.mark.parametrize(
    ("trouble", "status"),
    [
        (reply({"message": "no"}, 400), 400),
        (reply({"detail": "Unauthorized"}, 401), 502),
        (reply({"message": "no"}, 402), 429),
        (reply({"message": "no"}, 403), 502),
        (reply({"message": "no"}, 404), 404),
        (reply({"message": "no"}, 409), 409),
        (reply({"message": "no"}, 422), 400),
        (reply({"message": "Rate limit exceeded"}, 429, x_ratelimit_limit_req_minute="0"), 429),
        (reply({"message": "moved"}, 307), 502),
        (transport("tls"), 502),
        (transport("pool"), 503),
    ],
)
async def test_f1_what_would_end_the_same_way_is_not(trouble: Any, status: int) -> None:
    setting = persistent(trouble, completion())
    error = await refused(setting, asked())
    assert (error.status, len(setting.network.sent)) == (status, 1)


@pytest.mark.parametrize(
    "trouble", [transport("closed"), transport("protocol"), reply({}, 504), Reply(200, [b"<html>"])]
)
@pytest.mark.parametrize("stream", [False, True])
async def test_f5_what_may_have_been_done_is_not(trouble: Any, stream: bool) -> None:
    setting = persistent(trouble, completion())
    error = await refused(setting, asked(stream=stream), estimate=ESTIMATE)
    assert len(setting.network.sent) == 1
    assert advice(error)[b"x-should-retry"] == b"false"  # an SDK would have it done, and billed, twice


async def test_f5_unless_the_operator_wants_it_and_then_both_are_paid_for() -> None:
    setting = persistent(transport("closed"), completion(), retry_unsafe=True)
    answer = await setting.ask(asked(), estimate=ESTIMATE)
    assert (answer.status, len(setting.network.sent)) == (200, 2)
    assert [line[1] for line in setting.log.lines] == ["possible_double_bill"]
    charge = answer.exchange.charge
    assert charge
    assert charge.estimated
    assert (charge.prompt, charge.completion) == (10 + 1, 20 + 2)
    assert charge.cost
    assert charge.cost > 7_000


async def test_f5_a_provider_that_failed_twice_is_paid_for_what_it_may_have_done() -> None:
    setting = persistent(transport("closed"), FAILED, transport("connect"), retry_unsafe=True)
    await refused(setting, asked(), estimate=ESTIMATE)
    assert setting.exchange.charge
    assert setting.exchange.charge.cost == 7_000


async def test_f5_of_a_batch_a_part_is_paid_for_twice_and_not_the_whole() -> None:
    def vectors(count: int) -> Reply:
        return reply({"data": [{"index": n, "embedding": [1.0]} for n in range(count)], "model": "m", "usage": USAGE})

    replies = [found for count in (256, 256, 88) for found in (transport("closed"), vectors(count))]
    setting = persistent(*replies, retry_unsafe=True, budget=1.0)
    setting.endpoint = EMBEDDINGS
    most = Estimate(prompt=3_000, completion=0, tokens=3_000, cost=300_000)
    body = {"model": "m", "input": ["word"] * 600}
    answer = await setting.ask(body, model="mistral-embed", estimate=most)
    assert (answer.status, len(setting.network.sent)) == (200, 6)
    assert answer.exchange.charge
    assert answer.exchange.charge.prompt < 600 * 6 + 100


async def test_f5_what_the_provider_says_that_it_has_not_done_costs_nothing_however_often() -> None:
    setting = persistent(*[reply({}, 504)] * 3, retry_unsafe=True)
    await refused(setting, asked(), estimate=ESTIMATE)
    assert len(setting.network.sent) == 3
    assert setting.exchange.charge
    assert setting.exchange.charge.cost == 0


async def test_a_conflict_is_not_repeated_by_anybody() -> None:
    error = await refused(persistent(reply({"message": "busy"}, 409)), asked())
    assert advice(error)[b"x-should-retry"] == b"false"


async def test_f5_a_503_may_have_made_the_first_of_two_things() -> None:
    setting = persistent(FAILED, completion())
    setting.endpoint = replace(CHAT, retry=Repeatable.UNSAFE)
    await refused(setting, asked())
    assert len(setting.network.sent) == 1
    setting = persistent(transport("connect"), completion())
    setting.endpoint = replace(CHAT, retry=Repeatable.UNSAFE)
    assert (await setting.ask(asked())).status == 200


async def test_f5_to_look_at_something_twice_does_no_harm() -> None:
    setting = persistent(transport("closed"), reply({}, 504), reply({"data": []}))
    setting.endpoint = MODELS
    assert (await setting.ask(None, model=None)).status == 200


@pytest.mark.parametrize("cut", [transport("closed"), transport("protocol")])
@pytest.mark.parametrize("before", [[], [b"data: "], [EVENT], [EVENT, EVENT]])
@pytest.mark.parametrize("unsafe", [False, True])
async def test_f4_a_stream_that_has_begun_is_the_only_one(
    cut: TransportError, before: list[bytes], unsafe: bool
) -> None:
    setting = persistent(streamed(*before, cut), streamed(EVENT, LAST + DONE), retry_unsafe=unsafe)
    if EVENT in before:
        answer = await setting.ask(asked(stream=True), estimate=ESTIMATE)
        assert b'"error"' in answer.body
    else:
        await refused(setting, asked(stream=True), estimate=ESTIMATE)
    assert len(setting.network.sent) == 1


async def test_a_refusal_that_was_mended_has_attempts_of_its_own() -> None:
    effort = reply({"message": "reasoning_effort is not enabled for this model", "code": "3051"}, 400)
    setting = persistent(FAILED, effort, FAILED, completion())
    answer = await setting.ask(asked(reasoning_effort="high"), model="magistral-medium-latest")
    assert (answer.status, answer.exchange.attempts) == (200, 4)


async def test_a_failure_after_one_that_was_billed_for_nothing_costs_nothing() -> None:
    """What was sent the first time was refused, and the second time there was nobody to send it to."""
    setting = persistent(FAILED, transport("connect"), transport("connect"))
    await refused(setting, asked(), estimate=ESTIMATE)
    assert setting.exchange.charge
    assert setting.exchange.charge.cost == 0


async def test_what_parts_of_a_batch_have_cost_is_not_forgotten_for_a_later_one() -> None:
    vectors = {
        "data": [{"index": n, "embedding": [1.0]} for n in range(512)],
        "model": "m",
        "usage": {"prompt_tokens": 9},
    }
    setting = persistent(reply(vectors), FAILED, transport("connect"), transport("connect"))
    setting.endpoint = EMBEDDINGS
    body = {"model": "m", "input": ["x"] * 600}
    await refused(setting, body, model="mistral-embed", estimate=ESTIMATE)
    assert setting.exchange.charge
    assert setting.exchange.charge.cost == 7_000


async def test_a_part_of_a_batch_that_nobody_has_got_is_asked_for_again_whatever_became_of_the_others() -> None:
    vectors = [reply({"data": [{"index": n, "embedding": [1.0]} for n in range(256)], "model": "m", "usage": USAGE})]
    setting = persistent(*vectors, transport("connect"), *vectors)
    setting.endpoint = EMBEDDINGS
    answer = await setting.ask({"model": "m", "input": ["x"] * 512}, model="mistral-embed", estimate=ESTIMATE)
    assert (answer.status, len(setting.network.sent)) == (200, 3)


async def test_the_provider_says_when() -> None:
    setting = persistent(
        reply({"message": "Rate limit exceeded"}, 429, retry_after="7"), completion(), max_delay=AT_ONCE
    )
    assert (await setting.ask(asked())).status == 200
    assert setting.log.lines[0][2]["wait_s"] == 0.0  # clamped
    setting = persistent(reply({"message": "Rate limit exceeded"}, 429, retry_after="700"), max_delay=700.0)
    error = await refused(setting, asked())  # more than is left of its ten minutes
    assert len(setting.network.sent) == 1
    assert advice(error)[b"retry-after"] == b"700"


async def test_retries_that_are_off_leave_it_to_the_client() -> None:
    setting = persistent(reply({"message": "Rate limit exceeded"}, 429), max_attempts=1)
    error = await refused(setting, asked())
    assert len(setting.network.sent) == 1
    assert advice(error)[b"x-should-retry"] == b"true"


@pytest.mark.parametrize("end", ["leaves", "drain"])
async def test_who_waits_for_another_attempt_is_let_go(end: str) -> None:
    setting = persistent(FAILED, completion(), initial_delay=60.0)
    if end == "leaves":
        answer = await setting.ask(asked(), leaves=True, estimate=ESTIMATE)
        assert answer.exchange.client_gone
        assert answer.exchange.charge == NOTHING  # what was sent was refused, and nothing is under way
        assert [one.then for one in answer.exchange.in_vain] == ["nothing"]  # and no call was made again
    else:
        task = asyncio.create_task(refused(setting, asked()))
        for _ in range(20):
            await asyncio.sleep(0)
        assert setting.log.lines
        for guard in list(setting.guards):
            guard.drain()
        assert isinstance(await task, Draining)
    assert len(setting.network.sent) == 1


async def test_silence_is_not_asked_again_and_the_client_neither() -> None:
    async def silence() -> None:
        raise UpstreamFailed("as the guard ends it")

    setting = persistent(silence, completion())
    error = await refused(setting, asked())
    assert advice(error)[b"x-should-retry"] == b"false"


async def test_what_one_key_was_refused_is_not_charged_when_another_reaches_nobody() -> None:
    setting = persistent(reply({"detail": "Invalid API Key"}, 401), transport("connect"), max_attempts=1)
    setting.keys = ("first-key-0123456789", "second-key-0123456789")
    await refused(setting, asked(), estimate=ESTIMATE)
    assert (setting.exchange.attempts, setting.exchange.sent) == (2, False)
    assert setting.exchange.charge
    assert setting.exchange.charge.cost == 0


async def test_another_key_is_no_repetition() -> None:
    """It has no pause, and nothing of the budget."""
    setting = persistent(reply({"detail": "Invalid API Key"}, 401), completion(), max_attempts=1)
    setting.keys = ("first-key-0123456789", "second-key-0123456789")
    assert (await setting.ask(asked())).status == 200
    paid = [sent.headers["Authorization"] for sent in setting.network.sent]
    assert paid == ["Bearer first-key-0123456789", "Bearer second-key-0123456789"]
