"""The command line: options, texts and exit codes, without starting anything."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from proxy import __version__
from proxy.cli import _open_streams, main
from proxy.serving import server
from proxy.serving.plan import CannotStart, Plan

ENVIRONMENT = ("MISTRAL_API_KEY", "MISTRAL_BASE_URL", "MISTRAL_TIMEOUT_SECS", "MISTRAL_LOG_LEVEL", "DEFAULT_MODEL")


@pytest.fixture(autouse=True)
def _nothing_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder and no settings in the environment; signals stay as they are."""
    before = signal.getsignal(signal.SIGHUP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in (*ENVIRONMENT, "DEFAULT_MAX_TOKENS", "DEFAULT_TEMPERATURE"):
        monkeypatch.delenv(name, raising=False)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """What would have been served."""
    plans: list[Plan] = []
    monkeypatch.setattr(server, "run", plans.append)
    return plans


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def exit_and_lines(*arguments: str) -> tuple[int, list[str]]:
    result = run(*arguments)
    return result.exit_code, result.output.splitlines()


@pytest.mark.parametrize("command", [*main.commands, None], ids=str)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help(command: str | None, option: str) -> None:
    result = run(*filter(None, [command, option]))
    assert result.exit_code == 0
    assert result.output.startswith("Usage: ")
    assert max(map(len, result.output.splitlines())) <= 80


def test_the_commands() -> None:
    assert set(main.commands) == {"serve", "simulate", "check", "models", "keys", "usage", "cache", "prove-quota"}
    listed = run("--help").output
    for name, command in main.commands.items():
        assert f"\n  {name} " in listed
        assert command.help


@pytest.mark.parametrize("command", list(main.commands))
def test_every_option_says_what_it_is_for(command: str) -> None:
    for option in main.commands[command].params:
        assert getattr(option, "help", None), option.name


def test_version() -> None:
    assert exit_and_lines("--version") == (0, [f"mistral-proxy, version {__version__}"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"], ["serve", "--nonsense"], ["serve", "--port", "x"], ["serve", "--port", "70000"],
        ["serve", "--port", "-1"], ["serve", "--workers", "0"], ["serve", "extra"], ["simulate", "--port", "70000"], [],
    ],
)  # fmt: skip
def test_a_wrong_usage(arguments: list[str], started: list[Plan]) -> None:
    assert run(*arguments).exit_code == 2
    assert not started


# serve.


def test_serve_without_configuration(monkeypatch: pytest.MonkeyPatch, started: list[Plan]) -> None:
    monkeypatch.setenv("MISTRAL_API_KEY", "mistral-key-0123456789")
    assert run("serve").exit_code == 0
    [plan] = started
    assert plan.sources.file is None
    assert (plan.settings.server.host, plan.settings.server.port) == ("127.0.0.1", 8080)
    assert [key.reveal() for key in plan.settings.mistral.api_keys] == ["mistral-key-0123456789"]
    assert plan.settings.mistral.base_url == "https://api.mistral.ai"
    assert plan.local
    assert not plan.simulate


def test_serve_takes_the_configuration_that_lies_there(started: list[Plan]) -> None:
    Path("proxy.yaml").write_text("server: {port: 1234}")
    assert run("serve", "--simulate").exit_code == 0
    assert (started[0].sources.file, started[0].settings.server.port) == ("proxy.yaml", 1234)


def test_options_go_before_the_file_and_the_file_before_the_environment(
    monkeypatch: pytest.MonkeyPatch, started: list[Plan]
) -> None:
    monkeypatch.setenv("DEFAULT_MODEL", "of-the-environment")
    monkeypatch.setenv("MISTRAL_LOG_LEVEL", "DEBUG")
    Path("my.yaml").write_text("server: {port: 1, host: localhost}\nmodels: {default: of-the-file}")
    assert run("serve", "--config", "my.yaml", "--port", "2", "--simulate").exit_code == 0
    settings = started[0].settings
    assert (settings.server.port, settings.server.host) == (2, "localhost")
    assert (settings.models.default, settings.logging.level) == ("of-the-file", "debug")


def test_serve_without_a_key(started: list[Plan]) -> None:
    code, lines = exit_and_lines("serve")
    assert code == 2
    [line] = lines
    assert line.startswith("mistral-proxy: Set MISTRAL_API_KEY ")
    assert not started


def test_serve_with_more_workers_than_there_can_be(started: list[Plan]) -> None:
    code, lines = exit_and_lines("serve", "--simulate", "--workers", "2")
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith("command line: --workers: more than 1 needs")
    assert run("serve", "--simulate", "--workers", "1").exit_code == 0


def test_what_cannot_start_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_(plan: Plan) -> None:
        raise CannotStart("Cannot listen on 127.0.0.1:8080: Address already in use.")

    monkeypatch.setattr(server, "run", run_)
    assert exit_and_lines("serve", "--simulate") == (
        2, ["mistral-proxy: Cannot listen on 127.0.0.1:8080: Address already in use."],
    )  # fmt: skip


@pytest.mark.parametrize("where", ["proxy.serving.server.run", "proxy.serving.plan.plan", "proxy.cli._config_file"])
def test_an_interrupt(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupt)
    assert exit_and_lines("serve", "--simulate") == (130, [])


@pytest.mark.parametrize(("command", "module"), [("serve", "proxy.serving"), ("simulate", "proxy.simulator.server")])
def test_an_interrupt_while_it_is_still_importing(monkeypatch: pytest.MonkeyPatch, command: str, module: str) -> None:
    class Interrupted:
        def find_spec(self, name: str, *_: Any) -> None:
            if name == module:
                raise KeyboardInterrupt

    for name in list(sys.modules):
        if name.startswith(module):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    assert exit_and_lines(command) == (130, [])


def test_k6_a_sighup_is_ignored_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    monkeypatch.setattr("proxy.serving.plan.plan", lambda *_, **__: found.append(signal.getsignal(signal.SIGHUP)))
    assert run("serve", "--simulate").exit_code == 1  # there is no plan
    assert found == [signal.SIG_IGN]


def test_one_problem_is_printed_as_check_prints_it(started: list[Plan]) -> None:
    Path("proxy.yaml").write_text("server:\n  prt: 1\n")
    assert exit_and_lines("serve", "--simulate") == (2, (checked := exit_and_lines("check"))[1])
    assert checked[1][0].startswith("proxy.yaml:2: server.prt: ")


def test_a_host_that_is_none() -> None:
    code, lines = exit_and_lines("simulate", "--host", "a..b")
    assert (code, lines) == (2, ["mistral-proxy: Cannot listen on a..b:8081: this is no host name."])


def test_streams_that_are_missing_lead_nowhere(monkeypatch: pytest.MonkeyPatch, started: list[Plan]) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    _open_streams()
    opened = [sys.stdin, sys.stdout, sys.stderr]
    print("for nobody")
    print("for nobody", file=sys.stderr)
    assert sys.stdin.read() == ""
    for stream in opened:
        stream.close()
    assert [stream.name for stream in opened] == ["/dev/null"] * 3


def test_a_missing_file_that_was_asked_for(started: list[Plan]) -> None:
    code, lines = exit_and_lines("serve", "--config", "missing.yaml")
    assert code == 2
    assert "missing.yaml" in lines[0]
    assert not started


# check.

GOOD: Any = "providers: {mistral: {api_keys: ['${KEY}']}}\nteams: {a: {keys: ['${KEY}']}}\n"


def test_check_of_a_good_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("proxy.yaml").write_text("teams: {a: {keys: ['${KEY}']}, b: {keys: ['${KEY2}']}}")
    monkeypatch.setenv("KEY", "sk-a-0123456789")
    monkeypatch.setenv("KEY2", "sk-b-0123456789")
    code, lines = exit_and_lines("check")
    assert code == 0
    assert lines == ["proxy.yaml: ok, 2 team(s)"]


def test_k4_check_warns_of_what_everybody_can_read(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-a-0123456789")
    (tmp_path / "key").chmod(0o644)
    Path("proxy.yaml").write_text(f"teams:\n  a: {{keys: ['file:{tmp_path}/key']}}")
    result = run("check")
    assert (result.exit_code, result.stdout) == (0, "proxy.yaml: ok, 1 team(s)\n")
    assert result.stderr == (
        "warning: proxy.yaml:2: teams.a.keys[0]: every user of this machine can read the secret file\n"
    )


def test_check_finds_everything_that_is_wrong() -> None:
    Path("x.yaml").write_text("server:\n  prt: 1\n  drain: 5\nteams: {a: {keys: ['${KEY}']}}")
    code, lines = exit_and_lines("check", "--config", "x.yaml")
    assert code == 1
    assert [line.split(": ")[:2] for line in lines] == [
        ["x.yaml:2", "server.prt"], ["x.yaml:3", "server.drain"], ["x.yaml:4", "teams.a.keys[0]"],
    ]  # fmt: skip
    assert "did you mean 'port'?" in lines[0]
    assert "KEY is not set" in lines[2]


def test_check_without_a_file() -> None:
    code, lines = exit_and_lines("check")
    assert code == 1
    assert lines[0].startswith("proxy.yaml: ")


def test_check_keeps_no_key(tmp_path: Path) -> None:
    Path("proxy.yaml").write_text("")
    assert run("check").exit_code == 0
    assert not (tmp_path / "state").exists()


# models.


def test_models() -> None:
    code, lines = exit_and_lines("models")
    assert code == 0
    blank = lines.index("")
    assert lines[0].split()[0] == "MODEL"
    assert lines[blank + 1].split() == ["ALIAS", "SERVED", "BY"]
    assert not any(" retired" in line for line in lines[:blank])
    with_retired = run("models", "--all").output.splitlines()
    assert with_retired.index("") > blank
    assert any(" retired" in line for line in with_retired)
