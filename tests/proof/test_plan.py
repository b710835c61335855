"""What is planned: the same by the same seed, more than the limits allow, and accepted by the proxy."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from proxy.core.money import NANO
from proxy.core.quota import Unit
from proxy.core.secret import Secret
from proxy.proof.configuration import Places, configuration, zone
from proxy.proof.plan import EMBEDDINGS, LIMITS, Options, Plan, plan
from proxy.settings.load import Sources, settings_of
from proxy.settings.model import Settings
from tests.proof.evidence import PRICES

OPTIONS = Options(clients=120, workers=2, replicas=2, trials=9, seed=3)
PLACES = Places(Secret("redis://:a-password@127.0.0.1:1/0"), Secret("sqlite:////tmp/ledger.db"), "closed", "Etc/GMT+5")


def planned(**differing: object) -> Plan:
    return plan(replace(OPTIONS, **differing), PRICES, "12ab")  # type: ignore[arg-type]


def settings(of: Plan, folder: Path, *, audit: bool = False) -> Settings:
    file = folder / "proxy.yaml"
    file.write_text(configuration(of, PLACES, "http://127.0.0.1:8081", audit=audit))
    assert "a-password" not in file.read_text()
    return settings_of(Sources.read(file, PLACES.environ)).settings


def test_one_seed_is_one_plan() -> None:
    def asked(seed: int) -> list[object]:
        return [(trial.team, trial.limit, trial.waves, trial.faults, trial.kill) for trial in planned(seed=seed).trials]

    assert asked(3) == asked(3)
    assert asked(3) != asked(4)


def test_no_two_trials_share_a_team_a_key_or_a_mark() -> None:
    trials = planned().trials
    marks = [ask.mark for trial in trials for ask in trial.asks]
    assert len({trial.team for trial in trials}) == len({trial.key for trial in trials}) == len(trials)
    assert len(set(marks)) == len(marks)
    assert trials[0].key not in repr(trials)


def test_kinds_and_limits() -> None:
    trials = planned().trials
    assert [trial.kind for trial in trials] == [Unit.SPEND] * 9 + [Unit.REQUESTS] * 9 + [Unit.CONCURRENCY] * 2
    assert [trial.limit for trial in trials if trial.kind is Unit.REQUESTS] == [*LIMITS] * 3
    assert {trial.limit for trial in planned(limit=5).trials if trial.kind is not Unit.SPEND} == {5}
    assert {trial.kind for trial in planned(kinds=frozenset({Unit.REQUESTS})).trials} == {Unit.REQUESTS}


def test_more_is_asked_for_than_allowed() -> None:
    for trial in planned().trials:
        if trial.kind is not Unit.SPEND:
            assert trial.limit < trial.clients <= OPTIONS.clients
        assert len(trial.faults) >= sum(1 for _ in trial.asks)


def test_money_is_asked_for_in_all_ways() -> None:
    trials = [trial for trial in planned().trials if trial.kind is Unit.SPEND]
    asks = [ask for trial in trials for ask in trial.asks]
    assert any(ask.path == EMBEDDINGS for ask in asks)
    assert any(ask.is_stream and ask.leaves_at for ask in asks)
    assert any(ask.leaves_after for ask in asks)
    assert any("status=503" in fault for fault in trials[0].faults)
    assert len({ask.body["model"] for ask in asks}) == 4
    assert all(trial.kill for trial in trials)
    assert not any(trial.kill for trial in planned(kills=False).trials)


def test_prices_fit_the_limit_that_is_wanted() -> None:
    made = planned(spend=10 * NANO)
    assert {trial.limit for trial in made.trials if trial.kind is Unit.SPEND} == {10 * NANO}
    assert made.prices.factor > 10
    assert planned().prices is PRICES


@pytest.mark.parametrize("spend", [None, 1, 10 * NANO, 5000 * NANO])
def test_the_proxy_takes_it(spend: int | None, tmp_path: Path) -> None:
    made = planned(spend=spend)
    told = settings(made, tmp_path)
    assert (told.server.workers, told.server.time_zone, told.store.on_outage) == (2, "Etc/GMT+5", "closed")
    limits = [team.quotas[0].rule(None).limit for team in told.teams.values()]
    assert limits == [trial.limit for trial in made.trials]


def test_an_audit_lets_nothing_in(tmp_path: Path) -> None:
    told = settings(planned(), tmp_path, audit=True)
    assert {one.rule(None).limit for team in told.teams.values() for one in team.quotas} == {0}


@pytest.mark.parametrize("hour", range(24))
def test_no_day_ends_soon(hour: int) -> None:
    now = datetime(2026, 3, 29, hour, 59, 59, tzinfo=UTC)
    assert now.astimezone(ZoneInfo(zone(now))).hour == 12
