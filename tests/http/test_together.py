"""How many writes an answer takes, and that nothing of it is lost or out of order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from proxy.http.together import LARGE, Together


class Connection:
    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return name, default


@pytest.fixture
def connection() -> Connection:
    return Connection()


@pytest.fixture
def answer(connection: Connection) -> Together:
    cycle: Any = SimpleNamespace(response_started=True)
    seen: Any = connection
    return Together(cycle, seen)


def test_the_head_goes_with_the_first_piece(answer: Together, connection: Connection) -> None:
    answer.write(b"head ")
    assert connection.written == []
    answer.write(b"one")
    answer.write(b"two")
    answer.write(b"")
    assert connection.written == [b"head one", b"two", b""]


def test_a_large_piece_is_not_copied(answer: Together, connection: Connection) -> None:
    answer.write(b"head")
    answer.write(bytes(LARGE + 1))
    assert connection.written == [b"head", bytes(LARGE + 1)]


def test_what_comes_before_an_answer_goes_at_once(answer: Together, connection: Connection) -> None:
    answer._cycle.response_started = False
    answer.write(b"100")
    answer._cycle.response_started = True
    answer.write(b"head ")
    answer.write(b"body")
    assert connection.written == [b"100", b"head body"]


@pytest.mark.parametrize("end", [Together.flush, Together.close])
def test_a_head_alone_is_written_at_the_end(answer: Together, connection: Connection, end: Any) -> None:
    answer.write(b"head")
    end(answer)
    end(answer)
    assert connection.written == [b"head"]
    assert connection.closed == (end is Together.close)
    assert answer.is_closing() == connection.closed


def test_it_knows_what_the_connection_knows(answer: Together) -> None:
    assert answer.get_extra_info("peername", 7) == ("peername", 7)
