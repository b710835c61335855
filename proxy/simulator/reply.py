"""An answer before it is put on the wire."""

from dataclasses import dataclass
from typing import NamedTuple

Header = tuple[bytes, bytes]
Headers = tuple[Header, ...]

JSON: Headers = ((b"content-type", b"application/json"),)
HTML: Headers = ((b"content-type", b"text/html; charset=utf-8"),)
SSE: Headers = ((b"content-type", b"text/event-stream; charset=utf-8"),)


class Frame(NamedTuple):
    """A complete SSE frame, and how many tokens of the answer are in it."""

    data: bytes
    tokens: int = 0


DONE = Frame(b"data: [DONE]\n\n")


@dataclass(slots=True)
class Reply:
    """Status, headers and either a whole body or, for a stream, its `events`.

    `model` (canonical) is set where the call counts against that model's limits, `tokens` where its cost is known;
    `limit` and `remaining` replace what the headers report of requests. `prompt` and `completion` are the tokens that
    are billed for the answer as a whole, nothing if `prompt` is None.
    """

    status: int
    headers: Headers
    body: bytes = b""
    events: list[Frame] | None = None
    model: str | None = None
    tokens: int | None = None
    limit: int | None = None
    remaining: int | None = None
    prompt: int | None = None
    completion: int = 0
