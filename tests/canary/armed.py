"""The proxy with faults of ours: an exception where a request asks for one, and a leak if the environment asks for it.

An exception says all that whoever raised it could have known: the request, its body, the environment. A request asks
by `x-trip: STAGE WHEN`. The leaks are in plants.py. Run as `python -m tests.canary.armed serve …`.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import pkgutil
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from proxy import admin, dispatch, stages
from proxy.core.catalogue import Catalogue
from proxy.core.exchange import KEY, exchange_of
from proxy.core.table import Table
from proxy.upstream.client import Upstream

PLANTED = "CANARY_PLANTED"
"""The variable that names leaks, with | between them."""

STAGES = sorted(module.name for module in pkgutil.iter_modules(stages.__path__))

DEEP: dict[str, tuple[type, str]] = {
    "the catalogue": (Catalogue, "resolve"),
    "a table": (Table, "translate"),
    "the upstream": (Upstream, "call"),
    "the answer": (Upstream, "scrub"),
}
"""What stages call, of which none sees the request."""

ASIDE = ("a task", "a callback", "a thread", "a finalizer")
"""Where nobody waits for what is raised."""

WHEN = ("before", "after", "answering")

TRIPS = [
    *(f"{name} {when}" for name in (*STAGES, "dispatch", "administration") for when in WHEN),
    *(f"{name} before" for name in DEEP),
    *(f"{name} before" for name in ASIDE),
]
"""All that a request may ask for."""

_asked: ContextVar[tuple[str, str]] = ContextVar("asked", default=("", ""))
"""What the request of this task asks for, and all that is known of it."""


class Forced(Exception):
    """`str` tells everything, as those of HTTP libraries do that quote a request."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.add_note(text)
        self.__cause__ = OSError(text)


def known(scope: Any) -> str:
    """All that is known of a request, and of the process."""
    exchange = exchange_of(scope) if KEY in scope else None
    body = (exchange.raw, exchange.body) if exchange else ()
    return f"{scope['headers']} {scope['query_string']} {scope['path']} {body} {dict(os.environ)}"


def _trip(scope: Any) -> str:
    return next((value.decode() for name, value in scope.get("headers", ()) if name == b"x-trip"), "")


def _stage(name: str, owner: type) -> None:
    call: Callable[..., Any] = owner.__call__

    async def tripped(self: Any, scope: Any, receive: Any, send: Any) -> None:
        trip = _trip(scope)
        if name == "begin" and trip:
            _asked.set((trip, known(scope)))
            _aside(trip)

        async def answering(message: Any) -> None:
            if message["type"] == "http.response.body":
                raise Forced(known(scope))
            await send(message)

        if trip == f"{name} before":
            raise Forced(known(scope))
        await call(self, scope, receive, answering if trip == f"{name} answering" else send)
        if trip == f"{name} after":
            raise Forced(known(scope))

    owner.__call__ = tripped  # type: ignore[method-assign]


def _deep(name: str, owner: type, method: str) -> None:
    original = getattr(owner, method)

    def tripped(self: Any, *args: Any, **kwargs: Any) -> Any:
        trip, text = _asked.get()
        if trip == f"{name} before":
            raise Forced(f"{text} {args} {[getattr(one, 'headers', '') for one in args]}")
        return original(self, *args, **kwargs)

    setattr(owner, method, tripped)


def _aside(trip: str) -> None:
    text = _asked.get()[1]

    async def failing() -> None:
        raise Forced(text)

    def fails() -> None:
        raise Forced(text)

    class Failing:
        def __del__(self) -> None:
            raise Forced(text)

    if trip == "a task before":
        asyncio.get_running_loop().create_task(failing())
    elif trip == "a callback before":
        asyncio.get_running_loop().call_soon(fails)
    elif trip == "a thread before":
        threading.Thread(target=fails).start()
    elif trip == "a finalizer before":
        Failing()


def _stages() -> Iterator[tuple[str, type]]:
    for name in STAGES:
        module = importlib.import_module(f"proxy.stages.{name}")
        for _, one in inspect.getmembers(module, inspect.isclass):
            if one.__module__ == module.__name__ and inspect.iscoroutinefunction(one.__dict__.get("__call__")):
                yield name, one
    yield "dispatch", dispatch.Dispatch
    yield "administration", admin.OfCache


def arm() -> None:
    for name, owner in _stages():
        _stage(name, owner)
    for name, (owner, method) in DEEP.items():
        _deep(name, owner, method)


if __name__ == "__main__":
    from proxy.cli import main
    from tests.canary.plants import PLANTS

    arm()
    for leak in filter(None, os.environ[PLANTED].split("|")):
        PLANTS[leak].plant()
    main()
