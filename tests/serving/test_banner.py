"""What `serve` prints once it answers."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from proxy.core.secret import Secret
from proxy.serving.banner import banner
from proxy.serving.plan import Plan
from proxy.settings.load import Sources
from proxy.settings.model import Settings

KEY = "sk-team-key-0123456789abcdef"
TEAMS: Any = {"teams": {"research": {"keys": [Secret(KEY)]}}}


def of(simulate: bool = False, local: tuple[Secret, Path] | None = None, **sections: Any) -> str:
    sources = Sources("my.yaml" if sections else None, b"", {}, {})
    return banner(Plan(sources, Settings.model_validate(sections), simulate, local), 4711)


def local_plan(**sections: Any) -> str:
    secret = Secret("sk-local-1")
    return of(True, (secret, Path("/state/key")), teams={"local": {"keys": [secret]}}, **sections)


def test_a_banner_with_the_minted_key() -> None:
    text = local_plan()
    assert "http://127.0.0.1:4711\n" in text
    assert "sk-local-1  (kept in /state/key)\n" in text
    assert "teams   local  (may spend 5 USD/day)\n" in text
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
