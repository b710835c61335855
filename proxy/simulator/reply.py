"""An answer before it is put on the wire."""

from dataclasses import dataclass

Header = tuple[bytes, bytes]
Headers = tuple[Header, ...]

JSON: Headers = ((b"content-type", b"application/json"),)
HTML: Headers = ((b"content-type", b"text/html; charset=utf-8"),)
SSE: Headers = ((b"content-type", b"text/event-stream; charset=utf-8"),)

DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Reply:
    """Status, headers and either a whole body or, for a stream, its `events` (each a complete SSE frame).

    `model` (canonical) is set where the call counts against that model's limits, `tokens` where its cost is known;
    `limit` and `remaining` replace what the headers report of requests.
    """

    status: int
    headers: Headers
    body: bytes = b""
    events: list[bytes] | None = None
    model: str | None = None
    tokens: int | None = None
    limit: int | None = None
    remaining: int | None = None
