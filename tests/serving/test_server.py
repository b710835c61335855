"""What runs on the socket, from the port to the last signal."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import socket
import threading
from typing import Any, cast

import pytest
import uvicorn

from proxy.core.secret import Secret
from proxy.generation import Process
from proxy.logs import Writer
from proxy.serving import server as serve
from proxy.serving.plan import CannotStart, Plan
from proxy.settings.load import Sources
from proxy.settings.model import Settings


def test_the_port_is_had_or_it_is_said_why_not() -> None:
    with serve.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert port
        taken.listen()
        with pytest.raises(CannotStart, match=f"127.0.0.1:{port}: .*in use"):
            serve.listen("127.0.0.1", port)
    with pytest.raises(CannotStart, match=r"Cannot listen on 192\.0\.2\.1:0"):
        serve.listen("192.0.2.1", 0)


def test_an_ipv6_address_is_listened_on_or_it_is_said_why_not() -> None:
    try:
        listener = serve.listen("::1", 0)
    except CannotStart as error:  # a machine without IPv6
        assert "Cannot listen on ::1:0: " in str(error)
        return
    with listener:
        assert listener.family == socket.AF_INET6


def test_simulated_settings_lead_nowhere_else() -> None:
    key = Secret("real-key-1")
    provider = {"transport": "httpx", "http2": True, "proxy_url": "http://egress:3128", "api_keys": [key]}
    real = Settings.model_validate({"providers": {"mistral": provider}})
    aim = serve.pointed_at("http://127.0.0.1:1")
    made = aim(real).mistral
    assert (made.base_url, made.transport, made.proxy_url) == ("http://127.0.0.1:1", "http1", None)
    [key] = made.api_keys
    # Not a word: the provider's key is cut out of answers, and a word would be missing from them.
    assert len(key.reveal()) == 32
    assert key != Secret("real-key-1")
    assert real.mistral.base_url == "https://api.mistral.ai"
    assert aim(real).mistral == made  # a reload does not change who is asked


def test_simulated_settings_lead_nowhere_else_whoever_is_asked() -> None:
    """Nor does a real key go to the simulator."""
    teams = {"a": {"provider_keys": {"openai": Secret("own-key-0123456789")}}}
    providers = {"openai": {"api_keys": [Secret("real-key-2")]}, "eu": {"type": "mistral"}}
    made = serve.pointed_at("http://127.0.0.1:1")(Settings.model_validate({"providers": providers, "teams": teams}))
    assert {one.base_url for one in made.providers.values()} == {"http://127.0.0.1:1"}
    assert {one.type for one in made.providers.values()} == {"mistral"}
    assert all(Secret("real-key-2") not in one.api_keys for one in made.providers.values())
    assert made.teams["a"].provider_keys == {}


class Application:
    """As much of the application as the server touches."""

    def __init__(self, log: Writer, drain: float) -> None:
        self.process = Process(log)
        self.current = self
        self.settings = Settings.model_validate({"server": {"drain": f"{drain:g}s"}})
        self.drained, self.closed = asyncio.Event(), False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    def drain(self) -> None:
        self.drained.set()

    async def close(self) -> None:
        self.closed = True


async def test_the_log_is_written_out_before_the_signal_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    log = Writer(stream)

    async def shutdown(*_: Any, **__: Any) -> None:
        log("info", "last")

    monkeypatch.setattr(uvicorn.Server, "shutdown", shutdown)
    application = Application(log, 1.0)
    await serve.Server(cast(Any, application), log, lambda: None).shutdown()
    assert b'"last"' in stream.getvalue()
    assert application.closed


@pytest.mark.parametrize(("drain", "signals"), [(0.0, 1), (3600.0, 2)])
async def test_the_drain_ends_after_its_time_or_at_the_second_signal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], drain: float, signals: int
) -> None:
    async def startup(*_: Any, **__: Any) -> None:
        pass

    monkeypatch.setattr(uvicorn.Server, "startup", startup)
    application = Application(Writer(io.BytesIO()), drain)
    server = serve.Server(cast(Any, application), application.process.log, lambda: serve.announce("the banner"))
    await server.startup()
    assert capsys.readouterr().out == "the banner\n"
    for _ in range(signals):
        assert not application.drained.is_set()
        server.handle_exit(signal.SIGTERM, None)
        assert application.process.draining
        assert server.should_exit
    await asyncio.wait_for(application.drained.wait(), 5)


class Connection:
    """A connection of the server's, and its transport."""

    transport = property(lambda self: self)

    def __init__(self, *, closing: bool) -> None:
        self.closing = closing
        self.closed, self.aborted = asyncio.Event(), asyncio.Event()

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closed.set()

    def abort(self) -> None:
        self.aborted.set()


