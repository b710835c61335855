from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.provider import Left
from proxy.providers.openai.limits import duration, left, reset


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("1s", 1),
        ("0s", 0),
        ("6m0s", 360),
        ("20ms", 0.02),
        ("8.64s", 8.64),
        ("2m59.56s", 179.56),
        ("1h0m3s", 3603),
        ("1d2h", 93600),
        ("1s20ms", 1.02),
        ("5m", 300),
        *((wrong, None) for wrong in ("", None, "soon", "5", "-1s", "1 s", "s", "1s1h", "1e3s", "٣s")),
    ],
)
def test_durations(said, seconds):
    found = duration(said)
    assert found == (None if seconds is None else pytest.approx(seconds))


@given(st.text(max_size=30) | st.from_regex(r"[0-9dhms.]{1,20}", fullmatch=True))
def test_any_text_is_a_duration_or_none(said):
    found = duration(said)
    assert found is None or found >= 0


def test_nothing_is_made_of_what_the_account_has_left():
    """A bucket of 60 with one back each second, as OpenAI's own example: no window is told that could be kept to."""
    assert left({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1s"}.get) == Left()


def limits(requests: str | None, tokens: str | None) -> dict[str, str]:
    found = {
        "x-ratelimit-remaining-requests": requests,
        "x-ratelimit-reset-requests": "8.64s",
        "x-ratelimit-remaining-tokens": tokens,
        "x-ratelimit-reset-tokens": "6m0s",
    }
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize(
    ("requests", "tokens", "seconds"),
    [("0", "5", 8.64), ("5", "0", 360), ("0", "0", 360), ("5", "5", None), (None, "0", 360), (None, None, None)],
)
def test_what_is_used_up_says_when_it_is_there_again(requests, tokens, seconds):
    assert reset(limits(requests, tokens).get) == seconds


def test_a_reset_that_is_not_told_is_none():
    assert reset({"x-ratelimit-remaining-requests": "0"}.get) is None
