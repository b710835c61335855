"""The head without its offer, alone."""

from __future__ import annotations

import pytest

from proxy.http.offer import declined


def test_a20_the_offer_is_left_out_and_nothing_else() -> None:
    headers = [
        (b"host", b"a"),
        (b"connection", b"Upgrade"),
        (b"upgrade", b"h2c"),
        (b"http2-settings", b"x"),
        (b"b", b""),
    ]
    assert declined(b"POST", b"/x?y", "1.1", headers) == b"POST /x?y HTTP/1.1\r\nhost: a\r\nb: \r\n\r\n"


@pytest.mark.parametrize(
    ("value", "closes"),
    [(b"close", True), (b"upgrade, Close", True), (b"close\t,upgrade", True), (b"x-close-not", False), (b"", False)],
)
def test_a20_only_the_word_close_closes(value: bytes, closes: bool) -> None:
    head = declined(b"GET", b"/", "1.1", [(b"host", b"a"), (b"connection", value)])
    assert (b"connection: close\r\n" in head) == closes
