"""Reload: new sources are validated and built apart, and put in force as a whole or not at all."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace

from proxy.app import Application
from proxy.core.services import Log
from proxy.serving.plan import CannotStart, Plan, exposure, held, plan
from proxy.settings.load import SettingsError, Sources
from proxy.settings.model import Settings
from proxy.settings.problems import Problem
from proxy.settings.reload import INTERVAL, Looks, Watch

MOST_PROBLEMS = 20
"""Lines in the log for one failed reload; `check` shows all."""


class Reloader:
    """Brings an application from one plan to the next. `aim` changes where settings point to, for --simulate."""

    def __init__(
        self, application: Application, running: Plan, aim: Callable[[Settings], Settings] = lambda settings: settings
    ) -> None:
        self._application = application
        self._log: Log = application.process.log
        self._running = running
        self._aim = aim
        self._looks = Looks(running.sources, self._log)

    @property
    def sources(self) -> Sources:
        """What was looked at last."""
        return self._looks.last

    async def read(self, *, asked: bool) -> None:
        """Look at the files again. Unless `asked`, nothing is done when nothing is new."""
        try:
            sources = await asyncio.to_thread(self.sources.again)
        except Exception as error:
            self._refuse(_reasons(error, self.sources))
            return
        current = self._application.current.number
        if self._looks.found(sources, self._running.sources, current, asked=asked):
            await self.apply(sources, current + 1)

    async def apply(self, sources: Sources, number: int) -> bool:
        """Put these sources in force as generation `number`, or log why not: then everything stays as it is."""
        if self._application.process.draining:
            self._log("info", "reload_ignored", what="the proxy is shutting down")
            return False
        try:
            planned = await asyncio.to_thread(next_plan, sources, self._running)
            settings, waiting = held(planned.settings, self._running.settings)
            await self._application.replace(self._aim(settings), sources.digest, number)
        except Exception as error:
            return self._refuse(_reasons(error, sources))
        self._running = replace(planned, settings=settings)
        self._looks.ended(well=True)
        self._log("info", "reloaded", generation=number, config=sources.digest, file=sources.file)
        report(self._log, "warning", "config_warning", planned.warnings)
        if waiting:
            self._log("warning", "needs_restart", settings=", ".join(waiting), file=sources.file)
        return True

    def _refuse(self, problems: Sequence[Problem]) -> bool:
        self._looks.ended(well=False)
        report(self._log, "error", "reload_failed", problems)
        return False


def _reasons(error: Exception, sources: Sources) -> Sequence[Problem]:
    """What is wrong, for the log. A fault of ours must not end a proxy that serves; its text is told to nobody."""
    if isinstance(error, SettingsError):
        return error.problems
    what = str(error) if isinstance(error, CannotStart) else f"a fault of the proxy: {type(error).__name__}"
    return [Problem(sources.file or "environment", None, "", what)]


def next_plan(sources: Sources, running: Plan) -> Plan:
    """What these sources make of a running proxy. Raises SettingsError or CannotStart, as a start would with them."""
    if sources.file and not sources.data.strip():
        # Most likely somebody is about to write it; and every key would be gone.
        raise SettingsError([Problem(sources.file, None, "", "the file is empty")])
    planned = plan(sources, simulate=running.simulate)
    settings, _ = held(planned.settings, running.settings)
    if planned.local and (exposed := exposure(settings.model_copy(update={"teams": {}}))):
        raise CannotStart(exposed)
    return planned


def report(log: Log, level: str, event: str, problems: Sequence[Problem]) -> None:
    """One line per problem, of the first MOST_PROBLEMS."""
    for problem in problems[:MOST_PROBLEMS]:
        log(level, event, file=problem.file, line=problem.line, path=problem.path or None, what=problem.reason)
    if len(problems) > MOST_PROBLEMS:
        log(level, event, what=f"and {len(problems) - MOST_PROBLEMS} more: `mistral-proxy check` shows all")


async def follow(reloader: Reloader, interval: float = INTERVAL, leave: Callable[[], object] = lambda: None) -> None:
    """Reload at every SIGHUP and whenever a file has changed, until cancelled. A SIGHUP that says that the terminal is
    gone, whose window somebody has closed, asks us to `leave`."""
    loop, asked, attended = asyncio.get_running_loop(), asyncio.Event(), os.isatty(0)
    loop.add_signal_handler(signal.SIGHUP, asked.set)
    watch = Watch(reloader.sources.files)
    try:
        while True:
            if asked.is_set():
                asked.clear()
                if attended and not os.isatty(0):
                    leave()
                await reloader.read(asked=True)
            elif await asyncio.to_thread(watch.changed):
                await reloader.read(asked=False)
            if watch.files != reloader.sources.files:
                watch = Watch(reloader.sources.files)
            await _either(asked, interval)
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


async def _either(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
