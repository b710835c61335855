from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.trace import Parent, parent_of, traceparent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("header", "flags"),
    [
        (GOOD, 1),
        (f"00-{TRACE}-{SPAN}-00", 0),
        (f"00-{TRACE}-{SPAN}-03", 3),
        (f"00-{TRACE}-{SPAN}-ff", 3),  # flags that nobody knows are not passed on
        (f" \t{GOOD}\t ", 1),
        (f"01-{TRACE}-{SPAN}-01", 1),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", 1),
        (f"fe-{TRACE}-{SPAN}-01-", 1),
    ],
)
def test_a_valid_one_names_the_parent(header, flags):
    assert parent_of(header.encode()) == Parent(TRACE, SPAN, flags)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        GOOD[:-1],
        GOOD + "0",
        GOOD + "-",
        GOOD + "-more",
        GOOD + ".",
        GOOD + "\n",
        GOOD + "\x00",
        "\v" + GOOD,
        f"{GOOD},{GOOD}",
        f"{GOOD}, {GOOD}",
        f"ff-{TRACE}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01.what",
        f"cc-{TRACE}-{SPAN}-012",
        f"0-{TRACE}-{SPAN}-01",
        f"000-{TRACE}-{SPAN}-01",
        f"0g-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN.upper()}-01",
        f"00-{TRACE}-{SPAN}-0A",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}0-{SPAN}-01",
        f"00-{TRACE}-{SPAN}0-01",
        f"00_{TRACE}-{SPAN}-01",
        f"00-{TRACE[:-1]}\u0660-{SPAN}-01",  # a digit, but none of ours
        f"00-{TRACE[:-2]}\r\n-{SPAN}-01",
    ],
)
def test_any_other_is_none(header):
    assert parent_of(header.encode()) is None


GOOD_TRACE, GOOD_SPAN = re.compile(r"(?!0{32})[0-9a-f]{32}"), re.compile(r"(?!0{16})[0-9a-f]{16}")


@given(
    st.binary(max_size=80)
    | st.tuples(st.integers(0, 54), st.binary(max_size=3)).map(
        lambda change: GOOD.encode()[: change[0]] + change[1] + GOOD.encode()[change[0] + 1 :]
    )
)
@example(GOOD.encode())
def test_whatever_comes_only_ids_of_the_right_form_come_out(header):
    parent = parent_of(header)
    if parent:
        assert GOOD_TRACE.fullmatch(parent.trace_id)
        assert GOOD_SPAN.fullmatch(parent.span_id)
        assert parent.flags in (0, 1, 2, 3)


@given(st.from_regex(GOOD_TRACE, fullmatch=True), st.from_regex(GOOD_SPAN, fullmatch=True), st.integers(0, 3))
def test_what_we_say_others_read(trace, span, flags):
    assert parent_of(traceparent(trace, span, flags).encode()) == Parent(trace, span, flags)
