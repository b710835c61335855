"""Whether anything grows: good and hostile traffic on both sides of one proxy for some minutes.

    python -m bench.soak [--minutes 3] [--seed 1]

It prints resident memory, open files and tasks of the proxy every few seconds, and at the end their slope over the
second half and what is left when everybody has gone. Exit code 1: a good request got a wrong answer, somebody else's
say, an error was an internal one, or files or tasks were left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import psutil
import uvloop

from bench.load import Route
from bench.measure import Cores, allow_open_files
from bench.targets import Place, Target, free_port, proxy, running
from bench.traffic import MODEL
from tests.fuzz import targets as fuzz
from tests.fuzz.mutate import mutated

PATIENCE = 30.0
"""Seconds after which an answer to a good request counts as missing."""
SAMPLE = 5.0
AT_ONCE = 24
"""Clients that come one after the other, each with whatever it is up to."""

TIMEOUTS = {"connect": "2s", "first_byte": "2s", "idle": "2s", "total": "10s"}
"""Short, as the upstream often leaves a request without an answer."""

SPARE_FILES, SPARE_TASKS = 40, 5
"""What may be left at the end beyond what was there at the beginning: kept upstream connections, for one."""


# --- the proxy, with its tasks counted


def watched() -> None:
    """The proxy's own command line, with the number of its tasks written to $SOAK_TASKS twice a second."""
    loops: list[asyncio.AbstractEventLoop] = []
    make = uvloop.new_event_loop

    def kept() -> uvloop.Loop:
        loop = make()
        loops.append(loop)
        return loop

    def count() -> None:
        while True:
            time.sleep(0.5)
            tasks = sum(len(asyncio.all_tasks(loop)) for loop in loops)
            Path(os.environ["SOAK_TASKS"]).write_text(str(tasks))

    uvloop.new_event_loop = kept
    threading.Thread(target=count, daemon=True).start()
    from proxy.cli import main

    main()


def _watched(target: Target) -> Target:
    config = target.log.with_name("proxy.yaml")
    settings = msgspec.yaml.decode(config.read_bytes())
    settings["providers"]["mistral"]["timeouts"] = TIMEOUTS
    config.write_bytes(msgspec.yaml.encode(settings))
    command = (sys.executable, "-c", "from bench.soak import watched; watched()", *target.command[1:])
    return replace(target, command=command, environment={**target.environment, "SOAK_TASKS": str(_tasks(target))})


def _tasks(target: Target) -> Path:
    return target.log.with_suffix(".tasks")


# --- the upstream: honest to who asks for it by name, else anything


def _completion(text: str) -> bytes:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return msgspec.json.encode(
        {"id": "a", "object": "chat.completion", "created": 1, "model": MODEL, "choices": [choice], "usage": usage}
    )


