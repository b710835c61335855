"""K: standard output, and whoever reads it or does not."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import PROVIDER_KEY, TEAM_KEY
from tests.programs import COMMAND, PATIENCE, until

REQUESTS = 500
"""Their log lines are more than a pipe takes, which is 64 KiB."""

CONFIG = """
server: {{port: 0, drain: 2s, workers: {workers}}}
store: {{url: "redis://127.0.0.1:1"}}
providers: {{mistral: {{api_keys: ["${{PROVIDER_KEY}}"]}}}}
teams: {{research: {{keys: ["${{TEAM_KEY}}"]}}}}
"""


@dataclass
class Unread:
    """A proxy whose output is read up to its banner, and further only by `rest`."""

    url: str
    process: subprocess.Popen[bytes]
    output: int

    def ask(self, times: int) -> list[int]:
        """The status of each answer, to a request that needs no upstream."""
        with httpx2.Client(
            trust_env=False, timeout=PATIENCE, headers={"authorization": f"Bearer {TEAM_KEY}"}
        ) as client:
            return [client.get(f"{self.url}/v1/models/none-{at}").status_code for at in range(times)]

    def rest(self) -> list[dict[str, Any]]:
        """All of the log from here to the end of the process."""
        with open(self.output, "rb", closefd=False) as out:
            return [json.loads(line) for line in out if line.startswith(b"{")]


@contextmanager
def unread(folder: Path, workers: int) -> Iterator[Unread]:
    file = folder / "proxy.yaml"
    file.write_text(CONFIG.format(workers=workers))
    output, theirs = os.pipe()
    env = {"PATH": os.environ["PATH"], "PROVIDER_KEY": PROVIDER_KEY, "TEAM_KEY": TEAM_KEY}
    command = [str(COMMAND), "serve", "--simulate", "--config", str(file)]
    with subprocess.Popen(command, env=env, cwd=folder, stdout=theirs, stderr=subprocess.DEVNULL) as process:
        os.close(theirs)
        try:
            yield Unread(_url(output), process, output)
        finally:
            process.kill()
            os.close(output)


def _url(output: int) -> str:
    banner = b""

    def found() -> str | None:
        nonlocal banner
        banner += os.read(output, 1 << 16)
        match = re.search(rb"http://[\d.]+:\d+", banner)
        return match[0].decode() if match else None

    url: str = until(found, "the banner with the URL")
    return url


@pytest.mark.parametrize("workers", [1, 2])
def test_k12_a_log_that_nobody_reads_keeps_no_request_waiting_nor_the_end(tmp_path: Path, workers: int) -> None:
    with unread(tmp_path, workers) as proxy:
        assert proxy.ask(REQUESTS) == [404] * REQUESTS
        proxy.process.send_signal(signal.SIGTERM)
        assert proxy.process.wait(PATIENCE) == -signal.SIGTERM


@pytest.mark.parametrize("workers", [1, 2])
def test_k12_a_log_that_is_read_late_has_every_line(tmp_path: Path, workers: int) -> None:
    with unread(tmp_path, workers) as proxy:
        proxy.ask(REQUESTS)
        proxy.process.send_signal(signal.SIGTERM)
        asked = [line["endpoint"] for line in proxy.rest() if line["event"] == "request"]
        assert len(asked) == REQUESTS


def test_k12_a_log_whose_reader_is_gone_keeps_no_request_waiting_nor_the_end(tmp_path: Path) -> None:
    with unread(tmp_path, 1) as proxy:
        with open(os.devnull, "rb") as other:
            os.dup2(other.fileno(), proxy.output)
        assert proxy.ask(REQUESTS) == [404] * REQUESTS
        proxy.process.send_signal(signal.SIGTERM)
        assert proxy.process.wait(PATIENCE) == -signal.SIGTERM
