"""What Prometheus is told: its own parser reads it, and finds the numbers that were counted."""

from __future__ import annotations

import asyncio
import re
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.metrics import families
from proxy.core.metrics import page as pages
from proxy.core.metrics.board import Board
from proxy.core.metrics.families import FAMILIES, Family, Kind, Over
from proxy.core.metrics.page import page
from proxy.core.money import NANO
from tests.core.metrics.reading import read, value

each = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
HOSTILE = '\\ " \n } , = { # é \t 😀 \\n'


def labels_of(family: Family, text: str = "x") -> dict[str, str]:
    return {name: f"{text}{at}" for at, name in enumerate(family.labels)}


def add(board: Board, family: Family, labels: dict[str, str], amounts: list[int]) -> None:
    [part] = board.parts
    part.beat(1)
    at = part.at(family, *labels.values())
    for place, amount in enumerate(amounts, at):
        part.cells[place] += amount


def suffixes(family: Family) -> list[str]:
    return ["_sum", "_count"] if family.kind is Kind.HISTOGRAM else [""]


@each
async def test_the_parser_of_prometheus_finds_the_same_numbers(family: Family) -> None:
    board, amounts = Board(), [7 * NANO, *range(1, family.cells)]
    add(board, family, labels_of(family), amounts)
    found = read(await page(board, 1))
    assert list(found) == [family.name]
    assert found[family.name].type == family.kind.value
    assert found[family.name].documentation == family.help
    told = [value(found, family, suffix, **labels_of(family)) for suffix in suffixes(family)]
    assert told == [7 * NANO / family.unit, sum(amounts[1:])][: len(told)]


@pytest.mark.parametrize("family", [one for one in FAMILIES if one.kind is Kind.HISTOGRAM], ids=lambda one: one.name)
async def test_buckets_add_up_to_the_last_which_is_the_count(family: Family) -> None:
    board = Board()
    add(board, family, labels_of(family), [0, *range(1, family.cells)])
    samples = [one for one in read(await page(board, 1))[family.name].samples if one.name.endswith("_bucket")]
    assert [float(one.labels["le"]) for one in samples] == [*family.bounds, float("inf")]
    assert [one.value for one in samples] == [n * (n + 1) // 2 for n in range(1, family.cells)]


@pytest.mark.parametrize("family", [families.COST, families.DURATION, families.STREAMS], ids=lambda one: one.name)
async def test_whatever_stands_in_a_label_is_read_back_as_it_was(family: Family) -> None:
    board, labels = Board(), labels_of(family, HOSTILE)
    add(board, family, labels, [5] * family.cells)
    text = await page(board, 1)
    assert value(read(text), family, suffixes(family)[-1], **labels) in (5, 5e-9, 5 * (family.cells - 1))
    assert b"\r" not in text
    assert text.endswith(b"\n")


@given(st.dictionaries(st.text(st.characters(codec="utf-8", exclude_characters="\x1f")), st.integers(0)))
def test_any_text_and_any_amount_of_money_survive(amounts: dict[str, int]) -> None:
    amounts = {name: amount % (1 << 62) for name, amount in amounts.items()}
    board = Board()
    for name, amount in amounts.items():
        add(board, families.SAVED, {"team": name, "model": "m"}, [amount])
    text = asyncio.run(page(board, 1)).decode()
    told = [Decimal(line.rpartition(" ")[2]) for line in text.split("\n") if line.startswith(families.SAVED.name)]
    assert told == [Decimal(amount).scaleb(-9) for amount in amounts.values()]
    samples = read(text.encode()).get(families.SAVED.name)
    assert [one.labels["team"] for one in (samples.samples if samples else [])] == list(amounts)


@pytest.mark.parametrize(
    ("nano", "told"), [(0, "0"), (1, "0.000000001"), (10**9, "1"), (12_345_678_901_234_567, "12345678.901234567")]
)
async def test_not_a_nano_usd_is_lost(nano: int, told: str) -> None:
    board = Board()
    add(board, families.COST, {"team": "t", "model": "m"}, [nano])
    [number] = re.findall(rb"^mistral_proxy_cost_usd_total\{.*\} (.*)$", await page(board, 1), re.MULTILINE)
    assert number.decode() == told


@pytest.mark.parametrize(
    ("family", "labels", "together"),
    [(families.STREAMS, (), 6), (families.CIRCUIT, ("mistral",), 3), (families.KEYS, ("mistral", "k"), 1)],
    ids=["sum", "max", "min"],
)
async def test_what_a_gauge_of_several_workers_is(family: Family, labels: tuple[str, ...], together: int) -> None:
    board = Board(3)
    for part, number in zip(board.parts, (2, 3, 1), strict=True):
        part.beat(1)
        part.set(family, *labels, value=number)
    found = read(await page(board, 1))
    assert value(found, family, **dict(zip(family.labels, labels, strict=True))) == together


async def test_what_is_known_without_counting_stands_beside_what_is_counted() -> None:
    board = Board()
    add(board, families.COST, {"team": "t", "model": "m"}, [1])
    known: list[Any] = [
        (families.WORKERS, (), "4"), (families.QUOTA_LIMIT, ("t", 'spend "5" USD/day'), "5"),
        (families.BUILD, ("0.1.0", "3.11"), "1"),
    ]  # fmt: skip
    found = read(await page(board, 1, known))
    assert value(found, families.WORKERS) == 4
    assert value(found, families.QUOTA_LIMIT, team="t", rule='spend "5" USD/day') == 5
    assert list(found) == [family.name for family in FAMILIES if family.name in found]


async def test_a_board_on_which_nothing_is_says_nothing() -> None:
    assert read(await page(Board(2), 0)) == {}


async def test_a_large_page_lets_others_have_their_turn() -> None:
    board, turns = Board(), 0
    for number in range(10 * pages.AT_ONCE):
        board.parts[0].add(families.COST, "t", str(number))

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    waiting = asyncio.create_task(other())
    await page(board, 0)
    waiting.cancel()
    assert turns >= 20  # while they are added up, and while they are written


# Names, as promtool wants them.

_WORDS = {"total", "count", "sum", "bucket"}
_OTHER_UNITS = {
    *("milliseconds", "microseconds", "nanoseconds", "ms", "us", "ns", "minutes", "hours", "days"),
    *("kilobytes", "megabytes", "kb", "mb", "percent", "cents", "eur", "nano", "micro", "milli"),
}


@each
def test_a_name_is_in_snake_case_and_so_are_its_labels(family: Family) -> None:
    for name in (family.name, *family.labels):
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name)
    assert family.name.startswith("mistral_")
    assert len(set(family.labels)) == len(family.labels)


