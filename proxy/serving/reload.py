"""Reload in a process that serves: a new plan is built apart, and put in force as a whole or not at all."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

from proxy.app import Application
from proxy.core.errors import place_of
from proxy.core.services import Log
from proxy.serving.current import Current
from proxy.serving.plan import Plan
from proxy.settings.model import Settings
from proxy.settings.reload import INTERVAL


class Reloader:
    """Brings an application from one plan to the next. `aim` changes where settings point to, for --simulate."""

    def __init__(
        self, application: Application, aim: Callable[[Settings], Settings] = lambda settings: settings
    ) -> None:
        self._application = application
        self._aim = aim
        self.log: Log = application.process.log

    @property
    def too_late(self) -> bool:
        """Whether the process is about to end."""
        return self._application.process.draining

    async def apply(self, planned: Plan, number: int) -> bool:
        """Put this plan in force as generation `number`; False if it is too late. Whatever goes wrong is raised, and
        leaves everything as it is."""
        if not await self._application.replace(self._aim(planned.settings), planned.sources.digest, number):
            self.ignored()
            return False
        self.log("info", "reloaded", generation=number, config=planned.sources.digest, file=planned.sources.file)
        return True

    def ignored(self) -> None:
        self.log("info", "reload_ignored", what="the proxy is shutting down")


async def follow(current: Current, reloader: Reloader, interval: float = INTERVAL) -> None:
    """Reload at every SIGHUP and whenever a file has changed, until cancelled."""
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, asked.set)
    try:
        while True:
            by_signal = asked.is_set()
            asked.clear()
            try:
                await look(current, reloader, asked=by_signal)
            except Exception as error:  # a fault here must not be the last look
                reloader.log("error", "unexpected", kind=type(error).__name__, place=place_of(error))
            await _either(asked, interval)
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # taking the handler away would make it deadly


async def look(current: Current, reloader: Reloader, *, asked: bool) -> None:
    """Look at the files, and go over to what they have become."""
    if reloader.too_late:
        if asked:
            reloader.ignored()
        return
    planned = await asyncio.to_thread(current.look, asked=asked)
    if planned is None:
        return
    try:
        applied = await reloader.apply(planned, current.generation + 1)
    except Exception as error:
        current.failed(error)
    else:
        if applied:
            current.took(planned)


def from_threads(log: Log) -> Log:
    """The same log, to be written to from any thread."""
    loop = asyncio.get_running_loop()

    def write(level: str, event: str, **fields: Any) -> None:
        loop.call_soon_threadsafe(partial(log, level, event, **fields))

    return write


async def _either(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
