"""Row D3, names: they are looked up beside the event loop, for as long as `timeouts.connect` at most, and where the
first address is dead the next one serves. On asyncio's own loop: uvloop asks the C library, which no test can replace.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from proxy.upstream.transport import TransportError
from tests.upstream.conftest import Open
from tests.upstream.scripted import answer, every_request, soon, upstream, whole

Addresses = list[tuple[Any, ...]]
Resolver = Callable[[str, int], Addresses]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": False}


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Callable[[Resolver], None]:
    """Lets a test answer the questions about `localhost`, and sees that the event loop does not wait for it."""
    getaddrinfo, loop = socket.getaddrinfo, threading.get_ident()

    def answer_with(resolver: Resolver) -> None:
        def asked(host: Any, port: Any, *args: Any, **options: Any) -> Any:
            if host not in ("localhost", b"localhost"):
                return getaddrinfo(host, port, *args, **options)
            assert threading.get_ident() != loop
            return resolver("localhost", int(port))

        monkeypatch.setattr(socket, "getaddrinfo", asked)

    return answer_with


def v4(address: str, port: int) -> tuple[Any, ...]:
    return socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port)


def v6(address: str, port: int) -> tuple[Any, ...]:
    return socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port, 0, 0)


async def failing(transport: Any) -> str:
    with pytest.raises(TransportError) as caught:
        await whole(transport)
    return caught.value.kind


@pytest.mark.parametrize("code", [socket.EAI_NONAME, socket.EAI_AGAIN, socket.EAI_FAIL])
async def test_d3_no_such_name(open_to: Open, names: Callable[[Resolver], None], code: int):
    def resolver(host: str, port: int) -> Addresses:
        raise socket.gaierror(code, "no")

    names(resolver)
    assert await failing(open_to("http://localhost:80")) == "connect"


async def test_d3_a_resolver_that_stalls(open_to: Open, names: Callable[[Resolver], None]):
    """Every call ends in time, the loop runs on, and when the resolver is back, so is the upstream."""
    stalled, back = threading.Event(), threading.Event()

    async with upstream(every_request(answer(b"ok"))) as server:

        def resolver(host: str, port: int) -> Addresses:
            stalled.set()
            assert back.wait(20)
            return [v4("127.0.0.1", server.port)]

        names(resolver)
        transport = open_to(f"http://localhost:{server.port}", connect=0.1)
        try:
            assert set(await asyncio.gather(*[failing(transport) for _ in range(3)])) == {"connect_timeout"}
            assert stalled.is_set()
        finally:
            back.set()
        async with asyncio.timeout(20):
            while True:
                try:
                    assert await whole(transport) == b"ok"
                    break
                except TransportError as error:  # the threads that stalled are not back yet
                    assert error.kind == "connect_timeout"


async def test_d3_why_a_name_has_no_address_is_told(open_reusing: Open, names: Callable[[Resolver], None]):
    def resolver(host: str, port: int) -> Addresses:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    names(resolver)
    with pytest.raises(TransportError, match="cannot connect to the upstream: Name or service not known"):
        await whole(open_reusing("https://localhost"))


@pytest.mark.parametrize("name", ["a..b", "a" * 70])
async def test_d3_a_name_that_is_none(open_http1: Open, name: str):
    assert await failing(open_http1(f"https://{name}:1")) == "connect"


async def test_d3_a_name_that_comes_and_goes(open_reusing: Open, names: Callable[[Resolver], None]):
    """An address is remembered while it serves, and looked up again when it does not."""
    async with upstream(every_request(answer(b"ok"))) as server:
        with socket.socket() as dead:  # bound and not listening
            dead.bind(("127.0.0.2", server.port))
            addresses = iter(["127.0.0.2", "127.0.0.1"])
            names(lambda host, port: [v4(next(addresses), port)])
            transport = open_reusing(f"http://localhost:{server.port}")
            assert await failing(transport) == "connect"
            async with transport.call("POST", "/", [], b"{}"):
                assert await whole(transport) == b"ok"


@pytest.mark.parametrize("dead", ["refused", "swallowed"])
async def test_d3_a_dead_v6_address_before_a_v4_one_that_serves(
    open_to: Open, names: Callable[[Resolver], None], dead: str
):
    """A host behind a broken tunnel: the other address is tried after a quarter of a second, not after the deadline."""
    with ExitStack() as stack:
        held = stack.enter_context(socket.socket(socket.AF_INET6))
        held.bind(("::1", 0))
        port = held.getsockname()[1]
        if dead == "swallowed":  # a full backlog
            held.listen(0)
            for _ in range(4):
                filler = stack.enter_context(socket.socket(socket.AF_INET6))
                filler.setblocking(False)
                filler.connect_ex(held.getsockname())
        server = await asyncio.start_server(serve, "127.0.0.1", port)
        names(lambda host, port: [v6("::1", port), v4("127.0.0.1", port)])
        transport = open_to(f"http://localhost:{port}", connect=30.0)
        assert await soon(whole(transport)) == b"ok"
        await transport.close()
        server.close()
        await server.wait_closed()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(answer(b"ok"))
    await writer.drain()
    writer.close()
    await writer.wait_closed()
