"""What a proxy still holds when the load is over, and until when that may be."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import Final

import msgspec

from bench.crowd import SLOTS, Crowd
from bench.load import once
from bench.soaked import Soaked
from bench.watch import Sample, ledger_size, look, told
from proxy.core.money import usd

SPARE_FILES, SPARE_TASKS = 4, 4
"""What may be left beyond what was there after each kind of client had come once. Connections to Redis are kept for
good, and there is a most of them."""

LOOK: Final = 0.5
"""Seconds between two looks."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds after the load within which all is given back; and within which connections to the upstream are closed
    that wait for the next call, which they do for 30 s."""

    all: float = 10.0
    idle: float = 35.0


PATIENCE: Final = Patience()


async def sample(proxy: Soaked, start: float) -> Sample:
    """A look, with what its metrics say first: that is a request of its own."""
    try:
        metrics = await proxy.metrics()
    except OSError:
        metrics = None  # a worker was killed at this moment
    processes = await asyncio.to_thread(look, proxy.process.pid, proxy.ports)
    return Sample(time.monotonic() - start, processes, told(metrics), ledger_size(proxy.state))


def leftovers(before: Sample, after: Sample) -> dict[str, str]:
    """What is there now and was not before, by what it is. No connection to the upstream should be."""
    found = {}
    if after.total("clients") > before.total("clients"):
        found["clients"] = f"clients: {after.total('clients')}, {before.total('clients')} before"
    files_before, files = (one.total("files") - one.total("others") for one in (before, after))
    if files > files_before + SPARE_FILES:
        found["files"] = f"files, without connections to Redis: {files}, {files_before} before"
    if open_ones := after.total("upstream"):
        found["upstream"] = f"connections to the upstream: {open_ones}"
    for what, spare in (("tasks", SPARE_TASKS), ("streams", 0), ("in use", 0)):
        was, now = before.told[what] or 0, after.told[what] or 0
        if now > was + spare:
            found[what] = f"{what}: {now:.0f}, {was:.0f} before"
    return found


async def reserved(proxy: Soaked) -> dict[str, str]:
    """The money that `soak` has reserved, which a request is told that is too dear. No request is under way."""
    dear = Crowd(proxy.routes, random.Random(0)).chat("good", n=64, max_tokens=100_000)
    refused = await once(proxy.routes["soak"], dear)
    error = msgspec.json.decode(refused.body or b"{}").get("error", {})
    right = refused.status == 429 and error.get("reserved") == usd(0)
    return {} if right else {"reserved": f"money is still reserved: {refused.brief()}"}


async def taken(proxy: Soaked) -> dict[str, str]:
    """The slots of `narrow` that nobody has and that are not free, by as many requests at once as it may have."""
    crowd = Crowd(proxy.routes, random.Random(0))
    at_once = [once(proxy.routes["narrow"], crowd.chat(f"good {at}", "narrow", stream=True)) for at in range(SLOTS)]
    statuses = [reply.status for reply in await asyncio.gather(*at_once)]
    right = statuses == [200] * SLOTS
    return {} if right else {"slots": f"of {SLOTS} that may run at once, answers were {statuses}"}


async def settle(proxy: Soaked, before: Sample, patience: Patience, start: float) -> tuple[Sample, list[str]]:
    """The proxy when it has given back all, and what it has not in time."""
    end = time.monotonic()
    while True:
        after = await sample(proxy, start)
        left = leftovers(before, after) | await reserved(proxy)
        waited = time.monotonic() - end
        only_idle = set(left) <= {"upstream", "files"} and not after.told["in use"]
        if not left or waited > (patience.idle if only_idle else patience.all):
            return after, [*left.values(), *(await taken(proxy)).values()]
        await asyncio.sleep(LOOK)
