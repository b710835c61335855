"""The provider, and the server that plays it for other tests."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from proxy.providers.openai import PROVIDER
from tests.e2e.openai_upstream import USAGE, OpenAIUpstream, openai_reply
from tests.e2e.upstream import listener, upstream, url_of

HI: Any = [{"role": "user", "content": "Hi"}]


def test_the_rows():
    rows = [(row.method, row.path, row.upstream, row.operation) for row in PROVIDER.endpoints]
    assert rows == [
        ("POST", "/v1/chat/completions", "/v1/chat/completions", "chat.create"),
        ("POST", "/v1/embeddings", "/v1/embeddings", "embeddings"),
        ("GET", "/v1/models", "/v1/models", "models"),
        ("GET", "/v1/models/{id}", "/v1/models/{id}", "model"),
    ]
    assert PROVIDER.name == "openai"
    assert PROVIDER.endpoints[0].events


async def asked(reply: OpenAIUpstream, ask: Any, key: str = "right") -> Any:
    with listener() as held:
        async with (
            upstream(held, reply),
            openai.AsyncOpenAI(api_key=key, base_url=f"{url_of(held)}/v1", max_retries=0) as sdk,
        ):
            return await ask(sdk)


async def test_the_upstream_answers_openais_sdk():
    async def everything(sdk: openai.AsyncOpenAI) -> None:
        whole = await sdk.chat.completions.create(model="gpt-4o-mini", messages=HI, n=2)
        assert [choice.message.content for choice in whole.choices] == ["Hello!", "Hello!"]
        options: Any = {"include_usage": True}
        stream = await sdk.chat.completions.create(
            model="gpt-4o-mini", messages=HI, stream=True, stream_options=options
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(one.choices[0].delta.content or "" for one in chunks[:-1]) == "Hello!"
        assert chunks[-1].usage
        assert chunks[-1].usage.total_tokens == USAGE["total_tokens"]
        without = await sdk.chat.completions.create(model="gpt-4o-mini", messages=HI, stream=True)
        assert all(chunk.usage is None for chunk in [chunk async for chunk in without])
        vectors = await sdk.embeddings.create(model="gpt-4o-mini", input=["a", "b"])
        assert [one.embedding for one in vectors.data] == [[0.0] * 4] * 2
        assert [card.id async for card in sdk.models.list()] == ["gpt-4o-mini"]
        assert (await sdk.models.retrieve("gpt-4o-mini")).owned_by == "system"

    reply = openai_reply(key="right")
    await asked(reply, everything)
    assert len(reply.bodies) == 4
    assert reply.bodies[0]["n"] == 2
    assert set(reply.authorizations) == {"Bearer right"}


async def test_the_upstream_refuses_as_openai_does():
    async def wrong_key(sdk: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.AuthenticationError) as caught:
            await sdk.models.list()
        assert "Incorrect API key provided: wrong" in caught.value.message

    async def refusals(sdk: openai.AsyncOpenAI) -> None:
        chat = sdk.chat.completions
        with pytest.raises(openai.BadRequestError, match="Unrecognized request argument supplied: random_seed"):
            await chat.create(model="gpt-4o-mini", messages=HI, extra_body={"random_seed": 5})
        with pytest.raises(openai.NotFoundError) as caught:
            await chat.create(model="mistral-small-latest", messages=HI)
        assert caught.value.code == "model_not_found"
        reply.fail(500, 429, retry_after="7")
        with pytest.raises(openai.InternalServerError):
            await chat.create(model="gpt-4o-mini", messages=HI)
        with pytest.raises(openai.RateLimitError) as limited:
            await chat.create(model="gpt-4o-mini", messages=HI)
        assert limited.value.response.headers["retry-after"] == "7"
        await chat.create(model="gpt-4o-mini", messages=HI)

    reply = openai_reply(key="right")
    await asked(reply, wrong_key, "wrong")
    await asked(reply, refusals)
