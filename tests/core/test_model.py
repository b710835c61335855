from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.model import is_id, is_name


@pytest.mark.parametrize("text", ["mistral-large-latest", "ft:open-mistral-7b:me:1", "a.b", "x" * 256, "m+status=400"])
def test_ids_are_names(text: str) -> None:
    assert is_id(text)
    assert is_name(text)


@pytest.mark.parametrize("text", ["openai/gpt-4o", "a?b", "a#b", "a%b", "a\\b", "a;b", "a,b", "gpt-*", "a(b)"])
def test_c1_names_that_mean_something_in_a_path_are_no_ids(text: str) -> None:
    assert is_name(text)
    assert not is_id(text)


@pytest.mark.parametrize("text", ["", "..", "a..b", ".", "-", "a b", "a\n", "\na", "é", "a\0", "x" * 257, "＋a"])
def test_what_is_neither(text: str) -> None:
    assert not is_name(text)
    assert not is_id(text)


@given(st.text(max_size=20) | st.from_regex(r"[a-z./%\\;?#:@+=~_-]{1,20}", fullmatch=True))
def test_c1_an_id_is_one_safe_segment(text: str) -> None:
    if is_id(text):
        assert is_name(text)
        assert re.fullmatch(r"[A-Za-z0-9._:@+=~-]+", text)
        assert ".." not in text
