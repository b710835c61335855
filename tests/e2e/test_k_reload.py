"""A changed configuration: in force as a whole or not at all, and no request notices."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.serving.plan import CannotStart, plan
from proxy.settings.load import SettingsError, Sources
from tests.conftest import OTHER_KEY, PROVIDER_KEY, TEAM_KEY
from tests.e2e.upstream import DONE, STREAM, Seen, completion, event, listener, upstream, url_of
from tests.e2e.wire import Answer, Connection, ask, chat, connect, request, soon
from tests.programs import COMMAND, PATIENCE, Program, until
from tests.upstream.scripted import Peer, Received, chunk

CONFIG = """\
server:
  port: 0
  drain: 60s
providers:
  mistral:
    base_url: {upstream}
    api_keys: ["${{PROVIDER_KEY}}"]
    transport: {transport}
    timeouts: {{connect: 30s, first_byte: 30s, idle: 30s}}
models:
  aliases: {{}}
teams:
  research:
    keys: ["${{TEAM_KEY}}"]
logging:
  level: info
"""


class Running:
    """A proxy of its own, its configuration, and its log from where the test has come to."""

    def __init__(self, folder: Path, upstream_url: str, transport: str) -> None:
        self.folder, self.file = folder, folder / "proxy.yaml"
        self.text = CONFIG.format(upstream=upstream_url, transport=transport)
        self.file.write_text(self.text)
        self.environ = {
            "PROVIDER_KEY": PROVIDER_KEY, "TEAM_KEY": TEAM_KEY, "OTHER_KEY": OTHER_KEY, "XDG_STATE_HOME": str(folder),
        }  # fmt: skip
        self.program = Program("serve", "--config", str(self.file), env=self.environ, cwd=folder)
        self.url = self.program.url()
        self._seen = 0

    def write(self, text: str) -> None:
        """Replace the file, whole at every moment."""
        aside = self.folder / "aside"
        aside.write_text(text)
        aside.replace(self.file)

    def hang_up(self) -> None:
        self.program.signal(signal.SIGHUP)

    async def ready(self) -> dict[str, Any]:
        return dict((await ask(self.url, request(target="/health/ready"))).json())

    async def generation(self, number: int) -> None:
        """Wait until it is in force."""
        async with asyncio.timeout(PATIENCE):
            while (found := (await self.ready())["generation"]) != number:
                assert found < number
                await asyncio.sleep(0.01)

    async def logged(self, *events: str) -> dict[str, Any]:
        """The next line of the log with one of these events."""
        async with asyncio.timeout(PATIENCE):
            while True:
                while self._seen < len(self.program.out):
                    line = self.program.out[self._seen]
                    self._seen += 1
                    if line.startswith("{") and (found := json.loads(line))["event"] in events:
                        return dict(found)
                await asyncio.sleep(0.005)


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a proxy of its own for one test."""
    started: list[Running] = []

    def start_one(upstream_url: str = "http://127.0.0.1:9", transport: str = "http1") -> Running:
        started.append(Running(tmp_path, upstream_url, transport))
        return started[-1]

    yield start_one
    for running in started:
        running.program.process.kill()
        running.program.stop()


async def answers(peer: Peer, received: Received) -> None:
    """An upstream that answers at once, as a stream if it is asked for one."""
    if b'"stream":true' in received.body:
        await peer.send(STREAM + chunk(event("Hello")) + chunk(event("", "stop")) + chunk(DONE) + chunk(b""))
    else:
        await peer.send(completion())


