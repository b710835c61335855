"""Many clients at once, and what each of them saw: some are patient, some leave before or in the midst of an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec
from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, TCPConnector

from proxy.proof.cluster import Replica
from proxy.proof.plan import Ask, Client, Wave

End = Literal["answered", "refused", "failed", "left", "broken", "unsent"]
"""With all of the answer; by a quota; with another error, or one in the stream; because the client left; because the
connection did; because there was none."""

PATIENCE: Final = 30.0
"""Seconds that a client waits which does not leave."""

_TOO_MANY: Final = 429


@dataclass(slots=True)
class Seen:
    """What one client saw of one call. `tokens`: pieces of text of a stream; `error`: what the answer says is wrong;
    `wait`: the Retry-After."""

    mark: str
    end: End = "broken"
    status: int | None = None
    tokens: int = 0
    error: dict[str, Any] | None = None
    wait: str | None = None

    @property
    def code(self) -> str | None:
        """Of the error."""
        return self.error.get("code") if self.error else None

    @property
    def what(self) -> str:
        """For people."""
        return " ".join(str(part) for part in (self.end, self.status, self.code) if part)


def session() -> ClientSession:
    """Of clients that do not wait for each other's connections."""
    return ClientSession(connector=TCPConnector(limit=0), timeout=ClientTimeout(total=PATIENCE))


async def wave(clients: Wave, key: str, replicas: Sequence[Replica]) -> list[Seen]:
    """All of them at once, spread over the replicas; what they saw."""
    async with session() as shared:
        tasks = [_client(asks, shared, key, replicas[at % len(replicas)].url) for at, asks in enumerate(clients)]
        return [one for seen in await asyncio.gather(*tasks) for one in seen]


async def _client(asks: Client, shared: ClientSession, key: str, url: Callable[[], Any]) -> list[Seen]:
    return [await _asked(ask, shared, key, await url()) for ask in asks]


async def _asked(ask: Ask, shared: ClientSession, key: str, url: str) -> Seen:
    """What was seen of the last attempt. Who is refused waits for as long as the answer says."""
    for _ in range(ask.attempts - 1):
        seen = await _call(ask, shared, key, url)
        if seen.end != "refused":
            return seen
        await asyncio.sleep(float(seen.wait or 0))
    return await _call(ask, shared, key, url)


async def _call(ask: Ask, shared: ClientSession, key: str, url: str) -> Seen:
    seen = Seen(ask.mark)
    headers = {
        "authorization": f"Bearer {key}",
        "content-type": "application/json",
        "x-request-id": ask.mark,
    }
    patience = asyncio.timeout(ask.leaves_after)
    try:
        async with patience, shared.post(f"{url}{ask.path}", data=msgspec.json.encode(ask.body), headers=headers) as it:
            seen.status = it.status
            await _read(ask, it, seen)
    except (ClientError, OSError, TimeoutError):
        seen.end = "left" if patience.expired() else "broken"
    return seen


async def _read(ask: Ask, answer: ClientResponse, seen: Seen) -> None:
    if answer.status == 200 and ask.is_stream:
        await _read_stream(ask, answer, seen)
        return
    body = await answer.read()
    if answer.status == 200:
        seen.end = "answered"
        return
    seen.error = msgspec.json.decode(body)["error"]
    seen.wait = answer.headers.get("retry-after")
    is_quota = answer.status == _TOO_MANY and "rule" in (seen.error or {})
    seen.end = "refused" if is_quota else "failed"


async def _read_stream(ask: Ask, answer: ClientResponse, seen: Seen) -> None:
    async for line in answer.content:
        data = line.removeprefix(b"data: ").strip()
        if data == b"[DONE]":
            seen.end = "answered"
        elif data.startswith(b"{"):
            event = msgspec.json.decode(data)
            seen.error = event.get("error") or seen.error
            seen.tokens += sum(1 for choice in event.get("choices", ()) if choice["delta"].get("content"))
        if ask.leaves_at is not None and seen.tokens >= ask.leaves_at:
            seen.end = "left"
            answer.close()
            return
    if seen.error:
        seen.end = "failed"
