"""The estimate stage: an id of ours for each request, and the most it can cost."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from proxy import data
from proxy.core.catalogue import Catalogue
from proxy.core.charge import FREE
from proxy.core.charge import estimate as worst
from proxy.core.exchange import Exchange
from proxy.providers.mistral.chat import CHAT
from proxy.providers.mistral.embeddings import EMBEDDINGS
from proxy.providers.mistral.models import MODELS
from proxy.stages import estimate
from tests.asgi import call, exchange, ok, services

CATALOGUE = Catalogue(data.read("models.yaml"))
SMALL = CATALOGUE.model("mistral-small-latest")


async def pass_by(*found: Exchange, default: int | None = None, endpoint: Any = CHAT) -> None:
    ids = (f"owner-{n}" for n in count())
    stage = estimate.build(default, endpoint, services(catalogue=CATALOGUE, next_call=lambda: next(ids)))
    for one in found:
        await call(stage(ok), exchange=one)


def chat(**fields: Any) -> Exchange:
    return exchange(model="mistral-small-latest", body={"messages": [{"role": "user", "content": "Hi"}]} | fields)


async def test_two_requests_with_the_same_id_are_two() -> None:
    one, other = chat(), chat()
    await pass_by(one, other)
    assert one.request_id == other.request_id
    assert (one.call, other.call) == ("owner-0", "owner-1")


@pytest.mark.parametrize(("default", "tokens"), [(None, estimate.UNLIMITED), (77, 77)])
async def test_an_answer_without_a_limit_counts_for_what_is_usual(default: int | None, tokens: int) -> None:
    found = chat()
    await pass_by(found, default=default)
    assert found.estimate == worst(found.body or {}, SMALL, tokens)
    assert found.estimate
    assert found.estimate.completion == tokens


async def test_the_limit_of_the_request_counts() -> None:
    found = chat(max_tokens=5)
    await pass_by(found)
    assert found.estimate
    assert found.estimate.completion == 5


async def test_vectors_have_no_answer_in_tokens() -> None:
    found = exchange(model="mistral-embed", body={"input": "Hello"})
    await pass_by(found, endpoint=EMBEDDINGS)
    assert found.estimate
    assert found.estimate.completion == 0


async def test_what_is_not_metered_has_no_estimate() -> None:
    found = exchange()
    await pass_by(found, endpoint=MODELS)
    assert (found.call, found.estimate) == ("owner-0", None)


async def test_what_is_answered_without_a_call_costs_nothing() -> None:
    async def replay(*_: Any) -> None:
        raise AssertionError

    one = chat(max_tokens=1_000)
    one.replay = replay
    await pass_by(one)
    assert one.estimate == FREE
    assert (one.estimate.tokens, one.estimate.cost) == (0, 0)
