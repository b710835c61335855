"""Writes, waits and ends on real sockets, and what the record says of clients that leave."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.simulator.app import create_app
from proxy.simulator.faults import Fault, parse
from proxy.simulator.reply import SSE, Frame, Reply
from proxy.simulator.wire import plan

from .conftest import Ask, body


async def recorded(http: httpx2.AsyncClient, state: str) -> dict[str, Any]:
    """The last call the simulator received, as soon as the record has that about it."""
    async with asyncio.timeout(5):
        while True:
            calls: list[dict[str, Any]] = (await http.get("/_sim/calls")).json()
            if calls and calls[-1][state] is not None:
                return calls[-1]


@asynccontextmanager
async def opened(http: httpx2.AsyncClient, fault: str) -> AsyncIterator[AsyncIterator[bytes]]:
    """The raw parts of a stream with that fault in it."""
    json = body(stream=True, model=f"mistral-small-latest+{fault}")
    async with http.stream("POST", "/v1/chat/completions", json=json) as answer:
        assert answer.status_code == 200
        yield answer.aiter_raw()


async def read(parts: AsyncIterator[bytes]) -> tuple[bytes, bool]:
    """What arrived, and whether it came to a proper end."""
    received = b""
    try:
        async for part in parts:
            received += part
    except (httpx2.RemoteProtocolError, httpx2.ReadError):
        return received, False
    return received, True


@pytest.mark.parametrize("fault", ["cut_events=3", "cut_events=3+coalesce", "cut_events=3+delay=0.001"])
async def test_cut_after_events(http: httpx2.AsyncClient, fault: str) -> None:
    async with opened(http, fault) as parts:
        received, complete = await read(parts)
    assert (received.count(b"data: "), received.endswith(b"\n\n"), complete) == (3, True, False)
    found = await recorded(http, "ended")
    assert (found["ended"], found["events_sent"], found["status"]) == ("cut", 3, 200)


@pytest.mark.parametrize("size", [0, 1, 20, 400])
async def test_cut_after_bytes(http: httpx2.AsyncClient, size: int) -> None:
    async with opened(http, f"cut_bytes={size}") as parts:
        received, complete = await read(parts)
    assert (len(received), complete) == (size, False)
    assert (await recorded(http, "ended"))["ended"] == "cut"


async def test_cut_in_a_body_that_is_not_streamed(ask: Ask) -> None:
    with pytest.raises(httpx2.RemoteProtocolError):
        await ask({"x-sim-fault": "cut_bytes=20"})


@pytest.mark.parametrize("fault", ["cut_headers", "cut_headers+reset"])
async def test_cut_before_the_headers(http: httpx2.AsyncClient, ask: Ask, fault: str) -> None:
    with pytest.raises((httpx2.RemoteProtocolError, httpx2.ReadError)):
        await ask({"x-sim-fault": fault})
    found = await recorded(http, "ended")
    assert (found["ended"], found["status"]) == ("cut", None)


async def test_reset(http: httpx2.AsyncClient) -> None:
    async with opened(http, "cut_events=1+reset") as parts:
        with pytest.raises(httpx2.ReadError):
            [part async for part in parts]


async def test_after_a_cut_the_next_call_is_well(ask: Ask) -> None:
    with pytest.raises(httpx2.RemoteProtocolError):
        await ask({"x-sim-fault": "cut_headers"})
    assert (await ask()).status_code == 200


@pytest.mark.parametrize("fault", ["latency=60", "stall"])
async def test_gone_before_the_headers(http: httpx2.AsyncClient, ask: Ask, fault: str) -> None:
    waiting = asyncio.ensure_future(ask({"x-sim-fault": fault}))
    await recorded(http, "body")
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    found = await recorded(http, "ended")
    assert (found["ended"], found["status"], found["events_sent"]) == ("client_gone", None, 0)


@pytest.mark.parametrize(
    ("fault", "events"), [("first_event=60", 0), ("delay=60", 1), ("stall_events=2", 2), ("stall_events=0", 0)]
)
async def test_gone_in_the_stream(http: httpx2.AsyncClient, fault: str, events: int) -> None:
    async with opened(http, fault) as parts:
        received = b""
        while received.count(b"\n\n") < events:
            received += await anext(parts)
    found = await recorded(http, "ended")
    assert (found["ended"], found["events_sent"], found["status"]) == ("client_gone", events, 200)


@pytest.mark.parametrize(
    "fault", ["", "coalesce", "fragment=1", "fragment=7+delay=0", "latency=0.001+first_event=0.001"]
)
async def test_the_bytes_do_not_depend_on_the_writes(http: httpx2.AsyncClient, fault: str) -> None:
    json = body(stream=True, messages=[{"role": "user", "content": "ü 🌍"}])
    headers = {"x-sim-fault": fault}
    answer = await http.post("/v1/chat/completions", json=json, headers=headers)
    assert answer.content.endswith(b"data: [DONE]\n\n")
    assert "🌍" in answer.text
    assert (await recorded(http, "ended"))["events_sent"] == answer.content.count(b"\n\n")


async def test_each_event_is_its_own_write(http: httpx2.AsyncClient) -> None:
    async with opened(http, "delay=0.001") as parts:
        received = [part async for part in parts]
    assert [part.count(b"data: ") for part in received] == [1] * 7


EVENTS = [Frame(b"data: a\n\n", 1), Frame(b"data: bb\n\n", 2), Frame(b"data: [DONE]\n\n")]


@given(
    st.sampled_from(["", "coalesce", "fragment=1", "fragment=4", "fragment=100"]),
    st.none() | st.integers(0, 40),
    st.none() | st.integers(0, 4),
)
def test_any_plan_writes_the_body_it_has_room_for(shape: str, cut_bytes: int | None, cut_events: int | None) -> None:
    cuts = {"cut_bytes": cut_bytes, "cut_events": cut_events}
    fault = parse(shape, *(f"{key}={value}" for key, value in cuts.items() if value is not None))
    found = plan(Reply(200, SSE, events=EVENTS), fault)
    writes = list(found.writes())
    whole = b"".join(event.data for event in EVENTS)
    sent = b"".join(data for data, _ in writes)
    assert whole.startswith(sent)
    assert all(data for data, _ in writes)
    assert [count for _, count in writes] == sorted(count for _, count in writes)
    assert (writes[-1][1] if writes else 0) == sent.count(b"\n\n")
    assert (found.ending == "complete") == (fault.cut_bytes is None and fault.cut_events is None)
    if found.ending == "complete":
        assert sent == whole


async def test_cutting_needs_the_server_that_hands_over_the_connection() -> None:
    sent = []

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: object) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/v1/models",
        "headers": [(b"authorization", b"Bearer k"), (b"x-sim-fault", b"cut_headers")],
    }
    with pytest.raises(RuntimeError, match=r"proxy\.simulator\.server"):
        await create_app()(scope, receive, send)
    assert sent == []


def test_nothing_is_cut_unasked() -> None:
    assert plan(Reply(200, SSE, events=EVENTS), Fault()).ending == "complete"
