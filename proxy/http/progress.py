"""How far a connection has been read, and how many of its bytes the parser has made nothing of; pure.

The parser keeps a head until it is whole, and passes over what stands between the chunks of a body without a word. Both
are bounded by counting: all bytes that it was given, less all that it has told us of. A chunk accounts for its data and
for the shortest way to write its size: what is beyond that is padding, and a body has one allowance of it.
"""

from __future__ import annotations

from proxy.core.errors import BadFraming, Headers
from proxy.http.framing import Limits, block_size, headers_too_large, line_size

QUIET, HEAD, BODY, ENDED = range(4)
"""Where the parser is: between requests, in the head or the body of one, or past its end with bytes yet to explain."""


class Progress:
    """Counts for one connection.

    `phase` is one of the four above. `chunked` says of a body how its end is found. `unexplained` are the bytes that
    the parser has told us nothing of; a head that it completes has so many or fewer. `chunks` are those that have ended
    since it was last set to 0.
    """

    __slots__ = ("_chunk", "_limits", "_unmeasured", "chunked", "chunks", "phase", "unexplained")

    def __init__(self, limits: Limits) -> None:
        self.phase = QUIET
        self.chunks = 0
        self._limits = limits
        self.unexplained = 0
        self.chunked = False
        self._chunk = 0  # bytes of the chunk that is being read
        self._unmeasured: tuple[bytes, bytes, Headers] | None = None  # the head before, which nobody needed

    def came(self, count: int) -> None:
        """The parser is given so many bytes."""
        self.unexplained += count

    def starts_again(self) -> None:
        """A head is put away; what the parser is given next begins with another one."""
        self.unexplained = 0

    def begins(self) -> None:
        """A request begins."""
        if self._unmeasured is not None:  # in the same piece as the one before
            self._explain(*self._unmeasured)
        self.phase = HEAD

    def head_ends(self, chunked: bool, method: bytes, target: bytes, headers: Headers) -> None:
        """The body begins, which may be empty."""
        self.phase, self.chunked = BODY, chunked
        if chunked:
            self._chunk = 0
            self._explain(method, target, headers)
        else:
            self._unmeasured = method, target, headers

    def data(self, count: int) -> None:
        """So many bytes of the body."""
        self.unexplained -= count
        self._chunk += count

    def chunk_ends(self) -> None:
        """All data of a chunk is here; for the last one, the trailers too."""
        self.unexplained -= len(b"%x\r\n\r\n" % self._chunk)
        self._chunk = 0
        self.chunks += 1

    def ends(self) -> None:
        """The request is whole."""
        self.phase = ENDED

    def look(self, headers: Headers) -> None:
        """What the parser keeps or has passed over, when it has read all that it was given; `headers` are those of the
        head that is being read. Raises HeadersTooLarge or BadFraming."""
        if self.phase == HEAD:
            limits = self._limits
            if self.unexplained > limits.request_line + limits.header_block or len(headers) > limits.headers:
                raise headers_too_large(limits)
        elif self.chunked and self.unexplained > self._limits.padding:
            raise BadFraming("There is too much between the chunks of this request: extensions, zeros or trailers.")
        elif self.phase == ENDED or not self.chunked:
            if self.phase == ENDED:
                self.phase, self.chunked = QUIET, False
            self.unexplained = 0
            self._unmeasured = None

    def _explain(self, method: bytes, target: bytes, headers: Headers) -> None:
        self.unexplained -= line_size(method, target) + block_size(headers)
        self._unmeasured = None
