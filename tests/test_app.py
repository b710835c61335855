"""The application while configurations come and go, and while it ends."""

from __future__ import annotations

import asyncio
import gc
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from proxy.app import Application
from proxy.core.circuit import Pass, State
from proxy.core.secret import Secret
from proxy.dispatch import Responder
from proxy.generation import Generation, Process, prepare
from proxy.logs import Writer
from proxy.settings.model import Settings
from proxy.stages import auth, body, host, model
from proxy.upstream.config import CircuitBreaker
from proxy.upstream.transport import Connections
from tests.asgi import Answer, call
from tests.e2e.upstream import completion, listener, upstream, url_of
from tests.fuzz.framing import connection
from tests.upstream.scripted import Peer, Received

KEY = "sk-team-key-0123456789abcdef"
PATIENCE = 20


def settings(base_url: str = "http://127.0.0.1:9", key: str = KEY, **sections: Any) -> Settings:
    provider = {"base_url": base_url, "api_keys": [Secret("mistral-key-0123456789")], "max_connections": 2}
    teams = {"research": {"keys": [Secret(key)]}}
    return Settings.model_validate({"providers": {"mistral": provider}, "teams": teams} | sections)


class Lines(io.BytesIO):
    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in map(json.loads, self.getvalue().splitlines()) if line["event"] == name]


@asynccontextmanager
async def application(**options: Any) -> AsyncIterator[tuple[Application, Lines]]:
    lines = Lines()
    app = Application(settings(**options), "0123456789ab", Process(Writer(lines, level="debug")))
    try:
        yield app, lines
    finally:
        await app.close()


async def chat(app: Application, key: str = KEY, **options: Any) -> Answer:
    data = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hello"}]}).encode()
    headers = [
        (b"host", b"localhost"),
        (b"content-type", b"application/json"),
        (b"authorization", b"Bearer " + key.encode()),
    ]
    given: dict[str, Any] = {"headers": headers, "body": [data], "stays": True, "query_string": b"", "root_path": ""}
    async with asyncio.timeout(PATIENCE):
        return await call(app, **given | options)


async def ready(app: Application) -> Any:
    answer = await chat(app, method="GET", path="/health/ready")
    return json.loads(answer.body)


class Held:
    """An upstream that answers when it is told to. `last`: then it waits for the connection to be closed."""

    def __init__(self, last: bool = True) -> None:
        self._last = last
        self.arrived, self.released, self.closed = asyncio.Semaphore(0), asyncio.Event(), asyncio.Semaphore(0)

    async def __call__(self, peer: Peer, received: Received) -> None:
        self.arrived.release()
        gone = asyncio.create_task(peer.gone())
        released = asyncio.create_task(self.released.wait())
        await asyncio.wait({gone, released}, return_when=asyncio.FIRST_COMPLETED)
        if not gone.done():
            await peer.send(completion())
        released.cancel()
        if self._last or gone.done():
            await gone
            self.closed.release()
        gone.cancel()
        await asyncio.wait({gone})


# Generations.


async def test_the_first_one_is_number_one() -> None:
    async with application() as (app, _):
        assert await ready(app) == {"status": "ready", "generation": 1, "config": "0123456789ab"}


async def test_k2_a_request_keeps_its_generation() -> None:
    script = Held()
    with listener() as held:
        async with upstream(held, script), application(base_url=url_of(held)) as (app, lines):
            old = asyncio.create_task(chat(app))
            await script.arrived.acquire()
            await app.replace(settings(url_of(held), "sk-other-key-0123456789"), None, 2)
            assert (await chat(app)).status == 401
            script.released.set()
            assert (await old).status == 200
            app.process.log.flush()
    assert [(line["status_code"], line["generation"]) for line in lines.events("request")] == [(401, 2), (200, 1)]


async def test_an_old_provider_is_left_when_its_last_request_ends() -> None:
    script = Held()
    with listener() as held:
        async with upstream(held, script), application(base_url=url_of(held)) as (app, _):
            first = app.current
            old = asyncio.create_task(chat(app))
            await script.arrived.acquire()
            await app.replace(settings(), None, 2)
            assert first.upstreams["mistral"] is not app.current.upstreams["mistral"]
            assert first in app._earlier
            script.released.set()
            assert (await old).status == 200
            assert not app._earlier
            await asyncio.wait_for(script.closed.acquire(), PATIENCE)  # though the connection could serve another


async def test_the_connections_of_earlier_generations_are_counted() -> None:
    script = Held(last=False)
    with listener() as held:
        async with upstream(held, script), application(base_url=url_of(held)) as (app, _):
            old = asyncio.create_task(chat(app))
            await script.arrived.acquire()
            await app.replace(settings(url_of(held), teams={"other": {"keys": [Secret(KEY)]}}), None, 2)
            assert app.connections() == {"mistral": Connections(in_use=1, idle=0)}  # a pool that both have, once
            other = settings(url_of(held).replace("127.0.0.1", "localhost"))
            await app.replace(other, None, 3)
            new = asyncio.create_task(chat(app))
            await script.arrived.acquire()
            assert app.connections() == {"mistral": Connections(in_use=2, idle=0)}
            script.released.set()
            assert [(await one).status for one in (old, new)] == [200, 200]
            assert app.connections() == {"mistral": Connections(in_use=0, idle=1)}


