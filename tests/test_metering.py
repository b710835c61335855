"""What a request is charged, by how it ended."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy import data
from proxy.core.catalogue import Catalogue
from proxy.core.charge import NOTHING, charge, estimate, partial, whole
from proxy.core.errors import (
    BadRequest,
    ClientGone,
    Draining,
    Overloaded,
    UpstreamFailed,
    UpstreamRefusal,
    UpstreamTimeout,
)
from proxy.metering import charged

MODEL = Catalogue(data.read("models.yaml")).model("mistral-small-latest")
ESTIMATE = estimate({"messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 50}, MODEL, 4096)
USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
REFUSED = UpstreamRefusal("x", status=429, type="requests", code=None)


def of(**how: Any) -> Any:
    return charged(ESTIMATE, MODEL, **({"usage": None, "sent": True, "delivered": None, "ended": None} | how))


@pytest.mark.parametrize("ended", [None, ClientGone(), UpstreamFailed("x"), asyncio.CancelledError()])
def test_what_the_provider_said_counts_whatever_came_after(ended: BaseException | None) -> None:
    assert of(usage=USAGE, delivered=3, ended=ended) == charge(USAGE, MODEL, None)


@pytest.mark.parametrize(
    "ended",
    [
        REFUSED,
        BadRequest("x"),
        Overloaded("x"),
        UpstreamFailed("it says so itself", billed=False),
    ],
)
@pytest.mark.parametrize("delivered", [None, 0])
def test_what_cannot_have_been_answered_costs_nothing(ended: BaseException, delivered: int | None) -> None:
    assert of(ended=ended, delivered=delivered) == NOTHING


@pytest.mark.parametrize(
    "ended",
    [ClientGone(), Draining("x"), asyncio.CancelledError(), RuntimeError(), UpstreamFailed("x"), UpstreamTimeout("x")],
)
def test_what_was_never_sent_costs_nothing(ended: BaseException) -> None:
    assert of(ended=ended, sent=False) == NOTHING


UNKNOWN = [ClientGone(), Draining("x"), asyncio.CancelledError(), UpstreamFailed("cut"), UpstreamTimeout("late")]


@pytest.mark.parametrize("ended", UNKNOWN)
def test_a_stream_costs_what_was_passed_on(ended: BaseException) -> None:
    assert of(ended=ended, delivered=9) == partial(ESTIMATE, MODEL, 9)


@pytest.mark.parametrize("ended", UNKNOWN)
def test_a_whole_answer_may_have_been_written(ended: BaseException) -> None:
    assert of(ended=ended) == whole(ESTIMATE)


def test_what_was_passed_on_is_charged_though_the_provider_said_at_last_that_it_failed() -> None:
    assert of(ended=UpstreamFailed("x", billed=False), delivered=9) == partial(ESTIMATE, MODEL, 9)


def test_an_answer_without_counts_costs_what_it_holds() -> None:
    assert of(delivered=9) == partial(ESTIMATE, MODEL, 9)


def test_an_endpoint_that_is_not_metered_costs_nothing() -> None:
    assert charged(None, MODEL, USAGE, sent=True, delivered=3, ended=None) == NOTHING
