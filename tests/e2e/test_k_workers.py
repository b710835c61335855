"""Several workers: one address, one configuration, and no worker's end is anybody else's."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psutil
import pytest

from tests.conftest import PROVIDER_KEY, TEAM_KEY
from tests.e2e.test_k_drain import Script, frame
from tests.e2e.upstream import DONE, Seen, completion, event, listener, upstream, url_of
from tests.e2e.wire import Answer, Connection, ask, chat, connect, request, soon
from tests.programs import PATIENCE, Program, until
from tests.redis_server import RedisServer
from tests.upstream.scripted import Peer, Received

CONFIG = """\
server: {{port: 0, workers: {workers}, drain: {drain}}}
store: {{url: redis://nobody-connects-to-it}}
providers: {{mistral: {{base_url: "{upstream}", api_keys: ["${{PROVIDER_KEY}}"], transport: {transport}}}}}
teams: {{research: {{keys: ["${{TEAM_KEY}}"]}}}}
"""

FAULT = """\
import os, uvloop
from pathlib import Path

first, make = os.getpid(), uvloop.new_event_loop


def new_event_loop():
    if os.getpid() != first and Path("fault").exists():
        raise OSError("a secret")
    return make()


uvloop.new_event_loop = new_event_loop
"""
"""Imported by Python itself as it starts: a worker, and only a worker, cannot start while there is a file `fault`."""


class Running:
    """A proxy with workers, in front of an upstream that the test plays on `held`."""

    def __init__(self, folder: Path, held: socket.socket, workers: int, drain: str, transport: str) -> None:
        self.folder, self.held, self.file = folder, held, folder / "proxy.yaml"
        self.text = CONFIG.format(workers=workers, drain=drain, upstream=url_of(held), transport=transport)
        self.write(self.text)
        (folder / "sitecustomize.py").write_text(FAULT)
        keys = {"PROVIDER_KEY": PROVIDER_KEY, "TEAM_KEY": TEAM_KEY, "PYTHONPATH": str(folder)}
        self.program = Program("serve", env=keys, cwd=folder)
        self.pid = self.program.process.pid

    @property
    def url(self) -> str:
        return self.program.url()

    def write(self, text: str) -> None:
        aside = self.folder / "aside"
        aside.write_text(text)
        aside.replace(self.file)

    def pids(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.pid).children()]

    async def line(self, event: str, **fields: Any) -> dict[str, Any]:
        """The newest log line with these fields; waits for one."""
        found = await asyncio.to_thread(until, lambda: self.program.logged(event, **fields), f"{event} {fields}")
        return dict(found[-1])

    async def generations(self, count: int = 30) -> set[int]:
        """What /health/ready says, on so many connections at once, each a new one."""
        answers = await asyncio.gather(*(ask(self.url, request(target="/health/ready")) for _ in range(count)))
        return {answer.json()["generation"] for answer in answers}

    async def served_by(self) -> int:
        """The worker that has answered one more request."""
        mark = uuid4().hex
        assert (await ask(self.url, chat(headers={"x_request_id": mark}))).status == 200
        return int((await self.line("request", request_id=mark))["worker"])

    async def all_serve(self, workers: int = 2) -> None:
        seen: set[int] = set()
        async with asyncio.timeout(PATIENCE):
            while len(seen) < workers:
                seen.add(await self.served_by())
        assert seen == set(range(1, workers + 1))

    async def ends(self) -> int:
        """The exit code as a shell reports it."""
        code = await asyncio.to_thread(self.program.process.wait, PATIENCE)
        await asyncio.to_thread(self.program.stop)
        return code if code >= 0 else 128 - code


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Running] = []

    def start_one(workers: int = 2, drain: str = "60s", transport: str = "http1") -> Running:
        started.append(Running(tmp_path, held, workers, drain, transport))
        if not (tmp_path / "fault").exists():
            assert started[-1].url
        return started[-1]

    with listener() as held:
        yield start_one
        for one in started:
            if one.program.process.poll() is None:
                for pid in [*one.pids(), one.pid]:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            one.program.stop()


@asynccontextmanager
async def answering(one: Running) -> AsyncIterator[Seen]:
    """An upstream that answers everything."""

    async def reply(peer: Peer, received: Received) -> None:
        await peer.send(completion())

    async with upstream(one.held, reply) as seen:
        yield seen


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


# Life.


@pytest.mark.parametrize("workers", [2, 4])
async def test_every_worker_serves_and_there_is_one_banner(start: Start, workers: int) -> None:
    one = start(workers)
    async with answering(one):
        await one.all_serve(workers)
    assert len(one.pids()) == workers
    assert one.program.everything().count("mistral-proxy is ready on") == 1
    one.program.signal(signal.SIGTERM)
    assert await one.ends() == 143
    assert not one.program.err


async def test_lines_of_several_workers_do_not_mix(start: Start) -> None:
    one = start(4)
    async with answering(one):
        for _ in range(10):
            await asyncio.gather(*(ask(one.url, chat()) for _ in range(40)))
    one.program.signal(signal.SIGTERM)
    assert await one.ends() == 143
    lines = [line for line in one.program.out if '"event"' in line]
    assert len([line for line in map(json.loads, lines) if line["event"] == "request"]) == 400


@pytest.mark.parametrize("transport", ["http1", "httpx"])
async def test_k17_workers_share_the_listening_socket_and_no_other(start: Start, transport: str) -> None:
    """Each has connections of its own to the upstream; the supervisor has none, nor a thread that a fork would lose."""
    one = start(2, transport=transport)
    async with upstream(one.held, Script()), AsyncExitStack() as stack, asyncio.timeout(PATIENCE):
        port = one.held.getsockname()[1]
        while not all(port in connected(pid) for pid in one.pids()):
            client = await stack.enter_async_context(connect(one.url))
            await client.send(chat(stream=True))
            assert await client.head()
        owned = {pid: sockets(pid) for pid in [one.pid, *one.pids()]}
        assert not connected(one.pid)
    uses = Counter(inode for inodes in owned.values() for inode in inodes)
    assert [count for count in uses.values() if count > 1] == [3]
    assert psutil.Process(one.pid).num_threads() == 1


def connected(pid: int) -> list[int]:
    """The ports that a process is connected to."""
    return [found.raddr.port for found in psutil.Process(pid).net_connections("inet") if found.raddr]


def sockets(pid: int) -> set[str]:
    """The sockets of a process, as the kernel counts them."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(os.readlink(link))
    return {name for name in found if name.startswith("socket:")}


# K8 and K9: workers that die.


async def test_k8_a_killed_worker_is_replaced_while_the_others_serve(start: Start) -> None:
    """Again and again, under load: only what the killed one had in hand is lost."""
    one = start()
    supervisor = psutil.Process(one.pid)
    async with answering(one):
        await one.all_serve()
        open_files, over = supervisor.num_fds(), asyncio.Event()
        load = [asyncio.create_task(asked_again_and_again(one.url, over)) for _ in range(4)]
        for kill in range(6):
            victim = one.pids()[kill % 2]
            os.kill(victim, signal.SIGKILL)
            died = await one.line("worker_died", pid=victim, signal="SIGKILL")
            await one.served_by()
            await asyncio.to_thread(until, lambda: len(one.pids()) == 2, "a worker in its place")
            async with asyncio.timeout(PATIENCE):
                while await one.served_by() != died["worker"]:
                    pass
        over.set()
        answered, lost = map(sum, zip(*await asyncio.gather(*load), strict=True))
        await asyncio.to_thread(until, lambda: supervisor.num_fds() == open_files, "as many open files as before")
    assert answered > 100
    assert lost <= 6 * len(load)
    one.program.signal(signal.SIGTERM)
    assert await one.ends() == 143


async def asked_again_and_again(url: str, over: asyncio.Event) -> tuple[int, int]:
    """How many requests were answered, and how many got no answer."""
    answered = lost = 0
    while not over.is_set():
        try:
            assert (await ask(url, chat())).status == 200
            answered += 1
        except (ConnectionError, asyncio.IncompleteReadError):
            lost += 1
    return answered, lost


async def test_k9_workers_that_cannot_start_end_the_start(start: Start, tmp_path: Path) -> None:
    (tmp_path / "fault").touch()
    one = start()
    assert await one.ends() == 2
    assert "mistral-proxy: No worker could start: OSError at new_event_loop:" in "".join(one.program.err)
    assert "ready on" not in one.program.everything()
    assert "a secret" not in one.program.everything()
    assert len(one.program.logged("worker_died")) == 2


async def test_k9_a_crash_loop_backs_off_and_nobody_is_told_that_it_is_ready(start: Start, tmp_path: Path) -> None:
    one = start()
    url, pids = one.url, one.pids()
    (tmp_path / "fault").touch()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for worker in (1, 2):
        assert (await one.line("worker_died", worker=worker, next_in_s=1.6))["crash_loop"]
    answer = await ask(url, request(target="/health/ready"))
    assert (answer.status, answer.json()["error"]["code"]) == (503, "overloaded")
    waits = [line["next_in_s"] for line in one.program.logged("worker_died", worker=1)]
    assert waits[:5] == [0.1, 0.2, 0.4, 0.8, 1.6]
    (tmp_path / "fault").unlink()
    async with asyncio.timeout(PATIENCE):
        while (await ask(url, request(target="/health/ready"))).status != 200:
            pass
    async with answering(one):
        await one.all_serve()


# Reload.


async def test_a_reload_reaches_every_worker_as_one_generation(start: Start) -> None:
    one = start(4)
    async with answering(one):
        await one.all_serve(4)
        assert await one.generations() == {1}
        for generation in range(2, 6):
            one.write(f"{one.text}models: {{default: model-{generation}}}\n")
            await one.line("reloaded_everywhere", generation=generation, workers=4)
            assert await one.generations() == {generation}
    for worker in range(1, 5):
        await one.line("reloaded", worker=worker, generation=5)
        assert [line["generation"] for line in one.program.logged("reloaded", worker=worker)] == [2, 3, 4, 5]
    assert not one.program.logged("reload_failed")


async def test_k1_a_broken_reload_leaves_every_worker_as_it_is(start: Start) -> None:
    one = start(4)
    one.write(f"{one.text}nonsense: 1\n")
    line = await one.line("reload_failed")
    assert (line["file"], line["line"], line["path"]) == ("proxy.yaml", 5, "nonsense")
    one.program.signal(signal.SIGHUP)
    await asyncio.to_thread(until, lambda: len(one.program.logged("reload_failed")) == 2, "a second line")
    assert await one.generations() == {1}
    one.write(f"{one.text}models: {{default: mended}}\n")
    await one.line("reloaded_everywhere", generation=2)
    assert await one.generations() == {2}


async def test_k6_a_terminals_hang_up_is_one_reload(start: Start) -> None:
    """It reaches every process; only the supervisor acts on it."""
    one = start()
    for pid in [one.pid, *one.pids()]:
        os.kill(pid, signal.SIGHUP)
    await one.line("reload_unchanged", generation=1)
    assert await one.generations() == {1}
    assert len(one.program.logged("reload_unchanged")) == 1
    assert not one.program.logged("worker_died")


async def test_a_stopped_worker_holds_up_nobody_and_catches_up(start: Start) -> None:
    one = start()
    async with answering(one):
        await one.all_serve()
        stopped = one.pids()[0]
        os.kill(stopped, signal.SIGSTOP)
        for generation in (2, 3):
            one.write(f"{one.text}models: {{default: model-{generation}}}\n")
            await one.line("reloaded", generation=generation)
        assert not one.program.logged("reloaded_everywhere")
        os.kill(stopped, signal.SIGCONT)
        await one.line("reloaded_everywhere", generation=3)
        assert await one.generations() == {3}
        assert stopped in one.pids()


async def test_a_new_worker_begins_with_the_generation_of_the_others(start: Start) -> None:
    one = start()
    async with answering(one):
        one.write(f"{one.text}models: {{default: another}}\n")
        await one.line("reloaded_everywhere", generation=2)
        os.kill(one.pids()[0], signal.SIGKILL)
        await one.line("worker_died")
        await one.all_serve()
        assert await one.generations() == {2}


# The end.


@asynccontextmanager
async def streaming(one: Running, count: int = 1) -> AsyncIterator[tuple[list[Connection], Script]]:
    """Streams of which the clients have the first event."""
    script = Script()
    async with upstream(one.held, script), AsyncExitStack() as stack:
        clients = []
        for _ in range(count):
            clients.append(await stack.enter_async_context(connect(one.url)))
            await clients[-1].send(chat(stream=True))
            assert (await clients[-1].head()).status == 200
            assert await clients[-1].chunk() == event("Hello")
        yield clients, script


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
async def test_k5_streams_of_every_worker_end_in_peace(start: Start, number: signal.Signals, code: int) -> None:
    """Though the signal goes to every process, as systemd and terminals send it."""
    one = start()
    async with streaming(one, 12) as (clients, script):
        one.program.signal(number)
        await asyncio.to_thread(until, lambda: refused(one.url), "nobody new is let in")
        for pid in one.pids():
            os.kill(pid, number)
            os.kill(pid, signal.SIGINT)
        assert one.program.process.poll() is None
        script.release.set()
        for client in clients:
            rest = b""
            while piece := await client.chunk():
                rest += piece
            assert rest == event("", "stop") + DONE
        assert await one.ends() == code
    assert not one.program.err
    assert not one.program.logged("worker_died")


async def test_k7_a_second_signal_ends_every_worker_at_once(start: Start) -> None:
    one = start()
    async with streaming(one, 6) as (clients, _):
        one.program.signal(signal.SIGTERM)
        await asyncio.to_thread(until, lambda: refused(one.url), "nobody new is let in")
        one.program.signal(signal.SIGTERM)
        for client in clients:
            assert frame(await client.chunk())["code"] == "draining"
        assert await one.ends() == 143
    assert not one.program.err


async def test_k5_streams_that_outlast_the_drain_are_told(start: Start) -> None:
    one = start(drain="200ms")
    async with streaming(one, 6) as (clients, _):
        one.program.signal(signal.SIGTERM)
        for client in clients:
            assert frame(await client.chunk())["code"] == "draining"
        assert await one.ends() == 143
    assert not one.program.err


async def test_k7_without_their_supervisor_workers_drain_and_end(start: Start) -> None:
    """Nobody could tell them anything any more. What they have in hand is finished, and the port is free."""
    one = start()
    url = one.url
    async with streaming(one, 4) as (clients, script):
        pids = one.pids()
        one.program.process.kill()
        await asyncio.to_thread(until, lambda: refused(url), "nobody new is let in")
        script.release.set()
        for client in clients:
            assert (await client.chunk()) + (await client.chunk()) == event("", "stop") + DONE
        await asyncio.to_thread(until, lambda: all(map(gone, pids)), "the workers end")
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", urlsplit(url).port or 0))
        taken.listen()


def refused(url: str) -> bool:
    try:
        socket.create_connection(("127.0.0.1", urlsplit(url).port or 0)).close()
    except ConnectionRefusedError:
        return True
    return False


async def test_simulating_workers_simulate_each_by_itself(tmp_path: Path) -> None:
    redis = RedisServer()
    url = redis.url.reveal()
    (tmp_path / "proxy.yaml").write_text(f"server: {{port: 0, workers: 2}}\nstore: {{url: '{url}'}}\n")
    program = Program("serve", "--simulate", env={"XDG_STATE_HOME": str(tmp_path)}, cwd=tmp_path)
    try:
        url = program.url()
        key = next(line for line in program.out if line.startswith("export OPENAI_API_KEY=")).split("'")[1]
        answers: list[Answer] = await soon(
            asyncio.gather(*(ask(url, chat(headers={"authorization": f"Bearer {key}"})) for _ in range(20)))
        )
        assert {(answer.status, answer.header("x-proxy-simulated")) for answer in answers} == {(200, "true")}
    finally:
        assert program.stop() in (143, -signal.SIGTERM)
        redis.stop()


NO_NAMES = """\
import time, uvloop


class Loop(uvloop.Loop):
    async def getaddrinfo(self, *args, **options):
        print("looking up", flush=True)
        return await self.run_in_executor(None, time.sleep, 3600)


uvloop.new_event_loop = Loop
"""
"""As FAULT is: whoever looks up a name has a thread that no cancelling ends."""


@pytest.mark.parametrize("workers", [1, 2])
async def test_k7_the_end_waits_for_no_resolver(tmp_path: Path, workers: int) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_NAMES)
    text = CONFIG.format(workers=workers, drain="100ms", upstream="https://provider.invalid", transport="http1")
    (tmp_path / "proxy.yaml").write_text(text)
    keys = {"PROVIDER_KEY": PROVIDER_KEY, "TEAM_KEY": TEAM_KEY, "PYTHONPATH": str(tmp_path)}
    program = Program("serve", env=keys, cwd=tmp_path)
    try:
        url = await asyncio.to_thread(program.url)
        asked = asyncio.create_task(ask(url, chat()))
        await asyncio.to_thread(until, lambda: "looking up\n" in program.out, "the name is looked up")
        program.signal(signal.SIGINT)
        assert (await soon(asked)).error()["code"] == "draining"
        assert await asyncio.to_thread(program.ended) == 130
    finally:
        program.process.kill()
        program.stop()
    assert not program.logged("worker_died")
    assert not program.err
