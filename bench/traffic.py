"""The canned conversation of the benchmark: one request, one answer, one stream, always the same bytes.

Shapes are those Mistral's API answers with (Mistral API: chat completion and chat completion stream), including the
`p` padding of stream events and the header names. The upstream cannot be told how to answer by a header, because a
proxy forwards only headers it knows; so the first word of the user's message names the plan.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

MODEL = "mistral-small-latest"
EVENTS = 50
PACE = 0.001
"""Seconds between two events of a paced stream (see PLANS)."""

_SYSTEM = (
    "You are the assistant of a small library. Answer in two sentences, name your source, "
    "and say so when you are unsure."
)
_QUESTION = (
    "Which of our three copies of the atlas may leave the reading room over the weekend, and who has to sign for it?"
)
_ANSWER = (
    "The third copy may leave the reading room from Friday noon to Monday noon; the reader and the librarian on duty "
    "both sign the loan sheet at the desk. The others stay. Source: house rules of the library, page 4."
)
_IDENTITY = {"id": "5f0c1e8d2b7a4e6f9a3c5f0c1e8d2b7a", "created": 1795000000, "model": MODEL}
_USAGE = {
    "prompt_tokens": 61,
    "completion_tokens": 49,
    "total_tokens": 110,
    "prompt_tokens_details": {"cached_tokens": 0},
    "service_tier": "standard",
}


def mark(plan: str) -> bytes:
    """The bytes by which the upstream finds `plan` in a request, however a target spaces its JSON."""
    return f"{plan} {_QUESTION[:9]}".encode()


def request_body(plan: str | None = None) -> bytes:
    """A chat completion request of about 450 bytes; with `plan` (a key of PLANS), one that asks for that stream."""
    messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": f"{plan or 'json'} {_QUESTION}"}]
    body: dict[str, object] = {"model": MODEL, "messages": messages, "temperature": 0.3, "max_tokens": 200}
    body |= {"top_p": 0.95, "presence_penalty": 0.1, "frequency_penalty": 0.1}
    return msgspec.json.encode(body | ({"stream": True} if plan else {"stream": False}))


def _answer() -> bytes:
    message = {"role": "assistant", "content": _ANSWER, "tool_calls": None}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return msgspec.json.encode(_IDENTITY | {"object": "chat.completion", "choices": [choice], "usage": _USAGE})


def _event(number: int) -> bytes:
    """Event `number` of EVENTS: the role first, then a word and padding each, the finish and the usage last."""
    delta: dict[str, str] = {"content": f" word{number}"}
    extra: dict[str, object] = {"p": "abcdefghijklmnopqrstuvwxyz0123456789"[: 1 + number * 7 % 36]}
    finish = None
    if number == 0:
        delta, extra = {"role": "assistant", "content": ""}, {}
    if number == EVENTS - 1:
        extra, finish = {"usage": _USAGE} | extra, "stop"
    chunk = _IDENTITY | {"object": "chat.completion.chunk"}
    chunk |= {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]} | extra
    return b"data: %b\n\n" % msgspec.json.encode(chunk)


def _events() -> list[bytes]:
    """The EVENTS events; `[DONE]` travels with the last, so that a stream has as many segments as events."""
    events = [_event(number) for number in range(EVENTS)]
    events[-1] += b"data: [DONE]\n\n"
    return events


ANSWER = _answer()
STREAM_EVENTS = _events()
STREAM = b"".join(STREAM_EVENTS)
HALF = len(b"".join(STREAM_EVENTS[: EVENTS // 2]))
"""Bytes of a stream's first half: what a held stream has received."""

_COMMON_HEAD = (
    b"HTTP/1.1 200 OK\r\n"
    b"date: Fri, 20 Nov 2026 12:00:00 GMT\r\n"
    b"x-ratelimit-limit-req-minute: 3600\r\n"
    b"x-ratelimit-remaining-req-minute: 3599\r\n"
    b"x-ratelimit-limit-tokens-minute: 2000000\r\n"
    b"x-ratelimit-remaining-tokens-minute: 1999890\r\n"
    b"x-ratelimit-tokens-query-cost: 110\r\n"
    b"mistral-correlation-id: 019a9f3e-7c1b-7d52-8e4f-3b6a5c2d1e0f\r\n"
    b"x-kong-request-id: 5f0c1e8d2b7a4e6f9a3c5f0c1e8d2b7a\r\n"
    b"x-envoy-upstream-service-time: 212\r\n"
)
_STREAM_HEAD = _COMMON_HEAD + b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


def json_response(body: bytes) -> bytes:
    """A whole HTTP/1.1 answer carrying `body`."""
    return _COMMON_HEAD + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


class Segment(NamedTuple):
    """Bytes the upstream writes at once, and what it waits for before the next ones."""

    data: bytes
    pause: float | None
    """Seconds; None: until somebody releases the stream."""


Plan = tuple[Segment, ...]


def _plan(*parts: tuple[list[bytes], float | None]) -> Plan:
    segments = [Segment(b"%x\r\n%b\r\n" % (len(event), event), pause) for events, pause in parts for event in events]
    first, last = segments[0], segments[-1]
    segments[0] = first._replace(data=_STREAM_HEAD + first.data)
    segments[-1] = last._replace(data=segments[-1].data + b"0\r\n\r\n")
    return tuple(segments)


_middle = EVENTS // 2
PLANS: dict[str, Plan] = {
    # Every event alone, PACE apart. Written faster than the target reads, events would pile up and be read together:
    # a slow target would then do less work per stream than a fast one, and look better than it is.
    "paced": _plan((STREAM_EVENTS, PACE)),
    # For the time to the first event: then silence, so that nothing competes with the clock, then all the rest.
    "first": _plan((STREAM_EVENTS[:1], 2 * PACE), ([b"".join(STREAM_EVENTS[1:])], PACE)),
    # For the memory of open streams: half of the events, then nothing until POST /release.
    "held": _plan(
        (STREAM_EVENTS[: _middle - 1], PACE),
        (STREAM_EVENTS[_middle - 1 : _middle], None),
        (STREAM_EVENTS[_middle:], PACE),
    ),
}
