"""What is looked for and where, and that it is found."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from tests.canary.armed import TRIPS
from tests.canary.cast import ALL, Cast, plain
from tests.canary.spelling import READ, SPELLINGS, Finder, needles
from tests.canary.table import ALLOWED, OWNED, Canary, Kind, Sink
from tests.canary.traffic import CI_COUNT, CI_SEED, traffic

# The search.


def canaries() -> Iterator[Canary]:
    return Cast("sk-mp-" + plain("issued", 49), shared=True).everything()


def test_each_canary_is_like_no_other_and_has_a_row() -> None:
    texts = [canary.text for canary in canaries()]
    assert len(set(texts)) == len(texts) > 100
    assert set(ALLOWED) == set(Kind) == {canary.kind for canary in canaries()}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_any_half_of_any_canary_is_found_in_any_spelling(spelling: str) -> None:
    random = Random(spelling)
    finder = Finder(needle for canary in canaries() for needle in needles(canary.text, canary.name))
    for canary in canaries():
        middle = len(canary.text) // 2
        for text in (canary.text, canary.text[:middle], canary.text[middle:]):
            for written in SPELLINGS[spelling](text.encode()):
                data = random.randbytes(random.randrange(40)) + written + random.randbytes(random.randrange(40))
                assert canary.name in {name for name, _ in finder.find(data)}, written


def test_where_there_is_none_none_is_found() -> None:
    finder = Finder(needle for canary in canaries() for needle in needles(canary.text, canary.name))
    assert not list(finder.find(Random(1).randbytes(1 << 20)))


def test_there_are_twelve_spellings() -> None:
    assert len(SPELLINGS) == 12
    assert set(READ) < set(SPELLINGS)


# The table.


def test_what_is_somebodys_may_be_in_nobody_elses_answer() -> None:
    prompt = Canary("x", Kind.CONTENT, "x" * 24, "red")
    for sink in OWNED:
        assert prompt.may_be(sink, "red")
        assert not prompt.may_be(sink, "blue")
    assert not prompt.may_be(Sink.LOG, None)


@pytest.mark.parametrize("sink", Sink)
def test_of_the_operators_secrets_nothing_may_be_anywhere(sink: Sink) -> None:
    for name in ("admin", "pepper", "redis", "postgres", "environment", "literal"):
        assert not ALL[name].may_be(sink, None)


# What is sent.


def test_the_same_seed_sends_the_same() -> None:
    cast = Cast("sk-mp-" + plain("issued", 49), shared=True)
    first, again, other = ([sent.data for sent in traffic(seed, CI_COUNT, cast)] for seed in (1, 1, 2))
    assert first == again != other


def test_each_canary_that_can_be_sent_is_sent_by_each_sender() -> None:
    cast = Cast("sk-mp-" + plain("issued", 49), shared=True)
    for sender in cast.senders:
        data = b"".join(sent.data for sent in traffic(CI_SEED, CI_COUNT, cast) if sent.sender is sender)
        finder = Finder(needle for canary in sender.canaries.values() for needle in needles(canary.text, canary.name))
        assert {name for name, _ in finder.find(data)} == {canary.name for canary in sender.canaries.values()}


def test_each_stage_is_made_to_fail_in_each_way() -> None:
    cast = Cast("sk-mp-" + plain("issued", 49), shared=True)
    data = b"".join(sent.data for sent in traffic(CI_SEED, CI_COUNT, cast))
    assert [trip for trip in TRIPS if f"x-trip: {trip}\r\n".encode() not in data] == []