@each
def test_a_counter_and_nothing_else_says_total(family: Family) -> None:
    words = family.name.split("_")
    assert (words[-1] == "total") == (family.kind is Kind.COUNTER)
    if family.kind is not Kind.COUNTER:
        assert not _WORDS & set(words)
    assert family.kind.value not in words


@each
def test_units_are_base_units_and_stand_last(family: Family) -> None:
    words = family.name.removesuffix("_total").split("_")
    assert not _OTHER_UNITS & set(words)
    if family.kind is Kind.HISTOGRAM:
        assert (words[-1], family.unit) == ("seconds", NANO)
    elif family.unit == NANO:
        assert words[-1] == "usd"
    else:
        assert not {"seconds", "usd", "bytes"} & set(words)


@each
def test_labels_do_not_repeat_the_name_and_none_is_prometheus_own(family: Family) -> None:
    assert not {"le", "quantile", "job", "instance"} & set(family.labels)
    assert not any(name.startswith("__") for name in family.labels)


@each
def test_help_is_a_sentence(family: Family) -> None:
    assert re.fullmatch(r"[A-Z][^\n\\]+\.|Always 1\.", family.help)


@each
def test_only_a_gauge_says_what_several_are_together(family: Family) -> None:
    assert family.kind is Kind.GAUGE or family.over is Over.SUM
    assert bool(family.bounds) == (family.kind is Kind.HISTOGRAM)
    assert list(family.bounds) == sorted(set(family.bounds))


def test_no_two_have_the_same_name_and_none_is_forgotten() -> None:
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)
    assert set(FAMILIES) == {one for one in vars(families).values() if isinstance(one, Family)}
