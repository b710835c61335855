"""The addresses of a host: one question for all who wait, an answer for some minutes, and each in its turn."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field
from typing import Any

import pytest

from proxy.upstream.addresses import TTL, Addresses

FOUND = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"192.0.2.{n}", 443)) for n in range(3)]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": False}  # whose loop a test can answer for


@dataclass
class Resolver:
    """Answers when it is told to."""

    found: list[Any] = field(default_factory=lambda: list(FOUND))
    asked: list[tuple[str, int]] = field(default_factory=list)
    error: OSError | None = None
    now: float = 1000.0
    may: asyncio.Event = field(default_factory=asyncio.Event)

    async def getaddrinfo(self, host: str, port: int, **options: Any) -> list[Any]:
        self.asked.append((host, port))
        await self.may.wait()
        if self.error:
            raise self.error
        return self.found


@pytest.fixture
async def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    resolver = Resolver()
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolver.getaddrinfo)
    resolver.may.set()
    return resolver


@pytest.fixture
async def addresses(resolver: Resolver) -> Addresses:
    return Addresses("api.example", 443, lambda: resolver.now)


async def test_each_comes_first_in_its_turn(addresses: Addresses):
    first = [(await addresses.get())[0] for _ in range(6)]
    assert sorted(first[:3]) == FOUND
    assert first[3:] == first[:3]
    assert sorted(await addresses.get()) == FOUND


async def test_an_answer_is_believed_for_its_time_and_no_longer(addresses: Addresses, resolver: Resolver):
    await addresses.get()
    resolver.now += TTL - 1
    await addresses.get()
    assert resolver.asked == [("api.example", 443)]
    resolver.now += 1
    resolver.found = FOUND[:1]
    assert await addresses.get() == FOUND[:1]
    assert len(resolver.asked) == 2


async def test_what_was_forgotten_is_asked_for_again(addresses: Addresses, resolver: Resolver):
    await addresses.get()
    addresses.forget()
    await addresses.get()
    assert len(resolver.asked) == 2


@pytest.mark.parametrize("error", [None, socket.gaierror(socket.EAI_AGAIN, "not now")])
async def test_all_who_wait_ask_one_question_and_who_leaves_takes_nothing_away(
    addresses: Addresses, resolver: Resolver, error: OSError | None
):
    resolver.may.clear()
    resolver.error = error
    waiting = [asyncio.create_task(addresses.get()) for _ in range(4)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    resolver.may.set()
    told = await asyncio.gather(*waiting, return_exceptions=True)
    assert len(resolver.asked) == 1
    assert isinstance(told[0], asyncio.CancelledError)
    if error:
        assert told[1:] == [error] * 3
    else:
        assert sorted(one[0] for one in told[1:] if isinstance(one, list)) == FOUND


async def test_after_a_failure_the_next_one_asks_again(addresses: Addresses, resolver: Resolver):
    resolver.error = socket.gaierror(socket.EAI_AGAIN, "not now")
    with pytest.raises(OSError, match="not now"):
        await addresses.get()
    resolver.error = None
    assert sorted(await addresses.get()) == FOUND


async def test_a_name_without_an_address(addresses: Addresses, resolver: Resolver):
    resolver.found = []
    with pytest.raises(OSError, match="the name has no address"):
        await addresses.get()


async def test_who_waits_when_all_is_closed_is_told(addresses: Addresses, resolver: Resolver):
    resolver.may.clear()
    waiting = asyncio.create_task(addresses.get())
    await asyncio.sleep(0)
    addresses.close()
    with pytest.raises(OSError, match="the transport was closed"):
        await waiting


async def test_a_server_may_be_elsewhere_while_others_still_wait(addresses: Addresses, resolver: Resolver):
    resolver.may.clear()
    waiting = asyncio.create_task(addresses.get())
    await asyncio.sleep(0)
    resolver.may.set()
    while not waiting.done():
        addresses.forget()
        await asyncio.sleep(0)
    assert sorted(await waiting) == FOUND
