"""How teams stand with their quotas, as Prometheus is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from proxy.core.metrics import families
from proxy.core.metrics.board import Board
from proxy.core.metrics.page import Sample, page
from proxy.core.quota import WINDOWS, Claim, Rule, Standing, StoreGone, Unit, Verdict
from proxy.standings import AT_ONCE, Standings
from tests.core.metrics.reading import read

MINUTE, DAY = WINDOWS["minute"], WINDOWS["day"]
REQUESTS = Rule(Unit.REQUESTS, 60, MINUTE, "60/minute")
SPEND = Rule(Unit.SPEND, 5 * 10**9, DAY, "5 USD/day")
SLOTS = Rule(Unit.CONCURRENCY, 8, None, "8")


@dataclass
class Store:
    """A store whose counters stand as the test says: used and reserved."""

    stand: dict[str, tuple[int, int]] = field(default_factory=dict)
    gone: bool = False
    asked: list[Claim] = field(default_factory=list)
    most: int = 0

    async def look(self, claims: Sequence[Claim]) -> Verdict:
        if self.gone:
            raise StoreGone
        self.asked += claims
        self.most = max(self.most, len(claims))
        return Verdict(True, tuple(Standing(*self.stand.get(one.counter.name, (0, 0)), 0) for one in claims))


async def told(store: Store, **rules: Sequence[Rule]) -> dict[tuple[str, ...], str]:
    """By the name of the metric and its labels."""
    samples = await Standings(rules, store).samples()  # type: ignore[arg-type]
    assert len({(family.name, labels) for family, labels, _ in samples}) == len(samples)
    return {(family.name.removeprefix("mistral_"), *labels): value for family, labels, value in samples}


async def test_each_rule_is_told_with_what_is_used_reserved_and_allowed() -> None:
    store = Store({"red|requests|minute": (5, 1), "red|spend|day": (123, 1_000_000_000), "red|concurrency|now": (0, 3)})
    assert await told(store, red=[REQUESTS, SPEND, SLOTS]) == {
        ("proxy_quota_used", "red", "requests 60/minute"): "5",
        ("proxy_quota_reserved", "red", "requests 60/minute"): "1",
        ("proxy_quota_limit", "red", "requests 60/minute"): "60",
        ("proxy_quota_used", "red", "spend 5 USD/day"): "0.000000123",
        ("proxy_quota_reserved", "red", "spend 5 USD/day"): "1",
        ("proxy_quota_limit", "red", "spend 5 USD/day"): "5",
        ("proxy_quota_used", "red", "concurrency 8"): "0",
        ("proxy_quota_reserved", "red", "concurrency 8"): "3",
        ("proxy_quota_limit", "red", "concurrency 8"): "8",
        ("rate_limit_remaining", "requests"): "54",
        ("rate_limit_remaining", "spend"): "3.999999877",
        ("rate_limit_remaining", "concurrency"): "5",
    }


async def test_looking_claims_nothing() -> None:
    store = Store()
    await told(store, red=[REQUESTS, SPEND])
    assert [one.amount for one in store.asked] == [0, 0]


async def test_what_is_left_is_of_the_rule_with_the_smallest_part_left() -> None:
    large = Rule(Unit.REQUESTS, 1_000, DAY, "1000/day")
    store = Store({"red|requests|minute": (30, 0), "blue|requests|day": (900, 0)})
    # 100 are more than 30, but a tenth is less than a half.
    left = await told(store, red=[REQUESTS], blue=[large])
    assert left["rate_limit_remaining", "requests"] == "100"


async def test_a_shadow_rule_has_numbers_of_its_own_and_leaves_everything() -> None:
    shadow = Rule(Unit.REQUESTS, 60, MINUTE, "60/minute", shadow=True)
    store = Store({"red|requests|minute|shadow": (60, 0), "red|requests|minute": (1, 0)})
    found = await told(store, red=[shadow, REQUESTS])
    assert found["proxy_quota_used", "red", "requests 60/minute, shadow"] == "60"
    assert found["proxy_quota_used", "red", "requests 60/minute"] == "1"
    assert found["rate_limit_remaining", "requests"] == "59"
    assert not [name for name in await told(store, red=[shadow]) if name[0] == "rate_limit_remaining"]


async def test_more_than_all_is_used_and_nothing_is_left() -> None:
    """A limit that was lowered, and one of 0."""
    store = Store({"red|requests|minute": (70, 1)})
    none = Rule(Unit.TOKENS, 0, MINUTE, "0/minute")
    found = await told(store, red=[REQUESTS, none])
    assert found["rate_limit_remaining", "requests"] == "0"
    assert found["rate_limit_remaining", "tokens"] == "0"


async def test_a_rule_of_each_key_has_no_one_number() -> None:
    assert await told(Store(), red=[Rule(Unit.REQUESTS, 60, MINUTE, "60/minute", per_key=True)]) == {}


async def test_a_rule_that_is_written_twice_is_one_series() -> None:
    store = Store({"red|requests|minute|model=m": (2, 0)})
    of_model = Rule(Unit.REQUESTS, 60, MINUTE, "60/minute", model="m")
    found = await told(store, red=[REQUESTS, REQUESTS, of_model, of_model], blue=[REQUESTS])
    assert len(store.asked) == 3
    assert found["proxy_quota_used", "red", "requests 60/minute, model m"] == "2"


@pytest.mark.parametrize("rules", [{}, {"red": []}])
async def test_without_rules_no_store_is_asked(rules: dict[str, list[Rule]]) -> None:
    assert await told(Store(gone=True), **rules) == {}


async def test_a_store_that_is_gone_is_said() -> None:
    with pytest.raises(StoreGone):
        await told(Store(gone=True), red=[REQUESTS])


async def test_prometheus_reads_it() -> None:
    samples: list[Sample] = await Standings({"red": [REQUESTS, SPEND]}, Store()).samples()  # type: ignore[arg-type]
    found = read(await page(Board(), 0, samples))
    assert len(found[families.QUOTA_LIMIT.name].samples) == 2


async def test_a_store_is_not_asked_for_everything_at_once() -> None:
    teams = {f"team-{number}": [REQUESTS, SLOTS] for number in range(AT_ONCE)}
    store = Store({"team-99|requests|minute": (7, 0)})
    found = await told(store, **teams)
    assert (len(store.asked), store.most) == (2 * AT_ONCE, AT_ONCE)
    assert found["proxy_quota_used", "team-99", "requests 60/minute"] == "7"
