from __future__ import annotations

from proxy.core.head import EXTENSION, Head, of

HEADERS = [(b"a", b"1"), (b"b", b"2"), (b"content-length", b"7"), (b"b", b"3")]


def test_the_first_of_two_headers_is_the_header() -> None:
    head = Head(HEADERS)
    assert (head.header(b"b"), head.header(b"c")) == (b"2", None)
    assert [head.values(name) for name in (b"a", b"b", b"c")] == [[b"1"], [b"2", b"3"], []]


def test_what_is_read_once_is_read_once() -> None:
    asked: list[Head] = []

    def read(head: Head) -> None:
        asked.append(head)

    head = Head(HEADERS)
    assert [head.once(read), head.once(read), head.but({b"a": b"2"}).once(read)] == [None] * 3
    assert asked == [head]


def test_with_other_values_nothing_else_is_different() -> None:
    head, other = Head(HEADERS), Head(HEADERS).but({b"content-length": b"12", b"a": b"9"})
    assert other.headers == ((b"a", b"9"), (b"b", b"2"), (b"content-length", b"12"), (b"b", b"3"))
    assert other.first == dict(reversed(other.headers)) == head.first | {b"content-length": b"12", b"a": b"9"}
    assert head.headers == tuple(HEADERS)


def test_the_server_may_have_it_already() -> None:
    head = Head(HEADERS)
    assert of({"headers": [], "extensions": {EXTENSION: head}}) is head
    for scope in ({"headers": HEADERS}, {"headers": HEADERS, "extensions": {}}):
        assert of(scope).headers == tuple(HEADERS)