def _event(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    chunk = {"id": "a", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": [choice]}
    return b"data: %b\n\n" % msgspec.json.encode(chunk)


class Upstream:
    """Answers with the prompt when it begins with `good`; otherwise mostly with something broken."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._answers = [file.read_bytes() for file in fuzz.kept("answers")]
        self._streams = [file.read_bytes() for file in fuzz.kept("sse")]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._answer(reader, writer):
                pass
        except (OSError, RuntimeError, asyncio.IncompleteReadError):
            pass  # it has left, which uvloop tells a writer by a RuntimeError
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
        body = msgspec.json.decode(await reader.readexactly(int(length or b"2")))
        prompt = body["messages"][-1]["content"]
        if not prompt.startswith("good"):
            return await self._broken(writer)
        kept = b"connection: close" not in head
        if body.get("stream"):
            await self._stream(writer, prompt)
            return kept
        answer = _completion(prompt)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(answer))
        writer.write(answer)
        return kept

    async def _stream(self, writer: asyncio.StreamWriter, prompt: str) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        events = [*(_event(prompt[at]) for at in range(len(prompt))), _event("", "stop"), b"data: [DONE]\n\n"]
        for event in events:
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await writer.drain()
            await asyncio.sleep(0.005)
        writer.write(b"0\r\n\r\n")

    async def _broken(self, writer: asyncio.StreamWriter) -> bool:
        dice = self._dice
        if dice.random() < 0.5:
            answer = mutated(self._answers, dice)
        else:
            answer = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + mutated(self._streams, dice)
        writer.write(answer)
        await writer.drain()
        await asyncio.sleep(dice.choice((0, 0, 0.05, 0.5)))
        return dice.random() < 0.3


# --- the clients


@dataclass(slots=True)
class Clients:
    """What the traffic is made of; every method is one client from its connect to its leaving."""

    route: Route
    dice: random.Random
    seen: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _number: int = 0

    def kinds(self) -> list[Callable[[], Awaitable[None]]]:
        """Who comes how often."""
        often = [self.good, self.good_stream, self.good, self.good_stream]
        return [
            *often,
            self.leaves,
            self.leaves_a_stream,
            self.garbage,
            self.garbage,
            self.bad_body,
            self.slow,
            self.broken,
        ]

    async def good(self) -> None:
        self._number += 1
        prompt = f"good {self._number}"
        answer = await self._call(self._request(prompt))
        self._judge(b'"content":"%b"' % prompt.encode() in answer.replace(b": ", b":"), "answer", answer)

    async def good_stream(self) -> None:
        self._number += 1
        prompt = f"good {self._number}"
        answer = await self._call(self._request(prompt, stream=True))
        events = [line[6:] for line in answer.split(b"\n") if line.startswith(b"data: {")]
        said = "".join(msgspec.json.decode(event)["choices"][0]["delta"].get("content", "") for event in events)
        self._judge(said == prompt and b"data: [DONE]" in answer, "stream", answer)

    async def broken(self) -> None:
        answer = await self._call(self._request("broken", stream=self.dice.random() < 0.5))
        self._judge(answer.startswith(b"HTTP/1.1 ") and b"internal_error" not in answer, "broken upstream", answer)

    async def leaves(self) -> None:
        await self._leave(self._request(self.dice.choice(("good", "broken"))), self.dice.random() * 0.01)

    async def leaves_a_stream(self) -> None:
        await self._leave(self._request("good " + "x" * 50, stream=True), self.dice.random() * 0.3)

    async def garbage(self) -> None:
        await self._leave(mutated([file.read_bytes() for file in fuzz.kept("framing")], self.dice), 0.02)

    async def bad_body(self) -> None:
        body = mutated([file.read_bytes() for file in fuzz.kept("bodies")], self.dice)
        answer = await self._call(self._around(body))
        self._judge(answer.startswith(b"HTTP/1.1 ") and b"internal_error" not in answer, "bad body", answer)

    async def slow(self) -> None:
        request = self._request("good")
        await self._leave(request[: self.dice.randrange(len(request))], 2.0)

    def _request(self, prompt: str, stream: bool = False) -> bytes:
        messages = [{"role": "user", "content": prompt}]
        return self._around(msgspec.json.encode({"model": MODEL, "messages": messages, "stream": stream}))

    def _around(self, body: bytes) -> bytes:
        key = self.route.headers["authorization"]
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: {key}\r\nconnection: close\r\n"
        return f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body

    async def _call(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.route.port)
        try:
            writer.write(request)
            return await asyncio.wait_for(reader.read(-1), PATIENCE)
        except TimeoutError:
            return b"(no answer)"
        except OSError as error:
            return f"({type(error).__name__})".encode()
        finally:
            writer.close()

    async def _leave(self, data: bytes, after: float) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", self.route.port)
        writer.write(data)
        await asyncio.sleep(after)
        if self.dice.random() < 0.5:
            writer.transport.abort()
        writer.close()

    def _judge(self, right: bool, what: str, answer: bytes) -> None:
        self.seen[what] += 1
        if not right:
            self.wrong.append(f"{what}: {answer[:300]!r}")


# --- the run


@dataclass(frozen=True, slots=True)
class Sample:
    """A look at the proxy."""

    second: float
    rss: float
    """MB."""
    files: int
    tasks: int

    def __str__(self) -> str:
        return f"{self.second:6.0f} s  {self.rss:7.1f} MB  {self.files:5} files  {self.tasks:5} tasks"


def look(process: psutil.Process, tasks: Path, start: float) -> Sample:
    """What the proxy holds now."""
    memory, files = process.memory_info().rss / 1e6, process.num_fds()
    return Sample(time.monotonic() - start, memory, files, int(tasks.read_text() or 0))


def slope(samples: list[Sample], of: Callable[[Sample], float]) -> float:
    """Growth per hour of `of(sample)`, by least squares."""
    times = [sample.second / 3600 for sample in samples]
    values = [of(sample) for sample in samples]
    middle, mean = sum(times) / len(times), sum(values) / len(values)
    spread = sum((at - middle) ** 2 for at in times)
    return (
        sum((at - middle) * (value - mean) for at, value in zip(times, values, strict=True)) / spread if spread else 0.0
    )


async def _come_and_go(clients: Clients, end: float) -> None:
    kinds = clients.kinds()
    while time.monotonic() < end:
        try:
            await clients.dice.choice(kinds)()
        except OSError as error:  # a connect that was refused, or a reset before the leaving
            clients.seen[type(error).__name__] += 1


async def soak(minutes: float, seed: int, cores: Cores) -> int:
    """The whole run; returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        server = await asyncio.start_server(Upstream(random.Random(seed)).serve, "127.0.0.1", 0)
        place = Place(free_port(), server.sockets[0].getsockname()[1], Path(name), 1000)
        async with server, running(_watched(proxy(place)), cores.target) as up:
            await asyncio.sleep(1)
            return await _soak(up.target, psutil.Process(up.processes.pids[0]), minutes, seed)


async def _soak(target: Target, process: psutil.Process, minutes: float, seed: int) -> int:
    start, clients, samples = time.monotonic(), Clients(target.route, random.Random(seed)), list[Sample]()
    before = look(process, _tasks(target), start)
    print(before)
    end = start + minutes * 60
    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(_come_and_go(clients, end))
        while time.monotonic() < end:
            await asyncio.sleep(SAMPLE)
            samples.append(look(process, _tasks(target), start))
            print(samples[-1], flush=True)
    await asyncio.sleep(SAMPLE)
    after = look(process, _tasks(target), start)
    return _report(before, samples[len(samples) // 2 : -1] or samples, after, clients, target)


def _report(before: Sample, half: list[Sample], after: Sample, clients: Clients, target: Target) -> int:
    print(f"{after}  when all have gone\n")
    print(", ".join(f"{count:,} {what}" for what, count in sorted(clients.seen.items())))
    print(f"second half: {slope(half, lambda sample: sample.rss):+.1f} MB/h, ", end="")
    print(f"{slope(half, lambda sample: sample.files):+.0f} files/h")
    wrong = list(clients.wrong)
    if after.files > before.files + SPARE_FILES or after.tasks > before.tasks + SPARE_TASKS:
        wrong.append("files or tasks were left behind")
    log = target.log.read_text("utf-8", errors="replace").splitlines()
    wrong += [f"in the log: {line[:500]}" for line in log if "Traceback" in line or '"unexpected"' in line]
    for line in wrong[:20]:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    allow_open_files(4096)
    return uvloop.run(soak(options.minutes, options.seed, Cores.split()))


if __name__ == "__main__":
    sys.exit(main())
