from __future__ import annotations

import io
import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import data
from proxy.core.redact import Redactor
from proxy.core.secret import Secret
from proxy.logs import MOST_AT_ONCE, FromLibraries, Writer

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
