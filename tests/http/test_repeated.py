"""A head that came before is not read again, and nothing comes of it that would not have come of reading it."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core import access, cache_control
from proxy.core.head import EXTENSION, Head
from proxy.http.protocol import Protocol
from proxy.http.repeated import LARGEST, VARYING, remembered
from proxy.stages import body as body_stage
from proxy.stages import recall
from tests.fuzz.framing import App, connection, settled
from tests.fuzz.requests import BYTES, LINES, attacks

HEAD = b"POST /v1/x?a=1 HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nAccept: */*\r\n\r\n"


def asking(body: bytes, head: bytes = HEAD) -> bytes:
    return head % len(body) + body


class Client:
    """One connection. `reads` are the segments that were given to the parser."""

    def __init__(self, *, remembers: bool = True) -> None:
        self.app = App()
        self.protocol, self.wire = connection(self.app, Protocol.bounded(Protocol.limits, lambda *refused: None))
        if not remembers:
            self.protocol._tries = 0
        self.reads: list[bytes] = []
        read = self.protocol._read

        def noting(data: bytes) -> None:
            self.reads.append(data)
            read(data)

        self.protocol._read = noting  # type: ignore[method-assign]

    async def send(self, *segments: bytes) -> Client:
        for segment in segments:
            if not self.wire.closed:
                self.protocol.data_received(segment)
                await settled(self.protocol)
        return self

    @property
    def outcome(self) -> tuple[Any, ...]:
        """All that came of it."""
        scopes = [
            {name: value for name, value in scope.items() if name not in ("extensions", "state")} | {"headers": None}
            for scope in self.app.begun
        ]
        headers = [tuple(scope["headers"]) for scope in self.app.begun]
        heads = [scope["extensions"][EXTENSION].headers for scope in self.app.begun]
        over = self.wire.closed or self.wire.half_closed
        return scopes, headers, heads, self.app.served, self.app.left, self.wire.statuses(), over


async def compared(*segments: bytes) -> tuple[Any, ...]:
    """What comes of them, which is the same whether heads are remembered or not."""
    remembering = (await Client().send(*segments)).outcome
    assert remembering == (await Client(remembers=False).send(*segments)).outcome
    return remembering


async def test_the_third_of_three_is_not_read() -> None:
    """Of a connection that is used once nothing is remembered."""
    client = await Client().send(asking(b"one"), asking(b"three"), asking(b"fourteen bytes"), asking(b"5"))
    assert client.reads == [asking(b"one"), asking(b"three")]
    assert [body for _, _, body in client.app.served] == [b"one", b"three", b"fourteen bytes", b"5"]
    lengths = [dict(scope["headers"])[b"content-length"] for scope in client.app.begun]
    assert lengths == [b"3", b"5", b"14", b"1"]
    assert client.wire.statuses() == [200] * 4


TRACED = HEAD.replace(b"Host: a", b"X-Request-ID: %b\r\nHost: a\r\nTraceParent: %b")
TRACES = [b"00-%032x-00f067aa0ba902b7-01" % number for number in (1, 2, 3)]


async def test_what_names_one_request_may_be_another() -> None:
    asked = [TRACED % (name, trace, 2) + b"{}" for name, trace in zip((b"a", b"a-b.c_d", b"9"), TRACES, strict=True)]
    client = await Client().send(asked[0], *asked, ONE)
    assert client.reads == [asked[0]] * 2 + [ONE]
    found = [dict(scope["headers"]) for scope in client.app.begun[1:4]]
    assert [(one[b"x-request-id"], one[b"traceparent"]) for one in found] == [
        (b"a", TRACES[0]), (b"a-b.c_d", TRACES[1]), (b"9", TRACES[2])
    ]  # fmt: skip
    assert [scope["extensions"][EXTENSION].headers for scope in client.app.begun] == [
        tuple(scope["headers"]) for scope in client.app.begun
    ]
    await compared(asked[0], *asked, ONE, *asked)


@pytest.mark.parametrize(
    ("name", "trace"),
    [
        (b"a b", TRACES[0]), (b"", TRACES[0]), (b"a\r\nx: y", TRACES[0]), (b"a" * 129, TRACES[0]), (b"a", b""),
        (b"a", TRACES[0].upper() + b"A"), (b"a", TRACES[0] + b"0"), (b"a", TRACES[0][1:]), (b"a\0", TRACES[0]),
        (b"a", TRACES[0] + b"\r\ntraceparent: " + TRACES[1]), (b"a ", TRACES[0]), (b"a", b" " + TRACES[0] + b"\t"),
    ],
)  # fmt: skip
async def test_other_names_are_read(name: bytes, trace: bytes) -> None:
    plain, data = TRACED % (b"a", TRACES[0], 2) + b"{}", TRACED % (name, trace, 2) + b"{}"
    client = await Client().send(plain, plain, data)
    assert client.reads == [plain, plain, data]
    await compared(plain, plain, data, data, plain)


def test_no_stage_keeps_what_it_reads_of_what_varies() -> None:
    """As they are: each is asked with and without these headers."""
    plain = [(b"host", b"a"), (b"content-type", b"application/json"), (b"authorization", b"Bearer x")]
    for read in (access.bearer, cache_control.wishes, recall._said_aside, body_stage._check_kind):
        assert read(Head(plain)) == read(Head([*plain, *((name, b"1") for name in VARYING)]))


async def test_each_request_has_a_scope_of_its_own() -> None:
    client = Client()
    for body in (b"1", b"2", b"3", b"4"):
        await client.send(asking(body))
        client.app.begun[-1]["mine"] = body
    assert [scope.get("mine") for scope in client.app.begun] == [b"1", b"2", b"3", b"4"]
    third, fourth = client.app.begun[2:]
    assert third["state"] is not fourth["state"]
    assert third["extensions"][EXTENSION] is fourth["extensions"][EXTENSION]


ONE, OTHER = asking(b"{}"), asking(b"{}", HEAD.replace(b"Accept", b"Accepted"))

READ = {
    "another head": OTHER,
    "another name in capitals": ONE.replace(b"Host", b"HOST"),
    "a half": ONE[:-1],
    "a half of the head": ONE[:40],
    "two at once": ONE + ONE,
    "one and a half": ONE + ONE[:5],
    "an empty line before it": b"\r\n" + ONE,
    "a length with a sign": ONE.replace(b": 2", b": +2"),
    "a length with a space in it": ONE.replace(b": 2", b": 2 "),
    "a length in hexadecimal": ONE.replace(b": 2", b": 0x2"),
    "no length": ONE.replace(b": 2", b": "),
    "a length of many digits": ONE.replace(b": 2", b": 00000000002"),
    "two lengths": ONE.replace(b": 2", b": 2\r\nContent-Length: 2"),
    "a line feed for an end": ONE.replace(b": 2\r\n", b": 2\n"),
    "less than it says": asking(b"{}{}")[:-1],
    "more than it says": asking(b"{}") + b"{",
    "superscript digits": ONE.replace(b": 2", ": ²".encode("latin-1")),
}


@pytest.mark.parametrize("data", READ.values(), ids=READ)
async def test_what_is_not_the_same_is_read(data: bytes) -> None:
    client = await Client().send(ONE, ONE, ONE, data)
    assert client.reads == [ONE, ONE, data]
    await compared(ONE, ONE, ONE, data, ONE, ONE)


NEVER = {
    "it waits for a word": b"Expect: 100-continue",
    "it ends the connection": b"Connection: close",
    "it is large": b"X: " + b"y" * LARGEST,
}


@pytest.mark.parametrize("line", NEVER.values(), ids=NEVER)
async def test_some_heads_are_never_remembered(line: bytes) -> None:
    data = asking(b"{}", HEAD.replace(b"Accept: */*", line))
    client = await Client().send(data, data, data)
    assert client.reads == ([data] if b"close" in line else [data] * 3)
    await compared(data, data, data)


async def test_an_offer_is_declined_once() -> None:
    """The HTTP client of Java's own library makes it with every request."""
    data = asking(b"{}", HEAD.replace(b"Accept: */*", b"Connection: upgrade\r\nUpgrade: h2c"))
    assert (await Client().send(data, data, data)).reads == [data] * 2
    await compared(data, data, data)


