"""Calls an ASGI application without a server: for the tests of one stage alone."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy import data
from proxy.core.circuit import Circuits
from proxy.core.exchange import Exchange, exchange_of
from proxy.core.head import Head
from proxy.core.metrics.board import Board
from proxy.core.records import Records
from proxy.core.redact import Redactor
from proxy.core.services import Services

Headers = list[tuple[bytes, bytes]]


@dataclass
class Answer:
    status: int
    headers: Headers
    body: bytes
    scope: Scope

    @property
    def exchange(self) -> Exchange:
        return exchange_of(self.scope)

    def header(self, name: str) -> str | None:
        return next((value.decode() for key, value in self.headers if key == name.encode()), None)

    def error(self) -> dict[str, Any]:
        return json.loads(self.body)["error"]


@dataclass
class Log:
    """A log that keeps its lines as (level, event, fields)."""

    lines: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    def __call__(self, level: str, event: str, **fields: Any) -> None:
        self.lines.append((level, event, fields))

    def ready(self, level: str, event: str, fields: bytes) -> None:
        self(level, event, **json.loads(fields))


class Ticks:
    """A monotonic clock that moves by one second at every look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def services(log: Log | None = None, catalogue: Any = None, **more: Any) -> Services:
    redact = Redactor(data.read("redaction.yaml"))
    given: dict[str, Any] = {
        "monotonic": Ticks(), "quotas": None, "ledger": None, "wall": lambda: 0, "next_call": lambda: "test-0",
        "part": Board().parts[0], "ring": Records().rings[0],
        "circuits": Circuits(time.monotonic, log or Log()),
    }  # fmt: skip
    return Services(log=log or Log(), redact=redact, catalogue=catalogue, **(given | more))


async def call(
    app: ASGIApp,
    method: str = "POST",
    path: str = "/v1/chat/completions",
    *,
    headers: Headers | None = None,
    body: list[bytes] | None = None,
    leaves: bool = False,
    stays: bool = False,
    exchange: Exchange | None = None,
    taking: Callable[[Message], Awaitable[None]] | None = None,
    **scope_fields: Any,
) -> Answer:
    """One request; `body` comes in these pieces, after which the client leaves, or `stays` for as long as it takes.
    What it is sent waits for `taking`, as a server does for a client that does not read.

    Without an answer, status is 0.
    """
    scope: Scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": headers or [],
        "client": ("192.0.2.7", 4711),
        **scope_fields,
    }
    if exchange:
        exchange.keep_in(scope)
    pieces = list(body if body is not None else [b""])
    answer = Answer(0, [], b"", scope)

    async def receive() -> Message:
        if not pieces and stays:
            await asyncio.Event().wait()
        if not pieces or (leaves and len(pieces) == 1 and not pieces[0]):
            return {"type": "http.disconnect"}
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces) or leaves}

    async def send(message: Message) -> None:
        if taking:
            await taking(message)
        if message["type"] == "http.response.start":
            answer.status, answer.headers = message["status"], list(message["headers"])
        else:
            answer.body += message.get("body", b"")

    await app(scope, receive, send)
    return answer


def exchange(headers: Headers | None = None, **fields: Any) -> Exchange:
    """An Exchange as `begin` makes it, and whatever else the test says."""
    made = Exchange("id-1", "POST", "/v1/x", Head(headers or []), "192.0.2.7", 0.0)
    for name, value in ({"sent_as": fields.get("model")} | fields).items():
        setattr(made, name, value)
    return made


async def ok(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that answers 200 in two pieces."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"o", "more_body": True})
    await send({"type": "http.response.body", "body": b"k"})