@pytest.mark.parametrize("signals", [1, 2])
async def test_k7_whoever_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch, signals: int) -> None:
    """A connection whose client reads nothing, and a task that waits for ever."""
    monkeypatch.setattr(serve, "AFTER_DRAIN" if signals == 1 else "AT_ONCE", 0.0)
    application = Application(Writer(io.BytesIO()), 0.0 if signals == 1 else 3600.0)
    server = serve.Server(cast(Any, application), application.process.log, lambda: None)
    connection = Connection(closing=False)
    task = asyncio.ensure_future(asyncio.Event().wait())
    server.server_state.connections.add(cast(Any, connection))
    server.server_state.tasks.add(cast(Any, task))
    for _ in range(signals):
        assert not connection.aborted.is_set()
        server.handle_exit(signal.SIGTERM, None)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    await asyncio.wait_for(connection.aborted.wait(), 5)
    assert server.force_exit
    assert not connection.closed.is_set()


async def test_k5_the_drain_does_not_wait_for_who_goes_on_sending_after_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such a connection is closing already; to close it once more is to wait no longer."""
    monkeypatch.setattr(serve, "LINGER", 0.001)
    application = Application(Writer(io.BytesIO()), 3600.0)
    server = serve.Server(cast(Any, application), application.process.log, lambda: None)
    lingering, busy = Connection(closing=True), Connection(closing=False)
    server.server_state.connections |= {cast(Any, lingering), cast(Any, busy)}
    server.handle_exit(signal.SIGTERM, None)
    await asyncio.wait_for(lingering.closed.wait(), 5)
    assert not busy.closed.is_set()
    busy.closing = True
    await asyncio.wait_for(busy.closed.wait(), 5)


async def test_k5_whoever_has_just_been_answered_may_read_it() -> None:
    application = Application(Writer(io.BytesIO()), 3600.0)
    server = serve.Server(cast(Any, application), application.process.log, lambda: None)
    lingering = Connection(closing=True)
    server.server_state.connections.add(cast(Any, lingering))
    server.handle_exit(signal.SIGTERM, None)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not lingering.closed.is_set()


@pytest.mark.parametrize(("interrupted", "code"), [(False, 143), (True, 130)])
def test_k7_the_process_ends_without_waiting_for_its_threads(
    monkeypatch: pytest.MonkeyPatch, interrupted: bool, code: int
) -> None:
    """Also the first one of a container, which the kernel does not end by a signal: it comes to its end by itself, and
    `os._exit` is the one way that asks no thread. One may be looking up a name."""

    class Ended(BaseException):
        pass

    looking_up, done = threading.Event(), threading.Event()

    def look_up() -> None:
        looking_up.set()
        done.wait(60)

    async def ended(*_: Any) -> None:
        asyncio.get_running_loop().run_in_executor(None, look_up)
        await asyncio.to_thread(looking_up.wait)
        if interrupted:
            raise KeyboardInterrupt

    def exit(code: int) -> None:
        assert not done.is_set()
        raise Ended(code)

    monkeypatch.setattr(serve, "serve", ended)
    monkeypatch.setattr(os, "_exit", exit)
    plan = Plan(Sources(None, b"", {}, {}), Settings(), simulate=True)
    listener = serve.listen("127.0.0.1", 0)
    monkeypatch.setattr(serve, "listen", lambda host, port: listener)
    try:
        with listener, pytest.raises(Ended) as raised:
            serve.run(plan)
    finally:
        done.set()
    assert raised.value.args == (code,)


def test_nobody_need_read_the_banner(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", Full())
        serve.announce("the banner")
        patch.setattr(os, "_exit", lambda code: None)
        serve.leave(signal.SIGTERM)
