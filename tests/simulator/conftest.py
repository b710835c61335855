"""A simulator on a real socket, and a client that talks to it as any HTTP client would."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx2
import msgspec
import pytest

from proxy.simulator.app import create_app
from proxy.simulator.server import RunningServer, start

Ask = Callable[..., Awaitable[httpx2.Response]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def sim() -> AsyncIterator[RunningServer]:
    running = await start(app=create_app(clock=lambda: 1_795_000_000.5))
    yield running
    await running.stop()


@pytest.fixture
async def http(sim: RunningServer) -> AsyncIterator[httpx2.AsyncClient]:
    headers = {"authorization": "Bearer sk-sim"}
    async with httpx2.AsyncClient(base_url=sim.url, headers=headers, verify=False) as client:  # no TLS here
        yield client


@pytest.fixture
def ask(http: httpx2.AsyncClient) -> Ask:
    """POST a chat request: one user message "Hello there" to mistral-small-latest, unless said otherwise."""

    async def post(headers: dict[str, str] | None = None, **fields: Any) -> httpx2.Response:
        return await http.post("/v1/chat/completions", json=body(**fields), headers=headers)

    return post


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "mistral-small-latest", "messages": [{"role": "user", "content": "Hello there"}], **fields}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": [*properties]}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def chunks(text: str) -> list[dict[str, Any]]:
    """The JSON of every frame of a stream that ends as it should."""
    *frames, last, rest = text.split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    return [msgspec.json.decode(frame.removeprefix("data: ")) for frame in frames]


def deltas(text: str) -> list[dict[str, Any]]:
    return [chunk["choices"][0]["delta"] for chunk in chunks(text)]
