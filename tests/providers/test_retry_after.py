from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.providers.retry_after import advice

NOW = "Fri, 20 Nov 2026 10:00:00 GMT"


def wait(**found):
    """Seconds of the retry-after that a 429 gets, whose own answer would be 60."""
    given_headers = {name.replace("_", "-"): value for name, value in found.items()}
    return int(dict(advice(429, 60, given_headers.get))[b"retry-after"])


@pytest.mark.parametrize(
    ("found", "seconds"),
    [
        ({}, 60),
        ({"retry_after": "1"}, 1),
        ({"retry_after": "1.2"}, 2),
        ({"retry_after": "0"}, 1),
        ({"retry_after": "9999"}, 3600),
        ({"retry_after": "-5"}, 60),
        ({"retry_after": "soon"}, 60),
        ({"retry_after": "nan"}, 60),
        ({"retry_after": "1e3"}, 60),
        ({"retry_after": "٣"}, 60),
        ({"retry_after_ms": "1500"}, 2),
        ({"retry_after_ms": "1500", "retry_after": "9"}, 2),
        ({"retry_after_ms": "x", "retry_after": "9"}, 9),
        ({"retry_after": "Fri, 20 Nov 2026 10:00:30 GMT", "date": NOW}, 30),
        ({"retry_after": "Fri, 20 Nov 2026 09:00:00 GMT", "date": NOW}, 1),
        ({"retry_after": "Sat, 21 Nov 2026 09:00:00 GMT", "date": NOW}, 3600),
        ({"retry_after": "Fri, 20 Nov 2026 10:00:30 GMT"}, 60),
        ({"retry_after": "Fri, 99 Nov 99999 10:00:30 GMT", "date": NOW}, 60),
    ],
)
def test_how_long(found, seconds):
    assert wait(**found) == seconds


def test_the_headers_that_openai_reads():
    assert advice(429, 60, {"retry-after": "1.5"}.get) == [
        (b"retry-after", b"2"),
        (b"retry-after-ms", b"1500"),
        (b"x-should-retry", b"true"),
    ]


@pytest.mark.parametrize(("seconds", "again"), [("120", b"true"), ("121", b"false")])
def test_a_wait_that_no_sdk_obeys_is_no_reason_to_repeat(seconds, again):
    assert dict(advice(429, 60, {"retry-after": seconds}.get))[b"x-should-retry"] == again


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504])
def test_what_never_helps_is_said_where_sdks_would_repeat(status):
    assert advice(status, None, {"retry-after": "5"}.get) == [(b"x-should-retry", b"false")]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_what_sdks_do_not_repeat_needs_no_advice(status):
    assert advice(status, None, {"retry-after": "5"}.get) == []


def test_where_nothing_is_known_nothing_is_said():
    assert advice(502, 0, lambda name: None) == []


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_gives_a_wait_within_bounds(asked, now):
    assert 1 <= wait(retry_after=asked, date=now) <= 3600