async def test_a_body_in_chunks_is_read_each_time() -> None:
    data = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    assert (await Client().send(data, data, data)).reads == [data] * 3


async def test_a_length_within_a_body_is_none() -> None:
    """What looks like the end of a head may be what its body says."""
    body = b"\r\ncontent-length: 2\r\n\r\n{}"
    data = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    await compared(data, data + body, data, data + body)
    await compared(asking(body), asking(body), asking(body), asking(body[:-2] + b"[]"))


async def test_a_large_body_is_taken_as_well() -> None:
    data = asking(b"x" * 300_000)
    client = await Client().send(ONE, ONE, data)
    assert client.reads == [ONE, ONE]
    assert len(client.app.served[-1][2]) == 300_000


async def test_who_never_repeats_a_head_is_not_watched_for_ever() -> None:
    different = [asking(b"{}", HEAD.replace(b"*/*", b"%d" % number)) for number in range(8)]
    client = await Client().send(*different, different[-1], different[-1])
    assert client.reads == [*different, *different[-1:] * 2]


async def test_while_one_is_answered_the_next_one_waits() -> None:
    client = await Client().send(ONE, ONE)
    client.app.go_on.clear()
    await client.send(ONE, OTHER, ONE)
    assert client.reads == [ONE, ONE, OTHER, ONE]
    assert len(client.app.begun) == 3
    client.app.go_on.set()
    await settled(client.protocol)
    assert client.wire.statuses() == [200] * 5


