"""Which counters a new rule asks the ledger for again, and that nothing is held up when it does not answer."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from proxy.core.calendar import Calendar
from proxy.core.quota import WINDOWS, Counter, HistoryGone, Rule, StoreGone, Unit, Verdict
from proxy.core.secret import Secret
from proxy.recount import AGAIN, Recounting, calendar_counters, key_ids
from proxy.settings.model import Settings
from tests.asgi import Log

DAY, MINUTE = WINDOWS["day"], WINDOWS["minute"]


class Counted:
    """Counters of which some cannot be had."""

    calendar: Calendar

    def __init__(self, **wrong: Exception) -> None:
        self.asked: list[Counter] = []
        self.wrong = wrong

    async def recount(self, counter: Counter, *, missed: bool) -> bool:
        self.asked.append(counter)
        if counter.team in self.wrong:
            raise self.wrong[counter.team]
        return True

    async def reserve(self, call: str, claims: Any) -> Verdict:
        raise NotImplementedError

    async def look(self, claims: Any) -> Verdict:
        raise NotImplementedError

    async def caught_up(self) -> None: ...

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


class Later:
    """A sleep that ends when it is told to."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.morning = asyncio.Event()

    async def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)
        await self.morning.wait()
        self.morning.clear()

    async def night(self) -> None:
        self.morning.set()
        for _ in range(5):
            await asyncio.sleep(0)


async def test_one_that_cannot_be_had_holds_up_no_other_and_is_not_given_up() -> None:
    log, later, quotas = Log(), Later(), Counted(red=StoreGone(), blue=HistoryGone())
    counters = {Counter(team, Unit.SPEND, DAY) for team in ("red", "green", "blue")}
    recounting = Recounting(quotas, log, later)
    await recounting.recount(counters, missed=False)
    assert set(quotas.asked) == counters
    assert log.lines == [("warning", "recount_failed", {"counters": 2})]
    quotas.asked.clear()
    del quotas.wrong["blue"]
    await asyncio.sleep(0)
    await later.night()
    assert {one.team for one in quotas.asked} == {"red", "blue"}
    quotas.wrong.clear()
    await later.night()
    assert later.slept == [AGAIN] * 2
    assert log.lines[1:] == [("info", "recounted", {})]
    assert [one.team for one in quotas.asked][2:] == ["red"]
    await recounting.close()


async def test_nothing_goes_on_when_it_is_closed() -> None:
    recounting = Recounting(Counted(red=StoreGone()), Log(), Later())
    await recounting.recount([Counter("red", Unit.SPEND, DAY)], missed=False)
    before = asyncio.all_tasks()
    await recounting.close()
    assert asyncio.all_tasks() < before


async def test_a_fault_of_ours_is_none_of_the_stores() -> None:
    with pytest.raises(ZeroDivisionError):
        await Recounting(Counted(red=ZeroDivisionError()), Log()).recount(
            [Counter("red", Unit.SPEND, DAY)], missed=False
        )


async def test_what_goes_wrong_later_does_not_end_it_for_ever() -> None:
    log, later, quotas = Log(), Later(), Counted(red=StoreGone())
    recounting = Recounting(quotas, log, later)
    counters = [Counter("red", Unit.SPEND, DAY)]
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    await recounting.recount(counters, missed=False)
    quotas.wrong["red"] = ZeroDivisionError()
    await asyncio.sleep(0)
    await later.night()
    quotas.wrong["red"] = StoreGone()
    await recounting.recount(counters, missed=False)
    quotas.wrong.clear()
    await asyncio.sleep(0)
    await later.night()
    assert log.lines[-1] == ("info", "recounted", {})
    gc.collect()
    assert [type(one) for one in told] == [ZeroDivisionError]


async def test_nothing_is_said_of_nothing() -> None:
    log = Log()
    await Recounting(Counted(), log).recount([], missed=False)
    assert log.lines == []
