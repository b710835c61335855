from __future__ import annotations

import asyncio
import fcntl
import gc
import io
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import data, logs
from proxy.core.redact import Redactor
from proxy.core.secret import Secret
from proxy.logs import FLUSH_AFTER, MOST_AT_ONCE, RETRY_AFTER, TROUBLE, FromLibraries, Writer, report_uncaught
from tests.programs import PATIENCE

REDACT = Redactor(data.read("redaction.yaml"), [Secret("sk-very-secret-key")], [])


def written(level: str = "info", format: str = "json", **fields: object) -> bytes:
    stream = io.BytesIO()
    Writer(stream, level="debug", format=format, now=lambda: 1_795_170_000.25)(level, "request", **fields)
    return stream.getvalue()


def test_a_json_line() -> None:
    assert json.loads(written(a=1, b=None, c="x")) == {
        "time": "2026-11-20T10:20:00.250Z", "level": "info", "event": "request", "a": 1, "b": None, "c": "x",
    }  # fmt: skip


def test_a_console_line() -> None:
    assert written(format="console", a=1, b=None, c="two words", d="word", e=True) == (
        b'10:20:00 info    request a=1 c="two words" d=word e=true\n'
    )


@given(st.text(), st.sampled_from(["json", "console"]))
def test_one_event_is_one_line_whatever_is_in_it(text: str, format: str) -> None:
    line = written(format=format, value=text)
    assert line.endswith(b"\n")
    assert len(line.splitlines()) == 1
    assert b"\x1b" not in line


@given(st.text())
def test_a_json_line_keeps_its_value(text: str) -> None:
    assert json.loads(written(value=text))["value"] == text


