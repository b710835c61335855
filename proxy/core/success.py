"""The head of an answer that is none of an error: JSON or a stream."""

from __future__ import annotations

from typing import Any

from starlette.types import Send


def stream_start() -> dict[str, Any]:
    """The message that begins a stream. Its own each time, because stages add headers to it."""
    return {
        "type": "http.response.start",
        "status": 200,
        "headers": [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache, no-transform"),  # nobody in between may store, compress or rewrite it
            (b"x-accel-buffering", b"no"),  # nginx would hold events back
        ],
    }


async def send_json(send: Send, body: bytes, *more: tuple[bytes, bytes]) -> None:
    """`more` are headers."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