async def test_connections_are_kept_while_the_provider_is_the_same() -> None:
    async with application() as (app, _):
        kept = app.current.upstreams["mistral"]
        for number in (2, 3):
            await app.replace(settings(models={"default": "m"}), None, number)
            assert app.current.upstreams["mistral"] is kept
        assert not app._earlier
        assert not app._closing


async def test_another_provider_comes_and_goes_and_leaves_the_others_as_they_are() -> None:
    other = {"openai": {"api_keys": [Secret("openai-key-0123456789")]}}
    async with application() as (app, _):
        kept = app.current.upstreams["mistral"]
        with_it = settings().model_copy(update={"providers": Settings.model_validate({"providers": other}).providers})
        with_it.providers["mistral"] = settings().mistral
        await app.replace(with_it, None, 2)
        assert set(app.current.upstreams) == {"mistral", "openai"}
        assert app.current.upstreams["mistral"] is kept
        gone = app.current.upstreams["openai"]
        await app.replace(settings(), None, 3)
        assert app.current.upstreams == {"mistral": kept}
        [closing] = app._closing
        await closing
        assert gone._transport._pool._closed  # type: ignore[attr-defined]


async def test_a_team_that_pays_with_another_key_gets_its_own_pool() -> None:
    async with application() as (app, _):
        before = app.current.upstreams["mistral"]
        made = settings()
        [(team, one)] = made.teams.items()
        paying = one.model_copy(update={"provider_keys": {"mistral": Secret("own-key-0123456789")}})
        await app.replace(made.model_copy(update={"teams": {team: paying}}), None, 2)
        after = app.current.upstreams["mistral"]
        assert after is not before
        assert after.keys(team) is not after.keys("another")
        assert before.keys(team) is before.keys(None)


async def test_a_younger_generation_keeps_the_connections_of_an_older_one() -> None:
    """1 and 2 have the same, 3 has others: they are closed when both have ended."""
    script = Held()
    with listener() as held:
        async with upstream(held, script), application(base_url=url_of(held)) as (app, _):
            kept = app.current.upstreams["mistral"]
            requests = [asyncio.create_task(chat(app))]
            await script.arrived.acquire()
            await app.replace(settings(url_of(held), models={"default": "m"}), None, 2)
            requests.append(asyncio.create_task(chat(app)))
            await script.arrived.acquire()
            await app.replace(settings(), None, 3)
            assert {one.upstreams["mistral"] for one in app._earlier} == {kept}
            assert not app._closing
            script.released.set()
            assert [(await one).status for one in requests] == [200, 200]
            assert not app._earlier


@pytest.mark.parametrize(
    ("changed", "forgotten"),
    [
        ({}, False),
        ({"models": {"default": "m"}}, False),
        ({"base_url": "http://127.0.0.1:10"}, True),
        ({"providers": {"mistral": {"base_url": "http://127.0.0.1:9", "api_keys": [Secret("another-key-123")]}}}, True),
    ],
)
async def test_another_address_or_key_is_not_left_alone_for_what_the_last_one_did(
    changed: dict[str, Any], forgotten: bool
) -> None:
    async with application() as (app, _):
        circuits, rules = app.process.circuits, CircuitBreaker()
        while circuits.failed(Pass("mistral key"), rules):
            pass
        await app.replace(settings(**changed), None, 2)
        assert (circuits.state("mistral key") is State.CLOSED) is forgotten


async def test_what_cannot_be_built_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with application() as (app, _):
        before = app.current

        def fail(self: Generation) -> None:
            raise RuntimeError

        monkeypatch.setattr(Generation, "_assemble", fail)
        with pytest.raises(RuntimeError):
            await app.replace(settings(base_url="http://127.0.0.1:10"), None, 2)
        assert app.current is before
        assert (await ready(app))["generation"] == 1


async def test_the_log_knows_the_secrets_of_every_generation_in_use() -> None:
    script = Held()
    with listener() as held:
        async with upstream(held, script), application(base_url=url_of(held), key="a-cow-and-a-staple") as (app, _):
            old = asyncio.create_task(chat(app, "a-cow-and-a-staple"))
            await script.arrived.acquire()
            await app.replace(settings(url_of(held), "a-horse-and-a-battery"), None, 2)
            assert app.redact("a-cow-and-a-staple a-horse-and-a-battery") == "*** ***"
            script.released.set()
            await old


# Faults.


class Fault(Exception):
    pass


POINTS = [
    (auth.Keys, "find"),
    (body.Body, "_read"),
    (model.Model, "_from_body"),
    (host.Host, "_check"),
    (Responder, "answer"),
]


