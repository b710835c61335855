from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from openai._streaming import SSEDecoder

from proxy.core import sse

STREAMS = [
    b"data: one\n\ndata: two\n\n",
    b"data: one\r\n\r\ndata: two\r\n\r\n",
    b"data: one\r\rdata: two\r\r",
    b"data: one\n\r\ndata: two\r\n\n",
    b": comment\n\nevent: x\nid: 1\ndata: a\ndata: b\nretry: 10\n\n",
    b"\n\n\ndata: late\n\n\n\ndata: last\n\n",
    b"\xef\xbb\xbfdata: caf\xc3\xa9 \xf0\x9f\x8d\x8b\n\n",
    b"data: one\r\r\ndata: two\r\r\n\r\n",
    b"event: x\ndata: one\n\n",
    b"data: one\r\rdata: two\n\n",
]

# Everything that matters to the splitter, densely.
DENSE = st.lists(st.sampled_from([b"\n", b"\r", b"\r\n", b"data: x", b"data", b":", b"id: 1", b"\xc3\xa9"])).map(
    b"".join
)


def split(*chunks: bytes, limit: int = 1 << 20) -> tuple[list[bytes], bytes]:
    """The events, and what is left over at the end."""
    splitter = sse.Splitter(limit)
    events = [event for chunk in chunks for event in splitter.feed(chunk)]
    events += splitter.flush()
    return events, b"".join(chunks)[len(b"".join(events)) :]


def until_too_long(*chunks: bytes, limit: int) -> list[bytes]:
    """The events before the one that is refused."""
    splitter = sse.Splitter(limit)
    events: list[bytes] = []
    with pytest.raises(sse.TooLong):
        for chunk in chunks:
            # One by one: what came before the error is to be there.
            for event in splitter.feed(chunk):
                events.append(event)  # noqa: PERF402
    return events


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(bounds)]


@pytest.mark.parametrize("stream", STREAMS)
def test_every_byte_offset_gives_the_same_events(stream):
    whole = split(stream)
    for at in range(len(stream) + 1):
        assert split(stream[:at], stream[at:]) == whole
    assert split(*(stream[i : i + 1] for i in range(len(stream)))) == whole


@given(DENSE, st.lists(st.integers(min_value=0)))
def test_any_fragmentation_gives_the_same_events_and_loses_no_byte(stream, places):
    events, rest = split(stream)
    assert b"".join(events) + rest == stream
    assert split(*cut(stream, places)) == (events, rest)


@given(DENSE)
def test_events_are_those_of_the_openai_sdk(stream):
    seen = [e.data for e in SSEDecoder().iter_bytes(iter([stream]))]
    events, _ = split(stream)
    ours = [e.data for event in events for e in SSEDecoder().iter_bytes(iter([event]))]
    # The SDK goes by lines and keeps an id for ever, so it also reports events that have nothing but an empty line.
    assert [data for data in ours if data] == [data for data in seen if data]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: 1\n\ndata: 2\n\n", [b"data: 1\n\n", b"data: 2\n\n"]),
        (b"data: 1\r\n\r\ndata: 2\r\n\r\n", [b"data: 1\r\n\r\n", b"data: 2\r\n\r\n"]),
        (b"data: 1\r\rdata: 2\r\r", [b"data: 1\r\r", b"data: 2\r\r"]),
        (b"data: 1\n\rdata: 2\n\n", [b"data: 1\n\r", b"data: 2\n\n"]),
        (b"data: 1\r\rdata: 2\n\n", [b"data: 1\r\r", b"data: 2\n\n"]),
        (b"data: 1\ndata: 2\n", []),
    ],
)
def test_where_an_event_ends(stream, events):
    assert split(stream)[0] == events


def test_an_event_leaves_with_the_chunk_that_completes_it():
    splitter = sse.Splitter()
    assert list(splitter.feed(b"data: 1\r\n\r")) == []
    assert list(splitter.feed(b"\n")) == [b"data: 1\r\n\r\n"]
    assert list(splitter.feed(b"data: 2\r\r")) == [b"data: 2\r\r"]
    assert list(splitter.feed(b"data: 3\n\nda")) == [b"data: 3\n\n"]
    assert list(splitter.feed(b"ta: 4\n\n")) == [b"data: 4\n\n"]


def test_the_last_event_may_lack_the_line_feed_of_its_empty_line():
    assert split(b"data: 1\r\n\r") == ([b"data: 1\r\n\r"], b"")
    assert split(b"data: 1\r\n") == ([], b"data: 1\r\n")


@pytest.mark.parametrize(
    ("stream", "rest"),
    [
        (b"data: 1\n\n", b""),
        (b"data: 1\n\nda", b"da"),
        (b"data: 1\n\ndata: 2\n\n: 3", b"data: 2\n\n: 3"),
        (b"data: 1\r\r\n", b""),
        (b"data: 1\r\n\r\n\r\n", b""),
        (b"data: 1\n\n\n:", b":"),
    ],
)
def test_who_stops_after_an_event_sees_what_came_behind_it(stream, rest):
    splitter = sse.Splitter()
    next(iter(splitter.feed(stream)))
    assert splitter.rest == rest


