"""The memory in which all workers count: sums are right whoever adds, dies and begins again."""

from __future__ import annotations

import os
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.metrics import board as boards
from proxy.core.metrics import families
from proxy.core.metrics.board import UNKNOWN, Board, Part
from proxy.core.metrics.families import FAMILIES, Family, Kind
from proxy.core.metrics.page import page
from tests.core.metrics.reading import read, value

WORKERS = 3
COUNTED = [families.REQUESTS, families.COST, families.LOG_LOST]
NOW = 1_000
LONG = "one too many " * 20

texts = st.text(st.characters(codec="utf-8", exclude_characters="\x1f"), max_size=8)
added = st.one_of(
    *(
        st.tuples(st.just(family), st.tuples(*[texts] * len(family.labels)), st.integers(0, 1 << 40))
        for family in COUNTED
    )
)
deaths = st.none()
"""A worker's process ends, and another one takes its place."""


def again(part: Part) -> Part:
    """What the next process in its place makes of the same memory."""
    other = Part.__new__(Part)
    other.__dict__ |= part.__dict__ | {"_at": {}, "_series": [], "_read": 0, "_free": boards._SPARE}
    return other


def sums(board: Board) -> Counter[tuple[str, tuple[str, ...]]]:
    found: Counter[tuple[str, tuple[str, ...]]] = Counter()
    for part in board.parts:
        for family, labels, at in part.series():
            found[family.name, labels] += part.cells[at]
    return found


@given(st.lists(st.tuples(st.integers(0, WORKERS - 1), st.one_of(added, deaths)), max_size=60))
def test_whatever_workers_add_is_in_the_sums_and_outlives_them(steps: list[tuple[int, Any]]) -> None:
    board = Board(WORKERS)
    workers, expected = list(board.parts), Counter[tuple[str, tuple[str, ...]]]()
    for number, step in steps:
        if step is None:
            workers[number] = again(workers[number])
            workers[number].take()
            continue
        family, labels, amount = step
        workers[number].add(family, *labels, amount=amount)
        expected[family.name, labels] += amount
    # Read by the parts that the supervisor made, and by whoever reads for the first time.
    assert sums(board) == expected
    fresh = Board.__new__(Board)
    fresh.parts = tuple(map(again, board.parts))
    assert sums(fresh) == expected
    assert [part.lost for part in board.parts] == [0] * WORKERS


def test_another_process_sees_all_and_what_it_adds_is_seen() -> None:
    board = Board(2)
    board.parts[0].add(families.TOKENS, "mistral", "input", "m", amount=3)
    pid = os.fork()
    if pid == 0:
        mine, ok = board.parts[1], False
        try:
            ok = sums(board)["mistral_tokens_total", ("mistral", "input", "m")] == 3
            mine.add(families.TOKENS, "mistral", "input", "m", amount=4)
            mine.add(families.LOG_LOST)
        finally:
            os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert sums(board) == {
        ("mistral_tokens_total", ("mistral", "input", "m")): 7,
        ("mistral_proxy_log_lines_lost_total", ()): 1,
    }


def test_a_series_is_where_it_was_for_whoever_comes_next() -> None:
    [part] = Board().parts
    first = [part.at(families.DURATION, "mistral", "chat", status) for status in ("2xx", "4xx", "5xx")]
    following = again(part)
    assert [following.at(families.DURATION, "mistral", "chat", status) for status in ("2xx", "4xx", "5xx")] == first
    assert [b - a for a, b in pairwise(first)] == [families.DURATION.cells] * 2


async def fill(part: Part, family: Family = families.COST) -> int:
    count = 0
    while not part.lost:
        part.add(family, "team", f"{count:0100}")
        count += 1
    return count - 1


async def test_a_full_part_loses_what_is_new_and_nothing_else() -> None:
    board = Board(2)
    part, other = board.parts
    part.add(families.LOG_LOST, amount=2)
    had = await fill(part)
    part.add(families.COST, "team", LONG)  # a second one
    part.add(families.COST, "team", LONG)  # which is lost once, however often it is added to
    part.add(families.OVERHEAD, LONG)
    assert part.lost == 3
    part.add(families.COST, "team", f"{0:0100}", amount=4)  # what had room still has
    other.add(families.COST, "team", LONG, amount=9)
    found = sums(board)
    assert len(found) == had + 2
    assert found["mistral_proxy_cost_usd_total", ("team", f"{0:0100}")] == 5
    assert found["mistral_proxy_cost_usd_total", ("team", LONG)] == 9
    assert found["mistral_proxy_log_lines_lost_total", ()] == 2
    assert set(found.values()) == {1, 2, 5, 9}


async def test_as_full_of_cells_as_of_names() -> None:
    """Short names, many cells: the other end of the part is met first."""
    [part] = Board().parts
    count = 0
    while not part.lost:
        part.at(families.OVERHEAD, str(count))
        count += 1
    last = part.at(families.OVERHEAD, str(count - 2))
    assert last + families.OVERHEAD.cells <= len(part.cells)
    part.cells[last + families.OVERHEAD.cells - 1] = 7  # it is all there
    assert [at for _, _, at in again(part).series()][-1] == last


def test_what_there_is_no_room_for_is_counted_where_nobody_looks() -> None:
    [part] = Board().parts
    first = part.at(families.LOG_LOST)
    assert first >= max(family.cells for family in FAMILIES)


async def test_how_a_worker_is_that_nobody_sees_is_not_told_and_what_it_counted_is() -> None:
    board = Board(3)
    for part, beat in zip(board.parts, (NOW, NOW - 10, 0), strict=True):
        part.add(families.LOG_LOST)
        part.set(families.STREAMS, value=5)
        part.beat(beat)
    assert list(board.alive(NOW - 5)) == [board.parts[0]]
    found = read(await page(board, NOW - 5))
    assert value(found, families.LOG_LOST) == 3
    assert value(found, families.STREAMS) == 5


async def test_whoever_takes_a_dead_workers_place_knows_nothing_of_how_things_are() -> None:
    board = Board(2)
    one, other = board.parts
    for part in board.parts:
        part.beat(NOW)
        part.set(families.KEYS, "mistral", "key-1", value=1)
        part.set(families.STREAMS, value=2)
        part.add(families.LOG_LOST)
    following = again(one)
    following.take()
    assert following.cells[following.at(families.STREAMS)] == UNKNOWN
    found = read(await page(board, NOW))
    # 0 would be the least of all: a key that no worker has found unusable.
    assert value(found, families.KEYS, service="mistral", key="key-1") == 1
    assert value(found, families.STREAMS) == 2
    assert value(found, families.LOG_LOST) == 2
    other.set(families.STREAMS, value=UNKNOWN)
    assert families.STREAMS.name not in read(await page(board, NOW))


@pytest.mark.parametrize("family", [one for one in FAMILIES if one.kind is Kind.HISTOGRAM], ids=lambda one: one.name)
def test_a_histogram_has_a_cell_for_each_bucket_the_sum_and_what_is_above(family: Family) -> None:
    assert family.cells == len(family.bounds) + 2
