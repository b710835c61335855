"""What becomes of an exception that nobody expected, wherever it is raised: at each line that a request runs through.

Its text is full of secrets, as those of HTTP libraries are that quote a request. The log has its type, its place and
the request's id, the client has an error object or the end of its stream, and neither has a word of it.
"""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from proxy.app import Application
from proxy.core.failures import Failures
from proxy.core.secret import Secret
from proxy.generation import Process
from proxy.logs import FromLibraries, Writer
from proxy.settings.model import Settings
from tests.asgi import Answer, call
from tests.e2e.upstream import DONE, JSON, STREAM, completion, event, listener, upstream, url_of
from tests.upstream.scripted import Peer, Received, answer, chunk

PROXY = str(Path(__file__).parents[1] / "proxy")
TEAM, PROVIDER, PROMPT = "sk-team-canary-0123456789", "provider-canary-0123456789", "prompt-canary"
CANARIES = (TEAM, PROVIDER, PROMPT, "canary")

Line = tuple[str, int]


class ForcedError(Exception):
    def __init__(self) -> None:
        super().__init__(f"<Request headers=[('authorization', '{TEAM}'), ('x', '{PROVIDER}')] body='{PROMPT}'>")


class Trap:
    """Notes each line of the program that is run, and raises at one of them."""

    def __init__(self, at: Line | None = None) -> None:
        self.seen: dict[Line, None] = {}
        self.sprung = False
        self._at = at

    @contextmanager
    def set(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self._call)
        try:
            yield
        finally:
            sys.settrace(before)

    def _call(self, frame: FrameType, kind: str, value: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(PROXY) else None

    def _line(self, frame: FrameType, kind: str, value: Any) -> Any:
        if kind == "line":
            here = (frame.f_code.co_filename, frame.f_lineno)
            self.seen[here] = None
            if here == self._at:
                self.sprung = True
                raise ForcedError
        return self._line


@dataclass
class Request:
    path: str
    body: Any = None
    reply: bytes = b""
    key: str = TEAM

    async def send(self, app: Application) -> Answer:
        data = json.dumps(self.body).encode() if self.body else b""
        headers = [
            (b"host", b"localhost"),
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(data)),
            (b"authorization", b"Bearer " + self.key.encode()),
            (b"x-request-id", b"mine-1"),
        ]
        method = "POST" if self.body else "GET"
        given: dict[str, Any] = {"stays": True, "query_string": b"", "root_path": ""}
        async with asyncio.timeout(20):
            # In a task of its own, as in a server: a deadline that was not taken back ends nobody else.
            return await asyncio.create_task(call(app, method, self.path, headers=headers, body=[data], **given))


SAYS = {"model": "m", "messages": [{"role": "user", "content": PROMPT}], "user": PROMPT, "x": 1}
REQUESTS = {
    "chat": Request("/v1/chat/completions", SAYS, completion(PROMPT)),
    "stream": Request(
        "/v1/chat/completions",
        SAYS | {"stream": True},
        STREAM + chunk(event(PROMPT)) + chunk(event("", "stop") + DONE) + chunk(b""),
    ),
    "refused": Request(
        "/v1/chat/completions", SAYS, answer(b'{"message": "No such thing."}', JSON.replace(b"200 OK", b"422 No"))
    ),
    "cut": Request("/v1/chat/completions", SAYS | {"stream": True}, STREAM + chunk(event(PROMPT)) + chunk(b"")),
    "models": Request("/v1/models", reply=answer(b'{"data": []}', JSON)),
    "wrong key": Request("/v1/models", key=TEAM[:-1]),
    "nowhere": Request("/nowhere"),
}


class Here:
    """The application, its log, and an upstream that gives the same answer again and again."""

    def __init__(self, app: Application, log: io.BytesIO) -> None:
        self.app, self._log = app, log

    def logged(self) -> list[dict[str, Any]]:
        """The lines since the last look."""
        self.app.process.log.flush()
        text = self._log.getvalue()
        self._log.seek(0)
        self._log.truncate()
        assert not [canary for canary in CANARIES if canary.encode() in text], text
        return [json.loads(line) for line in text.splitlines()]


@asynccontextmanager
async def running(reply: bytes) -> AsyncIterator[Here]:
    async def script(peer: Peer, received: Received) -> None:
        await peer.send(reply)

    log = io.BytesIO()
    timeouts = {"connect": "500ms", "first_byte": "500ms", "idle": "500ms"}
    with listener() as held:
        provider = {"base_url": url_of(held), "api_keys": [Secret(PROVIDER)], "timeouts": timeouts}
        provider |= {"retry": {"max_attempts": 1}, "circuit_breaker": {"failure_threshold": 1_000_000}}
        teams = {"research": {"keys": [Secret(TEAM)]}}
        settings = Settings.model_validate({"providers": {"mistral": provider}, "teams": teams})
        process = Process(Writer(log, level="debug"), failures=Failures(most=0))  # nobody is told that it is too many
        app = Application(settings, None, process)
        libraries = FromLibraries(app.process.log, app.redact)
        logging.getLogger().addHandler(libraries)
        loop = asyncio.get_running_loop()
        before = loop.get_exception_handler()
        loop.set_exception_handler(None)  # to the log, as in a server
        try:
            async with upstream(held, script):
                yield Here(app, log)
                await app.close()
        finally:
            gc.collect()  # what is found then is logged, too
            loop.set_exception_handler(before)
            logging.getLogger().removeHandler(libraries)


def told(found: Answer) -> str:
    return str(found.headers) + found.body.decode()


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
async def test_c9_an_exception_at_any_line_tells_nobody_anything(name: str) -> None:
    request = REQUESTS[name]
    async with running(request.reply) as here:
        await request.send(here.app)  # what is made at the first call is made
        with (trap := Trap()).set():
            good = await request.send(here.app)
        here.logged()
        answered = 0
        for line in trap.seen:
            found = None
            with (armed := Trap(line)).set(), suppress(ForcedError):  # at the door itself uvicorn answers, with a 500
                found = await request.send(here.app)
            lines = here.logged()  # out of the trap: a slow request has had lines written, so it may be set there
            if found is None or not armed.sprung:
                continue
            assert "ForcedError" not in told(found) + str([one for one in lines if one["event"] == "request"])
            if PROMPT not in told(good):
                assert "canary" not in told(found)
            for one in lines:
                if one["event"] == "unexpected":
                    assert set(one) == {"time", "level", "event", "request_id", "trace_id", "kind", "place"}
                    assert (one["kind"], one["request_id"] in ("mine-1", found.header("x-request-id"))) == (
                        "ForcedError",
                        True,
                    )
                    answered += found.status == 500 and json.loads(found.body)["error"]["code"] == "internal_error"
            assert TEAM not in told(found)
            assert PROVIDER not in told(found)
        assert answered > (10 if name in ("wrong key", "nowhere") else 50)
        assert (await request.send(here.app)).status == good.status
