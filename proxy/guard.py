"""Ends work that nobody waits for any longer: the client has left, or a deadline has passed.

Three facts of ASGI make this one class. A server reports the client's leaving only to whoever is in `receive()`;
sending to a client that has left succeeds without waiting; a handler runs on unless somebody stops it. So while a Guard
is entered, our server tells it of that, or with any other one a watcher stands in `receive()`, and one timer looks at
the deadlines; either cancels the task, and leaving the block turns that cancellation into the error that says why. The
same timer sees when a client has been sent nothing for long, and tells whoever asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import Receive

from proxy.core import wording
from proxy.core.departure import Departure
from proxy.core.errors import ClientGone, Draining, Elsewhere, UpstreamTimeout
from proxy.core.gaps import Gaps
from proxy.core.interrupt import Interruptible
from proxy.core.services import Drainable

SILENCE = 15.0
"""Seconds in which a client is sent nothing, after which `on_silence` is called: what stands between the proxy and a
client may close a connection that is idle for long."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds: until the first byte of the answer's body, between bytes, and for everything."""

    first_byte: float
    idle: float
    total: float

    @classmethod
    def together(cls, seconds: float) -> Deadlines:
        """For what is not a call of one's own: so many, however they are spent."""
        return cls(seconds, seconds, seconds)


class Guard(Interruptible):
    """`with Guard(receive, deadlines):` runs its block under watch; call `heard()` at every byte of the upstream.

    `on_silence`, if one is set, is called after every SILENCE seconds without a `sent()`, but never between `sending()`
    and `sent()`.

    `ends` is when the time for everything is over, by the loop's clock; None: `total` after the guard is entered.

    `stays`, if there is one, is asked when the client has left, with what is to be called if that is to count later:
    True lets the block go on, because somebody else waits for what comes of it.

    `departure` is where it is told, if the server does so; else whoever is in `receive()` learns of it.

    Raises ClientGone, UpstreamTimeout or Draining in place of the cancellation it caused; any other one passes. The
    block does not even begin if the client has left, or the proxy stops.
    """

    def __init__(
        self,
        receive: Receive,
        deadlines: Deadlines,
        group: set[Drainable],
        ends: float | None = None,
        stays: Callable[[Callable[[], object]], bool] | None = None,
        departure: Departure | None = None,
    ) -> None:
        self.ends = ends
        self._stays = stays
        self._receive = receive
        self._departure = departure
        self._deadlines = deadlines
        self._group = group
        self.enough: Callable[[], bool] | None = None
        """Whether all that is waited for has come. Then time and drain do not matter any more; the client does."""
        self.on_silence: Callable[[], object] | None = None
        self.gaps: Gaps | None = None
        """If they are wanted: between the pieces of the answer."""

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        now = loop.time()
        self._phase, self._wait, self._last = "first_byte", self._deadlines.first_byte, now
        self._paused = False
        self._sent = now
        if self.ends is None:
            self.ends = now + self._deadlines.total
        self._end = self.ends
        self._timer = loop.call_at(self._due(), self._check)
        self._group.add(self)
        self._ignore: Callable[[], object] | None
        if self._departure is None:
            self._ignore = loop.create_task(self._stand_by()).cancel
        else:
            self._ignore = self._departure.ignore
            self._departure.watch(self._left)

    def _unwatch(self) -> None:
        self._timer.cancel()
        self._group.discard(self)
        self.release_client()
        self.on_silence = None  # whoever is told holds the guard: only the garbage collector would part the two

    def calling(self) -> None:
        """A call to the upstream begins: the first-byte deadline counts from now."""
        self._last = self._loop.time()
        self._enter("first_byte", self._deadlines.first_byte)

    @property
    def left(self) -> float:
        """Seconds until the end of everything."""
        return self._end - self._loop.time()

    async def rest(self, seconds: float) -> None:
        """Nothing is expected of the upstream for so long."""
        self._last = self._loop.time() + seconds
        await asyncio.sleep(seconds)

    def finishing(self, seconds: float) -> None:
        """The client has its whole answer; what the upstream still sends gets this long to end."""
        self.release_client()
        self.on_silence = None
        self._end = self._loop.time() + seconds
        self._timer.cancel()
        self._check()

    def sending(self) -> None:
        """The client is being sent something, and may take its time: until `sent`, the upstream's silence is not its
        fault."""
        self._paused = True
        if self.gaps and self._phase == "idle":
            self.gaps.add(self._loop.time() - self._last)

    def sent(self) -> None:
        """The client has taken it. The upstream has been heard, and has its whole time again."""
        self._paused = False
        self._last = self._sent = self._loop.time()
        if self._phase == "first_byte":
            self._enter("idle", self._deadlines.idle)

    def heard(self) -> None:
        """The upstream has sent something: from now on the idle deadline counts."""
        self._last = self._loop.time()
        if self._phase == "first_byte":
            self._enter("idle", self._deadlines.idle)

    def _enter(self, phase: str, wait: float) -> None:
        sooner = wait < self._wait  # than the timer expects
        self._phase, self._wait = phase, wait
        if sooner:
            self._timer.cancel()
            self._check()

    def release_client(self) -> None:
        """The client's leaving no longer matters."""
        if self._ignore:
            self._ignore()
            self._ignore = None

    def drain(self) -> None:
        """The proxy stops: end the block now."""
        if self.enough and self.enough():
            return
        self.interrupt(Draining(wording.SHUTTING_DOWN))

    async def _stand_by(self) -> None:
        message = await self._receive()
        while message["type"] != "http.disconnect":
            message = await self._receive()
        self._left()

    def _left(self) -> None:
        if self._stays is None or not self._stays(self._leave):
            self._leave()

    def _leave(self) -> None:
        if self._ignore:  # else it does not matter any more
            self.interrupt(ClientGone())

    def _check(self) -> None:
        # One timer serves all deadlines: it looks when the last byte came and sets itself anew. A byte costs none.
        now = self._loop.time()
        if self.enough and self.enough():
            return
        if self._paused:
            self._last = self._sent = now
        if now >= self._end:
            self.interrupt(_late("total", self._deadlines.total))
        elif now >= self._last + self._wait:
            self.interrupt(_late(self._phase, self._wait))
        else:
            if now >= self._sent + SILENCE:
                self._sent = now
                if self.on_silence:
                    self.on_silence()
            self._timer = self._loop.call_at(self._due(), self._check)

    def _due(self) -> float:
        return min(self._last + self._wait, self._end, self._sent + SILENCE)


_LATE = {
    "first_byte": "The upstream sent no answer within {:g} seconds (timeouts.first_byte).",
    "idle": "The upstream stopped sending for {:g} seconds (timeouts.idle).",
    "total": "The answer was not complete within {:g} seconds (timeouts.total).",
}


def _late(phase: str, seconds: float) -> UpstreamTimeout:
    late = UpstreamTimeout(_LATE[phase].format(seconds), detail={"timeout": phase})
    if phase == "total":
        late.elsewhere = Elsewhere.NO  # no time is left for anybody else
    return late
