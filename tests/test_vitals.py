"""What a worker says of itself, once a second and when it is asked."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from proxy import vitals
from proxy.core.circuit import Pass
from proxy.core.metrics import families
from proxy.core.metrics.board import UNKNOWN, Board
from proxy.core.metrics.families import Family
from proxy.generation import Process
from proxy.logs import Writer
from proxy.upstream.config import CircuitBreaker
from proxy.upstream.transport import Connections
from proxy.vitals import Vitals


class Upstream:
    def __init__(self, **keys: bool) -> None:
        self.keys = keys

    def usable_keys(self) -> list[tuple[str, bool]]:
        return list(self.keys.items())


class Setting:
    """A process, and the providers that it has now."""

    def __init__(self, board: Board | None = None, number: int = 1) -> None:
        self.now = 100.5
        self.log = Writer(io.BytesIO())
        self.process = Process(self.log, board=board or Board(), number=number, monotonic=lambda: self.now)
        self.upstreams: dict[str, Any] = {"mistral": Upstream(one=True, two=False)}
        self.connections = {"mistral": Connections(in_use=2, idle=3)}
        self.vitals = Vitals(self.process, lambda: self.upstreams, lambda: self.connections)

    def __call__(self, family: Family, *labels: str) -> int:
        part = self.process.part
        return part.cells[part.at(family, *labels)]

    def open_circuit(self, name: str) -> None:
        rules = CircuitBreaker.model_construct(failure_threshold=1, open_duration=30.0)
        self.process.circuits.failed(Pass(name), rules)


@asynccontextmanager
async def living(setting: Setting) -> AsyncIterator[Setting]:
    setting.vitals.start()
    try:
        yield setting
    finally:
        setting.vitals.close()


async def test_how_it_is() -> None:
    setting = Setting()
    setting.process.traffic.requests, setting.process.traffic.streams = 5, 2
    setting.process.ledger = SimpleNamespace(rows_waiting=7)
    async with living(setting):
        assert setting.process.part.last_beat == 101
        assert (setting(families.IN_FLIGHT), setting(families.STREAMS), setting(families.LEDGER)) == (5, 2, 7)
        assert setting(families.TASKS) == len(asyncio.all_tasks())
        assert [setting(families.UPSTREAM, "mistral", state) for state in ("in_use", "idle")] == [2, 3]
        assert [setting(families.KEYS, "mistral", key) for key in ("one", "two")] == [1, 0]
        assert setting(families.CIRCUIT, "mistral") == 0


async def test_without_a_ledger_nothing_waits_for_it() -> None:
    async with living(Setting()) as setting:
        assert setting(families.LEDGER) == 0


@pytest.mark.parametrize(
    ("circuits", "state"),
    [
        ([], 0),
        (["mistral/mistral-small-2603"], 2),
        (["mistral key"], 2),
        (["mistral key of research"], 2),
        (["openai/gpt-4o", "openai key", "mistral-two/m", "mistral-two key"], 0),
    ],
)
async def test_the_worst_circuit_of_a_provider_counts(circuits: list[str], state: int) -> None:
    setting = Setting()
    for name in circuits:
        setting.open_circuit(name)
    async with living(setting):
        assert setting(families.CIRCUIT, "mistral") == state


async def test_half_open_is_one() -> None:
    setting = Setting()
    setting.open_circuit("mistral/m")
    async with living(setting):
        setting.now += 31
        rules = CircuitBreaker.model_construct(half_open_max_requests=1, open_duration=30.0)
        await setting.process.circuits.enter("mistral/m", rules)
        setting.vitals.look()
        assert setting(families.CIRCUIT, "mistral") == 1


async def test_it_looks_again_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitals, "EVERY", 0.0)
    async with living(Setting()) as setting:
        setting.now, setting.process.traffic.streams = 200.0, 4
        for _ in range(3):
            await asyncio.sleep(0)
        assert (setting.process.part.last_beat, setting(families.STREAMS)) == (200, 4)


async def test_one_that_has_ended_is_not_alive_and_does_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitals, "EVERY", 0.0)
    async with living(Setting()) as setting:
        pass
    for _ in range(3):
        await asyncio.sleep(0)
    assert setting.process.part.last_beat == 0
    assert list(setting.process.board.alive(0)) == []


async def test_a_provider_that_a_reload_has_taken_away_is_not_told_any_more() -> None:
    async with living(Setting()) as setting:
        setting.open_circuit("mistral/m")
        setting.vitals.look()
        setting.upstreams = {"other": Upstream(one=True)}
        setting.connections = {"other": Connections(0, 0)}
        setting.vitals.look()
        gone = [
            setting(families.CIRCUIT, "mistral"), setting(families.KEYS, "mistral", "one"),
            setting(families.KEYS, "mistral", "two"), setting(families.UPSTREAM, "mistral", "idle"),
        ]  # fmt: skip
        assert gone == [UNKNOWN] * 4
        assert setting(families.KEYS, "other", "one") == 1


async def test_lines_that_the_process_before_has_lost_count_too() -> None:
    board = Board()
    for lost in (3, 2):
        setting = Setting(board)
        async with living(setting):
            for more in (lost - 1, 1):
                setting.log.lost += more
                setting.vitals.look()
                setting.vitals.look()
    assert setting(families.LOG_LOST) == 5


async def test_whoever_takes_the_place_of_a_dead_worker_counts_on() -> None:
    board = Board(2)
    first = Setting(board, number=2)
    first.upstreams = {"mistral": Upstream(gone=True)}
    first.vitals.start()  # and dies without a word
    first.process.part.add(families.COST, "research", "m", amount=5)
    async with living(Setting(board, number=2)) as second:
        second.process.part.add(families.COST, "research", "m", amount=7)
        assert second(families.COST, "research", "m") == 12
        assert second(families.KEYS, "mistral", "gone") == UNKNOWN
    first.vitals.close()


async def test_a_look_that_fails_is_not_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting()
    monkeypatch.setattr(setting.process.traffic, "streams", None)  # which is no number
    with pytest.raises(TypeError):
        setting.vitals.start()
    try:
        monkeypatch.undo()
        assert setting.vitals._timer
        assert not setting.vitals._timer.cancelled()
    finally:
        setting.vitals.close()
