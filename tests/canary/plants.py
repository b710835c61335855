"""Leaks, one to be planted at a time: each must be found, or the search finds nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from base64 import b64encode
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from starlette.responses import JSONResponse

from proxy import admin, routes
from proxy.core.excerpt import Excerpts
from proxy.core.exchange import Exchange, exchange_of
from proxy.core.redact import Redactor
from proxy.dispatch import Dispatch
from proxy.stages import access_log, begin, ledger, quota, rescue
from proxy.upstream.client import Upstream
from proxy.upstream.http1_transport import Http1Transport
from tests.canary.table import Canary, Kind, Sink


@dataclass(frozen=True)
class Plant:
    """`plant` changes the program; what is found then is of this kind, in this sink. `shared`: only where there is a
    Redis."""

    plant: Callable[[], None]
    kind: Kind
    sink: Sink
    shared: bool = False

    def shows(self, canary: Canary, sink: Sink) -> bool:
        """Whether it is what this leak makes of it."""
        return canary.kind is self.kind and sink is self.sink


def _around(owner: Any, name: str, change: Callable[[Any, tuple[Any, ...]], Any]) -> Callable[[], None]:
    """`change` is given what the method returns, and its arguments."""

    def plant() -> None:
        original = getattr(owner, name)

        def changed(*args: Any) -> Any:
            return change(original(*args), args)

        setattr(owner, name, changed)

    return plant


def _before(owner: Any, name: str, change: Callable[..., Any]) -> Callable[[], None]:
    """`change` is given the arguments, and gives others."""

    def plant() -> None:
        original = getattr(owner, name)

        def changed(*args: Any, **kwargs: Any) -> Any:
            return original(*change(*args), **kwargs)

        setattr(owner, name, changed)

    return plant


def _both(*plants: Callable[[], None]) -> Callable[[], None]:
    def plant() -> None:
        for one in plants:
            one()

    return plant


def _replacing(owner: Any, name: str, other: Any) -> Callable[[], None]:
    return lambda: setattr(owner, name, other)


def _header(exchange: Exchange, name: bytes) -> str:
    return (exchange.head.header(name) or b"").decode("latin-1")


def _in_log(show: Callable[[Exchange], object]) -> Callable[[], None]:
    return _around(
        access_log.AccessLog,
        "_line",
        lambda line, args: msgspec.structs.replace(line, operation=str(show(args[1])), endpoint="x"),
    )


def _in_answer(show: Callable[[Exchange], str]) -> Callable[[], None]:
    return _around(begin, "_headers", lambda found, args: [*found, (b"x-more", show(args[0]).encode("latin-1"))])


def _in_rows(show: Callable[[Exchange], str]) -> Callable[[], None]:
    return _around(
        ledger.Rows, "_intent", lambda intent, args: msgspec.structs.replace(intent, model_asked=show(args[1]))
    )


_last = ""


def _of_before(exchange: Exchange) -> str:
    global _last
    before, _last = _last, exchange.request_id
    return before


def _trace(_result: Any, _args: Any) -> Any:
    traceback.print_exc(file=sys.stderr)
    return _result


def _to_a_file(line: Any, args: Any) -> Any:
    exchange = args[1]
    with Path("debug.log").open("ab") as file:
        file.write(str(exchange.body).encode())
    return line


async def _tells_all(*_: Any) -> Any:
    return {"environment": dict(os.environ)}


async def _healthy(*_: Any) -> Any:
    return JSONResponse(dict(os.environ))


def _opted(line: Any, args: Any) -> Any:
    return msgspec.structs.replace(line, operation=str(args[1].body))


_cookie: ContextVar[str] = ContextVar("cookie", default="")


def _remembering(dispatch: Any, scope: Any, *rest: Any) -> tuple[Any, ...]:
    _cookie.set(_header(exchange_of(scope), b"cookie"))
    return dispatch, scope, *rest


def _passing_on(transport: Any, method: str, path: str, headers: Any, body: bytes) -> tuple[Any, ...]:
    return transport, method, path, [*headers, ("cookie", _cookie.get())], body


def _calling_it_so(stage: Any, scope: Any, *rest: Any) -> tuple[Any, ...]:
    exchange = exchange_of(scope)
    exchange.call += _header(exchange, b"authorization")
    return stage, scope, *rest


def _helper() -> None:
    """A program that is told a key, for as long as somebody looks."""
    arguments = ["sh", "-c", "sleep 20", "sh", os.environ["CANARY_ADMIN"]]
    subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


PLANTS: dict[str, Plant] = {
    "a header in the log": Plant(_in_log(lambda one: str(one.head.headers)), Kind.HEADER, Sink.LOG),
    "a key in the log, in hex": Plant(
        _in_log(lambda one: _header(one, b"authorization").encode().hex()), Kind.TEAM_KEY, Sink.LOG
    ),
    "a key in the log, in base64": Plant(
        _in_log(lambda one: b64encode(_header(one, b"authorization").encode()).decode()), Kind.TEAM_KEY, Sink.LOG
    ),
    "a path in the log as it came": Plant(
        _replacing(Excerpts, "name", lambda self, text: text[:256]), Kind.TEAM_KEY, Sink.LOG
    ),
    "content of teams that have not asked for it": Plant(
        _around(access_log.AccessLog, "_line", _opted), Kind.CONTENT, Sink.LOG
    ),
    "content that is not redacted": Plant(
        _replacing(Redactor, "text", lambda self, text: text), Kind.TEAM_KEY, Sink.CONTENT_LOG
    ),
    "an id that is a key": Plant(
        _around(begin.Begin, "_is_harmless", lambda result, args: True), Kind.TEAM_KEY, Sink.LOG
    ),
    "a traceback": Plant(_around(rescue, "place_of", _trace), Kind.HEADER, Sink.LOG),
    "a header in the ledger": Plant(_in_rows(lambda one: _header(one, b"user-agent")), Kind.HEADER, Sink.LEDGER),
    "a prompt in the ledger, in base64": Plant(
        _in_rows(lambda one: b64encode(str(one.body).encode()).decode()), Kind.CONTENT, Sink.LEDGER
    ),
    "a body in a file": Plant(_around(access_log.AccessLog, "_line", _to_a_file), Kind.CONTENT, Sink.LEDGER),
    "an error of the provider's as it came": Plant(
        _replacing(Upstream, "scrub", lambda self, data: data), Kind.PROVIDER_KEY, Sink.ANSWER
    ),
    "a header of a request before in an answer": Plant(_in_answer(_of_before), Kind.TRACE, Sink.ANSWER),
    "a header of one's own in an answer": Plant(
        _in_answer(lambda one: _header(one, b"cookie")), Kind.HEADER, Sink.ANSWER
    ),
    "the environment in /health": Plant(_replacing(routes.Health, "ready", _healthy), Kind.ENVIRONMENT, Sink.HEALTH),
    "the environment in /admin": Plant(_replacing(admin, "stats", _tells_all), Kind.OPERATOR, Sink.ADMIN),
    "a key among the arguments of a program": Plant(_helper, Kind.OPERATOR, Sink.PROCESS),
    "a header passed on to the provider": Plant(
        _both(_before(Dispatch, "__call__", _remembering), _before(Http1Transport, "call", _passing_on)),
        Kind.HEADER,
        Sink.UPSTREAM_HEADERS,
    ),
    "a key in Redis": Plant(_before(quota.Quotas, "__call__", _calling_it_so), Kind.TEAM_KEY, Sink.REDIS, shared=True),
}

TOGETHER: tuple[tuple[str, ...], ...] = (
    ("a header in the log", "a header in the ledger", "the environment in /health"),
    ("a key in the log, in hex", "a prompt in the ledger, in base64", "the environment in /admin"),
    ("a key in the log, in base64", "a body in a file", "an error of the provider's as it came"),
    ("a path in the log as it came", "a header of a request before in an answer"),
    ("an id that is a key", "a key among the arguments of a program"),
    ("a traceback", "a header of one's own in an answer"),
    ("content of teams that have not asked for it", "a header passed on to the provider"),
    ("content that is not redacted",),
    ("a key in Redis",),
)
"""Those that show in different places, and can be looked for in one run."""
