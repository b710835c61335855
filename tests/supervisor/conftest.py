"""The supervisor as a process of its own, with workers that do next to nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.programs import Program, until


@dataclass(frozen=True)
class Answer:
    number: int
    pid: int
    generation: int
    sources: str


class Supervised:
    """A running tests/supervisor/program.py. `folder` is where its files are."""

    def __init__(self, folder: Path, workers: int = 2, **env: str) -> None:
        self.folder = folder
        self._port = 0
        self._open: list[socket.socket] = []
        if not (folder / "sources").exists():
            self.serve("one")
        command = (sys.executable, "-m", "tests.supervisor.program")
        root = Path(__file__).parents[2]
        self.program = Program(str(folder), str(workers), env=env, cwd=root, command=command)

    def serve(self, sources: str) -> None:
        (self.folder / "next").write_text(sources)
        os.replace(self.folder / "next", self.folder / "sources")

    def ask(self) -> Answer:
        return Answer(*json.loads(self.connect().makefile().readline()))

    def connect(self) -> socket.socket:
        self._port = self._port or int(self.program.url().rpartition(":")[2])
        sock = socket.create_connection(("127.0.0.1", self._port), timeout=20)
        self._open.append(sock)
        return sock

    def all(self, count: int = 2, accept: Callable[[Answer], bool] = lambda _: True) -> dict[int, Answer]:
        """An answer of each worker, by its number; waits until all of them are acceptable."""
        found: dict[int, Answer] = {}

        def complete() -> bool:
            try:
                answer = self.ask()
            except (ConnectionError, json.JSONDecodeError):  # died with the connection
                return False
            found.pop(answer.number, None)
            if accept(answer):
                found[answer.number] = answer
            else:
                self._open.pop().close()  # a worker that is to go waits for it
            return len(found) == count

        until(complete, f"acceptable answers of {count} workers")
        return found

    def pids(self) -> list[int]:
        """Processes that it has started and that have not been waited for."""
        return [child.pid for child in psutil.Process(self.program.process.pid).children()]

    def logged(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        return self.program.logged(event, **fields)

    def line(self, event: str, **fields: Any) -> dict[str, Any]:
        found: list[dict[str, Any]] = until(lambda: self.logged(event, **fields), f"a line {event} {fields}")
        return found[-1]

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.leave()
        self.program.signal(number)
        return self.program.ended()

    def leave(self) -> None:
        """Close every connection."""
        while self._open:
            self._open.pop().close()


class Start:
    """Starts a Supervised; `failing`: one whose workers do something else instead of getting ready."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.started: list[Supervised] = []

    def __call__(self, workers: int = 2, **env: str) -> Supervised:
        self.started.append(Supervised(self._folder, workers, **env))
        return self.started[-1]

    def failing(self, how: str, **env: str) -> Supervised:
        (self._folder / how).touch()
        return self(2, **env)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    start = Start(tmp_path)
    yield start
    for one in start.started:
        one.leave()
        if one.program.process.poll() is None:
            for pid in one.pids():
                os.kill(pid, signal.SIGKILL)
            one.program.process.kill()
        one.program.stop()
