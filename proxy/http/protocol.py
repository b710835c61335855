"""uvicorn's HTTP protocol behind a guard: a request runs when its head is right, in time and in bounds, or not at all.

- What framing.py refuses, and what is no HTTP, is answered in the shape of every other error, in its turn; then
  the connection ends, and nothing behind it is parsed. uvicorn serves requests without a Host, with `gzip, chunked`, or
  with a head of any size, and it waits for ever for a head that does not come.
- Headers are complete when the request begins: what a chunked body brings as trailers is not added to them. In uvicorn
  a trailer that comes in the same segment is there before the application runs, an Authorization header too.
- A client's leaving is reported to the request that is under way, whatever waits behind it on the connection. In
  uvicorn only the last one is told, or none once reading has paused, and an upstream would go on working for nobody.
- An answer that begins before the request's body is here closes the connection: the rest of that body is no request.
- An offer to upgrade is ignored, as it may be. In uvicorn the body is lost with it; the HTTP client of Java's own
  library makes that offer with every request.
- HTTP/1.0 knows neither chunks nor interim answers, and gets none.
- One connection has the loop for a few ms at most, however small the chunks that it sends.

A head that is the same as the one before is not read again (repeated.py): what a client asks then is in its body.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar
from urllib.parse import unquote

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from proxy.core.errors import BadFraming, Overloaded, ProxyError, RequestTimeout
from proxy.core.head import Head
from proxy.http.answer import Answer
from proxy.http.crowd import Crowd
from proxy.http.framing import Limits, check, peer, refusal, uri_too_long
from proxy.http.offer import declined
from proxy.http.outgoing import Outgoing
from proxy.http.progress import BODY, ENDED, HEAD, QUIET, Progress
from proxy.http.repeated import Repeated, remembered

Refused = Callable[[ProxyError, str, str], None]
"""Told of every request that is refused here, before its client is: the error, the request id of the answer, the
client."""

_PIECE = 24 << 10
"""Bytes that the parser is given at once. With a head of the greatest size, which it may have in hand already, that is
64 KiB: all that one connection can make it keep."""

_CHUNKS = 1000
"""After so many chunks the next piece waits for another turn of the loop. Each takes about a µs: a piece may hold four
thousand of them, and what is read from a socket at once forty thousand."""

LOOK = 1.0
"""Seconds at least between two looks for connections that have been idle for too long."""

_HEALTH = b"/health"


class _NoMore(Exception):
    """The parser has come to a request that will not be read."""


class Protocol(HttpToolsProtocol):
    """One connection: whose turn it is, and what is answered.

    It is a *stranger* until a whole head has come. Then it is *busy*: `_running` is answered, and what came behind it
    waits in uvicorn's `pipeline`, or as `_refusal` behind that. When all is answered it is *idle*, until the next byte.
    It is *deaf* when nothing can follow: what comes is not read, and it ends with the answers that are due. Where the
    parser is in all this, `_progress` says; who has a place among all connections, `crowd`.
    """

    limits = Limits()
    crowd: ClassVar[Crowd] = Crowd(limits)

    _out: Outgoing
    _progress: Progress
    cycle: Answer  # type: ignore[assignment]
    pipeline: deque[tuple[Answer, Scope]]  # type: ignore[assignment]
    _running: Answer | None = None
    """The request that is answered, or was last."""
    _ready: tuple[Answer, Scope] | None = None
    """Is started when the bytes that it came in turn out to hold no fault."""
    _refusal: ProxyError | None = None
    """Waits until the requests before it are answered."""
    _deadline: asyncio.TimerHandle | None = None
    """Of the head that has not come yet."""
    _kept = b""
    """What came and waits for the next turn of the loop."""
    _parsing = False
    """Whether the parser has bytes in hand that it has not read yet."""
    _deaf = False
    _reusable = True
    """Whether another request may follow the one that was read last."""
    _repeated: Repeated | None = None
    """The head that came last, if it was one to be remembered."""
    _tries = 3
    """Heads that are still remembered: some clients never send the same one twice."""
    _late = False
    """Whether it was one too many when it was opened."""

    @classmethod
    def bounded(cls, limits: Limits, refused: Refused) -> type[Protocol]:
        """A protocol with these limits, which tells of its refusals."""
        return type(cls.__name__, (cls,), {"limits": limits, "refused": staticmethod(refused), "crowd": Crowd(limits)})

    @staticmethod
    def refused(error: ProxyError, request_id: str, client: str) -> None:
        """Nobody wants to know."""

    # The connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = self._out = Outgoing(transport, self.loop, self.limits, self._ignore_the_rest)
        self._progress = Progress(self.limits)
        self._late = self.crowd.is_full(len(self.connections))
        self.crowd.enters(self, len(self.connections))
        if self._deaf:
            return
        if self.client:
            self.client = peer(self.client[0]), self.client[1]
        if sock := transport.get_extra_info("socket"):
            with suppress(OSError):  # the client is gone already
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.limits.send_buffer)
        self._deadline = self.loop.call_later(self.limits.head, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._deaf = True
        self._stop_waiting()
        self.crowd.leaves(self)
        running = self._running
        if running is not None and not running.response_complete:
            running.disconnect()
        self._out.lost()
        self.pipeline.clear()  # what was never begun would hold on to us, and we to it
        self.cycle = running  # type: ignore[assignment]
        self.connections.discard(self)
        self.flow.resume_writing()
        if exc is None:
            self.transport.close()
        self.parser = None  # type: ignore[assignment]

    def pause_writing(self) -> None:
        super().pause_writing()
        self._out.pause_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._out.resume_writing()

    def shutdown(self) -> None:
        self._reusable = False
        if self.pipeline:  # none of these has begun, and the end of the drain would find them without a word
            self._deaf = True
            self.pipeline.clear()
            self.cycle = self._running  # type: ignore[assignment]
        super().shutdown()

    def _head_is_late(self) -> None:
        self._deadline = None
        if self._progress.phase == HEAD:
            self._refuse(RequestTimeout("The request line and the headers did not come in time."))
        else:
            self.transport.close()

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _ignore_the_rest(self) -> bool:
        """Whether the client may still be sending; what it sends is for nobody."""
        sending = self._deaf or self._progress.phase != QUIET
        self._deaf = True
        self._stop_waiting()
        if sending:
            self.crowd.is_ignored(self)
        return sending

    # As a member of the crowd.

    def has_told_all(self) -> bool:
        return self._out.has_sent_all()

    def leave(self) -> None:
        self.transport.close()

    def give_way(self) -> None:
        self._deaf = True
        self._stop_waiting()
        self._out.abort()

    # What comes.

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._kept:
            self._kept += data
            self._out.pause_reading()  # again: the application has asked for more meanwhile
        elif self._repeated is not None and self._is_at_rest() and (again := self._repeated.read(data)) is not None:
            self._asked_again(*again)
        else:
            self._read(data)

    def _is_at_rest(self) -> bool:
        """Whether all is answered, and a request that comes now is to be answered too."""
        before = self._running
        return (
            before is not None
            and before.response_complete
            and self._progress.phase == QUIET
            and self._reusable
            and not self._late
            and not self.crowd.leaves_soon
        )

    def _asked_again(self, scope: Scope, head: Head, body: bytes) -> None:
        """A request is here, whole and by itself, whose head needs not be read."""
        self.crowd.stirs(self)
        scope["state"] = self.app_state.copy()
        self.cycle = cycle = Answer(scope, head, self, keep_alive=True)
        cycle.comes_with(body)
        self._start_asgi_task(cycle, scope)

    def _read(self, data: bytes) -> None:
        at_rest = self._tries and self._is_at_rest()
        self._parsing = True
        if len(data) <= _PIECE:
            self._feed(data)
        else:
            self._feed_in_pieces(data)
        self._parsing = False
        if self._ready is not None:
            (cycle, scope), self._ready = self._ready, None
            if at_rest:
                self._tries -= 1
                self._repeated = remembered(data, scope)
            self._start_asgi_task(cycle, scope)

    def _feed_in_pieces(self, data: bytes) -> None:
        self._progress.chunks = 0
        for start in range(0, len(data), _PIECE):
            if self._deaf:
                return
            if self._progress.chunks > _CHUNKS:
                self._kept = data[start:]
                self._out.pause_reading()
                self.loop.call_soon(self._read_on)
                return
            self._feed(data[start : start + _PIECE])

    def _read_on(self) -> None:
        data, self._kept = self._kept, b""
        if not self._deaf:
            self._read(data)
        if not self._kept and not self.flow.read_paused:
            self._out.resume_reading()

    def _feed(self, piece: bytes) -> None:
        try:
            while piece:
                self._progress.came(len(piece))
                try:
                    self.parser.feed_data(piece)
                    break
                except httptools.HttpParserUpgrade as offer:
                    piece = self._declined(piece[offer.args[0] :])
            self._progress.look(self.headers)
            if self._deadline is None and self._progress.phase == HEAD:
                self._deadline = self.loop.call_later(self.limits.head, self._head_is_late)
        except ProxyError as error:
            self._refuse(error)
        except httptools.HttpParserError as error:
            self._stopped(error.__context__)

    def _stopped(self, reason: BaseException | None) -> None:
        """The parser was stopped, by one of our checks or by one of its own."""
        if isinstance(reason, _NoMore):
            self._deaf = True
            self.cycle.keep_alive = False
        elif isinstance(reason, ProxyError):
            self._refuse(reason)
        else:
            self._refuse(BadFraming("This is not a valid HTTP request."))

    # What the parser finds.

    def on_message_begin(self) -> None:
        if not self._reusable or len(self.pipeline) >= self.limits.waiting:
            raise _NoMore
        self._progress.begins()
        self.crowd.stirs(self)
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > self.limits.request_line:
            raise uri_too_long(self.limits)

    def on_headers_complete(self) -> None:
        parser, url, headers, progress = self.parser, self.url, self.headers, self._progress
        method, version = parser.get_method(), parser.get_http_version()
        chunked = check(method, url, version, headers, self.limits, progress.unexplained)
        if parser.should_upgrade():
            return  # the request begins when it is read again without the offer
        crowded = (self._late and self._has_no_place(url)) or self.crowd.leaves_soon
        if self._deadline is not None:
            self._stop_waiting()
            self.crowd.asks(self)
        if version == "1.0":
            self.expect_100_continue = False
        self._asked(method, version)
        progress.head_ends(chunked, method, url, headers)
        self.headers = []  # trailers go here, and are forgotten
        self._reusable, self.cycle.keep_alive = self.cycle.keep_alive and not crowded, False
        if self.pipeline:
            self.flow.resume_reading()  # only who reads learns that the client has left

    def _asked(self, method: bytes, version: str) -> None:
        """A request is here: it begins, or waits in line. As uvicorn does it, but for the answer, which is ours."""
        scope: Scope = self.scope  # type: ignore[assignment]
        path, _, query = self.url.partition(b"?")
        text = path.decode("ascii")
        scope["method"], scope["http_version"] = method.decode("ascii"), version
        scope["path"], scope["raw_path"] = unquote(text) if "%" in text else text, path
        scope["query_string"] = query
        before, keep_alive = self.cycle, version != "1.0" and self.parser.should_keep_alive()
        self.cycle = Answer(scope, Head(self.headers), self, keep_alive=keep_alive)
        self.cycle.waiting_for_100_continue = self.expect_100_continue
        self.scope = None  # type: ignore[assignment]  # whoever answers has it, and all that comes of it
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, scope)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, scope))

    def _has_no_place(self, url: bytes) -> bool:
        """Whether this is a probe that is answered, but keeps no place. Raises Overloaded for anything else that has
        none."""
        if not self.crowd.is_full(len(self.connections)):
            return False
        if url.startswith(_HEALTH):
            return True
        if not self.crowd.makes_room():
            raise Overloaded("There are too many connections to this proxy.")
        return False

    def on_body(self, body: bytes) -> None:
        self._progress.data(len(body))
        if self.pipeline and len(self.cycle.body) + len(body) > HIGH_WATER_LIMIT:
            self._withdraw()
            raise _NoMore
        cycle = self.cycle
        if cycle.departure.tell is None and not cycle.response_complete:  # else nobody reads it any more
            cycle.takes(body)
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()

    def on_chunk_complete(self) -> None:
        self._progress.chunk_ends()

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._progress.ends()
        if not self.cycle.response_complete:
            self.cycle.ends()
        if self._progress.chunked and not self.parser.should_keep_alive():
            self._reusable = False  # a trailer said so, and the parser heeds it
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._reusable

    def _declined(self, rest: bytes) -> bytes:
        """The head once more, without its offer, and what came after it; for a parser that starts with it."""
        head = declined(self.parser.get_method(), self.url, self.parser.get_http_version(), self.headers)
        self._progress.starts_again()
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does; we do not read it
        return head + rest

    # What is answered.

    def _start_asgi_task(self, cycle: Answer, scope: Scope) -> None:  # type: ignore[override]
        self._running = cycle
        if self._parsing:
            self._ready = cycle, scope
            return
        task = self.loop.create_task(cycle.run_asgi(self.app, scope))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self._refusal is not None and not self.pipeline:
            self._answer(self._refusal)
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._progress.phase != HEAD:  # the next request has begun, and has its own deadline
            self.crowd.rests(self, self.loop.time())
            if self.crowd.watched_by is not self.loop:
                self.crowd.watched_by = self.loop
                self.loop.call_later(self.timeout_keep_alive, send_away, self.crowd, self.loop, self.timeout_keep_alive)

    def _refuse(self, error: ProxyError) -> None:
        """Answer with this error when all before it is answered, and read no more."""
        self._deaf = True
        self._stop_waiting()
        if self._progress.phase in (BODY, ENDED) and not self._withdraw():
            self.transport.close()  # its answer has begun: an end without an end is all that can still be said
        elif self._running is None or self._running.response_complete:
            self._answer(error)
        else:
            self._refusal = error

    def _withdraw(self) -> bool:
        """Take back the request whose body is being read. Not if its answer has begun, which is then cut off."""
        cycle = self.cycle
        if self.pipeline:
            self.pipeline.popleft()
            self.cycle = self.pipeline[0][0] if self.pipeline else self._running  # type: ignore[assignment]
            return True
        self._running = self._ready = None
        cycle.disconnect()
        return not cycle.response_started

    def _answer(self, error: ProxyError) -> None:
        request_id = secrets.token_hex(16)
        head, body = refusal(error, request_id, self.server_state.default_headers)
        if self._progress.phase == HEAD and self.url and self.parser.get_method() == b"HEAD":
            body = b""
        self.refused(error, request_id, self.client[0] if self.client else "")
        self.transport.write(head + body)
        self.transport.close()


def send_away(crowd: Crowd, loop: Any, patience: float) -> None:
    """Close connections that have been idle for so many seconds. One timer looks after all of them: of their own, each
    would be set and stopped with every request."""
    now = loop.time()
    crowd.watched_by = None
    since = crowd.tires_of(now - patience)
    if since is not None:
        crowd.watched_by = loop
        loop.call_at(max(since + patience, now + LOOK), send_away, crowd, loop, patience)
