"""What became of the latest requests: found by whoever asks, and never made up of two."""

from __future__ import annotations

import asyncio
import os
import tracemalloc
from collections import deque
from mmap import mmap

from hypothesis import given
from hypothesis import strategies as st

from proxy.core import json
from proxy.core.json import Json
from proxy.core.records import KEPT, Records, Ring

NOW = 10 * KEPT


def record(request_id: str, ended: int = NOW, **more: object) -> Json:
    return {"request_id": request_id, "ended": ended, **more}


def line(one: Json) -> bytes:
    return json.encode(one) + b"\n"


async def found(records: Records, request_id: str) -> Json | None:
    return await records.find(request_id, lambda: NOW)


async def test_what_is_kept_is_found() -> None:
    records = Records()
    records.rings[0].keep(line(record("one", decision='cache=hit, "é\n"')))
    records.rings[0].keep(line(record("two")))
    assert await found(records, "one") == record("one", decision='cache=hit, "é\n"') | {"others": 0}
    assert await found(records, "two") == record("two") | {"others": 0}
    for unknown in ("on", "one1", "", '"', "three"):
        assert await found(records, unknown) is None


async def test_the_latest_of_several_workers_is_told() -> None:
    records = Records(3)
    for ring, ended in zip(records.rings, (NOW - 2, NOW, NOW - 1), strict=True):
        ring.keep(line(record("same", ended)))
    assert await found(records, "same") == record("same", NOW) | {"others": 2}


async def test_what_is_older_than_an_hour_is_forgotten() -> None:
    records = Records()
    records.rings[0].keep(line(record("old", NOW - KEPT - 1)))
    records.rings[0].keep(line(record("young", NOW - KEPT)))
    assert await found(records, "old") is None
    assert await found(records, "young")


async def test_a_text_that_looks_like_a_record_is_none() -> None:
    records = Records()
    records.rings[0].keep(line(record("real", path='{"request_id":"false","ended":99999999999999}')))
    records.rings[0].keep(line({"request_id": "other", "nested": record("false")}))
    assert await found(records, "false") is None


def test_another_process_finds_it_and_its_successor_goes_on() -> None:
    records = Records(2)
    pid = os.fork()
    if pid == 0:
        records.rings[1].keep(line(record("theirs")))
        os._exit(0)
    os.waitpid(pid, 0)
    assert asyncio.run(found(records, "theirs")) == record("theirs") | {"others": 0}
    records.rings[1].keep(line(record("next")))
    assert asyncio.run(found(records, "theirs"))
    assert asyncio.run(found(records, "next"))


@given(st.lists(st.integers(0, 700), min_size=1, max_size=60))
async def test_of_the_latest_as_many_are_found_as_there_is_room_for(sizes: list[int]) -> None:
    size = 2_048
    memory = mmap(-1, 3 * size)
    ring = Ring(memory, size, size)
    latest: deque[tuple[str, Json]] = deque()
    for number, length in enumerate(sizes):
        one = record(f"r{number}", text="x" * length)
        ring.keep(line(one))
        latest.append((f"r{number}", one))
    room = 0
    while latest:
        name, one = latest.pop()
        room += len(str(one)) + 8
        seen = [line async for line in ring.find(b'"request_id":"%b"' % name.encode())]
        assert seen == [one] or (not seen and room > size // 3)
        if not seen:
            break
    assert memory[:size] == bytes(size)
    assert memory[2 * size :] == bytes(size)


async def test_what_is_larger_than_any_line_is_not_kept() -> None:
    records = Records()
    records.rings[0].keep(line(record("large", text="x" * (1 << 16))))
    assert await found(records, "large") is None


async def test_an_id_that_comes_again_and_again_takes_no_memory() -> None:
    records = Records()
    for number in range(20_000):
        records.rings[0].keep(line(record("same", NOW + number, decision="x" * 300)))
    tracemalloc.start()
    try:
        assert await found(records, "same") == record("same", NOW + 19_999, decision="x" * 300) | {"others": 19_999}
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


async def test_a_line_that_has_lost_its_end_is_passed_over() -> None:
    size = 1 << 12
    ring = Records(size=size).rings[0]
    torn = line(record("torn"))[:-1]
    ring.keep(torn + b" " * (size - 16 - len(torn)))  # JSON as far as there is any
    assert [one async for one in ring.find(b'"request_id":"torn"')] == []
