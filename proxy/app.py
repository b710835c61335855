"""The application that stays while configurations come and go: a request runs under the one it began with."""

from __future__ import annotations

import asyncio

from starlette.types import Receive, Scope, Send

from proxy.core.quota import Counter
from proxy.generation import Generation, Process, prepare
from proxy.recount import Recounting, calendar_counters, key_ids
from proxy.settings.model import Settings
from proxy.upstream import open_transport, trust
from proxy.upstream.client import Upstream


class Application:
    """An ASGI application. Make it inside the running event loop. `drain()` ends what is still open; set
    `process.draining` first, so that readiness says so."""

    def __init__(self, settings: Settings, config: str | None, process: Process, number: int = 1) -> None:
        provider = settings.providers.mistral
        upstream = Upstream(provider, open_transport(provider, trust(provider)), settings.server.workers)
        self.process = process
        self.current = Generation(number, settings, config, prepare(settings), upstream, process)
        self._earlier: set[Generation] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._recounting = Recounting(process.quotas, process.log)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        generation = self.current
        generation.requests += 1
        try:
            await generation.app(scope, receive, send)
        finally:
            generation.requests -= 1
            if generation is not self.current:
                self._retire(generation)

    async def replace(self, settings: Settings, config: str | None, number: int) -> bool:
        """Put a new generation in force. Whatever goes wrong before that is raised, and changes nothing. False: nothing
        is replaced any more, because a drain has begun."""
        before, provider = self.current, settings.providers.mistral
        kept = provider == before.settings.providers.mistral
        parts = await asyncio.to_thread(prepare, settings)
        trusted = None if kept else await asyncio.to_thread(trust, provider)
        if self.process.draining:
            return False
        # Connections that are kept are warm.
        workers = settings.server.workers
        upstream = before.upstream if kept else Upstream(provider, open_transport(provider, trusted), workers)
        new = Generation(number, settings, config, parts, upstream, self.process)
        await self._count(before, new)
        if not kept:
            self.process.circuits.forget()
        self.current = new
        self.process.log.become(settings.logging.level, settings.logging.format)
        self._earlier.add(before)
        self._retire(before)
        return True

    async def start(self) -> None:
        """Before anybody is served: a store that others use may have counted for other rules than these."""
        if self.current.settings.store.shared:
            await self._recounting.recount(self._counters(self.current), missed=False)

    async def _count(self, before: Generation, new: Generation) -> None:
        """Bring the counters of rules that are new, or begin at other times now, up to date before anybody asks."""
        moved = new.settings.server.time_zone != before.settings.server.time_zone
        if moved:
            self.process.quotas.calendar = new.calendar
        old = set() if moved else self._counters(before)
        await self._recounting.recount(self._counters(new) - old, missed=True)

    def _counters(self, generation: Generation) -> set[Counter]:
        return set(calendar_counters(generation.rules, key_ids(generation.settings, self.process.issued)))

    def redact(self, text: str) -> str:
        """Without the secrets of any configuration that a request still runs under."""
        for generation in (self.current, *self._earlier):
            text = generation.redact.text(text)
        return text

    def drain(self) -> None:
        """End every request under way with the error `draining`."""
        for part in list(self.process.drainables):
            part.drain()

    async def close(self) -> None:
        """Close every connection to a provider, whose calls fail, and whatever the process keeps elsewhere."""
        for upstream in {generation.upstream for generation in (self.current, *self._earlier)}:
            await upstream.close()
        if self._closing:
            await asyncio.wait(self._closing)
        await self._recounting.close()
        await self.process.closing.aclose()

    def _retire(self, generation: Generation) -> None:
        """Forget it when its last request has ended, and its connections with it unless a younger one has them too."""
        if generation.requests:
            return
        self._earlier.discard(generation)
        if all(generation.upstream is not other.upstream for other in (self.current, *self._earlier)):
            task = asyncio.get_running_loop().create_task(generation.upstream.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
