"""The record of calls."""

from typing import Any

import httpx2

from proxy.simulator.calls import Calls

from .conftest import Ask, body


async def recorded(http: httpx2.AsyncClient) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = (await http.get("/_sim/calls")).json()
    return calls


async def test_what_is_recorded(http: httpx2.AsyncClient, ask: Ask) -> None:
    await ask(stream=True, model="mistral-small-latest+events=3")
    await http.get("/v1/models", headers={"authorization": ""})
    chat, models = await recorded(http)
    assert ["authorization", "Bearer sk-sim"] in chat.pop("headers")
    assert chat.pop("started") <= chat.pop("ended_at")
    assert chat == {
        "n": 1,
        "method": "POST",
        "path": "/v1/chat/completions",
        "body": body(stream=True, model="mistral-small-latest+events=3"),
        "model": "mistral-small-latest+events=3",
        "status": 200,
        "events_sent": 6,
        "billed_as": "mistral-small-2603",
        "prompt": 3,
        "completion": 3,
        "ended": "complete",
    }
    assert (models["n"], models["path"], models["status"], models["body"]) == (2, "/v1/models", 401, None)


async def test_bodies_as_text_when_they_are_no_json_and_not_when_large(http: httpx2.AsyncClient, ask: Ask) -> None:
    await http.post("/v1/chat/completions", content=b"not \xff json")
    await ask(messages=[{"role": "user", "content": "x" * 70_000}])
    text, large = await recorded(http)
    assert (text["status"], text["body"]) == (422, "not \ufffd json")
    assert (large["status"], large["body"]) == (200, None)


async def test_clearing_forgets_calls_and_script(http: httpx2.AsyncClient, ask: Ask) -> None:
    await ask()
    await http.post("/_sim/script", json=["status=500"])
    assert (await http.delete("/_sim/calls")).status_code == 200
    assert await recorded(http) == []
    assert (await ask()).status_code == 200
    assert [call["n"] for call in await recorded(http)] == [2]


def test_the_record_is_bounded() -> None:
    calls = Calls(lambda: 0.0)
    for _ in range(10_001):
        calls.begin("GET", "/", [])
    views = calls.views()
    assert (len(views), views[0]["n"], views[-1]["n"]) == (10_000, 2, 10_001)
