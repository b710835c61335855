"""Routes, keys, requests that are no JSON, and the control of tests."""

import subprocess
import sys
from typing import Any

import httpx2
import pytest

from proxy.simulator.app import create_app
from proxy.simulator.server import start

from .conftest import Ask


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/v1/chat/completions"),
        ("POST", "/v1/models"),
        ("POST", "/v1/fim/completions"),
        ("POST", "/v1/chat/completions/"),
        ("DELETE", "/v1/models/mistral-small-latest"),
    ],
)
async def test_kong_knows_no_other_route(http: httpx2.AsyncClient, method: str, path: str) -> None:
    answer = await http.request(method, path, headers={"authorization": ""})
    assert (answer.status_code, answer.json()) == (404, {"message": "no Route matched with those values"})


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Basic abc"])
async def test_no_key(ask: Ask, http: httpx2.AsyncClient, authorization: str | None) -> None:
    del http.headers["authorization"]
    answer = await ask(None if authorization is None else {"authorization": authorization})
    assert (answer.status_code, answer.json()) == (401, {"detail": "Unauthorized"})


async def test_only_the_keys_it_was_given() -> None:
    running = await start(app=create_app(api_keys={"right"}))
    async with httpx2.AsyncClient(base_url=running.url) as http:
        good = await http.get("/v1/models", headers={"authorization": "Bearer right"})
        bad = await http.get("/v1/models", headers={"authorization": "Bearer wrong"})
    await running.stop()
    assert good.status_code == 200
    assert (bad.status_code, bad.json()) == (401, {"detail": "Invalid API Key"})


@pytest.mark.parametrize(
    ("content", "kind", "loc"),
    [
        (b"", "missing", ["body"]),
        (b"{", "json_invalid", ["body", 0]),
        (b"\xff", "json_invalid", ["body", 0]),
        (b"[]", "model_attributes_type", ["body"]),
        (b"null", "model_attributes_type", ["body"]),
    ],
)
async def test_bodies_that_are_no_request(http: httpx2.AsyncClient, content: bytes, kind: str, loc: list[Any]) -> None:
    answer = await http.post("/v1/chat/completions", content=content)
    assert answer.status_code == 422
    assert [(entry["type"], entry["loc"]) for entry in answer.json()["detail"]] == [(kind, loc)]


async def test_a_request_that_does_not_meet_the_schema(ask: Ask) -> None:
    answer = await ask(stream=True, store=False, user="u")
    assert answer.status_code == 422
    assert answer.json()["detail"] == [
        {"type": "extra_forbidden", "loc": ["body", key], "msg": "Extra inputs are not permitted", "input": value}
        for key, value in (("store", False), ("user", "u"))
    ]


async def test_a_request_the_model_refuses(ask: Ask) -> None:
    answer = await ask(model="mistral-unknown", stream=True)
    assert answer.status_code == 400
    assert answer.json() == {
        "object": "error",
        "message": "Invalid model: mistral-unknown",
        "type": "invalid_model",
        "param": None,
        "code": "1500",
        "raw_status_code": 400,
    }


async def test_control_is_known_only_where_it_is_on(http: httpx2.AsyncClient) -> None:
    assert (await http.get("/_sim/nothing")).json() == {"message": "simulator: no such control"}
    running = await start(app=create_app(control=False))
    async with httpx2.AsyncClient(base_url=running.url) as other:
        answer = await other.get("/_sim/calls")
    await running.stop()
    assert (answer.status_code, answer.json()) == (404, {"message": "no Route matched with those values"})


async def test_other_protocols_are_not_spoken() -> None:
    async def never(message: Any = None) -> Any:
        raise AssertionError

    with pytest.raises(NotImplementedError):
        await create_app()({"type": "lifespan"}, never, never)


def test_it_is_cheap_to_import() -> None:
    command = "import sys, proxy.simulator.app; print(sorted({'pydantic', 'aiohttp', 'uvicorn'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
