"""What becomes of the files: a plan to go over to, or lines that say why there is none."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from proxy.logs import Writer
from proxy.serving.current import HANG_UP, Current, Terminal
from proxy.serving.plan import plan
from proxy.settings.load import Sources

TEXT = "teams: {research: {keys: ['${TEAM_KEY}']}}\nserver: {drain: 5s}\n"
KEYS = {"TEAM_KEY": "sk-team-key-0123456789abcdef", "MISTRAL_API_KEY": "provider-key-0123456789"}


class Looking:
    """A `Current` over a file, and its log."""

    def __init__(self, folder: Path, text: str = TEXT) -> None:
        self.file, self._out = folder / "proxy.yaml", io.BytesIO()
        self.file.write_text(text)
        sources = Sources.read(self.file, KEYS)
        self.current = Current(plan(sources, simulate=False), Writer(self._out))

    def look(self, text: str | None = None) -> bool:
        """After two looks a change counts, since the file is at rest then."""
        if text is not None:
            self.file.write_text(text)
        found = [planned for _ in range(3) if (planned := self.current.look(asked=False))]
        for planned in found:
            self.current.took(planned)
        return len(found) == 1

    def logged(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._out.getvalue().splitlines()]


def test_nothing_new(tmp_path: Path) -> None:
    looking = Looking(tmp_path)
    assert not looking.look()
    assert not looking.look(TEXT)
    assert (looking.current.generation, looking.logged()) == (1, [])


def test_a_changed_file_is_the_next_generation(tmp_path: Path) -> None:
    looking = Looking(tmp_path)
    assert looking.look(TEXT.replace("5s", "7s"))
    assert (looking.current.generation, looking.current.plan.settings.server.drain) == (2, 7.0)
    assert looking.current.plan.sources.data == looking.file.read_bytes()
    assert not looking.look()


@pytest.mark.parametrize("broken", ["nonsense: 1\n", "", "teams: {}\nserver: {host: 0.0.0.0}\n", "teams: [\n"])
def test_k1_a_broken_file_changes_nothing_and_is_told_once(tmp_path: Path, broken: str) -> None:
    looking = Looking(tmp_path)
    before = looking.current.plan
    assert not looking.look(broken)
    assert not looking.look()
    assert (looking.current.generation, looking.current.plan) == (1, before)
    assert [line["event"] for line in looking.logged()] == ["reload_failed"]
    assert not looking.look(TEXT)
    assert [line["event"] for line in looking.logged()] == ["reload_failed", "reload_unchanged"]
    assert looking.look(TEXT + "models: {default: another}\n")


def test_who_asks_is_told_again(tmp_path: Path) -> None:
    looking = Looking(tmp_path)
    assert not looking.current.look(asked=True)
    looking.file.write_text("nonsense: 1\n")
    for _ in range(2):
        assert not looking.current.look(asked=True)
    assert [line["event"] for line in looking.logged()] == ["reload_unchanged", "reload_failed", "reload_failed"]
    looking.file.unlink()
    assert not looking.current.look(asked=True)
    assert looking.logged()[-1]["what"] == "cannot be read: No such file or directory"


class Tty:
    """Whether standard input is a terminal, the time, and the signals that the process has sent itself."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.there, self.now, self.sent = True, 1000.0, list[int]()
        patch.setattr(os, "isatty", lambda descriptor: self.there)
        patch.setattr(os, "kill", lambda pid, number: self.sent.append(number))

    def look(self, current: Current, *, asked: bool = True) -> list[int]:
        """What it sends itself at this look."""
        self.sent.clear()
        assert not current.look(asked=asked)
        return list(self.sent)


def test_k6_a_hang_up_of_the_terminal_is_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tty = Tty(monkeypatch)
    looking = Looking(tmp_path)
    assert tty.look(looking.current) == []
    logged = looking.logged()
    tty.there = False
    assert tty.look(looking.current) == [signal.SIGTERM]
    assert looking.logged() == logged  # and nothing is looked at


def test_k6_a_terminal_that_ended_long_ago_sends_no_hang_up(monkeypatch: pytest.MonkeyPatch) -> None:
    tty = Tty(monkeypatch)
    terminal = Terminal(lambda: tty.now)
    assert not terminal.hung_up()
    tty.there = False
    assert terminal.hung_up()
    tty.now += HANG_UP / 2
    assert terminal.hung_up()
    tty.now += HANG_UP
    assert not terminal.hung_up()
    assert not Terminal(lambda: tty.now).hung_up()  # there never was one


def test_k6_a_terminal_is_missed_at_any_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a shell that has let the process go: the SIGHUP of somebody who wants a reload comes much later."""
    tty = Tty(monkeypatch)
    current = Looking(tmp_path).current
    current._terminal = Terminal(lambda: tty.now)
    tty.there = False
    assert tty.look(current, asked=False) == []
    tty.now += 2 * HANG_UP
    assert tty.look(current) == []


def test_a_change_of_what_cannot_change_is_a_generation_that_keeps_it(tmp_path: Path) -> None:
    looking = Looking(tmp_path)
    assert looking.look(TEXT.replace("5s", "5s, port: 1"))
    assert looking.current.plan.settings.server.port == 8080
    assert [(line["event"], line["settings"]) for line in looking.logged()] == [("needs_restart", "server.port")]
    assert looking.current.plan.waiting == ()  # a new worker does not say it again


def test_k4_what_everybody_may_change_is_said_once(tmp_path: Path) -> None:
    looking = Looking(tmp_path)
    looking.file.chmod(0o666)
    assert looking.look(TEXT + "# changed\n")
    assert [line["event"] for line in looking.logged()] == ["config_warning"]
    assert looking.current.plan.warnings == ()
