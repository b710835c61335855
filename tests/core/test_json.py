"""JSON of the upstream, and what stands outside of its strings."""

from __future__ import annotations

import json as standard
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core import json
from tests.core.test_strict_json import VALUES


def test_an_answer_may_be_what_a_request_may_not() -> None:
    assert json.decode(b'{"a":1,"a":[[2]]}') == {"a": [[2]]}
    assert json.decode(b"[18446744073709551616]") == [2**64]


@pytest.mark.parametrize("data", [b"", b"{", b"NaN", b'"\xff"', b"[" * 5000])
def test_an_answer_that_is_no_json(data: bytes) -> None:
    with pytest.raises(json.Malformed):
        json.decode(data)


# How many values.


@given(st.lists(st.sampled_from(['"', "\\", ",", "[", "{", "a", "😀"]), max_size=30).map("".join), VALUES)
def test_what_is_counted_is_what_stands_outside_of_text(text: str, value: Any) -> None:
    body = {text: [text, value, text]}
    data = standard.dumps(body).encode()
    plain = standard.dumps(_without_text(body)).encode()
    assert _count(json.outside_of_strings(data, 1000)) == _count(plain)


@pytest.mark.parametrize("unit", [b"{},", b"[],", b"1,", b'"a",', b'{"a":"b"},', b'"\\\\",', b'"\\"",'])
@pytest.mark.parametrize("count", [998, 999])
def test_how_many_values(unit: bytes, count: int) -> None:
    data = b"[" + unit * (count // (2 if unit[0] in b"[{" else 1)) + b"0]"
    assert json.exceeds(data, 999) == (data.count(b"[") + data.count(b"{") + data.count(b",") > 999)
    assert not json.exceeds(json.encode("[{," * 10_000), 999)
    assert not json.exceeds(json.encode(["[{,"] * 998), 999)


def _count(data: bytes) -> list[int]:
    return [data.count(one) for one in (b",", b"[", b"{", b"]", b"}", b":")]


def _without_text(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(at): _without_text(one) for at, one in enumerate(value.values())}
    if isinstance(value, list):
        return [_without_text(one) for one in value]
    return "" if isinstance(value, str) else value
