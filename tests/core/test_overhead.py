"""The time of the proxy's own: what of a request is waiting for others is told apart from the rest."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.core.overhead import STAGES, own, stages, upstream
from tests.asgi import exchange

TIMES = {
    "started": 10.0, "admitted": 11.0, "received": 13.0, "understood": 13.5, "looked_up": 13.75, "called": 14.0,
    "returned": 18.0, "begun": 18.5,
}  # fmt: skip
"""In the order of one that is asked: 2 seconds for its client's body, 4 for the provider, 2.5 of our own."""


def told(*, now: float = 18.5, without: str = "", **fields: Any) -> tuple[float, dict[str, float | None]]:
    times = {name: time for name, time in TIMES.items() if name not in without.split()}
    found = exchange(**times | fields)
    return own(found, now), dict(zip(STAGES, stages(found), strict=True))


def test_client_and_provider_are_left_out() -> None:
    assert told() == (2.5, {"door": 1.0, "understand": 0.5, "cache": 0.25, "admit": 0.25, "answer": 0.5})


def test_so_is_whoever_else_was_waited_for() -> None:
    """One that joined the call of another and had its answer: the wait is within the look."""
    seconds, parts = told(now=14.5, without="called returned", waited=0.25, begun=14.5)
    assert seconds == 2.25
    assert parts == {"door": 1.0, "understand": 0.5, "cache": 0.0, "admit": 0.75, "answer": None}


def test_a_hit_has_no_call() -> None:
    seconds, parts = told(now=14.0, without="called returned", begun=14.0)
    assert (seconds, parts["admit"], parts["answer"]) == (2.0, 0.25, None)


def test_what_is_recalled_need_not_be_understood() -> None:
    seconds, parts = told(now=14.0, without="understood called returned", begun=14.0)
    assert (seconds, parts["understand"], parts["cache"]) == (2.0, 0.75, None)


def test_a_stream_begins_while_its_call_goes_on() -> None:
    seconds, parts = told(now=17.0, without="returned", begun=17.0)
    assert (seconds, parts["answer"]) == (2.0, None)  # three seconds of 14 to 17 are the provider's


def test_a_refusal_has_gone_through_less() -> None:
    seconds, parts = told(now=10.5, without="admitted received understood looked_up called returned", begun=10.5)
    assert seconds == 0.5
    assert parts == dict.fromkeys(STAGES)
    seconds, parts = told(now=11.5, without="received understood looked_up called returned", begun=11.5)
    assert seconds == 1.5
    assert parts == dict.fromkeys(STAGES) | {"door": 1.0}


def test_what_was_refused_by_a_quota_was_admitted_for_so_long() -> None:
    _, parts = told(without="called returned", begun=15.0)
    assert parts["admit"] == 1.25


def test_it_is_never_less_than_nothing() -> None:
    assert told(now=18.5, waited=100.0)[0] == 0.0


@pytest.mark.parametrize(("now", "returned", "seconds"), [(16.0, None, 2.0), (16.0, 15.0, 1.0)])
def test_how_long_the_provider_took(now: float, returned: float | None, seconds: float) -> None:
    assert upstream(exchange(called=14.0, returned=returned), now) == seconds


def test_who_was_not_called_took_nothing() -> None:
    assert upstream(exchange(), 16.0) == 0.0