@pytest.mark.parametrize(("where", "name"), POINTS, ids=lambda value: getattr(value, "__name__", value))
async def test_k15_a_fault_is_a_500_that_says_nothing(monkeypatch: pytest.MonkeyPatch, where: type, name: str) -> None:
    """Wherever it happens: the log has its type and place, the next request is served."""

    def fail(*_: Any) -> None:
        raise Fault(f"{KEY} and what the request said")

    with listener() as held:
        async with upstream(held, _answer), application(base_url=url_of(held)) as (app, lines):
            with monkeypatch.context() as patch:
                patch.setattr(where, name, fail)
                answer = await chat(app)
            assert (answer.status, answer.error()["code"]) == (500, "internal_error")
            assert app.current.requests == 0
            assert (await chat(app)).status == 200
            app.process.log.flush()
    [line] = lines.events("unexpected")
    assert (line["kind"], line["request_id"]) == ("Fault", answer.header("x-request-id"))
    assert KEY.encode() not in lines.getvalue() + answer.body


async def _answer(peer: Peer, received: Received) -> None:
    await peer.send(completion())


@pytest.mark.parametrize("turns", [*range(12), 20, 50])
async def test_k16_a_request_that_is_cancelled_leaves_nothing_behind(turns: int) -> None:
    """At the first moments of its life and later, when it waits for the upstream."""
    script = Held(last=False)
    with listener() as held:
        async with upstream(held, script), application(base_url=url_of(held)) as (app, _):
            task = asyncio.create_task(chat(app))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):  # a task that has not begun
                answer = await task
                assert (answer.status, answer.error()["code"]) == (503, "draining")
            assert app.current.requests == 0
            assert not app.process.drainables
            script.released.set()
            assert [answer.status for answer in await asyncio.gather(*(chat(app) for _ in range(4)))] == [200] * 4


async def test_k16_every_request_is_told_at_the_end_of_the_drain() -> None:
    """Those that wait for the upstream, and one whose body is still to come."""
    script = Held()
    with listener() as held:
        async with upstream(held, script), application(base_url=url_of(held)) as (app, _):
            tasks = [asyncio.create_task(chat(app)) for _ in range(2)]
            for _ in tasks:
                await script.arrived.acquire()
            tasks.append(asyncio.create_task(chat(app)))  # there is no place for it
            for _ in range(20):
                await asyncio.sleep(0)
            assert len(app.process.drainables) == len(tasks)
            app.drain()
            answers = await asyncio.gather(*tasks)
            assert {(answer.status, answer.error()["code"]) for answer in answers} == {(503, "draining")}
            assert not app.process.drainables
            for _ in range(2):
                await asyncio.wait_for(script.closed.acquire(), PATIENCE)


async def test_readiness_ends_with_the_drain() -> None:
    async with application() as (app, _):
        app.process.draining = True
        for _ in range(2):
            assert await ready(app) == {"status": "draining"}
            assert not await app.replace(settings(), None, 2)


async def test_a_generation_that_the_drain_overtakes_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    async with application() as (app, _):
        first = app.current

        def begin_to_drain(settings: Settings) -> Any:
            app.process.draining = True
            return prepare(settings)

        monkeypatch.setattr("proxy.app.prepare", begin_to_drain)
        assert not await app.replace(settings(base_url="http://127.0.0.1:10"), None, 2)
        assert app.current is first


async def test_nobody_waits_for_a_reload() -> None:
    """While one is built, requests are answered."""
    async with application() as (app, _):
        reload = asyncio.create_task(app.replace(settings(base_url="http://127.0.0.1:10"), None, 2))
        numbers = set()
        while not reload.done():
            numbers.add((await ready(app))["generation"])
            await asyncio.sleep(0)
        await reload
        assert 1 in numbers
        assert (await ready(app))["generation"] == 2


def post(body: bytes, key: bytes = KEY.encode(), path: bytes = b"/v1/chat/completions") -> bytes:
    head = b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nauthorization: Bearer %b\r\n"
    return head % (path, key) + b"content-length: %d\r\n\r\n" % len(body) + body


async def test_what_a_request_was_goes_with_it() -> None:
    """Nothing of it holds on to itself: bodies would wait for the garbage collector, which sees few objects, not their
    sizes. Through our own server, whose extensions of the scope lead back to it."""
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hello"}]}).encode()
    asked = [post(body), post(body, b"wrong"), post(b"{"), post(b"[]"), post(body, path=b"/v1/none"), post(body)]
    asked.append(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
    with listener() as held:
        async with upstream(held, _answer), application(base_url=url_of(held)) as (app, _):
            protocol, wire = connection(app)

            async def ask() -> None:
                for request in asked:
                    before = len(wire.statuses())
                    protocol.data_received(request)
                    async with asyncio.timeout(PATIENCE):
                        while len(wire.statuses()) == before:  # noqa: ASYNC110
                            await asyncio.sleep(0)

            await ask()
            await ask()
            gc.collect()
            gc.disable()
            try:
                await ask()
                assert gc.collect() == 0
            finally:
                gc.enable()
            assert wire.statuses() == [200, 401, 400, 400, 404, 200, 200] * 3
