"""What the workers share, and what one does when it is told; the processes are in e2e/test_k_workers.py."""

from __future__ import annotations

import asyncio
import io
import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from proxy.core.metrics.board import Board
from proxy.core.records import Records
from proxy.logs import Writer
from proxy.serving import workers
from proxy.serving.plan import Plan, plan
from proxy.serving.workers import ByOrders, Shared
from proxy.settings.load import Sources
from proxy.supervisor import Applied, Drain, End, Refused, Reload, Worker
from proxy.supervisor.channel import Channel
from tests.programs import PATIENCE
from tests.serving.test_current import KEYS, TEXT, Looking


class Sharing:
    """A `Shared` over a file, and its log."""

    def __init__(self, folder: Path) -> None:
        self.file, self._out = folder / "proxy.yaml", io.BytesIO()
        self.file.write_text(TEXT)
        self.log = Writer(self._out)
        self.shared = Shared(plan(Sources.read(self.file, KEYS), simulate=False), self.log)

    def logged(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._out.getvalue().splitlines()]


def test_what_is_new_is_shared(tmp_path: Path) -> None:
    sharing = Sharing(tmp_path)
    shared, before = sharing.shared, sharing.shared.current.plan.sources
    assert (shared.generation, shared.drain) == (1, 5.0)
    assert not shared.look(asked=True)
    sharing.file.write_text(TEXT.replace("5s", "7s") + "logging: {level: error}\n")
    assert shared.look(asked=True)
    assert (shared.generation, shared.drain) == (2, 7.0)
    assert before.changed(shared.changes) == Sources.read(sharing.file, KEYS)
    assert [line["event"] for line in sharing.logged()] == ["reload_unchanged"]
    sharing.log("info", "no line any more")
    assert len(sharing.logged()) == 1


def test_what_only_a_worker_would_stumble_over_is_found_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trust(config: object) -> None:
        raise OSError("a secret")

    sharing = Sharing(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(workers, "trust", trust)
        sharing.file.write_text(TEXT + "models: {default: another}\n")
        assert not sharing.shared.look(asked=True)
    assert (sharing.shared.generation, sharing.shared.current.plan.settings.models.default) == (1, None)
    [line] = sharing.logged()
    assert (line["event"], line["what"]) == ("reload_failed", "a fault of the proxy: OSError")
    assert sharing.shared.look(asked=True)


def test_k9_whoever_comes_while_nobody_serves_gets_an_answer_like_any_other() -> None:
    out = io.BytesIO()
    answer = workers.nobody_serves(Writer(out))
    first, second = answer("192.0.2.1"), answer("::ffff:192.0.2.2")
    head, body = first.split(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert status == "HTTP/1.1 503 Service Unavailable"
    assert json.loads(body)["error"]["code"] == "overloaded"
    assert int(headers["content-length"]) == len(body)
    assert (headers["retry-after"], headers["x-should-retry"], headers["connection"]) == ("1", "true", "close")
    assert headers["date"].endswith(" GMT")
    logged = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line.pop("time") for line in logged]
    assert logged[0] == {
        "level": "error", "event": "request", "request_id": headers["x-request-id"], "status_code": 503,
        "client": "192.0.2.1", "error_code": "overloaded", "fault": "proxy",
    }  # fmt: skip
    assert logged[1]["client"] == "192.0.2.2"
    assert logged[1]["request_id"].encode() in second
    assert headers["x-request-id"].encode() not in second


class Obeying:
    """As much of a server and a reloader as orders need."""

    def __init__(self, accepts: bool | None) -> None:
        self.done: list[object] = []
        self.logged: list[dict[str, Any]] = []
        self._accepts = accepts

    async def apply(self, planned: Plan, number: int) -> bool:
        if self._accepts is None:
            raise RuntimeError("a secret")
        self.done.append((planned.settings.models.default, number))
        return self._accepts

    def log(self, level: str, event: str, **fields: Any) -> None:
        self.logged.append({"level": level, "event": event, **fields})

    def drain(self) -> None:
        self.done.append("drain")

    def end(self) -> None:
        self.done.append("end")


async def obeyed(folder: Path, obeying: Obeying, change: Any, *orders: Drain | End) -> list[object]:
    """What a worker reports of this reload, before these orders end its supervisor."""
    current = (await asyncio.to_thread(Looking, folder)).current
    sources = current.plan.sources
    ours, theirs = socket.socketpair()
    with theirs:
        channel = Channel(ours)
        leader = ByOrders(Worker(1, theirs), current, Board(), Records())
        assert leader.always == {"worker": 1}
        channel.send(Reload(7, replace(sources, data=change).changes()))
        task = asyncio.ensure_future(leader.lead(cast(Any, obeying), cast(Any, obeying)))
        async with asyncio.timeout(PATIENCE):
            reports = channel.receive()
            while not reports:
                await asyncio.sleep(0)
                reports = channel.receive()
            for order in orders:
                channel.send(order)
            channel.close()
            await task
    return list(reports)


@pytest.mark.parametrize("accepts", [True, False])
async def test_a_worker_does_what_it_is_told_and_drains_when_nobody_is_left_to_tell_it(
    tmp_path: Path, accepts: bool
) -> None:
    obeying = Obeying(accepts)
    data = TEXT.encode() + b"models: {default: seven}\n"
    assert await obeyed(tmp_path, obeying, data, Drain(), End()) == [Applied(7) if accepts else Refused(7)]
    assert obeying.done == [("seven", 7), "drain", "end", "drain"]


@pytest.mark.parametrize(("data", "kind"), [(b"[", "SettingsError"), (TEXT.encode() + b"# new", "RuntimeError")])
async def test_k15_a_worker_that_fails_at_a_reload_says_so(tmp_path: Path, data: bytes, kind: str) -> None:
    """Then it is replaced by one that begins with it."""
    obeying = Obeying(None)
    assert await obeyed(tmp_path, obeying, data) == [Refused(7)]
    [line] = obeying.logged
    assert (line["level"], line["event"], line["kind"]) == ("error", "unexpected", kind)
    assert line["place"]
