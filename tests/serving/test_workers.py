"""What the supervisor looks for, and what a worker does when it is told; the processes are in e2e/test_k_workers.py."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any, cast

import pytest

from proxy.logs import Writer
from proxy.serving import workers
from proxy.serving.plan import plan
from proxy.serving.workers import Current
from proxy.settings.load import Sources
from proxy.supervisor import Applied, Drain, End, Refused, Reload, Worker
from proxy.supervisor.channel import Channel
from tests.programs import PATIENCE

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
        return sum(self.current.look(asked=False) for _ in range(3)) == 1

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
    assert (looking.current.generation, looking.current.drain) == (2, 7.0)
    assert Sources.from_bytes(looking.current.sources).data == looking.file.read_bytes()
    assert not looking.look()


@pytest.mark.parametrize("broken", ["nonsense: 1\n", "", "teams: {}\nserver: {host: 0.0.0.0}\n", "teams: [\n"])
def test_k1_a_broken_file_changes_nothing_and_is_told_once(tmp_path: Path, broken: str) -> None:
    looking = Looking(tmp_path)
    before = looking.current.sources
    assert not looking.look(broken)
    assert not looking.look()
    assert (looking.current.generation, looking.current.drain, looking.current.sources) == (1, 5.0, before)
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


def test_a_hang_up_of_the_terminal_is_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", raised.append)
    monkeypatch.setattr(os, "isatty", lambda descriptor: True)
    looking = Looking(tmp_path)
    assert not looking.current.look(asked=True)
    assert raised == []
    monkeypatch.setattr(os, "isatty", lambda descriptor: False)
    assert not looking.current.look(asked=True)
    assert raised == [signal.SIGTERM]


def test_a_change_of_what_cannot_change_is_a_generation_that_keeps_it(tmp_path: Path) -> None:
    looking = Looking(tmp_path)
    assert looking.look(TEXT.replace("5s", "5s, port: 1"))
    assert looking.current.plan.settings.server.port == 8080


def test_what_only_a_worker_would_stumble_over_is_found_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor's loop logs it; the configuration stays."""

    def trust(config: object) -> None:
        raise OSError("no certificates")

    looking = Looking(tmp_path)
    monkeypatch.setattr(workers, "trust", trust)
    with pytest.raises(OSError):
        looking.look(TEXT + "models: {default: another}\n")
    assert (looking.current.generation, looking.current.plan.settings.models.default) == (1, None)


class Obeying:
    """As much of a server and a reloader as orders need."""

    def __init__(self, accepts: bool) -> None:
        self.done: list[object] = []
        self._accepts = accepts

    async def apply(self, sources: Sources, number: int) -> bool:
        self.done.append((sources.data, number))
        return self._accepts

    def drain(self) -> None:
        self.done.append("drain")

    def end(self) -> None:
        self.done.append("end")


@pytest.mark.parametrize("accepts", [True, False])
async def test_a_worker_does_what_it_is_told_and_drains_when_nobody_is_left_to_tell_it(accepts: bool) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        channel, obeying = Channel(ours), Obeying(accepts)
        channel.send(Reload(7, Sources(None, b"seven", {}, {}).to_bytes()))
        task = asyncio.ensure_future(workers._obey(Worker(1, theirs), cast(Any, obeying), cast(Any, obeying)))
        async with asyncio.timeout(PATIENCE):
            reports = channel.receive()
            while not reports:
                await asyncio.sleep(0)
                reports = channel.receive()
            assert reports == [Applied(7) if accepts else Refused(7)]
            channel.send(Drain())
            channel.send(End())
            channel.close()
            await task
    assert obeying.done == [(b"seven", 7), "drain", "end", "drain"]
