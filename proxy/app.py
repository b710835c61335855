"""The application that stays while configurations come and go: a request runs under the one it began with."""

from __future__ import annotations

import asyncio
from ssl import SSLContext

from starlette.types import Receive, Scope, Send

from proxy.core.quota import Counter
from proxy.generation import Generation, Process, own_keys, prepare
from proxy.recount import Recounting, calendar_counters, key_ids
from proxy.settings.model import Settings
from proxy.upstream import open_transport, trust
from proxy.upstream.client import Upstream
from proxy.upstream.transport import Connections
from proxy.vitals import Vitals


class Application:
    """An ASGI application. Make it inside the running event loop. `drain()` ends what is still open; set
    `process.draining` first, so that readiness says so."""

    def __init__(self, settings: Settings, config: str | None, process: Process, number: int = 1) -> None:
        self.process = process
        trusted = {name: trust(provider) for name, provider in settings.providers.items()}
        upstreams = {name: self._open(settings, name, trusted[name]) for name in settings.providers}
        self.current = Generation(number, settings, config, prepare(settings), upstreams, process)
        self._earlier: set[Generation] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._recounting = Recounting(process.quotas, process.log)
        self._vitals = Vitals(process, lambda: self.current.upstreams, self.connections)
        process.look = self._vitals.look

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
        before = self.current
        kept = {name for name in settings.providers if _of(settings, name) == _of(before.settings, name)}
        parts = await asyncio.to_thread(prepare, settings)
        new_ones = [name for name in settings.providers if name not in kept]
        trusted = {name: await asyncio.to_thread(trust, settings.providers[name]) for name in new_ones}
        if self.process.draining:
            return False
        # Connections that are kept are warm.
        upstreams = {name: before.upstreams[name] for name in kept}
        upstreams |= {name: self._open(settings, name, trusted[name]) for name in new_ones}
        new = Generation(number, settings, config, parts, upstreams, self.process)
        await self._count(before, new)
        if new_ones:
            self.process.circuits.forget()
        self.current = new
        self.process.log.become(settings.logging.level, settings.logging.format)
        if self.process.answers:
            self.process.answers.backend.become(settings.cache.bounds)
        self._earlier.add(before)
        self._retire(before)
        return True

    async def start(self) -> None:
        """Before anybody is served: a store that others use may have counted for other rules than these."""
        if self.current.settings.store.shared:
            await self._recounting.recount(self._counters(self.current), missed=False)
        self._vitals.start()

    async def _count(self, before: Generation, new: Generation) -> None:
        """Bring the counters of rules that are new, or begin at other times now, up to date before anybody asks."""
        moved = new.settings.server.time_zone != before.settings.server.time_zone
        if moved:
            self.process.quotas.calendar = new.calendar
        old = set() if moved else self._counters(before)
        await self._recounting.recount(self._counters(new) - old, missed=True)

    def _counters(self, generation: Generation) -> set[Counter]:
        return set(calendar_counters(generation.rules, key_ids(generation.settings, self.process.issued)))

    def connections(self) -> dict[str, Connections]:
        """To each provider, of all configurations that a request still runs under. For whoever looks now and then."""
        found: dict[str, Connections] = {}
        seen: set[Upstream] = set()
        for generation in (self.current, *self._earlier):
            for name, upstream in generation.upstreams.items():
                if upstream not in seen:
                    seen.add(upstream)
                    before, now = found.get(name, Connections(0, 0)), upstream.connections
                    found[name] = Connections(before.in_use + now.in_use, before.idle + now.idle)
        return found

    def redact(self, text: str) -> str:
        """Without the secrets of any configuration that a request still runs under."""
        for generation in (self.current, *self._earlier):
            text = generation.redact.text(text)
        return text

    def drain(self) -> None:
        """End every request under way with the error `draining`."""
        self.process.drainables.drain()

    async def close(self) -> None:
        """Close every connection to a provider, whose calls fail, and whatever the process keeps elsewhere."""
        self._vitals.close()
        for upstream in self._upstreams():
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
        for upstream in set(generation.upstreams.values()) - self._upstreams():
            task = asyncio.get_running_loop().create_task(upstream.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _upstreams(self) -> set[Upstream]:
        """Those that somebody may still call."""
        return {one for generation in (self.current, *self._earlier) for one in generation.upstreams.values()}

    def _open(self, settings: Settings, name: str, trusted: SSLContext | None) -> Upstream:
        provider = settings.providers[name]
        return Upstream(
            provider,
            open_transport(provider, trusted),
            settings.server.workers,
            name=name,
            own_keys=own_keys(settings, name),
            log=self.process.log,
        )


def _of(settings: Settings, name: str) -> object:
    """All that an upstream is made of."""
    return settings.providers.get(name), own_keys(settings, name)
