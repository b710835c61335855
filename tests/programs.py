"""Starts the real commands as processes of their own, and reads what they print."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

COMMAND = Path(sys.executable).parent / "mistral-proxy"
PATIENCE = 20.0
"""Seconds until a condition that a healthy program meets in milliseconds counts as never met."""


def until(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of `condition`."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.005)
    raise AssertionError(f"did not happen within {PATIENCE:g} s: {what}")


class Program:
    """A running command. `out` and `err` collect its lines."""

    def __init__(
        self,
        *args: str,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        command: Sequence[str] = (str(COMMAND),),
    ) -> None:
        clean = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        # A ledger of its own, and none of whoever runs the tests.
        self._state = TemporaryDirectory(ignore_cleanup_errors=True)
        clean["XDG_STATE_HOME"] = self._state.name
        self.process = subprocess.Popen(
            [*command, *args],
            env=clean | {"PYTHONUNBUFFERED": "1"} | (env or {}),
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.out: list[str] = []
        self.err: list[str] = []
        self._readers = [
            threading.Thread(target=_collect, args=(stream, lines), daemon=True)
            for stream, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    def url(self) -> str:
        """The address of its banner, once it answers there."""

        def found() -> str | None:
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}: {''.join(self.err)}")
            match = re.search(r"http://[\w.\[\]:]+:\d+", "".join(self.out))
            return match[0] if match else None

        url: str = until(found, "the banner with the URL")
        return url

    def logged(self, event: str = "request", **fields: Any) -> list[dict[str, Any]]:
        """Its JSON log lines with this event and these fields, so far."""
        lines = [json.loads(line) for line in list(self.out) if line.startswith("{")]
        return [line for line in lines if line["event"] == event and fields.items() <= line.items()]

    def line(self, **fields: Any) -> dict[str, Any]:
        """The first access log line with these fields; waits for it."""
        found: list[dict[str, Any]] = until(lambda: self.logged(**fields), f"a log line with {fields}")
        return found[0]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """End it by SIGTERM; see `ended`."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.ended()

    def ended(self) -> int:
        """Its exit code, once it has one; after PATIENCE it is killed."""
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        for reader in self._readers:
            reader.join(PATIENCE)
        self._state.cleanup()
        return code

    def everything(self) -> str:
        return "".join(self.out + self.err)


def _collect(stream: Any, lines: list[str]) -> None:
    with stream:
        for line in stream:
            lines.append(line)  # noqa: PERF402 (each line counts as soon as it is there)
