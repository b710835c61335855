"""Who goes, alone: members that only note what is asked of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from proxy.http.crowd import Crowd
from tests.fuzz.framing import limits

BOUNDS = limits(connections=2, most_connections=4)


@dataclass(eq=False)
class One:
    """A connection."""

    told: bool = True
    asked: list[str] = field(default_factory=list)

    def has_told_all(self) -> bool:
        return self.told

    def leave(self) -> None:
        self.asked.append("leave")

    def give_way(self) -> None:
        self.asked.append("give way")


def members(crowd: Crowd, count: int) -> list[One]:
    found = [One() for _ in range(count)]
    for number, one in enumerate(found, 1):
        crowd.enters(one, number)
    return found


def test_a22_there_are_so_many_places() -> None:
    crowd = Crowd(BOUNDS)
    assert [crowd.is_full(count) for count in (1, 2, 3)] == [False, False, True]


def test_a22_the_oldest_stranger_gives_way() -> None:
    crowd = Crowd(BOUNDS)
    some = members(crowd, 4)
    crowd.asks(some[0])
    crowd.leaves(some[1])
    for _ in range(2):
        crowd.enters(One(), 5)
    assert [one.asked for one in some] == [[], [], ["give way"], ["give way"]]


def test_a22_when_all_have_asked_it_is_the_newest() -> None:
    crowd, newest = Crowd(BOUNDS), One()
    for one in members(crowd, 4):
        crowd.asks(one)
    crowd.enters(newest, 5)
    assert newest.asked == ["give way"]


def test_a22_nobody_leaves_who_is_not_idle() -> None:
    crowd = Crowd(BOUNDS)
    [stranger, busy, ignored, gone] = members(crowd, 4)
    for one in (busy, ignored, gone):
        crowd.asks(one)
        crowd.rests(one, 0.0)
    crowd.stirs(busy)
    crowd.is_ignored(ignored)
    crowd.leaves(gone)
    assert not crowd.makes_room()
    assert not any(one.asked for one in (stranger, busy, ignored, gone))


def test_a22_who_is_idle_for_longest_leaves_first_and_once() -> None:
    crowd = Crowd(BOUNDS)
    first, second, third = members(crowd, 3)
    for one in (second, third, first):
        crowd.rests(one, 0.0)
    second.told = False
    assert [crowd.makes_room() for _ in range(3)] == [True, True, False]
    assert (third.asked, first.asked, second.asked) == (["leave"], ["leave"], [])


def test_who_has_been_idle_for_too_long_leaves() -> None:
    crowd = Crowd(BOUNDS)
    first, second, third = members(crowd, 3)
    for one, since in ((first, 1.0), (second, 2.0), (third, 3.0)):
        crowd.rests(one, since)
    crowd.stirs(first)
    crowd.rests(first, 4.0)
    assert crowd.tires_of(1.5) == 2.0
    assert crowd.tires_of(3.0) == 4.0
    assert [one.asked for one in (first, second, third)] == [[], ["leave"], ["leave"]]
    assert crowd.tires_of(4.0) is None
    assert first.asked == ["leave"]
