"""The counting alone: a parser that is played by the test."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.errors import BadFraming, Headers, HeadersTooLarge
from proxy.http.framing import Limits, block_size, line_size
from proxy.http.progress import BODY, ENDED, HEAD, QUIET, Progress

LIMITS = Limits(request_line=50, header_block=100, headers=3, padding=10)
HEADERS: Headers = [(b"host", b"a")]
SIZE = line_size(b"GET", b"/") + block_size(HEADERS)


def in_a_body(chunked: bool) -> Progress:
    progress = Progress(LIMITS)
    progress.came(SIZE)
    progress.begins()
    progress.head_ends(chunked, b"GET", b"/", HEADERS)
    progress.look([])
    return progress


def chunk(progress: Progress, size: int, padding: int = 0) -> None:
    progress.came(len(b"%x\r\n\r\n" % size) + size + padding)
    progress.data(size)
    progress.chunk_ends()


def test_the_phases_of_a_request() -> None:
    progress = Progress(LIMITS)
    assert progress.phase == QUIET
    progress.begins()
    assert progress.phase == HEAD
    progress.head_ends(False, b"GET", b"/", HEADERS)
    assert progress.phase == BODY
    progress.ends()
    assert progress.phase == ENDED
    progress.look([])
    assert progress.phase == QUIET


def test_a11_a_head_has_so_many_bytes_and_no_more() -> None:
    progress = Progress(LIMITS)
    progress.begins()
    progress.came(150)
    progress.look(HEADERS * 3)
    with pytest.raises(HeadersTooLarge):
        progress.look(HEADERS * 4)
    progress.came(1)
    with pytest.raises(HeadersTooLarge):
        progress.look([])


@given(st.lists(st.integers(1, 5000), max_size=50), st.integers(0, 20))
def test_a5_chunks_are_explained_to_the_byte(sizes: list[int], padding: int) -> None:
    """Padding may stand anywhere; what it may not exceed does not depend on how many chunks there are."""
    progress = in_a_body(chunked=True)
    for size in sizes:
        chunk(progress, size)
        progress.look([])
    assert progress.unexplained == 0
    chunk(progress, 0, padding)
    if padding > LIMITS.padding:
        with pytest.raises(BadFraming):
            progress.look([])
    else:
        progress.look([])
        assert progress.chunks == len(sizes) + 1


def test_a5_a_chunk_may_come_in_parts() -> None:
    progress = in_a_body(chunked=True)
    progress.came(len(b"20\r\n") + 16)
    progress.data(16)
    progress.look([])
    progress.came(16 + len(b"\r\n"))
    progress.data(16)
    progress.chunk_ends()
    assert progress.unexplained == 0


def test_a5_padding_is_of_one_body() -> None:
    progress = in_a_body(chunked=True)
    for _ in range(3):
        chunk(progress, 0, padding=10)
        progress.ends()
        progress.look([])
        progress.came(SIZE)
        progress.begins()
        progress.head_ends(True, b"GET", b"/", HEADERS)


def test_a_body_that_is_no_chunks_needs_no_explanation() -> None:
    progress = in_a_body(chunked=False)
    progress.came(5000)
    progress.look([])
    assert progress.unexplained == 0


def test_requests_in_one_piece_are_told_apart() -> None:
    progress = Progress(LIMITS)
    progress.came(2 * SIZE + 300 + len(b"0\r\n\r\n"))
    progress.begins()
    progress.head_ends(False, b"GET", b"/", HEADERS)
    progress.data(300)
    progress.ends()
    progress.begins()
    progress.head_ends(True, b"GET", b"/", HEADERS)
    progress.chunk_ends()
    assert progress.unexplained == 0


def test_a_head_that_is_put_away_counts_no_more() -> None:
    progress = Progress(LIMITS)
    progress.came(140)
    progress.begins()
    progress.starts_again()
    progress.came(140)
    progress.begins()
    progress.look([])
    assert progress.unexplained == 140
