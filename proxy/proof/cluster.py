"""Real processes: one simulated provider, and replicas of the proxy, each of one process or of several workers."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Final

import msgspec

STARTING = 30.0
"""Seconds that a process may take to answer, or to go over to another configuration."""

ENDING = 10.0
"""Seconds that it may take to end; then it is killed."""

_COMMAND: Final = (sys.executable, "-P", "-c", "from proxy.cli import main; main()")
"""The command that this is a part of, wherever it is installed."""

_KEPT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "PYTHONPATH", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""Variables that a process gets: others would be settings."""

_TELLING: Final = ("event", "kind", "reason", "signal", "code", "what")
"""Fields of a log line that say what has happened."""

_URL: Final = re.compile(rb"http://[\w.\[\]:]+:\d+")
_CHILDREN: Final = "/proc/{pid}/task/{pid}/children"


class CannotProve(Exception):
    """The text is one sentence that says why."""


class Process:
    """One command of ours, in a group of its own: a signal of the terminal is for us alone."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._said: deque[bytes] = deque(maxlen=50)
        self._events: dict[bytes, asyncio.Event] = {}
        self.errors: Counter[str] = Counter()
        self._readers = [asyncio.create_task(self._read_out()), asyncio.create_task(self._read_errors())]

    @classmethod
    async def start(cls, arguments: Sequence[str], environ: Mapping[str, str]) -> Process:
        """Raises CannotProve when it ends before it answers, or does not answer."""
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        pipe = asyncio.subprocess.PIPE
        process = cls(
            await asyncio.create_subprocess_exec(
                *_COMMAND, *arguments, env=kept | dict(environ), stdout=pipe, stderr=pipe, start_new_session=True
            )
        )
        try:
            async with asyncio.timeout(STARTING):
                process.url = await asyncio.shield(process._url)
        except BaseException as error:
            await process.stop()
            if isinstance(error, TimeoutError):
                raise CannotProve(f"mistral-proxy {arguments[0]} did not answer within {STARTING:g} s.") from None
            raise
        return process

    url: str
    """Where it answers."""

    @property
    def pid(self) -> int:
        return self._process.pid

    def expect(self, event: str) -> asyncio.Event:
        """Set when it logs this event from now on."""
        return self._events.setdefault(b'"event":"%b"' % event.encode(), asyncio.Event())

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    def workers(self) -> list[int]:
        """The processes that it has forked and that live."""
        try:
            return [int(pid) for pid in Path(_CHILDREN.format(pid=self.pid)).read_text().split()]
        except OSError:
            return []

    async def kill(self) -> None:
        """As `kill -9` of all its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        await self._process.wait()

    async def stop(self) -> None:
        """By SIGTERM, or if that is not enough by force."""
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(ENDING):
                await self._process.wait()
        except TimeoutError:
            pass
        finally:
            await self.kill()
            for reader in self._readers:
                reader.cancel()

    async def _read_out(self) -> None:
        assert self._process.stdout
        async for line in self._process.stdout:
            found = None if self._url.done() else _URL.search(line)
            if found:
                self._url.set_result(found[0].decode())
            self._hear(line)
        if not self._url.done():
            await self._process.wait()
            await asyncio.wait([self._readers[1]])
            self._url.set_exception(CannotProve(self._last_words()))

    def _hear(self, line: bytes) -> None:
        for mark, event in self._events.items():
            if mark in line:
                event.set()
        if b'"level":"error"' in line and b'"event":"request"' not in line:
            said = msgspec.json.decode(line)
            self.errors[" ".join(str(said[name]) for name in _TELLING if said.get(name))] += 1

    async def _read_errors(self) -> None:
        assert self._process.stderr
        async for line in self._process.stderr:
            self._said.append(line)

    def _last_words(self) -> str:
        said = b"".join(self._said).decode("utf-8", "replace").strip()
        return f"A process of the proof ended with {self._process.returncode}: {said or 'it said nothing'}"


class Replica:
    """One proxy, that is started again when it was killed as a whole. `file` is its configuration."""

    def __init__(self, file: Path, workers: int, environ: Mapping[str, str]) -> None:
        self._file = file
        self._workers = workers
        self._environ = environ
        self._process: Process | None = None
        self._up = asyncio.Event()
        self.kills = 0
        self.errors: Counter[str] = Counter()

    async def start(self) -> None:
        """Raises CannotProve."""
        self._process = await Process.start(("serve", "--config", str(self._file)), self._environ)
        self._process.errors = self.errors
        self._up.set()

    async def url(self) -> str:
        """Where it answers, once it does."""
        await self._up.wait()
        assert self._process
        return self._process.url

    async def kill_one(self, random: Random) -> None:
        """A worker that its supervisor will replace; or the whole of it, and it is started again."""
        assert self._process
        if self._workers > 1:
            workers = await asyncio.to_thread(self._process.workers)
            if workers:
                with suppress(ProcessLookupError):
                    os.kill(random.choice(workers), signal.SIGKILL)
                    self.kills += 1
            return
        self._up.clear()
        await self._process.kill()
        self.kills += 1
        await self.start()

    async def reconfigure(self, text: str) -> None:
        """Every one of its processes has this configuration when this returns. Raises CannotProve."""
        assert self._process
        done = self._process.expect("reloaded_everywhere" if self._workers > 1 else "reloaded")
        await asyncio.to_thread(replace, self._file, text)
        try:
            async with asyncio.timeout(STARTING):
                await done.wait()
        except TimeoutError:
            raise CannotProve(f"The proxy did not go over to another configuration within {STARTING:g} s.") from None

    async def stop(self) -> None:
        if self._process:
            await self._process.stop()


def replace(file: Path, text: str) -> None:
    """The file is never half of one."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)
