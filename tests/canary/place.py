"""A proxy with every kind of secret that logs as much as it can, and all that comes out of it."""

from __future__ import annotations

import hashlib
import re
import signal
import socket
import sys
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

from proxy.core.entry import MAGIC
from tests.canary.armed import PLANTED
from tests.canary.cast import ALL, Cast
from tests.canary.table import Sink
from tests.e2e.upstream import url_of
from tests.postgres_server import PostgresServer
from tests.programs import Program, until
from tests.redis_server import RedisServer

ROOT = Path(__file__).parents[2]

CONFIG = """\
server:
  port: 0
  workers: {workers}
  drain: 5s
  admin_keys: ["${{CANARY_ADMIN}}"]
  key_pepper: "${{CANARY_PEPPER}}"
  trusted_proxies: ["127.0.0.1"]
store: {{url: "${{CANARY_STORE}}"}}
ledger: {{url: "${{CANARY_LEDGER}}"}}
providers:
  mistral:
    base_url: "{upstream}"
    api_keys: ["${{CANARY_PROVIDER}}"]
    transport: {transport}
    retry: {{max_attempts: 2, initial_delay: 1ms, max_delay: 1ms, budget: 100%}}
    circuit_breaker: {{failure_threshold: 1000000}}
    timeouts: {{connect: 2s, first_byte: 2s, idle: 2s}}
teams:
  red: {{keys: ["${{CANARY_RED}}"], log_content: true, quotas: {rules}}}
  blue: {{keys: ["sha256:{hashed}"], provider_keys: {{mistral: "${{CANARY_OWN}}"}}}}
  yellow: {{keys: ["file:{file}"], models: ["mistral-*", "codestral-*"]}}
  green: {{log_content: true, quotas: [requests: 1000000/day, {{tokens: 1000000000/day, per: key}}]}}
cache: {{mode: all}}
logging: {{level: debug, format: {format}, content: full}}
{tracing}"""

RULES = (
    "[requests: 1000000/day, tokens: 1000000000/day, spend: 1000 USD/day, concurrency: 100,"
    " {requests: 5/day, model: mistral-large-latest}]"
)

"""Whether there are traces to look at. What comes to the collector is looked at as soon as there are."""


class Found(NamedTuple):
    """Bytes that came out, where, and (of an answer, of a line with content) for whom."""

    sink: Sink
    owner: str | None
    data: bytes


class Page(NamedTuple):
    """What an admin may look at."""

    target: str
    sink: Sink
    method: str = "GET"


PAGES = (
    Page("/metrics", Sink.METRICS),
    Page("/admin/cache", Sink.ADMIN),
    Page("/admin/cache?team=red", Sink.ADMIN),
    Page("/admin/cache/verify", Sink.ADMIN, method="POST"),
    Page("/health", Sink.HEALTH),
    Page("/health/live", Sink.HEALTH),
    Page("/health/ready", Sink.HEALTH),
)