@pytest.mark.parametrize("why", ["_reusable", "_late"])
async def test_where_there_is_more_to_look_at_it_is_read(why: str) -> None:
    """What was read last allows no other request; or whether there is room for one has to be asked."""
    client = await Client().send(ONE, ONE)
    setattr(client.protocol, why, why == "_late")
    await client.send(ONE)
    assert client.reads == [ONE] * 3


async def test_nothing_of_a_request_stays_with_its_connection() -> None:
    """Neither of one that was read nor of one that was not: the next one may be a long time in coming."""
    client = await Client().send(ONE, ONE, ONE)
    scopes = client.app.begun
    for scope in scopes:
        scope["of this request"] = scope
    kept = gc.get_referrers(*scopes)
    assert [one for one in kept if one is not scopes and one not in scopes] == []


async def test_a_head_in_a_traceback_tells_nothing() -> None:
    head = HEAD.replace(b"Accept: */*", b"Authorization: Bearer sk-secret")
    client = await Client().send(asking(b"{}", head), asking(b"{}", head))
    assert client.protocol._repeated
    assert "sk-secret" not in repr(client.protocol._repeated)


async def test_who_asks_again_is_not_idle() -> None:
    client = await Client().send(ONE, ONE)
    client.app.go_on.clear()
    await client.send(ONE)
    assert client.protocol.crowd.tires_of(float("inf")) is None
    assert not client.wire.closed


SCOPE: dict[str, Any] = {
    "method": "POST",
    "raw_path": b"/v1/x",
    "query_string": b"a=1",
    "headers": [(b"host", b"a"), (b"content-length", b"2"), (b"accept", b"*/*")],
}

OTHERS: dict[str, tuple[bytes, dict[str, Any]]] = {
    "another method": (ONE, {"method": "PUT"}),
    "another target": (ONE, {"query_string": b""}),
    "another version": (ONE.replace(b"HTTP/1.1", b"HTTP/1.0"), {}),
    "two lengths": (ONE, {"headers": [*SCOPE["headers"], (b"content-length", b"2")]}),
    "more than one request": (ONE + b"x", {}),
    "less than one": (ONE[:-1], {}),
    "an empty line before it": (b"\r\n" + ONE, {}),
}


@pytest.mark.parametrize(("data", "other"), OTHERS.values(), ids=OTHERS)
def test_a_scope_that_came_of_something_else_is_not_remembered(data: bytes, other: dict[str, Any]) -> None:
    assert remembered(ONE, dict(SCOPE))
    assert remembered(data, SCOPE | other) is None


@pytest.mark.parametrize("ends", ["shutdown", "leaves_soon"])
async def test_a_server_that_ends_takes_none(ends: str) -> None:
    """It says so, or it is gone: a request like the ones before is no exception."""
    outcomes = []
    for remembers in (True, False):
        client = await Client(remembers=remembers).send(ONE, ONE)
        if ends == "shutdown":
            client.protocol.shutdown()
        else:
            client.protocol.crowd.leaves_soon = True
        await client.send(ONE)
        outcomes.append((client.wire.statuses(), client.wire.closed or client.wire.half_closed))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][1]


async def test_its_client_may_leave() -> None:
    client = await Client().send(ONE, ONE)
    client.app.go_on.clear()
    await client.send(ONE)
    told: list[bool] = []
    client.app.begun[-1]["extensions"]["mistral_proxy.departure"].watch(lambda: told.append(True))
    client.wire.closed = True
    client.protocol.connection_lost(None)
    assert told == [True]


async def test_of_attacks_comes_the_same() -> None:
    for segments in attacks(11, 300, "a", "key"):
        await compared(*segments, *segments, *segments)
        await compared(ONE, ONE, *segments, ONE)


def tampered(random: Random) -> bytes:
    """ONE with something in it that does not belong there."""
    data = bytearray(asking(bytes(random.randrange(3))))
    for _ in range(random.randint(0, 2)):
        at = random.randrange(len(data))
        what = random.choice((*BYTES, *(b"\r\n" + line for line in LINES)))
        data[at : at + random.choice((0, len(what)))] = what
    return bytes(data)


@example([ONE, ONE, ONE])
@given(st.randoms(use_true_random=False).map(lambda random: [tampered(random) for _ in range(4)]))
async def test_of_anything_comes_the_same(segments: Sequence[bytes]) -> None:
    await compared(ONE, ONE, *segments)
