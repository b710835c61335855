"""Sends secrets everywhere, and looks where they come out: `python -m tests.canary.run --requests 10000`."""

from __future__ import annotations

import argparse
import asyncio
import re
import secrets
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.canary.cast import ALL, UNKNOWN, Cast
from tests.canary.place import PAGES, Found, Place, unpacked
from tests.canary.plants import PLANTS
from tests.canary.replies import reply
from tests.canary.spelling import Finder, needles
from tests.canary.table import Canary, Sink
from tests.canary.traffic import Sent, traffic
from tests.e2e.upstream import Seen, listener, upstream, url_of
from tests.e2e.wire import Connection, ask, connect, request
from tests.upstream.scripted import Peer, Received, answer

AT_ONCE = 12
"""Connections, each of which is kept for as long as the proxy keeps it."""

FEW = 300
"""Requests that show any leak: each shape from each sender, and some that are at random."""

WITHOUT_STORES = 60
"""Requests of a run that are sent when Redis and PostgreSQL are gone."""


@dataclass(frozen=True)
class Sighting:
    """A canary where it must not be; `around` shows where."""

    canary: Canary
    sink: Sink
    owner: str | None
    around: bytes

    def __str__(self) -> str:
        whose = f" of {self.owner}" if self.owner else ""
        return f"{self.canary.name} ({self.canary.kind}) in {self.sink.name}{whose}: …{self.around!r}…"


@dataclass
class Outcome:
    """`statuses` of all answers; 0: there was none. `heard` are the bytes of each sink."""

    sightings: list[Sighting]
    statuses: Counter[int]
    heard: Counter[Sink]


def search(cast: Cast, everything: Iterable[Found]) -> tuple[list[Sighting], Counter[Sink]]:
    """What is where it must not be: of each canary and sink the first find."""
    canaries = {canary.name: canary for canary in cast.everything()}
    finder = Finder(needle for one in canaries.values() for needle in needles(one.text, one.name))
    found: dict[tuple[str, Sink], Sighting] = {}
    heard: Counter[Sink] = Counter()
    for sink, owner, data in everything:
        heard[sink] += len(data)
        for name, at in finder.find(data):
            canary = canaries[name]
            if not canary.may_be(sink, owner):
                around = data[max(at - 100, 0) : at + 60]
                found.setdefault((name, sink), Sighting(canary, sink, owner, around))
    return list(found.values()), heard


async def exercise(
    place: Place, seed: int, count: int, held: socket.socket, collecting: socket.socket, *, brief: bool
) -> Outcome:
    """`count` requests, then what an admin sees, what is kept, other commands and a bad configuration (unless it is to
    be `brief`), the last of the requests without the stores, the end."""
    statuses: Counter[int] = Counter()
    found: list[Found] = []
    sending = traffic(seed, count, place.cast)
    try:
        async with upstream(held, reply) as seen, upstream(collecting, _taking) as collected:
            before, last = count - WITHOUT_STORES, WITHOUT_STORES
            found += await _send(place.url, _some(sending, before), statuses)
            found += [record async for record in _records(place.url, found)]
            found += [page async for page in _pages(place.url)]
            if not brief:
                await asyncio.to_thread(place.commands)
                await asyncio.to_thread(place.misconfigured)
            found += await asyncio.to_thread(lambda: list(place.kept()))
            await asyncio.to_thread(place.lose_stores)
            found += await _send(place.url, _some(sending, last), statuses)
            await asyncio.to_thread(place.stop)
        found += _sent_on(seen)
        found += [
            Found(Sink.TRACES, None, unpacked({name.lower(): value for name, value in one.headers}, one.body))
            for one in collected.requests
        ]
    finally:
        await asyncio.to_thread(place.stop)
    found += place.printed()
    sightings, heard = await asyncio.to_thread(search, place.cast, found)
    return Outcome(sightings, statuses, heard)


def _some(sending: Iterator[Sent], count: int) -> Iterator[Sent]:
    for _, sent in zip(range(count), sending, strict=False):
        yield sent


async def _send(url: str, sending: Iterator[Sent], statuses: Counter[int]) -> list[Found]:
    """All of it, and what each sender was told."""
    found: list[Found] = []

    async def client() -> None:
        sent: Sent | None = None
        while True:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                async with connect(url) as connection:
                    while True:
                        sent = next(sending, None)
                        if sent is None:
                            return
                        told, status = bytearray(), [0]
                        try:
                            await connection.send(sent.data)
                            await _hear(connection, told, status)
                        finally:
                            statuses[status[0]] += 1
                            found.append(Found(Sink.ANSWER, sent.sender.name, bytes(told)))

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    return found


