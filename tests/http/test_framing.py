"""The checks of one head, alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.errors import BadFraming, Headers, HeadersTooLarge, MethodNotAllowed, UriTooLong
from proxy.http.framing import HOST, Limits, block_size, check, line_size

LIMITS = Limits()
HOSTED = (b"host", b"localhost")


def look(*headers: tuple[bytes, bytes], method: bytes = b"POST", target: bytes = b"/", version: str = "1.1") -> bool:
    found: Headers = [HOSTED, *headers]
    return check(method, target, version, found, LIMITS, line_size(method, target) + block_size(found))


def test_an_ordinary_head_is_right() -> None:
    assert look((b"content-length", b"5"), (b"accept", b"*/*")) is False
    assert look((b"transfer-encoding", b"chunked")) is True
    assert look((b"transfer-encoding", b"Chunked")) is True
    assert look(version="1.0") is False


@pytest.mark.parametrize(
    "value", [b"", b"+3", b"-1", b"0x3", b"3, 3", b"3 ", b" 3", b"3\x0b", b"\xb3", b"1" * 19, b"3;", b"3.0", b"1_0"]
)
def test_a2_a_length_that_is_no_number(value: bytes) -> None:
    with pytest.raises(BadFraming, match="Content-Length"):
        look((b"content-length", value))


def test_a2_two_lengths() -> None:
    for second in (b"3", b"4"):
        with pytest.raises(BadFraming, match="Content-Length"):
            look((b"content-length", b"3"), (b"content-length", second))


@pytest.mark.parametrize(
    "value",
    [b"gzip, chunked", b"chunked, identity", b"xchunked", b"chunked ", b" chunked", b"chunked;q=1", b"", b"gzip"],
)
def test_a3_the_only_transfer_encoding_is_chunked(value: bytes) -> None:
    with pytest.raises(BadFraming, match="chunked"):
        look((b"transfer-encoding", value))


def test_a3_not_even_chunked_twice() -> None:
    with pytest.raises(BadFraming, match="chunked"):
        look((b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked"))


def test_a1_a4_transfer_encoding_goes_with_nothing_else() -> None:
    with pytest.raises(BadFraming, match="Content-Length"):
        look((b"content-length", b"5"), (b"transfer-encoding", b"chunked"))
    with pytest.raises(BadFraming, match=r"HTTP/1\.0"):
        look((b"transfer-encoding", b"chunked"), version="1.0")


@pytest.mark.parametrize("version", ["0.9", "1.9", "2.0", "1.2", "0.0"])
def test_a8_versions_that_are_not_served(version: str) -> None:
    with pytest.raises(BadFraming, match="version"):
        look(version=version)


HOSTS = {
    b"localhost": True, b"LOCALHOST:8080": True, b"[::1]:80": True, b"a_b.example-1.org": True, b"127.0.0.1": True,
    b"[::ffff:127.0.0.1]:80": True, b"": False, b"x/admin?a=": False, b"a b": False, b"user@a": False, b"a:": False,
    b"a:123456": False, b"[::1": False, b"::1": False, b"\xe9": False, b"a\n": False, b"a ": False, b"a%20": False,
    b"[fe80::1%25eth0]": False, b"a,b": False, b"a:80:80": False, b"a" * 254: False,
}  # fmt: skip


@pytest.mark.parametrize(("host", "good"), HOSTS.items())
def test_a9_what_a_host_looks_like(host: bytes, good: bool) -> None:
    assert bool(HOST.fullmatch(host)) is good
    if not good:
        with pytest.raises(BadFraming, match="Host"):
            check(b"GET", b"/", "1.1", [(b"host", host)], LIMITS, 0)


def test_a8_there_is_one_host() -> None:
    for headers in ([], [HOSTED, HOSTED], [HOSTED, (b"host", b"evil")]):
        with pytest.raises(BadFraming, match="Host"):
            check(b"GET", b"/", "1.1", headers, LIMITS, 0)


@pytest.mark.parametrize("target", [b"http://169.254.169.254/latest", b"*", b"health", b"", b"a:443", b"/a#b", b"?a"])
def test_a10_a_target_is_a_path(target: bytes) -> None:
    with pytest.raises(BadFraming, match="path"):
        look(target=target)


def test_a10_there_are_no_tunnels() -> None:
    with pytest.raises(MethodNotAllowed) as refused:
        look(method=b"CONNECT", target=b"a:443")
    assert refused.value.headers == [(b"allow", b"")]


def test_a11_sizes_at_their_limits() -> None:
    room = LIMITS.request_line - line_size(b"GET", b"/")
    look(method=b"GET", target=b"/" + b"x" * room)
    with pytest.raises(UriTooLong):
        look(method=b"GET", target=b"/" + b"x" * (room + 1))
    room = LIMITS.header_block - block_size([HOSTED, (b"x", b"")])
    look((b"x", b"x" * room))
    with pytest.raises(HeadersTooLarge):
        look((b"x", b"x" * (room + 1)))
    look(*[(b"x", b"")] * (LIMITS.headers - 1))
    with pytest.raises(HeadersTooLarge):
        look(*[(b"x", b"")] * LIMITS.headers)


def test_sizes_are_those_on_the_wire() -> None:
    assert line_size(b"GET", b"/") == len(b"GET / HTTP/1.1\r\n")
    assert block_size([HOSTED, (b"a", b"b")]) == len(b"host: localhost\r\na: b\r\n\r\n")


@given(st.lists(st.tuples(st.sampled_from([b"host", b"content-length", b"transfer-encoding", b"x"]), st.binary())))
def test_what_passes_has_one_meaning(headers: Headers) -> None:
    try:
        chunked = check(b"POST", b"/", "1.1", headers, LIMITS, block_size(headers))
    except (BadFraming, HeadersTooLarge):
        return
    names = [name for name, _ in headers]
    assert names.count(b"host") == 1
    assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
    assert chunked == (b"transfer-encoding" in names)
