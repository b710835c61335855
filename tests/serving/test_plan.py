"""What `serve` decides before it listens."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxy.core.money import NANO
from proxy.core.quota import WINDOWS, Rule, Unit
from proxy.core.secret import Secret
from proxy.serving.plan import LOCAL_SPEND, CannotStart, complete, exposure, next_plan, plan
from proxy.settings.load import SettingsError, Sources
from proxy.settings.model import Settings

KEY = "sk-team-key-0123456789abcdef"


def settings(**sections: Any) -> Settings:
    return Settings.model_validate(sections)


WITH_KEY: Any = {"providers": {"mistral": {"api_keys": [Secret("mistral-key-0123456789")]}}}
TEAMS: Any = {"teams": {"research": {"keys": [Secret(KEY)]}}}


def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_STATE_HOME": str(tmp_path)}


def test_without_any_key_there_is_nothing_to_serve(tmp_path: Path) -> None:
    without: Any = {}
    for sections in (without, TEAMS):
        with pytest.raises(CannotStart, match=r"MISTRAL_API_KEY.*--simulate"):
            complete(settings(**sections), environ(tmp_path), simulate=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("sections", "simulate"), [(WITH_KEY, False), ({}, True)])
def test_without_teams_there_is_one_with_a_minted_key(tmp_path: Path, sections: Any, simulate: bool) -> None:
    made, local = complete(settings(**sections), environ(tmp_path), simulate=simulate)
    assert local
    secret, file = local
    assert file.is_relative_to(tmp_path)
    assert file.read_text().strip() == secret.reveal()
    [(name, team)] = made.teams.items()
    [key] = team.keys
    assert name == "local"
    assert key.digest == hashlib.sha256(secret.reveal().encode()).digest()
    assert key.secret == secret  # known, so that it is taken out of logs
    assert team.models == ["*"]
    [quota] = team.quotas
    assert quota.rule(None) == Rule(Unit.SPEND, 5 * NANO, WINDOWS["day"], LOCAL_SPEND)


def test_the_minted_key_is_no_admins(tmp_path: Path) -> None:
    _, local = complete(settings(**WITH_KEY), environ(tmp_path), simulate=False)
    assert local
    both = settings(**WITH_KEY, server={"admin_keys": [local[0]]})
    with pytest.raises(CannotStart, match=r"one of server\.admin_keys, too") as raised:
        complete(both, environ(tmp_path), simulate=False)
    assert local[0].reveal() not in str(raised.value)


def test_with_teams_no_key_is_minted(tmp_path: Path) -> None:
    made, local = complete(settings(**WITH_KEY, **TEAMS), environ(tmp_path), simulate=False)
    assert local is None
    assert set(made.teams) == {"research"}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.5", "proxy.internal"])
def test_others_are_let_in_by_key_only(tmp_path: Path, host: str) -> None:
    reachable = {"server": {"host": host}}
    for simulate in (False, True):
        with pytest.raises(CannotStart, match="at least one team"):
            complete(settings(**reachable, **WITH_KEY), environ(tmp_path), simulate=simulate)
    assert complete(settings(**reachable, **WITH_KEY, **TEAMS), {}, simulate=False)[0].server.host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_the_loopback_needs_no_team(tmp_path: Path, host: str) -> None:
    assert complete(settings(server={"host": host}, **WITH_KEY), environ(tmp_path), simulate=False)[1]


def test_a_key_that_cannot_be_kept(tmp_path: Path) -> None:
    (tmp_path / "mistral-proxy").write_text("no folder")
    with pytest.raises(CannotStart, match="XDG_STATE_HOME"):
        complete(settings(**WITH_KEY), environ(tmp_path), simulate=False)


def test_exposure_is_judged_without_starting() -> None:
    assert exposure(settings(server={"host": "0.0.0.0"}))
    assert exposure(settings(server={"host": "0.0.0.0"}, **TEAMS)) is None
    assert exposure(settings()) is None


def test_a_plan_is_made_of_sources_alone(tmp_path: Path) -> None:
    file = tmp_path / "proxy.yaml"
    file.write_text('teams: {research: {keys: ["${TEAM}"]}}')
    sources = Sources.read(file, {"MISTRAL_API_KEY": "sk-mistral-0123", "TEAM": KEY}, {"server.port": 9000})
    file.unlink()
    made = plan(sources, simulate=False)
    assert made.sources is sources
    assert (set(made.settings.teams), made.settings.server.port, made.local) == ({"research"}, 9000, None)


def test_a_plan_of_broken_sources(tmp_path: Path) -> None:
    file = tmp_path / "proxy.yaml"
    file.write_text("server: {prot: 1}")
    with pytest.raises(SettingsError, match="unknown key"):
        plan(Sources.read(file, {}), simulate=True)


def test_what_no_running_proxy_can_change_waits_for_a_restart() -> None:
    start = Sources("proxy.yaml", b"server: {port: 1, host: 127.0.0.2, drain: 1s}", {}, {})
    teams = b"\nteams: {a: {keys: ['sha256:%s']}}" % (b"0" * 64)
    running = plan(replace(start, data=start.data + teams), simulate=True)
    made = next_plan(replace(start, data=b"server: {port: 2, host: 127.0.0.2, drain: 9s}" + teams), running)
    server = made.settings.server
    assert (server.port, server.host, server.drain) == (1, "127.0.0.2", 9.0)
    assert made.waiting == ("server.port",)
    again = next_plan(running.sources, made)
    assert (again.settings.server, again.waiting) == (running.settings.server, ())
