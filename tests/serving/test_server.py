"""What runs on the socket, from the port to the last signal."""

from __future__ import annotations

import asyncio
import io
import signal
import socket
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
    made = aim(real).providers.mistral
    assert (made.base_url, made.transport, made.proxy_url) == ("http://127.0.0.1:1", "aiohttp", None)
    [key] = made.api_keys
    # Not a word: the provider's key is cut out of answers, and a word would be missing from them.
    assert len(key.reveal()) == 32
    assert key != Secret("real-key-1")
    assert real.providers.mistral.base_url == "https://api.mistral.ai"
    assert aim(real).providers.mistral == made  # a reload does not change who is asked


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
    await serve.Server(cast(Any, application), log, "").shutdown()
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
    server = serve.Server(cast(Any, application), application.process.log, "the banner")
    await server.startup()
    assert capsys.readouterr().out == "the banner\n"
    for _ in range(signals):
        assert not application.drained.is_set()
        server.handle_exit(signal.SIGTERM, None)
        assert application.process.draining
        assert server.should_exit
    await asyncio.wait_for(application.drained.wait(), 5)


@pytest.mark.parametrize("signals", [1, 2])
async def test_k7_whoever_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch, signals: int) -> None:
    """A connection whose client reads nothing, and a task that waits for ever."""
    monkeypatch.setattr(serve, "AFTER_DRAIN" if signals == 1 else "AT_ONCE", 0.0)
    application = Application(Writer(io.BytesIO()), 0.0 if signals == 1 else 3600.0)
    server = serve.Server(cast(Any, application), application.process.log, "")
    gone = asyncio.Event()

    class Connection:
        transport = property(lambda self: self)

        def abort(self) -> None:
            gone.set()

    task = asyncio.ensure_future(asyncio.Event().wait())
    server.server_state.connections.add(cast(Any, Connection()))
    server.server_state.tasks.add(cast(Any, task))
    for _ in range(signals):
        assert not gone.is_set()
        server.handle_exit(signal.SIGTERM, None)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    await asyncio.wait_for(gone.wait(), 5)
    assert server.force_exit


def test_the_first_process_of_a_container_ends_with_the_code_of_the_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel does not end it by a signal, so it comes to its end by itself."""

    async def ended(*_: Any) -> None:
        pass

    monkeypatch.setattr(serve, "serve", ended)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    plan = Plan(Sources(None, b"", {}, {}), Settings.model_validate({"server": {"port": 0}}), simulate=True)
    monkeypatch.setattr(serve, "listen", lambda host, port: None)
    with pytest.raises(SystemExit) as raised:
        serve.run(plan)
    assert raised.value.code == 143
