"""Serving: inside a loop, by TLS, and as a process."""

import asyncio
import signal
import ssl
import subprocess
import sys

import httpx2
import pytest
import trustme

from proxy.simulator.app import create_app
from proxy.simulator.server import start

from .conftest import body

HEADERS = {"authorization": "Bearer k"}


async def test_a_port_that_is_taken() -> None:
    running = await start()
    with pytest.raises(OSError, match="in use"):
        await start(port=int(running.url.rpartition(":")[2]))
    await running.stop()
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(running.url)


async def test_stopping_ends_calls_that_would_never_end() -> None:
    running = await start()
    async with httpx2.AsyncClient(base_url=running.url, headers=HEADERS) as http:
        stalled = asyncio.ensure_future(
            http.post("/v1/chat/completions", json=body(model="mistral-small-latest+stall"))
        )
        while not list(running.app.calls):
            await http.get("/_sim/calls")
        await running.stop()
        with pytest.raises((httpx2.RemoteProtocolError, httpx2.ReadError)):
            await stalled
    assert [call.ended for call in running.app.calls] == ["client_gone"]


async def test_stopping_with_grace_lets_answers_end() -> None:
    running = await start()
    async with httpx2.AsyncClient(base_url=running.url, headers=HEADERS) as http:
        slow = body(model="mistral-small-latest+delay=0.001", stream=True)
        answer = asyncio.ensure_future(http.post("/v1/chat/completions", json=slow))
        while not list(running.app.calls):
            await http.get("/_sim/calls")
        await running.stop(grace=5)
        assert (await answer).text.endswith("data: [DONE]\n\n")


async def test_tls() -> None:
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    running = await start(app=create_app(), tls=server)
    async with httpx2.AsyncClient(base_url=running.url, headers=HEADERS, verify=client) as http:
        answer = await http.get("/v1/models")
        with pytest.raises((httpx2.RemoteProtocolError, httpx2.ReadError)):
            await http.get("/v1/models", headers={"x-sim-fault": "cut_headers"})
    await running.stop()
    assert running.url.startswith("https://")
    assert answer.status_code == 200


async def test_ipv6() -> None:
    running = await start("::1")
    assert running.url.startswith("http://[::1]:")
    async with httpx2.AsyncClient(base_url=running.url, headers=HEADERS) as http:
        assert (await http.get("/v1/models")).status_code == 200
    await running.stop()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_process_prints_its_url_and_ends_on_a_signal(number: signal.Signals, code: int) -> None:
    command = "import sys; from proxy.simulator.server import run; sys.exit(run(port=0))"
    with subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = next(word for word in line.split() if word.startswith("http://"))
        answer = httpx2.get(f"{url}/v1/models", headers=HEADERS)
        process.send_signal(number)
        assert process.wait(10) == code
        assert process.stdout.read() == ""
    assert line.startswith("Simulated Mistral API on http://127.0.0.1:")
    assert answer.status_code == 200