def test_one_whole_event_is_not_copied():
    chunk = b"data: 1\n\n"
    (event,) = sse.Splitter().feed(chunk)
    assert event is chunk


@pytest.mark.parametrize("size", [1, 7, 100])
def test_an_event_over_the_limit_is_refused_after_those_before_it(size):
    stream = b"data: 1\n\n" + b"data: " + b"x" * 30 + b"\n\n"
    chunks = (stream[i : i + size] for i in range(0, len(stream), size))
    assert until_too_long(*chunks, limit=30) == [b"data: 1\n\n"]


def test_an_event_at_the_limit_passes():
    event = b"data: " + b"x" * 22 + b"\n\n"
    assert split(event, limit=30) == ([event], b"")
    assert split(event[:10], event[10:], limit=30) == ([event], b"")
    with pytest.raises(sse.TooLong):
        split(event, limit=29)


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: x\n\n", b"x"),
        (b"data:x\n\n", b"x"),
        (b"data:  x \n\n", b" x "),
        (b"data: x\r\n\r\n", b"x"),
        (b"data: x\r\r", b"x"),
        (b"data: x\rid: 1\n\n", b"x"),
        (b"event: e\ndata: x\n\n", b"x"),
        (b"data: {\nid: 1\ndata: }\n\n", b"{\n}"),
        (b"data: x\ndata\ndata:\n\n", b"x\n\n"),
        (b"data:\n\n", b""),
        (b"data: \n\n", b""),
        (b": data: x\n\n", None),
        (b"database: x\n\n", None),
        (b"\n\n", None),
    ],
)
def test_data(event, data):
    assert sse.data(event) == data
    assert sse.only_data(event) in (None, data)


@given(DENSE)
@example(b"data: x\n\ndata: x\n\n")
@example(b"data: x\nx\n\n\n")
@example(b"data: x\n\ndata: x\n\n\n")
@example(b"data: x\n\n: c\n\ndata: x\n\n")
def test_a_chunk_is_plain_if_all_of_it_is_events_of_one_line_each(chunk):
    events = list(sse.Splitter().feed(chunk))
    lines = [sse.only_data(event) for event in events]
    plain = sse.Splitter().plain(chunk)
    if events and b"".join(events) == chunk and None not in lines and b"\r" not in chunk:
        assert plain == (b"\n".join([line for line in lines if line is not None]) + b"\n\n", len(events))
    else:
        assert plain is None


def test_what_does_not_begin_with_an_event_or_may_be_too_long_is_not_plain():
    splitter = sse.Splitter(20)
    assert splitter.plain(b"data: x\n\n" * 2)
    assert splitter.plain(b"data: x\n\n" * 3) is None
    assert list(splitter.feed(b"data: x\n")) == []
    assert splitter.plain(b"data: x\n\n") is None


def test_the_data_of_an_event_that_is_nothing_else():
    assert sse.only_data(b"data: x\n\n") == b"x"
    assert sse.only_data(b"data: \n\n") == b""
    for event in (b"data: x\nid: 1\n\n", b"data: x\r\n\r\n", b"data: x\rid: 1\n\n", b"id: 1\n\n", b"data: x"):
        assert sse.only_data(event) is None


@pytest.mark.parametrize(
    ("event", "after"),
    [
        (b"data: x\n\n", b"data: new\n\n"),
        (b"data:x\r\n\r\n", b"data: new\r\n\r\n"),
        (b"data: x\r\r", b"data: new\r\r"),
        (b": c\nid: 7\ndata: {\nevent: e\ndata: }\nretry: 1\n\n", b": c\nid: 7\ndata: new\nevent: e\nretry: 1\n\n"),
        (b"\ndata: x\r\n\r", b"\ndata: new\r\n\r"),
    ],
)
def test_with_data_keeps_every_other_line_and_the_line_ends(event, after):
    assert sse.with_data(event, b"new") == after
    assert sse.data(after) == b"new"


def test_without_data_leaves_a_comment():
    assert sse.without_data(b"id: 1\r\ndata:\r\ndata\r\n\r\n") == b"id: 1\r\n:\r\n\r\n"


@pytest.mark.parametrize(
    ("event", "after"),
    [
        (b"data: x\nid: 1\n\n", b"data: x\n\n"),
        (b": id: 1\r\nid\r\nidea: 2\r\nretry: 3\r\n\r\n", b": id: 1\r\nidea: 2\r\n\r\n"),
        (b"id:1\r\r", b"\r"),
    ],
)
def test_without_fields(event, after):
    assert sse.without_fields(event, frozenset((b"id", b"retry"))) == after


@pytest.mark.parametrize("event", [b": c\n\n", b"\n\n", b"event: ping\nid: 1\nretry: 2\ndata: x\n\n", b"data\n\n"])
def test_recognised(event):
    assert sse.recognised(event)


@pytest.mark.parametrize("event", [b"<html>\n\n", b'{"error":1}\n\n', b"data: x\n<br>\n\n", b" data: x\n\n"])
def test_not_recognised(event):
    assert not sse.recognised(event)


@pytest.mark.parametrize(("event", "end"), [(b"a\n\n", b"\n"), (b"a\r\n\r\n", b"\r\n"), (b"a\r\r", b"\r")])
def test_line_end(event, end):
    assert sse.line_end(event) == end
