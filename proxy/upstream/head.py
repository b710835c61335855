"""What may stand in the head of a request: nothing that would end its line, or the head, early."""

from __future__ import annotations

import re

from proxy.upstream.transport import Headers

_ENDS_A_LINE = re.compile(r"[\r\n\0]")


# Both raise ValueError. A caller lets nothing through that gets here; if one does, it is not sent.


def check_headers(headers: Headers) -> None:
    text = "".join([part for header in headers for part in header])
    # isprintable is the cheap question: no for a line end, but also for a tab, which HTTP allows.
    if not text.isprintable() and _ENDS_A_LINE.search(text):
        raise ValueError("a header of the request holds a line end")


def check_path(path: str) -> None:
    if not path.isascii() or not path.isprintable() or " " in path:
        raise ValueError("the path of the request is not percent-encoded")
