"""The configuration that is served, and the looks at its files. All of it may block; nothing needs an event loop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from proxy.core.services import Log
from proxy.serving.plan import CannotStart, Plan, next_plan
from proxy.settings.load import SettingsError, Sources
from proxy.settings.problems import Problem
from proxy.settings.reload import LastTried, Watch

MOST_PROBLEMS = 20
"""Lines in the log for one failed reload; `check` shows all."""

HANG_UP = 2.0
"""Seconds after the end of a terminal in which a SIGHUP is taken for its own."""


class Current:
    """The `plan` that is served, as this `generation`, and what it may be followed by."""

    def __init__(self, plan: Plan, log: Log) -> None:
        self.plan, self.generation = plan, 1
        self._log = log
        self._tried = LastTried(plan.sources, log)
        self._watch = Watch(plan.sources.files)
        self._terminal = Terminal()

    def look(self, *, asked: bool) -> Plan | None:
        """The plan to go over to: then say `took` or `failed`. None when the files have not changed, or something is
        wrong with them, which is in the log. `asked`: by SIGHUP; one that says that our terminal is gone, whose window
        somebody has closed, ends the process as SIGTERM does."""
        hung_up = self._terminal.hung_up()
        if asked and hung_up:
            os.kill(os.getpid(), signal.SIGTERM)
            return None
        if not asked and not self._watch.changed():
            return None
        try:
            return self._next(asked=asked)
        except Exception as error:
            self.failed(error)
            return None

    def _next(self, *, asked: bool) -> Plan | None:
        sources = self._tried.sources.again()
        if self._watch.files != sources.files:
            self._watch = Watch(sources.files)
        new = self._tried.found(sources, self.plan.sources, self.generation, asked=asked)
        return next_plan(sources, self.plan) if new else None

    def took(self, planned: Plan) -> None:
        """This plan is the one that is served from now on."""
        self.plan, self.generation = replace(planned, warnings=(), waiting=()), self.generation + 1
        self._tried.ended(well=True)
        report(self._log, "warning", "config_warning", planned.warnings)
        if planned.waiting:
            self._log("warning", "needs_restart", settings=", ".join(planned.waiting), file=planned.sources.file)

    def failed(self, error: Exception) -> None:
        """Nothing has changed, for this reason."""
        self._tried.ended(well=False)
        report(self._log, "error", "reload_failed", _reasons(error, self._tried.sources))


def _reasons(error: Exception, sources: Sources) -> Sequence[Problem]:
    """What is wrong, for the log. A fault of ours must not end a proxy that serves; its text is told to nobody."""
    if isinstance(error, SettingsError):
        return error.problems
    what = str(error) if isinstance(error, CannotStart) else f"a fault of the proxy: {type(error).__name__}"
    return [Problem(sources.file or "environment", None, "", what)]


def report(log: Log, level: str, event: str, problems: Sequence[Problem]) -> None:
    """One line per problem, of the first MOST_PROBLEMS."""
    for problem in problems[:MOST_PROBLEMS]:
        log(level, event, file=problem.file, line=problem.line, path=problem.path or None, what=problem.reason)
    if len(problems) > MOST_PROBLEMS:
        log(level, event, what=f"and {len(problems) - MOST_PROBLEMS} more: `mistral-proxy check` shows all")


class Terminal:
    """The one that the process was started in, if it was. When it ends, its SIGHUP comes at once or, to a process that
    its shell has let go, never: a later one is somebody's who wants a reload."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._there = os.isatty(0)
        self._until = 0.0

    def hung_up(self) -> bool:
        """Whether a SIGHUP at this moment is the terminal's. It has to be asked again and again to know."""
        if self._there and not os.isatty(0):
            self._there, self._until = False, self._now() + HANG_UP
        return self._now() < self._until