class Streams:
    """An upstream whose streams go on as the test says."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.closed = asyncio.Event()

    async def __call__(self, peer: Peer, received: Received) -> None:
        if b'"stream":true' not in received.body:
            await peer.send(completion())
            return
        await peer.send(STREAM + chunk(event("Hello")))
        self.peers.append(peer)
        await peer.gone()
        self.closed.set()


@asynccontextmanager
async def stream(running: Running, mark: str) -> AsyncIterator[Connection]:
    """A stream of which the client has the first event."""
    async with connect(running.url) as client:
        await client.send(chat(stream=True, headers={"x_request_id": mark}))
        assert (await client.head()).status == 200
        assert await client.chunk() == event("Hello")
        yield client


async def the_rest(peer: Peer, client: Connection) -> bytes:
    await peer.send(chunk(event("", "stop")) + chunk(DONE) + chunk(b""))
    received = b""
    while piece := await client.chunk():
        received += piece
    return received


# What changes, and what stays.


@pytest.mark.parametrize("transport", ["http1", "httpx"])
async def test_k2_a_request_ends_under_the_configuration_it_began_with(start: Start, transport: str) -> None:
    """A provider that is replaced: the stream goes on at the old one, whose connection ends with it."""
    before, after = Streams(), Streams()
    with listener() as first, listener() as second:
        async with upstream(first, before), upstream(second, after):
            running = start(url_of(first), transport)
            async with stream(running, "the-first") as old:
                running.write(running.text.replace(url_of(first), url_of(second)))
                await running.generation(2)
                async with stream(running, "the-second") as new:
                    assert (len(before.peers), len(after.peers)) == (1, 1)
                    assert await the_rest(before.peers[0], old) == event("", "stop") + DONE
                    await soon(before.closed.wait())
                    assert await the_rest(after.peers[0], new) == event("", "stop") + DONE
            lines = [await running.logged("request") for _ in range(2)]
    numbers = {line["request_id"]: line["generation"] for line in lines}
    assert numbers == {"the-first": 1, "the-second": 2}


async def test_k2_connections_to_the_provider_outlive_a_reload_of_something_else(start: Start) -> None:
    with listener() as held:
        async with upstream(held, answers) as seen:
            running = start(url_of(held))
            assert (await ask(running.url, chat())).status == 200
            running.write(running.text.replace("aliases: {}", "aliases: {house: mistral-small-latest}"))
            await running.generation(2)
            assert (await ask(running.url, chat(model="house"))).status == 200
            assert seen.connections == 1


async def test_k2_a_key_that_is_taken_away_opens_nothing_any_more(start: Start) -> None:
    with listener() as held:
        async with upstream(held, answers), connect((running := start(url_of(held))).url) as kept:
            await kept.send(chat())
            assert (await kept.answer()).status == 200
            running.write(running.text.replace("TEAM_KEY", "OTHER_KEY"))
            await running.generation(2)
            await kept.send(chat())  # the connection is no pass
            assert (await kept.answer()).status == 401
            answer = await ask(running.url, chat(headers={"authorization": f"Bearer {OTHER_KEY}"}))
            assert answer.status == 200


async def test_k2_the_log_follows(start: Start) -> None:
    running = start()
    running.write(running.text.replace("level: info", "level: debug"))
    await running.generation(2)
    assert (await running.logged("request"))["endpoint"] == "/health/ready"
    running.write(running.text.replace("level: info", "level: debug\n  format: console"))
    await asyncio.to_thread(until, lambda: _console(running), "a line of the other format")


def _console(running: Running) -> bool:
    return any(" info    reloaded generation=3 " in line for line in running.program.out)


async def test_what_needs_a_restart_is_said_and_the_rest_is_done(start: Start) -> None:
    running = start()
    running.write(running.text.replace("port: 0", "port: 1\n  max_body: 1KB"))
    await running.generation(2)
    assert (await running.logged("needs_restart"))["settings"] == "server.port"
    assert (await ask(running.url, chat("x" * 2000))).status == 413


# How a change is noticed.


async def test_k6_sighup_reloads_and_harms_nothing(start: Start) -> None:
    script = Streams()
    with listener() as held:
        async with upstream(held, script):
            running = start(url_of(held))
            async with stream(running, "over-three-signals") as client:
                running.hang_up()
                assert (await running.logged("reload_unchanged"))["generation"] == 1
                running.write(running.text.replace("drain: 60s", "drain: 50s"))
                running.hang_up()
                line = await running.logged("reloaded")
                assert (line["generation"], line["file"]) == (2, str(running.file))
                assert await running.ready() == {"status": "ready", "generation": 2, "config": line["config"]}
                assert await the_rest(script.peers[0], client) == event("", "stop") + DONE
    assert running.program.process.poll() is None


async def test_k6_a_closed_terminal_is_no_reload(tmp_path: Path) -> None:
    """The window is closed: who was started in it ends, as ever."""
    terminal, ours = os.openpty()
    in_it = ("sh", "-c", f'exec {COMMAND} "$@" < {os.ttyname(ours)}', "sh")
    options: dict[str, Any] = {"env": {"XDG_STATE_HOME": str(tmp_path)}, "cwd": tmp_path, "command": in_it}
    program = Program("serve", "--simulate", "--port", "0", **options)
    try:
        program.url()
        os.close(ours)
        program.signal(signal.SIGHUP)
        await asyncio.to_thread(_first, program, "reload_unchanged")
        os.close(terminal)
        program.signal(signal.SIGHUP)
        assert await asyncio.to_thread(program.process.wait, PATIENCE) in (143, -signal.SIGTERM)
    finally:
        program.process.kill()
        program.stop()


async def test_k6_without_a_file_there_is_nothing_to_reload(tmp_path: Path) -> None:
    program = Program("serve", "--simulate", "--port", "0", env={"XDG_STATE_HOME": str(tmp_path)}, cwd=tmp_path)
    try:
        url = program.url()
        ready = (await ask(url, request(target="/health/ready"))).json()
        assert ready == {"status": "ready", "generation": 1, "config": None}
        program.signal(signal.SIGHUP)
        line = await asyncio.to_thread(_first, program, "reload_unchanged")
        assert line["generation"] == 1
    finally:
        program.process.kill()
        program.stop()


def _first(program: Program, event: str) -> dict[str, Any]:
    return program.line(event=event)


async def test_a_simulated_proxy_keeps_its_simulator(tmp_path: Path) -> None:
    file = tmp_path / "proxy.yaml"
    file.write_text('server: {port: 0}\nteams: {research: {keys: ["${TEAM_KEY}"]}}')
    program = Program("serve", "--simulate", env={"TEAM_KEY": TEAM_KEY}, cwd=tmp_path)
    try:
        url = program.url()
        file.write_text(file.read_text() + "\nproviders: {mistral: {base_url: https://192.0.2.1, transport: httpx}}")
        line = await asyncio.to_thread(_first, program, "reloaded")
        assert line["generation"] == 2
        answer = await ask(url, chat())
        assert (answer.status, answer.header("x-proxy-simulated")) == (200, "true")
    finally:
        program.process.kill()
        program.stop()


async def test_a_touched_file_is_not_a_changed_one(start: Start) -> None:
    running = start()
    before = await running.ready()
    running.write(running.text)  # a file of its own, with the same in it
    os.utime(running.file)
    running.hang_up()
    await running.logged("reload_unchanged")
    assert await running.ready() == before
    running.write(running.text + "# a comment\n")
    assert (await running.logged("reloaded", "reload_unchanged"))["generation"] == 2
    assert (await running.ready())["config"] != before["config"]


async def test_a_new_secret_in_an_old_file_and_in_one_that_links_lead_to(start: Start, tmp_path: Path) -> None:
    """As somebody rotates a key by hand, and as Kubernetes does: a link to a folder that is swapped for another."""
    for name, key in (("one", TEAM_KEY), ("two", OTHER_KEY)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "key").write_text(key + "\n")
    (tmp_path / "data").symlink_to("one")
    (tmp_path / "key").symlink_to("data/key")
    with listener() as held:
        async with upstream(held, answers):
            running = start(url_of(held))
            running.write(running.text.replace('"${TEAM_KEY}"', f"file:{tmp_path}/key"))
            await running.generation(2)
            assert (await ask(running.url, chat())).status == 200
            (tmp_path / "new").symlink_to("two")
            (tmp_path / "new").replace(tmp_path / "data")
            await running.generation(3)
            assert (await ask(running.url, chat())).status == 401
            (tmp_path / "two" / "key").write_text(TEAM_KEY)
            await running.generation(4)
            assert (await ask(running.url, chat())).status == 200
            everything = running.program.everything()
    assert TEAM_KEY not in everything
    assert OTHER_KEY not in everything


# What is wrong with it.


@pytest.mark.parametrize(
    ("old", "new", "line", "path"),
    [
        ("drain: 60s", "drain: [", 5, None),
        ("drain: 60s", "drian: 60s", 3, "server.drian"),
        ("drain: 60s", "drain: sixty", 3, "server.drain"),
        ("  research:\n", "  research: {keys: ['${TEAM_KEY}']}\n  research:\n", 14, "teams.research"),
        ("${TEAM_KEY}", "${NOT_SET}", 14, "teams.research.keys[0]"),
        ('["${TEAM_KEY}"]', "[file:/nowhere]", 14, "teams.research.keys[0]"),
    ],
)
async def test_k1_a_broken_file_changes_nothing(start: Start, old: str, new: str, line: int, path: str | None) -> None:
    with listener() as held:
        async with upstream(held, answers):
            running = start(url_of(held))
            running.write(running.text.replace(old, new))
            failed = await running.logged("reload_failed")
            assert (failed["file"], failed["line"], failed["path"]) == (str(running.file), line, path)
            assert failed["level"] == "error"
            assert failed["what"]
            assert (await running.ready())["generation"] == 1
            assert (await ask(running.url, chat())).status == 200
            running.write(running.text)
            assert (await running.logged("reload_unchanged"))["generation"] == 1


async def test_k1_what_no_start_would_take_no_reload_takes(start: Start) -> None:
    running = start()
    for text in ("", "server: {drain: 1s}\n"):  # nothing at all; no key to pay with
        running.write(text)
        assert (await running.logged("reload_failed"))["file"] == str(running.file)
    running.file.unlink()
    assert (await running.logged("reload_failed"))["what"] == "cannot be read: No such file or directory"
    running.write(running.text)
    await running.logged("reload_unchanged")
    assert (await running.ready())["generation"] == 1


BREAKING = ["[", "]", "{", "}", ":", "'", '"', "\t", "&", "*", "!", "%", "@", "\0", "\x80", "- ", "x", "${", "\n", " "]
"""Pieces that seldom do a configuration good."""


class Mutations:
    """New contents of the file: every second one is broken."""

    def __init__(self, running: Running, seed: int) -> None:
        self._random = random.Random(seed)
        self._running = running

    def good(self, number: int) -> str:
        """One that differs from all others; every third one replaces the connections to the provider."""
        text = self._running.text.replace("drain: 60s", f"drain: {60 + number}s")
        if number % 3 == 0:
            text = text.replace("idle: 30s", f"idle: {30 + number}s")
        return text.replace("aliases: {}", f"aliases: {{house-{self._random.random()}: mistral-small-latest}}")

    def broken(self) -> tuple[bytes, list[tuple[Any, ...]]]:
        """One that is not taken, and what is wrong with it, as the loader says it to `check`."""
        while True:
            text = self._running.text
            for _ in range(self._random.choice((1, 1, 3))):
                at, cut = self._random.randrange(len(text)), self._random.choice((0, 0, 1, 8))
                text = text[:at] + self._random.choice(BREAKING) + text[at + cut :]
            data = text.encode("latin-1")
            if problems := self._problems(data):
                return data, problems

    def _problems(self, data: bytes) -> list[tuple[Any, ...]]:
        environ = self._running.environ
        try:
            plan(Sources(str(self._running.file), data, environ, {}), simulate=False)
        except SettingsError as error:
            return [(one.file, one.line, one.path or None, one.reason) for one in error.problems]
        except CannotStart as error:
            return [(str(self._running.file), None, None, str(error))]
        except KeyError:
            pass  # a secret file that nobody has
        return []


@asynccontextmanager
async def traffic(running: Running, clients: int = 3) -> AsyncIterator[list[Answer]]:
    """Clients that ask without a pause, each second request for a stream; yields their answers."""
    answers: list[Answer] = []

    async def client() -> None:
        async with connect(running.url) as connection:
            for count in range(1_000_000):
                await connection.send(chat(stream=count % 2 == 0))
                answers.append(await connection.answer())
                await asyncio.sleep(0.01)

    tasks = [asyncio.create_task(client()) for _ in range(clients)]
    try:
        yield answers
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [error for error in ended if not isinstance(error, asyncio.CancelledError)] == []


@pytest.mark.parametrize(("transport", "reloads", "seed"), [("http1", 130, 1), ("httpx", 70, 2)])
async def test_k1_reloads_under_load(start: Start, transport: str, reloads: int, seed: int) -> None:
    """Good and broken files in turn: no request fails, each good one is in force, each broken one is told by line."""
    with listener() as held:
        async with upstream(held, answers) as seen:
            running = start(url_of(held), transport)
            mutations, generation = Mutations(running, seed), 1
            async with traffic(running) as answered:
                for number in range(1, reloads + 1):
                    if number % 2:
                        generation += 1
                        running.write(mutations.good(number))
                        running.hang_up()
                        await running.generation(generation)
                    else:
                        await refused(running, *mutations.broken())
                        assert (await running.ready())["generation"] == generation
            assert len(answered) > reloads
            assert {answer.status for answer in answered} == {200}
            assert all(DONE in answer.body or answer.json()["choices"] for answer in answered)
            assert _calls(seen) >= len(answered)
    numbers = [line["generation"] for line in running.program.logged("reloaded")]
    assert numbers == list(range(2, generation + 1))
    assert not running.program.err


async def refused(running: Running, data: bytes, problems: list[tuple[Any, ...]]) -> None:
    """Write this file and wait for every line about it."""
    aside = running.folder / "aside"
    aside.write_bytes(data)
    aside.replace(running.file)
    running.hang_up()
    for problem in problems[:20]:
        line = await running.logged("reload_failed")
        assert (line["file"], line["line"], line["path"], line["what"]) == problem


def _calls(seen: Seen) -> int:
    return len(seen.requests)
