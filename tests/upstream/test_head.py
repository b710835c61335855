"""Nothing that ends a line early is sent."""

from __future__ import annotations

import pytest

from proxy.upstream import head


@pytest.mark.parametrize("value", ["", "Bearer k", "a\tb", "caf\xe9", "\xa0"])
def test_what_may_stand_in_a_header(value: str):
    head.check_path("/v1/models/a%20b?x=1")
    head.check_headers([("x-name", value)])


@pytest.mark.parametrize("bad", ["\r", "\n", "\0", "a\r\nb: c", "\tx\n"])
def test_what_may_not(bad: str):
    for headers in ([("x", bad)], [(bad, "x")]):
        with pytest.raises(ValueError, match="header"):
            head.check_headers(headers)


@pytest.mark.parametrize("path", ["/a b", "/\t", "/\r\n", "/é", "/\x7f"])
def test_what_may_not_stand_in_a_path(path: str):
    with pytest.raises(ValueError, match="path"):
        head.check_path(path)