async def _hear(connection: Connection, told: bytearray, status: list[int]) -> None:
    """One answer, whole or not; its pieces are put together."""
    head = await connection.head()
    status[0] = head.status
    told += str(head.headers).encode("latin-1", "replace")
    if head.header("transfer-encoding") == "chunked":
        while piece := await connection.chunk():
            told += piece
    else:
        told += await connection.reader.readexactly(int(head.header("content-length") or 0))
    if head.header("connection") == "close":
        raise ConnectionResetError


REMEMBERED = 300
"""Requests of which an admin is told."""

_ID = re.compile(rb"'x-request-id', '([\w.-]+)'")


async def _records(url: str, answers: Sequence[Found]) -> AsyncIterator[Found]:
    """What became of some of those that were answered."""
    ids = [match[1].decode() for answer in answers if (match := _ID.search(answer.data))]
    for request_id in ids[:: max(1, len(ids) // REMEMBERED)]:
        target = f"/admin/explain/{request_id}"
        found = await ask(url, request("GET", target, authorization=f"Bearer {ALL['admin'].text}"))
        if found.status == 200:  # else the id is one that nobody can ask for, or its request was none
            yield Found(Sink.RECORD, None, found.body)


async def _pages(url: str) -> AsyncIterator[Found]:
    for page in PAGES:
        found = await ask(url, request(page.method, page.target, authorization=f"Bearer {ALL['admin'].text}"))
        assert found.status == 200, (page, found.status)
        yield Found(page.sink, None, str(found.headers).encode() + found.body)
        refused = await ask(url, request(page.method, page.target, authorization="Bearer none"))
        yield Found(Sink.ANSWER, UNKNOWN, str(refused.headers).encode() + refused.body)


def _sent_on(seen: Seen) -> Iterator[Found]:
    for one in seen.requests:
        yield Found(Sink.UPSTREAM_HEADERS, None, str(one.headers).encode())
        yield Found(Sink.UPSTREAM_BODY, None, one.line.encode() + b"\n" + one.body)


async def _taking(peer: Peer, received: Received) -> None:
    await peer.send(answer(b"{}"))


async def run(
    folder: Path, seed: int, count: int, *, shared: bool, plants: Sequence[str] = (), format: str = "json"
) -> Outcome:
    """One proxy from its start to its end."""
    with listener() as held, listener() as collecting:
        place = await asyncio.to_thread(
            lambda: Place(folder, held, url_of(collecting), shared=shared, plants=plants, format=format)
        )
        return await exercise(place, seed, count, held, collecting, brief=bool(plants))


def _ran(seed: int, count: int, *, shared: bool, plants: Sequence[str] = ()) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(run(Path(folder), seed, count, shared=shared, plants=plants))


def clean(seed: int, count: int) -> bool:
    """Whether nothing comes out, of either kind of deployment; tells what does."""
    sightings = 0
    for shared in (False, True):
        began = time.monotonic()
        outcome = _ran(seed, count // 2, shared=shared)
        print("two workers, Redis, PostgreSQL" if shared else "one process, SQLite")
        print(f"  {sum(outcome.statuses.values())} requests, {time.monotonic() - began:.0f} s")
        print("  " + ", ".join(f"{status}: {number}" for status, number in sorted(outcome.statuses.items())))
        print("  " + ", ".join(f"{sink.name}: {size:,} bytes" for sink, size in outcome.heard.items()))
        for one in outcome.sightings:
            print(f"  SEEN {one}")
        sightings += len(outcome.sightings)
    return not sightings


def found(seed: int) -> bool:
    """Whether each leak is found that is planted, one at a time."""
    missed = 0
    for name, plant in PLANTS.items():
        seen = _ran(seed, FEW, shared=plant.shared, plants=[name]).sightings
        where = [one for one in seen if plant.shows(one.canary, one.sink)]
        print(f"found: {name}: {where[0]}" if where else f"MISSED: {name}")
        missed += not where
    return not missed


def main() -> int:
    """0: nothing has come out; of --plants: everything was found."""
    parser = argparse.ArgumentParser(prog="tests.canary.run", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000, help="half of them to each kind of deployment")
    parser.add_argument("--seed", type=int, help="repeats a run")
    parser.add_argument("--plants", action="store_true", help="plant leaks instead, one at a time")
    options = parser.parse_args()
    seed = secrets.randbits(32) if options.seed is None else options.seed
    print(f"--seed {seed}")
    return not (found(seed) if options.plants else clean(seed, options.requests))


if __name__ == "__main__":
    sys.exit(main())