@pytest.mark.parametrize(("least", "seen"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_lines_below_the_level_are_not_made(least: str, seen: int) -> None:
    stream = io.BytesIO()
    log = Writer(stream, level=least)
    for level in ("debug", "info", "warning", "error"):
        log(level, "x")
    assert len(stream.getvalue().splitlines()) == seen


async def test_in_a_loop_lines_wait_for_each_other_and_none_is_lost() -> None:
    stream = io.BytesIO()
    log = Writer(stream)
    log("info", "one")
    log("info", "two")
    assert stream.getvalue() == b""
    log.flush()
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["one", "two"]


def test_a_line_is_whole_though_the_stream_takes_it_in_pieces() -> None:
    class Sip(io.BytesIO):
        def write(self, data: Any) -> int:
            return super().write(data[:7])

    stream = Sip()
    Writer(stream)("info", "x", text="y" * 100)
    assert json.loads(stream.getvalue())["text"] == "y" * 100


def test_a_closed_output_is_not_the_requests_fault() -> None:
    stream = io.BytesIO()
    stream.close()
    Writer(stream)("info", "x")


# A reader that does not read.


def stream(descriptor: int) -> BinaryIO:
    return open(descriptor, "wb", closefd=False)


class Pipe:
    """A pipe with little room. `stream()` is its writing end as a process inherits it: blocking, and shared."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        fcntl.fcntl(self.writing, fcntl.F_SETPIPE_SZ, 4096)
        os.set_blocking(self.reading, False)

    def stream(self) -> BinaryIO:
        return stream(self.writing)

    def read(self) -> bytes:
        """What is in it now."""
        with suppress(BlockingIOError):
            return os.read(self.reading, 1 << 20)
        return b""

    def drained(self, *logs: Writer) -> bytes:
        """What comes out of it when it is read, and they go on, until nothing more comes."""
        out = b""
        while got := self.read():
            out += got
            for log in logs:
                log.flush()
        return out


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    for end in (pipe.reading, pipe.writing):
        with suppress(OSError):
            os.close(end)


def events(out: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def numbers(out: bytes) -> list[int]:
    return [line["number"] for line in events(out)]


def test_no_line_waits_for_the_reader_and_none_is_lost(pipe: Pipe) -> None:
    log = Writer(pipe.stream())
    for number in range(500):
        log("info", "x", number=number)
    assert numbers(pipe.drained(log)) == list(range(500))


def test_what_we_inherited_stays_as_it_was(pipe: Pipe) -> None:
    Writer(pipe.stream())("info", "x")
    assert os.get_blocking(pipe.writing)


async def test_in_a_loop_it_is_tried_again_by_itself(pipe: Pipe) -> None:
    log = Writer(pipe.stream())
    for number in range(500):
        log("info", "x", number=number)
    log.flush()
    out = b""
    async with asyncio.timeout(PATIENCE):
        while out.count(b"\n") < 500:
            out += pipe.read()
            await asyncio.sleep(0.001)
    assert numbers(out) == list(range(500))


def test_too_many_lines_are_lost_and_counted(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MOST_LINES", 100)
    log = Writer(pipe.stream(), level="error", worker=1)
    for number in range(1000):
        log("error", "x", number=number)
    *told, last = events(pipe.drained(log))
    assert [line["number"] for line in told] == list(range(len(told)))
    assert len(told) > 100
    assert (last["event"], last["level"], last["worker"]) == ("log_lost", "error", 1)
    assert last["lines"] == 1000 - len(told)
    log("error", "x", number=1000)
    assert numbers(pipe.drained(log)) == [1000]


def test_too_many_bytes_are_lost_and_counted(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MOST_BYTES", 100_000)
    log = Writer(pipe.stream())
    for _ in range(50):
        log("info", "x", text="y" * 10_000)
    *told, last = events(pipe.drained(log))
    assert 10 <= len(told) <= 11
    assert last["lines"] == 50 - len(told)


def test_lines_are_lost_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not here one and there one, whenever there was room for one."""

    class Slow(io.BytesIO):
        room = 0

        def write(self, data: Any) -> int:
            if not self.room:
                raise BlockingIOError
            self.room -= 1
            return super().write(data)

    monkeypatch.setattr(logs, "MOST_LINES", 20)
    stream = Slow()
    log = Writer(stream)
    for number in range(100):
        stream.room += number % 10 == 0
        log("info", "x", number=number, text="y" * MOST_AT_ONCE)
    stream.room = 1000
    log.flush()
    *told, last = events(stream.getvalue())
    assert [line["number"] for line in told] == list(range(len(told)))
    assert last["lines"] == 100 - len(told)


def test_the_end_waits_for_the_reader(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    log, out = Writer(pipe.stream()), []
    monkeypatch.setattr("time.sleep", lambda _: out.append(pipe.read()))
    monkeypatch.setattr(logs, "LAST_ATTEMPT", PATIENCE)
    for number in range(500):
        log("info", "x", number=number)
    log.close()
    assert numbers(b"".join([*out, pipe.read()])) == list(range(500))


def test_the_end_does_not_wait_for_long(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LAST_ATTEMPT", 0.02)
    log = Writer(pipe.stream())
    for number in range(500):
        log("info", "x", number=number)
    log.close()


def test_a_pipe_that_nobody_reads_any_more_is_not_the_requests_fault(pipe: Pipe) -> None:
    log = Writer(pipe.stream())
    os.close(pipe.reading)
    for _ in range(3):
        log("info", "x")
    log.close()


def test_a_pipe_of_another_user_is_no_reason_to_wait(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it cannot be opened once more, each piece is only written when there is room for it."""

    def denied(*_: object) -> int:
        raise PermissionError

    with monkeypatch.context() as patched:
        patched.setattr("os.open", denied)
        log = Writer(pipe.stream())
    for number in range(100):
        log("info", "x", number=number, text="y" * 100 * number)
    assert numbers(pipe.drained(log)) == list(range(100))


def test_a_terminal_that_was_stopped_is_no_reason_to_wait() -> None:
    ours, theirs = os.openpty()
    os.set_blocking(ours, False)
    log = Writer(stream(theirs))
    for number in range(1000):
        log("info", "x", number=number)
    out = b""
    with suppress(BlockingIOError):
        while out.count(b"\n") < 1000:
            out += os.read(ours, 1 << 16)
            log.flush()
    os.close(ours)
    os.close(theirs)
    assert numbers(out) == list(range(1000))


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_socket_that_is_full_is_no_reason_to_wait() -> None:
    """As systemd gives us one."""
    near, far = socket.socketpair()
    with near, far:
        log = Writer(stream(near.fileno()))
        for number in range(9000):
            log("info", "x", number=number)
        out = b""
        while out.count(b"\n") < 9000:
            out += far.recv(1 << 20)
            log.flush()
        assert near.getblocking()
        assert numbers(out) == list(range(9000))


def test_a_file_has_room(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with file.open("ab") as stream:
        stream.write(b"the banner\n")
        stream.flush()
        for worker in (1, 2, 1):
            Writer(stream, worker=worker)("info", "x")
    banner, *lines = file.read_bytes().splitlines()
    assert banner == b"the banner"
    assert [json.loads(line)["worker"] for line in lines] == [1, 2, 1]


def test_long_lines_of_several_workers_do_not_mix_in_a_pipe(pipe: Pipe) -> None:
    workers = [Writer(pipe.stream(), worker=number) for number in range(4)]
    for round in range(20):
        for log in workers:
            log("info", "x", text="y" * 700 * round, number=round)
    lines = events(pipe.drained(*workers))
    for number in range(4):
        assert [line["number"] for line in lines if line["worker"] == number] == list(range(20))


def test_a_worker_that_ends_within_a_line_does_not_keep_the_others_from_writing(pipe: Pipe) -> None:
    one, other = Writer(pipe.stream()), Writer(pipe.stream())
    one("info", "x", text="y" * 10_000)
    other("info", "x", number=1)
    assert b"number" not in pipe.drained(other)
    os.close(one._write._descriptor)  # type: ignore[attr-defined]
    other.flush()
    assert pipe.read().endswith(b'"number":1}\n')


def test_a_line_whose_reader_went_away_does_not_keep_the_others_from_writing(pipe: Pipe) -> None:
    one, other = Writer(pipe.stream()), Writer(pipe.stream())
    one("info", "x", text="y" * 10_000)
    os.close(pipe.reading)
    one.flush()
    with pytest.raises(BrokenPipeError):
        other._write(b"x\n")


# The lines.


def test_level_and_format_may_change() -> None:
    stream = io.BytesIO()
    log = Writer(stream, now=lambda: 1_795_170_000.25)
    log("debug", "one")
    log.become("debug", "console")
    log("debug", "two", a=1)
    assert stream.getvalue() == b"10:20:00 debug   two a=1\n"


def test_fields_of_every_line() -> None:
    stream = io.BytesIO()
    Writer(stream, worker=3)("info", "x", a=1)
    line = json.loads(stream.getvalue())
    assert (line["worker"], line["a"]) == (3, 1)


async def test_what_a_pipe_would_not_take_at_once_is_written_in_whole_lines() -> None:
    pieces: list[bytes] = []

    class Pipe(io.BytesIO):
        def write(self, data: Any) -> int:
            pieces.append(bytes(data))
            return len(data)

    log = Writer(Pipe())
    for size in (10, 1500, 1500, 1500, 9000, 10):
        log("info", "x", text="y" * size)
    log.flush()
    assert [piece.count(b"\n") for piece in pieces] == [3, 1, 1, 1]
    assert all(piece.endswith(b"\n") for piece in pieces)
    assert sorted(map(len, pieces))[-2] <= MOST_AT_ONCE


def test_lines_of_libraries_are_redacted_and_have_no_traceback() -> None:
    stream = io.BytesIO()
    logger = logging.Logger("uvicorn.error")
    logger.addHandler(FromLibraries(Writer(stream), REDACT.text))
    try:
        raise ValueError("sk-very-secret-key in the exception")
    except ValueError:
        logger.exception("failed with %s", "sk-very-secret-key")
    line = json.loads(stream.getvalue())
    assert line["message"] == "failed with ***"
    assert line["kind"] == "ValueError"
    assert b"sk-very" not in stream.getvalue()


async def test_of_a_task_that_nobody_waited_for_the_text_of_its_exception_is_not_told() -> None:
    stream, loop = io.BytesIO(), asyncio.get_running_loop()
    log = Writer(stream)
    libraries = FromLibraries(log, REDACT.text)
    logging.getLogger().addHandler(libraries)
    before = loop.get_exception_handler()
    loop.set_exception_handler(None)  # to the log, as in a server

    async def failing() -> None:
        raise ValueError("a prompt")

    try:
        task = loop.create_task(failing())
        await asyncio.wait([task])
        del task
        gc.collect()
    finally:
        logging.getLogger().removeHandler(libraries)
        loop.set_exception_handler(before)
    log.flush()
    [line] = stream.getvalue().splitlines()
    assert json.loads(line)["message"] == "Task exception was never retrieved"
    assert json.loads(line)["place"].startswith("test_of_a_task_that_nobody_waited_for")
    assert b"a prompt" not in line


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_what_nobody_catches_in_a_thread_or_a_finalizer_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module, name in ((threading, "excepthook"), (sys, "unraisablehook")):
        monkeypatch.setattr(module, name, getattr(module, name))  # put back afterwards
    stream = io.BytesIO()
    log = Writer(stream)

    class Fails:
        def __call__(self) -> None:
            raise ValueError("a prompt")

        __del__ = __call__

    report_uncaught(log, asyncio.get_running_loop())
    thread = threading.Thread(target=Fails().__call__)
    thread.start()
    await asyncio.to_thread(thread.join)
    del thread
    gc.collect()
    await asyncio.sleep(0)
    log.flush()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["event"], line["kind"]) for line in lines] == [("unexpected", "ValueError")] * 2
    assert all("Fails.__call__" in line["place"] for line in lines)
    assert "a prompt" not in str(lines) + "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("trouble", "seconds"), [(BlockingIOError, RETRY_AFTER), (BrokenPipeError, TROUBLE), (OSError, TROUBLE)]
)
async def test_who_may_read_soon_is_tried_again_soon(
    monkeypatch: pytest.MonkeyPatch, trouble: type[OSError], seconds: float
) -> None:
    """A pipe that is full has room again in a moment; one that is closed stays closed."""

    class Stream(io.BytesIO):
        def write(self, data: Any) -> int:
            raise trouble

    waits: list[float] = []
    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", lambda wait, _: waits.append(wait))
    log = Writer(Stream())
    log("info", "one")
    log.flush()
    assert waits == [FLUSH_AFTER, seconds]
