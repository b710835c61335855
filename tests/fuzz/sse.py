"""A stream of the upstream: however it is cut, it becomes the same events, and an answer that a client can read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from zlib import crc32

from openai._streaming import SSEDecoder

from proxy.core import sse
from proxy.core.errors import ProxyError, render
from proxy.core.model import Model
from proxy.core.table import Context
from proxy.providers.mistral.stream import ChatStream

LIMIT = 1000
"""Bytes of an event for the splitter alone, so that small inputs reach it."""

REQUESTS: list[dict[str, Any]] = [
    {},
    {"prefix": "a", "include_usage": True},
    {"functions": True, "strict": True},
]


def check(data: bytes) -> None:
    """`data` is the body of the upstream's answer."""
    for cuts in (_in_pieces(data), _bytewise(data)):
        assert _split(list(cuts)) == _split([data])
    for request in REQUESTS:
        whole = _relayed([data], **request)
        _check_answer(whole)
        assert _relayed(list(_in_pieces(data)), **request) == whole
        assert _relayed(list(_bytewise(data)), **request) == whole


def _in_pieces(data: bytes) -> Iterator[bytes]:
    """The same places each time; each input has its own."""
    at, state = 0, crc32(data)
    while at < len(data):
        state = crc32(b"%d" % at, state)
        size = 1 + state % (1, 2, 9, 300)[state >> 8 & 3]
        yield data[at : at + size]
        at += size


def _bytewise(data: bytes) -> Iterator[bytes]:
    return (data[at : at + 1] for at in range(len(data)))


def _split(chunks: list[bytes]) -> tuple[list[bytes], bool]:
    """The events, and whether the last one was too long."""
    splitter, events = sse.Splitter(LIMIT), []
    try:
        for chunk in chunks:
            for event in splitter.feed(chunk):
                events.append(event)  # noqa: PERF402 (those before the one that is too long count)
        events += splitter.flush()
    except sse.TooLong:
        return events, True
    finally:
        assert b"".join(chunks).startswith(b"".join(events))
    for event in events:
        _check_event(event)
    return events, False


def _check_event(event: bytes) -> None:
    assert event.endswith((b"\n", b"\r"))
    assert len(event) <= LIMIT
    assert sse.line_end(event) in (b"\n", b"\r\n", b"\r")
    if (found := sse.data(event)) is not None:
        changed = sse.with_data(event, b"new")
        assert sse.data(changed) == b"new"
        assert sse.without_data(event) == changed.replace(b"data: new", b":", 1) or b"data: new" in event
        assert sse.data(sse.with_data(event, found)) == found or b"\n" in found
    assert sse.data(sse.without_fields(event, sse.FIELDS)) is None


def _relayed(chunks: list[bytes], strict: bool = False, **notes: Any) -> tuple[bytes, bytes, Any]:
    """What the client gets, the error that ends it or nothing, the usage and how many tokens there were."""
    stream = ChatStream(Context(Model("mistral-small-latest"), {}, strict=strict, notes=notes))
    out = b"".join([*map(stream.feed, chunks), stream.end()])
    assert stream.done is (stream.error is None)
    assert isinstance(stream.error, ProxyError | None)
    return out, render(stream.error) if stream.error else b"", (stream.usage, stream.delivered)


def _check_answer(answer: tuple[bytes, bytes, Any]) -> None:
    """As OpenAI's SDK for Python reads it: chunks, an error if there is one, and the end mark."""
    out, error, _ = answer
    if error:
        out += b"data: %b\n\ndata: [DONE]\n\n" % error  # as Relay.fail does
    seen = [found.data for found in SSEDecoder().iter_bytes(iter([out]))]
    assert seen[-1].strip() == "[DONE]"
    assert "[DONE]" not in [one.strip() for one in seen[:-1]]
    # As the SDK does it, with integers of any size (here as text): those in fields that nobody knows are not looked at.
    chunks = [json.loads(one, parse_int=str) for one in seen[:-1]]
    assert ("error" in chunks.pop()) if error else True
    for chunk in chunks:
        assert not chunk.get("error")
        assert all(
            isinstance(choice["delta"], dict) and isinstance(choice["index"], str) for choice in chunk["choices"]
        )
