"""Which counters a new rule asks the ledger for again, and that nothing is held up when it does not answer."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.core.calendar import Calendar
from proxy.core.quota import WINDOWS, Counter, HistoryGone, Rule, StoreGone, Unit, Verdict
from proxy.core.secret import Secret
from proxy.recount import calendar_counters, key_ids, recount
from proxy.settings.model import Settings
from tests.asgi import Log

DAY, MINUTE = WINDOWS["day"], WINDOWS["minute"]


class Counted:
    """Counters of which some cannot be had."""

    calendar: Calendar

    def __init__(self, **wrong: Exception) -> None:
        self.asked: list[Counter] = []
        self._wrong = wrong

    async def recount(self, counter: Counter) -> bool:
        self.asked.append(counter)
        if counter.team in self._wrong:
            raise self._wrong[counter.team]
        return True

    async def reserve(self, call: str, claims: Any) -> Verdict:
        raise NotImplementedError

    def settle(self, call: str, claims: Any, used: Any) -> None:
        raise NotImplementedError


def test_only_periods_of_the_calendar_can_have_been_missed() -> None:
    rules = [
        Rule(Unit.REQUESTS, 5, MINUTE, "5/minute"),
        Rule(Unit.TOKENS, 5, DAY, "5/day", model="m"),
        Rule(Unit.SPEND, 5, DAY, "5 USD/day", shadow=True),
        Rule(Unit.CONCURRENCY, 5, None, "5"),
    ]
    assert list(calendar_counters({"red": rules, "blue": []}, {})) == [
        Counter("red", Unit.TOKENS, DAY, model="m"),
        Counter("red", Unit.SPEND, DAY, shadow=True),
    ]


def test_each_key_has_its_own_where_keys_are_counted_apart() -> None:
    rule = Rule(Unit.REQUESTS, 5, DAY, "5/day", per_key=True)
    found = list(calendar_counters({"red": [rule], "blue": [rule]}, {"red": ["k1", "k2"]}))
    assert found == [Counter("red", Unit.REQUESTS, DAY, key) for key in ("k1", "k2")]


def test_keys_are_those_of_the_file_and_those_that_were_issued() -> None:
    class Issued:
        def lookup(self, token: bytes) -> tuple[str, str] | None:
            raise NotImplementedError

        def ids(self, team: str) -> list[str]:
            return [f"key_{team}"]

    written = Secret("sk-red-key-0123456789")
    settings = Settings.model_validate({"teams": {"red": {"keys": [written]}, "blue": {}}})
    first = written.digest().hex()[:12]
    assert key_ids(settings, Issued()) == {"red": [first, "key_red"], "blue": ["key_blue"]}
    assert key_ids(settings, None) == {"red": [first], "blue": []}


async def test_one_that_cannot_be_had_holds_up_no_other() -> None:
    log, quotas = Log(), Counted(red=StoreGone(), blue=HistoryGone())
    counters = [Counter(team, Unit.SPEND, DAY) for team in ("red", "green", "blue")]
    await recount(quotas, counters, log)
    assert quotas.asked == counters
    assert log.lines == [("warning", "recount_failed", {"counters": 2})]


async def test_a_fault_of_ours_is_none_of_the_stores() -> None:
    with pytest.raises(ZeroDivisionError):
        await recount(Counted(red=ZeroDivisionError()), [Counter("red", Unit.SPEND, DAY)], Log())


async def test_nothing_is_said_of_nothing() -> None:
    log = Log()
    await recount(Counted(), [], log)
    assert log.lines == []
