"""The numbers of docs/reliability.md, read where they are decided."""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import NamedTuple

from proxy import guard, relay
from proxy.core import strict_json
from proxy.core.sse import Splitter
from proxy.http.framing import Limits
from proxy.providers import events
from proxy.providers.mistral import stream
from proxy.serving import server as serve
from proxy.settings.model import Settings
from proxy.stages.body import Pace
from proxy.upstream import client, pool

TESTS = Path(__file__).parents[1]


def size(count: int) -> str:
    """Bytes as people write them; `count` is a whole number of the unit."""
    for unit, length in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= length and count % length == 0:
            return f"{count // length} {unit}"
    return f"{count:,} bytes"


def limits() -> Iterator[tuple[str, str]]:
    """What is bounded, and how."""
    yield from _of_requests(Limits(), Settings())
    yield from _of_answers(Limits(), Settings())
    yield from _of_the_process(Settings())


def _of_requests(door: Limits, settings: Settings) -> Iterator[tuple[str, str]]:
    pace = Pace()
    yield "request line", size(door.request_line)
    yield "headers of a request", f"{size(door.header_block)}, {door.headers} headers"
    yield "chunk extensions, zeros before sizes and trailers of a body, all together", size(door.padding)
    yield "time for a whole head", f"{door.head:g} s"
    yield "requests that may wait behind one on a connection", f"{door.waiting}"
    yield "body (`server.max_body`)", size(settings.server.max_body)
    yield "time for the next byte of a body", f"{pace.idle:g} s"
    yield "speed of a body, on average", f"{size(int(pace.rate))} a second"
    yield "arrays and objects inside each other", f"{strict_json.DEEPEST}"
    yield "values in a body", f"{strict_json.MOST_VALUES:,}"
    keys = f"{strict_json.MOST_KEYS:,}, of {strict_json.LONGEST_KEYS:,} characters together"
    yield "keys at the top level of a body", keys
    yield "integers", f"below {strict_json.LARGEST:,} in magnitude; less where a field's range is"


def _of_answers(door: Limits, settings: Settings) -> Iterator[tuple[str, str]]:
    timeouts = settings.mistral.timeouts
    yield "time for the upstream (`timeouts`): connect", f"{timeouts.connect:g} s"
    yield "… first byte of its answer", f"{timeouts.first_byte:g} s"
    yield "… between two bytes", f"{timeouts.idle:g} s"
    yield "… everything", f"{timeouts.total:g} s"
    yield "an answer of the upstream that is no stream", size(client.MOST_JSON)
    yield "… one that refuses; beyond it only the status counts", size(client.MOST_REFUSAL)
    yield (
        "choices of a stream, unless `n` asks for more; tool calls of a choice",
        f"{events.MOST_CHOICES}; {stream.MOST_CALLS}",
    )
    yield "one event of a stream", size(signature(Splitter).parameters["limit"].default)
    yield "silence in a stream, until a comment keeps the connection open", f"{guard.SILENCE:g} s"
    yield "time for the upstream to end a stream after its last event", f"{relay.LINGER:g} s"
    yield "time for a client that reads nothing of what waits for it", f"{door.write_stall:g} s"
    yield "time for a client that goes on sending after its last answer", f"{door.linger:g} s"
    yield "socket buffer of a client's connection", size(door.send_buffer)


def _of_the_process(settings: Settings) -> Iterator[tuple[str, str]]:
    yield "idle time of a connection to the upstream", f"{pool.KEEP_IDLE:g} s"
    yield "idle time of a client's connection", f"{serve.KEEP_ALIVE} s"
    yield "time for open requests at SIGTERM (`server.drain`)", f"{settings.server.drain:g} s"


class Count(NamedTuple):
    """A number that stands in a test file, and what it counts. Several groups are added up."""

    file: str
    pattern: str
    what: str


COUNTS = (
    Count(
        "e2e/test_mutated_requests.py",
        r"^COUNT = ([\d_]+)$",
        "{} mutated requests, each with another one hidden in it: none makes a second request run",
    ),
    Count(
        "e2e/test_b_fuzzed.py",
        r"^COUNT = ([\d_]+)$",
        "{} mutated bodies: each is answered, or refused with an error of this proxy's, and memory does not grow",
    ),
    Count(
        "e2e/test_d_answers.py",
        r"^ROUNDS = (\d+)$",
        "{} bad answers of the upstream, mutations of good ones, and as many with bytes behind their end: "
        "none reaches another request",
    ),
    Count(
        "e2e/test_k_reload.py",
        r'\("http1", (\d+), 1\), \("httpx", (\d+), 2\)',
        "{} reloads under load, every other one of a broken file: no request fails",
    ),
    Count(
        "e2e/test_k_drain.py",
        r"^RESTARTS, AT_A_TIME, STREAMS = (\d+),",
        "{} restarts with open streams on each: none is cut before the drain's time",
    ),
    Count(
        "e2e/test_e_many_streams.py",
        r"^STREAMS = (\d+)$",
        "{} streams at once: each gets its own bytes, all of them",
    ),
    Count(
        "fuzz/test_corpus.py",
        r"^MUTATIONS = (\d+)$",
        "{} mutations of the kept inputs of each fuzz target, after the kept inputs themselves; "
        "`scripts/fuzz TARGET` goes on from there, guided by coverage",
    ),
)


def counts() -> Iterator[str]:
    """What the tests do many times."""
    for file, pattern, what in COUNTS:
        found = re.search(pattern, (TESTS / file).read_text("utf-8"), re.MULTILINE)
        assert found, f"{file} has no {pattern}"
        yield what.format(f"{sum(int(number) for number in found.groups()):,}")
