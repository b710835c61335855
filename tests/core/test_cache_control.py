"""What a request may say of the cache."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.cache_control import NONE, Wishes, wishes
from proxy.core.head import Head


def of(*values: str) -> Wishes:
    return wishes(Head([(b"cache-control", value.encode()) for value in values]))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((), NONE),
        (("no-store",), Wishes(no_store=True)),
        (("No-Cache",), Wishes(no_cache=True)),
        (("only-if-cached, max-age=60",), Wishes(only_if_cached=True, max_age=60)),
        (("no-cache", "no-store"), Wishes(no_store=True, no_cache=True)),
        (("max-age=0",), Wishes(max_age=0)),
        (("max-age=5, max-age=60",), Wishes(max_age=5)),
        (("max-age=60, max-age=5", "max-age=soon"), Wishes(max_age=0)),
        (('max-age="60"',), Wishes(max_age=60)),
        (("max-age=99999999999999999999",), Wishes(max_age=2**31)),
        (("max-age=000000000000",), Wishes(max_age=0)),
        (("max-age=00000000000000000007",), Wishes(max_age=7)),
        (("max-age",), Wishes(max_age=0)),
        (("max-age=soon",), Wishes(max_age=0)),
        (("max-age=-1",), Wishes(max_age=0)),
        (("max-age=1.5",), Wishes(max_age=0)),
        (("no-transform, x-no-store, min-fresh=5",), NONE),
        (('extension="no-store, no-cache"',), NONE),
        (('extension="a\\", no-store", max-age=7',), Wishes(max_age=7)),
        (('extension="a\\\\", no-store',), Wishes(no_store=True)),
        ((",,  ,no-store,,",), Wishes(no_store=True)),
    ],
)
def test_what_is_understood(values: tuple[str, ...], expected: Wishes) -> None:
    assert of(*values) == expected


@given(st.lists(st.binary(max_size=60), max_size=3))
def test_whatever_it_is_it_is_read(values: list[bytes]) -> None:
    found = wishes(Head([(b"cache-control", value) for value in values]))
    assert found.max_age is None or 0 <= found.max_age <= 2**31
