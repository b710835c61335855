from __future__ import annotations

from typing import Any

import pytest

from proxy import data
from proxy.core.catalogue import Catalogue
from proxy.core.errors import BadRequest
from proxy.core.exchange import Exchange
from proxy.providers.mistral.chat import CHAT
from proxy.providers.mistral.models import MODEL
from proxy.stages import context
from tests.asgi import call, exchange, ok, services

CATALOGUE = Catalogue(data.read("models.yaml"), {"house": "mistral-small-latest"})
SMALL = "mistral-small-latest"
SIZE = CATALOGUE.model(SMALL).context or 0
LONG = [{"role": "user", "content": "x" * (SIZE // 2)} for _ in range(20)]
"""Seven of them fit, each a little more than a seventh."""


async def passed(
    chosen: dict[str, Any], messages: Any = LONG, *headers: tuple[bytes, bytes], model: str = SMALL, **more: Any
) -> Exchange:
    one = exchange(body={"messages": messages}, model=model, headers=list(headers))
    stage = context.build(chosen, more.get("default_max_tokens"), CHAT, services(catalogue=CATALOGUE))
    assert stage
    await call(stage(ok), exchange=one, body=[], stays=True)
    return one


async def test_by_itself_nothing_is_cut() -> None:
    found = await passed({})
    assert found.body
    assert found.body["messages"] is LONG
    assert not found.rewrites


@pytest.mark.parametrize("name", [SMALL, "house", CATALOGUE.model(SMALL).id])
async def test_a_model_that_has_it_whatever_it_is_called(name: str) -> None:
    found = await passed({name: "sliding-window"})
    assert found.body
    stays = found.body["messages"]
    assert stays == LONG[-len(stays) :]
    assert list(found.rewrites) == [f"cut:messages:{20 - len(stays)}"]
    assert 2 < len(stays) < 20
    assert len(LONG) == 20  # the client's own are as they were
    other = await passed({name: "sliding-window"}, model="mistral-large-latest")
    assert not other.rewrites


async def test_a_request_may_ask_for_it_and_for_none() -> None:
    assert (await passed({}, LONG, (b"x-proxy-context", b"sliding-window"))).rewrites
    assert not (await passed({SMALL: "sliding-window"}, LONG, (b"x-proxy-context", b"off"))).rewrites


@pytest.mark.parametrize("asked", [b"", b"on", b"Sliding-Window", b"\xff"])
async def test_another_word_is_an_error(asked: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        await passed({}, LONG, (b"x-proxy-context", asked))
    assert caught.value.param == "x-proxy-context"


async def test_a_model_whose_context_nobody_knows_takes_what_it_gets() -> None:
    found = await passed({}, LONG, (b"x-proxy-context", b"sliding-window"), model="my-own")
    assert not found.rewrites


async def test_the_default_limit_of_answers_is_left_for_them() -> None:
    little = await passed({SMALL: "sliding-window"})
    much = await passed({SMALL: "sliding-window"}, default_max_tokens=SIZE // 2)
    assert little.body
    assert much.body
    assert len(much.body["messages"]) < len(little.body["messages"])


def test_it_is_about_bodies() -> None:
    assert context.build({}, None, MODEL, services(catalogue=CATALOGUE)) is None
