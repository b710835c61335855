"""The fault vocabulary: `key=value` joined by `+`, and which answer each fault makes of a good one.

A fault is asked for in the model's name (`mistral-small-latest+status=503`), in the request header `x-sim-fault`, or by
the script that `POST /_sim/script` leaves. A key alone (`no_done`) is the same as `no_done=1`. How answers are cut,
stalled, delayed and sliced on the wire is in wire.py.
"""

import gzip
from typing import Literal

import msgspec

from proxy.simulator.errors import CODES, frame, injected
from proxy.simulator.reply import DONE, HTML, Frame, Reply

Shape = Literal["flat", "wrapped", "bare", "agents", "gateway", "kong", "models", "old", "html", "empty"]


class UnknownFault(ValueError):
    """A fault that is not in the vocabulary: a mistake in the test that asks for it."""


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What goes wrong with one call. Counts of events include the first, role-only one; seconds are floats."""

    # an error instead of the answer
    status: int | None = None
    code: str | None = None  # a row of Mistral's error table, e.g. 3505
    body: Shape | None = None
    message: str = ""
    loc: str = "body.store"  # the key a 422 complains about, dotted
    retry_after: str | None = None
    limit: int | None = None  # the request limit a 429 reports; 0: a model that is not on the plan
    redirect: bool = False
    html: bool = False  # 200, but a web page
    # what is said
    events: int | None = None  # exactly so many content events (words, if not streamed)
    words: int | None = None
    full: bool = False  # exactly max_tokens words, or 16, whatever was asked
    large: int | None = None  # bytes of content
    bare_tools: bool = False  # tool calls without type and index
    object_args: bool = False  # arguments as an object
    usage: Literal["none", "odd"] | None = None
    finish: Literal["model_length", "error", "length", "stop", "tool_calls"] | None = None
    echo_auth: bool = False  # the Authorization header comes back in headers and text
    legacy_order: bool = False
    strict_pair: bool = False
    # the frames of a stream
    eof_events: int | None = None  # a clean end after so many events
    no_done: bool = False
    garbage_events: int | None = None
    error_events: int | None = None
    crlf: bool = False
    comments: bool = False
    # the wire
    latency: float = 0.0
    jitter: float = 0.0  # up to so much is added to latency, another part of it for each call
    first_event: float = 0.0
    delay: float = 0.0
    cut_headers: bool = False
    cut_events: int | None = None
    cut_bytes: int | None = None
    reset: bool = False  # cut by RST instead of FIN
    stall: bool = False
    stall_events: int | None = None
    fragment: int | None = None  # bytes to a write
    coalesce: bool = False
    gzip: bool = False


NONE = Fault()

_SHARED_CAPACITY = ("3505", "3810")  # 429 though the caller has requests left


def parse(*texts: str) -> Fault:
    """The fault these texts describe together; where two name a key, the later one counts."""
    pairs = [item.partition("=") for text in texts for item in text.split("+") if item]
    if not pairs:
        return NONE
    try:
        fault = msgspec.convert({key: value if equals else "true" for key, equals, value in pairs}, Fault, strict=False)
    except msgspec.ValidationError as error:
        raise UnknownFault(f"simulator: {error}") from error
    if fault.code is not None and fault.code not in CODES:
        raise UnknownFault(f"simulator: code {fault.code} is not in the error table")
    return fault


def applied(reply: Reply, fault: Fault, authorization: str) -> Reply:
    """The reply with the fault in it. A request that is itself wrong keeps its own error."""
    if fault is NONE:
        return reply
    if reply.status == 200:
        reply = _replaced(reply, fault, authorization)
    if reply.events is not None:
        reply.events = _framed(reply.events, fault)
    if fault.retry_after is not None:
        reply.headers += ((b"retry-after", fault.retry_after.encode()),)
    if fault.echo_auth:
        reply.headers += ((b"x-echo-authorization", authorization.encode("latin-1")),)
    if fault.gzip:
        whole = reply.body or b"".join(event.data for event in reply.events or ())
        reply.body, reply.events = gzip.compress(whole, mtime=0), None
        reply.headers += ((b"content-encoding", b"gzip"),)
    return reply


def _replaced(reply: Reply, fault: Fault, authorization: str) -> Reply:
    if fault.status or fault.code or fault.body or fault.limit is not None:
        status = fault.status if fault.status or fault.code or fault.body else 429
        message = f"{fault.message} Not allowed: {authorization}" if fault.echo_auth else fault.message
        failed = injected(status, fault.code, fault.body, message, fault.loc)
        if failed.status == 429:
            failed.model, failed.limit = reply.model, fault.limit
            failed.remaining = None if fault.code in _SHARED_CAPACITY else 0
        return failed
    if fault.redirect:
        return Reply(307, ((b"location", b"https://elsewhere.example/v1/"),))
    if fault.html:
        return Reply(200, HTML, b"<!doctype html><title>Maintenance</title><p>Back soon.</p>")
    return reply


def latency(fault: Fault, digest: bytes) -> float:
    """Seconds until the answer begins. Digest and fault decide, so that a failing run can be repeated."""
    return fault.latency + fault.jitter * int.from_bytes(digest[-4:]) / 2**32


def _framed(events: list[Frame], fault: Fault) -> list[Frame]:
    """The stream's events, some of them missing, foreign or written differently."""
    events = [event for event in events if not (fault.no_done and event == DONE)]
    if fault.eof_events is not None:
        events = events[: fault.eof_events]
    if fault.garbage_events is not None:
        events.insert(fault.garbage_events, Frame(b'data: {"id": "broken\n\n'))
    if fault.error_events is not None:
        events[fault.error_events :] = [Frame(b"data: " + msgspec.json.encode(frame()) + b"\n\n")]
    if fault.comments:
        events = [event._replace(data=b": keep-alive\n\n" + event.data) for event in events]
    if fault.crlf:
        events = [event._replace(data=event.data.replace(b"\n", b"\r\n")) for event in events]
    return events
