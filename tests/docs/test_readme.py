"""What the documents say can be done, is done here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from proxy.cli import main
from tests.conftest import Proxy

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def fenced(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_two_commands_come_first_and_exist() -> None:
    commands = [line.split()[0] for line in fenced("sh")[0].splitlines()]
    assert commands == ["scripts/serve", "scripts/test"]
    assert all(os.access(ROOT / command, os.X_OK) for command in commands)


def test_ci_runs_the_test_command() -> None:
    assert "exec scripts/test" in (ROOT / ".ci" / "run").read_text()


def test_the_python_example_runs_as_it_stands(proxy: Proxy) -> None:
    [example] = fenced("python")
    env = dict(os.environ) | {"OPENAI_BASE_URL": proxy.base_url, "OPENAI_API_KEY": proxy.key}
    done = subprocess.run([sys.executable, "-c", example], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Hello!" in done.stdout


def test_the_table_of_commands_is_complete_and_every_option_in_it_exists() -> None:
    rows = re.findall(r"^\| `mistral-proxy ([\w-]+)(.*?)` (?:\||,)", README, re.MULTILINE)
    assert {name for name, _ in rows} == set(main.commands)
    for name, options in rows:
        known = {option for parameter in main.commands[name].params for option in parameter.opts}
        assert set(re.findall(r"--\w+", options)) <= known


@pytest.mark.parametrize("command", [main, *main.commands.values()], ids=lambda command: command.name)
def test_every_command_and_option_has_its_help(command: click.Command) -> None:
    assert command.help
    assert all(parameter.help for parameter in command.params if isinstance(parameter, click.Option))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_scripts_that_are_named_exist(page: Path) -> None:
    for name in re.findall(r"\bscripts/(\w+)", page.read_text()):
        assert os.access(ROOT / "scripts" / name, os.X_OK), name