class Place:
    """`shared`: two workers with Redis and PostgreSQL, over http1; else one with SQLite, over httpx. `plants` are
    leaks (plants.py). Its `cast` is complete once it is made: one of its keys has been issued then."""

    def __init__(
        self,
        folder: Path,
        upstream: socket.socket,
        collector: str,
        *,
        shared: bool,
        plants: Sequence[str] = (),
        format: str = "json",
    ) -> None:
        self.folder, self.shared = folder, shared
        self.redis = RedisServer(**_REDIS) if shared else None
        self.postgres = PostgresServer() if shared else None
        self._said: list[Found] = []
        self._is_over = False
        (folder / "key").write_text(Cast("").senders[2].key.text + "\n")
        self.config = folder / "proxy.yaml"
        self._text = CONFIG.format(
            workers=2 if shared else 1,
            upstream=url_of(upstream),
            transport="http1" if shared or plants else "httpx",
            hashed=hashlib.sha256(Cast("").senders[1].key.text.encode()).hexdigest(),
            file=folder / "key",
            format=format,
            rules=RULES,
            tracing=f'tracing: {{otlp_endpoint: "{collector}"}}\n',
        )
        self.config.write_text(self._text)
        names = ("admin", "pepper", "provider", "own")
        self._env = {f"CANARY_{name.upper()}": ALL[name].text for name in names} | {
            "CANARY_RED": Cast("").senders[0].key.text,
            "CANARY_UNUSED": ALL["environment"].text,
            "CANARY_STORE": self._store(),
            "CANARY_LEDGER": self._ledger(),
            "XDG_STATE_HOME": str(folder / "state"),
            "PYTHONPATH": str(ROOT),
            PLANTED: "|".join(plants),
        }
        self.cast = Cast(self._issue(), shared=shared)
        command = (sys.executable, "-m", "tests.canary.armed")
        self.program = Program("serve", "--config", str(self.config), env=self._env, cwd=folder, command=command)
        self.url = self.program.url()
        self._monitor = _Monitor(self.redis.port) if self.redis else None

    def _store(self) -> str:
        return (
            f"redis://:{quote(ALL['redis'].text, safe='')}@127.0.0.1:{self.redis.port}/0" if self.redis else "memory://"
        )

    def _ledger(self) -> str:
        if self.postgres is None:
            return f"sqlite:///{self.folder}/state/ledger.db"
        with psycopg.connect(self.postgres.url(), autocommit=True) as server:
            password = sql.Literal(ALL["postgres"].text)
            server.execute(sql.SQL("CREATE ROLE canary LOGIN SUPERUSER PASSWORD {}").format(password))
        who = f"canary:{quote(ALL['postgres'].text, safe='')}"
        return re.sub("//.*@", f"//{who}@", self.postgres.url())

    def _issue(self) -> str:
        """A key of the team green; that alone is on the standard output of the command."""
        (self.folder / "state").mkdir(exist_ok=True)
        program = Program("keys", "new", "green", "--config", str(self.config), env=self._env, cwd=self.folder)
        assert program.ended() == 0, program.everything()
        self._said.append(Found(Sink.LOG, None, "".join(program.err).encode()))
        return "".join(program.out).strip()

    def commands(self) -> None:
        """What other commands print."""
        for arguments in (("keys", "list"), ("usage", "--by", "team,model,key"), ("check",)):
            program = Program(*arguments, "--config", str(self.config), env=self._env, cwd=self.folder)
            assert program.ended() == 0, program.everything()
            self._said.append(Found(Sink.COMMANDS, None, program.everything().encode()))

    def misconfigured(self) -> None:
        """A configuration that has a secret where it must not: a check and a reload refuse it, and do not repeat it."""
        literal = ALL["literal"].text
        wrong = self._text.replace('"${CANARY_RED}"', f'"{literal}"').replace(
            'url: "${CANARY_STORE}"', f'url: "redis://:{literal}@127.0.0.1/0"'
        )
        self.config.write_text(wrong.replace("drain: 5s", f'drain: "{literal}"'))
        program = Program("check", "--config", str(self.config), env=self._env, cwd=self.folder)
        assert program.ended() == 1
        self._said.append(Found(Sink.LOG, None, program.everything().encode()))
        self.program.signal(signal.SIGHUP)
        until(lambda: "reload_failed" in self.program.everything(), "the new configuration is refused")
        self.config.write_text(self._text)

    def lose_stores(self) -> None:
        """What follows happens without them."""
        if self.redis and self.postgres:
            self.redis.kill()
            self.postgres.kill()

    def kept(self) -> Iterator[Found]:
        """What is on disk and in the stores, and who is running. Before `lose_stores`."""
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                yield Found(Sink.PROCESS, None, f"{process.name()} {process.cmdline()}".encode())
        ours = {self.config, self.folder / "key"}
        for file in sorted(path for path in self.folder.rglob("*") if path.is_file() and path not in ours):
            yield Found(Sink.LEDGER, None, file.name.encode() + b" " + file.read_bytes())
        if self.postgres:
            yield Found(Sink.LEDGER, None, b"\n".join(_rows(self.postgres.url())))
        if self.redis and self._monitor:
            commands = [*self._monitor.commands(), *_appended(self.redis)]
            assert len(commands) > 100, "Redis was not listened to"
            for command in commands:
                yield from _split(command)

    def _processes(self) -> list[psutil.Process]:
        process = psutil.Process(self.program.process.pid)
        return [process, *process.children(recursive=True)]

    def stop(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        if self.program.process.poll() is None:
            self.program.stop()
        if self._monitor:
            self._monitor.close()
        if self.redis:
            self.redis.stop()
        if self.postgres:
            self.postgres.remove()

    def printed(self) -> Iterator[Found]:
        """To its end: after `stop`."""
        yield from self._said
        opted = {sender.name for sender in self.cast.senders if sender.opted}
        for line in self.program.out + self.program.err:
            team = _LINE_OF.match(line)
            owner = (team[1] or team[2]) if team else None
            is_theirs = owner in opted
            yield Found(Sink.CONTENT_LOG if is_theirs else Sink.LOG, owner if is_theirs else None, line.encode())


_LINE_OF = re.compile(
    r'{"time":"[^"]+","level":"\w+","event":"request","request_id":"[\w.-]+","trace_id":"\w+","team":"(\w+)",'
    r"|[\d:]{8} \w+ +request request_id=[\w.-]+ trace_id=\w+ team=(\w+) "
)
"""The line of a request, of either format, and its team."""

_REDIS = {
    "requirepass": ALL["redis"].text,
    "appendonly": "yes",
    "appendfsync": "no",
    "aof-use-rdb-preamble": "no",
    "auto-aof-rewrite-percentage": "0",
}


def _rows(url: str) -> Iterator[bytes]:
    """All rows of all tables of all schemas but PostgreSQL's own."""
    query = "SELECT table_schema, table_name FROM information_schema.tables WHERE table_schema NOT IN ({})"
    own = "'pg_catalog', 'information_schema'"
    with psycopg.connect(url) as server:
        for schema, name in server.execute(query.format(own).encode()).fetchall():
            table = sql.Identifier(schema, name)
            with server.cursor().copy(sql.SQL("COPY {} TO STDOUT").format(table)) as copy:
                yield from (bytes(row) for row in copy)


class _Monitor:
    """All that is said to a Redis, from now on."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.sendall(b"AUTH %b\r\nMONITOR\r\n" % ALL["redis"].text.encode())
        self._heard = bytearray()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        until(lambda: self._heard.count(b"+OK") == 2, "Redis lets us listen")

    def _listen(self) -> None:
        with suppress(OSError):
            while data := self._socket.recv(1 << 16):
                self._heard += data

    def commands(self) -> Iterator[list[bytes]]:
        for line in bytes(self._heard).split(b"\r\n"):
            yield [_unquoted(word) for word in re.findall(rb'"((?:[^"\\]|\\.)*)"', line)]

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()


def _unquoted(word: bytes) -> bytes:
    """As Redis writes what is not printable."""
    named = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b"}

    def plain(match: re.Match[bytes]) -> bytes:
        return bytes([int(match[1], 16)]) if match[1] else named.get(match[2], match[2])

    return re.sub(rb"\\(?:x([0-9a-f]{2})|(.))", plain, word)


def _appended(server: RedisServer) -> Iterator[list[bytes]]:
    """All that it has ever kept, as the commands that keep it."""
    folder = Path(server.command("CONFIG", "GET", "dir")["dir"])
    for file in sorted(folder.rglob("*.aof")):
        yield from _commands(file.read_bytes())


def _commands(data: bytes) -> Iterator[list[bytes]]:
    at = 0

    def line(mark: bytes) -> int:
        nonlocal at
        end = data.index(b"\r\n", at)
        assert data[at : at + 1] == mark
        number, at = int(data[at + 1 : end]), end + 2
        return number

    while at < len(data) and data.endswith(b"\r\n"):
        words = []
        for _ in range(line(b"*")):
            size = line(b"$")
            words.append(data[at : at + size])
            at += size + 2
        yield words


def _split(command: Sequence[bytes]) -> Iterator[Found]:
    is_message = command[:1] and command[0].upper() == b"PUBLISH"
    for at, word in enumerate(command):
        is_answer = word.startswith(MAGIC) or (is_message and at == 2)
        yield Found(Sink.CACHE if is_answer else Sink.REDIS, None, word)


def unpacked(headers: dict[str, str], body: bytes) -> bytes:
    """What was sent to a collector."""
    return zlib.decompress(body, wbits=31) if headers.get("content-encoding") == "gzip" else body
