"""A provider that tells all it has heard: the key it was paid with, what the client said, and secrets of its own.

What it does is a matter of the request alone, so a run can be repeated.
"""

from __future__ import annotations

import json
from typing import Any
from zlib import crc32

from tests.canary.cast import ALL
from tests.e2e.quotas import is_stream
from tests.e2e.upstream import DONE, event
from tests.upstream.scripted import Peer, Received, answer, chunk

TOLD = ALL["told"].text

OWN = "".join(
    f"{name}: {form.format(ALL[name].text)}\r\n"
    for name, form in {
        "www-authenticate": 'Bearer realm="{}"',
        "location": "https://evil.example/?k={}",
        "set-cookie": "session={}",
        "x-internal": "{}",
        "server": "{}",
    }.items()
)
"""Headers that are nobody's business but ours."""

STATUSES = (400, 401, 403, 404, 422, 429, 500, 503)


def key_of(received: Received) -> str:
    return (received.header("authorization") or "").removeprefix("Bearer ")


def said(received: Received) -> str:
    """What the client said, whatever it was."""
    body = json.loads(received.body) if received.body else {}
    content = body["messages"][-1].get("content") if body.get("messages") else body.get("input", "nothing")
    return content if isinstance(content, str) else json.dumps(content)


def _streams(received: Received) -> bool:
    return bool(received.body) and is_stream(received)


def _head(status: int, received: Received, kind: str = "application/json") -> bytes:
    told = f"mistral-correlation-id: {key_of(received)}\r\n{OWN}"
    return f"HTTP/1.1 {status} Said\r\ncontent-type: {kind}\r\n{told}".encode()


def _message(received: Received) -> str:
    return f"{said(received)} was said with {key_of(received)}; {TOLD}"


async def good(peer: Peer, received: Received) -> None:
    body: dict[str, Any]
    if "embeddings" in received.line:
        body = {"id": "e", "object": "list", "model": "mistral-embed", "usage": _usage(0)}
        asked = json.loads(received.body)["input"]
        count = len(asked) if isinstance(asked, list) else 1
        body["data"] = [{"object": "embedding", "index": at, "embedding": [0.5, -0.5]} for at in range(count)]
    elif "/models" in received.line:
        model = {"id": "mistral-small-latest", "object": "model", "owned_by": _message(received)}
        body = {"object": "list", "data": [model]} if received.line.split()[1].endswith("/models") else model
    else:
        call = {"id": "abcdefghi", "type": "function", "function": {"name": "t", "arguments": json.dumps(TOLD)}}
        message = {"role": "assistant", "content": _message(received), "tool_calls": [call]}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        body["usage"] = _usage(5)
    await peer.send(answer(json.dumps(body).encode(), _head(200, received)))


def _usage(completion: int) -> dict[str, int]:
    return {"prompt_tokens": 3, "completion_tokens": completion, "total_tokens": 3 + completion}


async def stream(peer: Peer, received: Received) -> None:
    """What was said is spread over events, the key over pieces of one."""
    words = said(received)
    events = [event(words[at : at + 5]) for at in range(0, min(len(words), 400), 5)]
    events += [event(f"{key_of(received)} {TOLD}"), event("", "stop"), DONE]
    await peer.send(_head(200, received, "text/event-stream") + b"transfer-encoding: chunked\r\n\r\n")
    whole = b"".join(events)
    for at in range(0, len(whole), size := 11 + len(words) % 50):
        await peer.send(chunk(whole[at : at + size]))
    await peer.send(chunk(b""))


async def refusing(peer: Peer, received: Received) -> None:
    status = STATUSES[crc32(received.body) // 16 % len(STATUSES)]
    detail = _message(received)
    body = {"object": "error", "message": detail, "type": TOLD, "param": key_of(received), "code": detail[:40]}
    await peer.send(answer(json.dumps(body).encode(), _head(status, received)))


async def faulting(peer: Peer, received: Received) -> None:
    """As pydantic refuses."""
    detail = [{"type": "value_error", "loc": ["body", "messages", 0, key_of(received)], "msg": _message(received)}]
    await peer.send(answer(json.dumps({"detail": detail}).encode(), _head(422, received)))


async def page(peer: Peer, received: Received) -> None:
    text = f"<html><body>{_message(received)}</body></html>".encode()
    await peer.send(answer(text, _head(502, received, "text/html")))


async def redirecting(peer: Peer, received: Received) -> None:
    await peer.send(answer(_message(received).encode(), _head(307, received, "text/plain")))


async def nonsense(peer: Peer, received: Received) -> None:
    await peer.send(answer(f"{{{_message(received)}".encode(), _head(200, received)))


async def error_inside(peer: Peer, received: Received) -> None:
    """An error with status 200: in a stream, after its beginning."""
    error = json.dumps({"object": "error", "message": _message(received), "type": TOLD, "code": key_of(received)})
    if not _streams(received):
        await peer.send(answer(error.encode(), _head(200, received)))
        return
    await peer.send(_head(200, received, "text/event-stream") + b"transfer-encoding: chunked\r\n\r\n")
    for piece in (event("Hello"), f"data: {error}\n\n".encode(), b""):
        await peer.send(chunk(piece))


async def cut(peer: Peer, received: Received) -> None:
    """In the middle of a body, or of a head."""
    head = _head(200, received) + b"content-length: 100000\r\n"
    await peer.send(head + (b"\r\n" + _message(received).encode() if len(received.body) % 2 else b""))
    await peer.cut()


async def garbage(peer: Peer, received: Received) -> None:
    """What is no HTTP."""
    await peer.send(f"{key_of(received)} {_message(received)}\r\n\r\n".encode())
    await peer.cut()


WAYS = (*[good] * 10, refusing, refusing, faulting, page, redirecting, nonsense, error_inside, cut, garbage)


async def reply(peer: Peer, received: Received) -> None:
    way = WAYS[crc32(received.body or received.line.encode()) % len(WAYS)]
    if way is good and _streams(received):
        way = stream
    await way(peer, received)
