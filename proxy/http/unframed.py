"""Answers to HTTP/1.0, which has no chunks: one without a length ends with its connection (RFC 9112, section 6.3)."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


def unframed(app: ASGIApp, cycle: RequestResponseCycle) -> ASGIApp:
    """`app`, to be run once, by `cycle`; what it writes without a length is not cut into chunks."""

    has_length = True

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        async def plain(message: Message) -> None:
            nonlocal has_length
            if message["type"] == "http.response.start":
                has_length = any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
                if not has_length:
                    cycle.chunked_encoding = False
            elif not has_length:
                cycle.expected_content_length = len(message.get("body", b""))  # of what is still to be written: right
            await send(message)

        await app(scope, receive, plain)

    return run
