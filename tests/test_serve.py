"""What `serve` decides before it listens, and what it says when it does."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import shlex
import signal
import socket
from pathlib import Path
from typing import Any, cast

import pytest
import uvicorn

from proxy import serve
from proxy.core.secret import Secret
from proxy.logs import Writer
from proxy.serve import CannotStart, Plan, banner, plan
from proxy.settings.model import Settings
from proxy.stages.auth import TeamKey

KEY = "sk-team-key-0123456789abcdef"


def settings(**sections: Any) -> Settings:
    return Settings.model_validate(sections)


WITH_KEY: Any = {"providers": {"mistral": {"api_keys": [Secret("mistral-key-0123456789")]}}}
TEAMS: Any = {"teams": {"research": {"keys": [Secret(KEY)]}}}


def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_STATE_HOME": str(tmp_path)}


# The plan.


def test_without_any_key_there_is_nothing_to_serve(tmp_path: Path) -> None:
    without: Any = {}
    for sections in (without, TEAMS):
        with pytest.raises(CannotStart, match=r"MISTRAL_API_KEY.*--simulate"):
            plan(settings(**sections), None, environ(tmp_path), simulate=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("sections", "simulate"), [(WITH_KEY, False), ({}, True)])
def test_without_teams_there_is_one_with_a_minted_key(tmp_path: Path, sections: Any, simulate: bool) -> None:
    made = plan(settings(**sections), None, environ(tmp_path), simulate=simulate)
    assert made.local
    secret, file = made.local
    assert file.is_relative_to(tmp_path)
    assert file.read_text().strip() == secret.reveal()
    [(name, team)] = made.settings.teams.items()
    [key] = team.keys
    assert name == "local"
    assert key.digest == hashlib.sha256(secret.reveal().encode()).digest()
    assert key.secret == secret  # known, so that it is taken out of logs
    assert team.models == ["*"]
    assert made.simulate is simulate


def test_with_teams_no_key_is_minted(tmp_path: Path) -> None:
    file = tmp_path / "proxy.yaml"
    made = plan(settings(**WITH_KEY, **TEAMS), file, environ(tmp_path), simulate=False)
    assert made == Plan(made.settings, file, False, None)
    assert set(made.settings.teams) == {"research"}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.5", "proxy.internal"])
def test_others_are_let_in_by_key_only(tmp_path: Path, host: str) -> None:
    reachable = {"server": {"host": host}}
    for simulate in (False, True):
        with pytest.raises(CannotStart, match="at least one team"):
            plan(settings(**reachable, **WITH_KEY), None, environ(tmp_path), simulate=simulate)
    assert plan(settings(**reachable, **WITH_KEY, **TEAMS), None, {}, simulate=False).settings.server.host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_the_loopback_needs_no_team(tmp_path: Path, host: str) -> None:
    assert plan(settings(server={"host": host}, **WITH_KEY), None, environ(tmp_path), simulate=False).local


def test_a_key_that_cannot_be_kept(tmp_path: Path) -> None:
    (tmp_path / "mistral-proxy").write_text("no folder")
    with pytest.raises(CannotStart, match="XDG_STATE_HOME"):
        plan(settings(**WITH_KEY), None, environ(tmp_path), simulate=False)


# The banner.


def of(simulate: bool = False, local: tuple[Secret, Path] | None = None, **sections: Any) -> str:
    file = Path("my.yaml") if sections else None
    return banner(Plan(settings(**sections), file, simulate, local), 4711)


def local_plan(**sections: Any) -> str:
    secret = Secret("sk-local-1")
    return of(True, (secret, Path("/state/key")), teams={"local": {"keys": [secret]}}, **sections)


def test_a_banner_with_the_minted_key() -> None:
    text = local_plan()
    assert "http://127.0.0.1:4711\n" in text
    assert "sk-local-1  (kept in /state/key)\n" in text
    assert "export OPENAI_BASE_URL=http://127.0.0.1:4711/v1\n" in text
    assert "export OPENAI_API_KEY='sk-local-1'\n" in text
    assert "SIMULATED" in text


def test_a_banner_with_teams_shows_no_key() -> None:
    text = of(**TEAMS)
    assert KEY not in text
    assert "config  my.yaml\n" in text
    assert "teams   research\n" in text
    assert "$OPENAI_API_KEY" in text
    assert "SIMULATED" not in text


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "localhost"),
        ("0.0.0.0", "127.0.0.1"),
        ("::", "[::1]"),
        ("::1", "[::1]"),
        ("fd00::1", "[fd00::1]"),
        ("proxy.internal", "proxy.internal"),
    ],
)
def test_its_url_is_one_to_paste(host: str, shown: str) -> None:
    text = of(server={"host": host}, **TEAMS)
    assert f"ready on http://{shown}:4711\n" in text
    assert f"curl http://{shown}:4711/v1/chat/completions " in text


@pytest.mark.parametrize(("default", "shown"), [(None, "mistral-small-latest"), ("house", "house")])
def test_its_curl_asks_for_the_default_model(default: str | None, shown: str) -> None:
    words = shlex.split(local_plan(models={"default": default}).partition("curl ")[2].replace("\\\n", " "))
    assert words[words.index("-d") + 1].startswith(f'{{"model": "{shown}", "messages": ')


@pytest.mark.parametrize("name", ["it's", 'a"b', "a\\b"])
def test_its_curl_is_right_for_any_name_of_a_model(name: str) -> None:
    words = shlex.split(local_plan(models={"default": name}).partition("curl ")[2].replace("\\\n", " "))
    assert json.loads(words[words.index("-d") + 1])["model"] == name


# What runs.


def test_the_port_is_had_or_it_is_said_why_not() -> None:
    with serve._listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert port
        taken.listen()
        with pytest.raises(CannotStart, match=f"127.0.0.1:{port}: .*in use"):
            serve._listen("127.0.0.1", port)
    with pytest.raises(CannotStart, match=r"Cannot listen on 192\.0\.2\.1:0"):
        serve._listen("192.0.2.1", 0)


def test_an_ipv6_address_is_listened_on_or_it_is_said_why_not() -> None:
    try:
        listener = serve._listen("::1", 0)
    except CannotStart as error:  # a machine without IPv6
        assert "Cannot listen on ::1:0: " in str(error)
        return
    with listener:
        assert listener.family == socket.AF_INET6


def test_simulated_settings_lead_nowhere_else() -> None:
    real = settings(
        providers={
            "mistral": {"transport": "httpx", "proxy_url": "http://egress:3128", "api_keys": [Secret("real-key-1")]}
        }
    )
    made = serve._pointed_at(real, "http://127.0.0.1:1").providers.mistral
    assert (made.base_url, made.transport, made.proxy_url) == ("http://127.0.0.1:1", "aiohttp", None)
    [key] = made.api_keys
    # Not a word: the provider's key is cut out of answers, and a word would be missing from them.
    assert len(key.reveal()) == 32
    assert key != Secret("real-key-1")
    assert real.providers.mistral.base_url == "https://api.mistral.ai"


def test_every_key_is_known_to_the_log() -> None:
    digest = hashlib.sha256(b"sk-only-its-digest-0123456789").digest()
    made = settings(
        providers=WITH_KEY["providers"],
        teams={"a": {"keys": [Secret(KEY)]}, "b": {"keys": [TeamKey(digest)]}},
    )
    text = serve._redactor(made).text(f"mistral-key-0123456789 {KEY} sk-only-its-digest-0123456789 rest")
    assert text == "*** *** *** rest"


class Application:
    """As much of the application as the server touches."""

    def __init__(self) -> None:
        self.draining = False
        self.drained = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    def drain(self) -> None:
        self.drained.set()


async def test_the_log_is_written_out_before_the_signal_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    log = Writer(stream)

    async def shutdown(*_: Any, **__: Any) -> None:
        log("info", "last")

    monkeypatch.setattr(uvicorn.Server, "shutdown", shutdown)
    await serve.Server(cast(Any, Application()), log, 1.0, "").shutdown()
    assert b'"last"' in stream.getvalue()


@pytest.mark.parametrize(("drain", "signals"), [(0.0, 1), (3600.0, 2)])
async def test_the_drain_ends_after_its_time_or_at_the_second_signal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], drain: float, signals: int
) -> None:
    async def startup(*_: Any, **__: Any) -> None:
        pass

    monkeypatch.setattr(uvicorn.Server, "startup", startup)
    application = Application()
    server = serve.Server(cast(Any, application), Writer(io.BytesIO()), drain, "the banner")
    await server.startup()
    assert capsys.readouterr().out == "the banner\n"
    for _ in range(signals):
        assert not application.drained.is_set()
        server.handle_exit(signal.SIGTERM, None)
        assert application.draining
        assert server.should_exit
    await asyncio.wait_for(application.drained.wait(), 5)
