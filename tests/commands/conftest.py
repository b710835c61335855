"""What the tests of the commands share: an empty folder with a configuration, and a user's state beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click import Command
from click.testing import CliRunner, Result

from proxy.cli import main

CONFIG = """
teams:
  research: {keys: ["${TEAM_KEY}"]}
  support: {keys: ["${TEAM_KEY}-2"]}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("TEAM_KEY", "sk-team-0123456789abcdef")
    monkeypatch.delenv("MISTRAL_API_KEY", raising=False)
    Path("proxy.yaml").write_text(CONFIG)
    return tmp_path


def run(command: Command, *arguments: str) -> Result:
    """As a part of all commands: click keeps what it has once made of a command by itself."""
    assert command.name
    result = CliRunner().invoke(main, [command.name, *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result
