"""The headers around answers, and the sliding minute."""

import httpx2

from proxy.simulator.headers import Headers, Window
from proxy.simulator.reply import JSON, Reply

from .conftest import Ask


def test_the_window_slides() -> None:
    window = Window()
    assert window.add(0, 10) == (1, 10)
    assert window.add(59.9, 5) == (2, 15)
    assert window.add(60, 1) == (2, 6)
    assert window.add(200, 2) == (1, 2)


def limits(headers: Headers, reply: Reply) -> dict[str, str]:
    found = {name.decode(): value.decode() for name, value in headers.around(reply, bytes(32))}
    return {name: value for name, value in found.items() if name.startswith("x-ratelimit-")}


def test_models_have_windows_of_their_own() -> None:
    headers = Headers(lambda: 0.0)
    limits(headers, Reply(200, JSON, model="a", tokens=7))
    assert limits(headers, Reply(200, JSON, model="a", tokens=3)) == {
        "x-ratelimit-limit-req-minute": "1000000",
        "x-ratelimit-remaining-req-minute": "999998",
        "x-ratelimit-limit-tokens-minute": "2000000000",
        "x-ratelimit-remaining-tokens-minute": "1999999990",
        "x-ratelimit-tokens-query-cost": "3",
    }
    assert limits(headers, Reply(200, JSON, model="b"))["x-ratelimit-remaining-req-minute"] == "999999"


async def test_chat_answers_carry_both_pairs_and_the_cost(ask: Ask) -> None:
    answer = await ask()
    assert answer.headers["x-ratelimit-tokens-query-cost"] == str(answer.json()["usage"]["total_tokens"])
    assert answer.headers["mistral-correlation-id"] == answer.headers["x-kong-request-id"]
    assert answer.headers["x-envoy-upstream-service-time"].isdigit()
    assert answer.headers["set-cookie"].startswith("__cf_bm=")
    streamed = await ask(stream=True)
    assert streamed.headers["x-ratelimit-remaining-req-minute"] == "999998"
    assert streamed.headers["mistral-correlation-id"] != answer.headers["mistral-correlation-id"]


async def test_embeddings_carry_the_request_pair_and_models_none(http: httpx2.AsyncClient) -> None:
    embedded = await http.post("/v1/embeddings", json={"model": "mistral-embed", "input": "a"})
    listed = await http.get("/v1/models")
    names = [{name for name in answer.headers if name.startswith("x-ratelimit-")} for answer in (embedded, listed)]
    assert names == [{"x-ratelimit-limit-req-minute", "x-ratelimit-remaining-req-minute"}, set()]
    assert "mistral-correlation-id" in listed.headers
