"""What a request leaves behind is gone when it is: no prompt and no answer waits for the garbage collector."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable

import pytest
from starlette.types import Message, Send

from proxy.capture import Capture
from proxy.core.departure import Departure
from proxy.core.errors import ClientGone, ProxyError, UpstreamFailed, forget_frames
from proxy.core.exchange import Exchange
from proxy.core.flight import Flight
from proxy.core.success import stream_start
from proxy.guard import Deadlines, Guard
from proxy.search import Search
from tests.asgi import call
from tests.stages.cache_setting import EVENTS, HOUR, Gated, Setting, streamed, turns, whole


def guarded(setting: Setting, gated: Gated) -> Callable[[Exchange, Send], Awaitable[None]]:
    """As dispatch calls."""

    async def play(about: Exchange, send: Send) -> None:
        guard = Guard(_nothing, Deadlines.together(60), setting.drainables, None, about.stays, about.departure)
        try:
            with guard:
                await gated(about, send)
        except ClientGone as gone:
            forget_frames(gone)
            about.client_gone = True
        except ProxyError as error:
            forget_frames(error)
            raise

    return play


async def _nothing() -> Message:
    raise NotImplementedError


async def breaks(about: Exchange, send: Send) -> None:
    """As dispatch ends a stream that its provider has cut."""
    about.streamed, about.attempts = True, 1
    await send(stream_start())
    await send({"type": "http.response.body", "body": EVENTS[0], "more_body": True})
    await turns()
    about.error = UpstreamFailed("cut")
    await send({"type": "http.response.body", "body": b"data: error\n\n", "more_body": False})


async def _fails(about: Exchange, send: Send) -> None:
    about.attempts = 1
    raise UpstreamFailed("x")


class Crowd:
    """A leader, and one that follows it."""

    def __init__(self, setting: Setting, gated: Gated) -> None:
        self.setting, self.gated = setting, gated
        self.departures: list[Departure] = []
        self.tasks: list[asyncio.Task[object]] = []
        self.reads = asyncio.Event()

    async def comes(self, *, reads: bool = True, late: bool = False) -> None:
        about = self.setting.exchange()
        about.end = 0.0 if late else None
        about.departure = departure = Departure(lambda: None, lambda: None)
        self.departures.append(departure)

        async def taking(message: Message) -> None:
            if not reads:
                await self.reads.wait()

        asked = call(self.setting.app, exchange=about, body=[], stays=True, taking=taking)
        self.tasks.append(asyncio.create_task(asked))
        await turns()

    async def ends(self) -> None:
        self.gated.gate.set()
        await turns()
        self.reads.set()
        for error in await asyncio.gather(*self.tasks, return_exceptions=True):
            if isinstance(error, BaseException):
                forget_frames(error)  # as the rescue stage does
        self.tasks.clear()
        self.departures.clear()


async def leader_leaves(crowd: Crowd) -> None:
    await crowd.comes()
    crowd.departures[0].happen()


async def leader_leaves_the_follower(crowd: Crowd) -> None:
    await crowd.comes()
    await crowd.comes()
    crowd.departures[0].happen()


async def follower_leaves(crowd: Crowd) -> None:
    await crowd.comes()
    await crowd.comes()
    crowd.departures[1].happen()


async def follower_leaves_later(crowd: Crowd) -> None:
    await crowd.comes()
    await crowd.comes(reads=False)
    crowd.gated.gate.set()
    await turns()
    crowd.departures[1].happen()


async def leader_does_not_read(crowd: Crowd) -> None:
    await crowd.comes(reads=False)
    await crowd.comes()
    crowd.gated.gate.set()
    await turns()
    crowd.tasks[0].cancel()


async def the_followers_time_is_over(crowd: Crowd) -> None:
    await crowd.comes()
    await crowd.comes(late=True)


async def the_proxy_ends(crowd: Crowd) -> None:
    await crowd.comes()
    await crowd.comes(reads=False)
    crowd.setting.drainables.drain()


async def all_is_well(crowd: Crowd) -> None:
    await crowd.comes()
    await crowd.comes()


@pytest.mark.parametrize(
    "happens",
    [
        leader_leaves,
        leader_leaves_the_follower,
        follower_leaves,
        follower_leaves_later,
        leader_does_not_read,
        the_followers_time_is_over,
        the_proxy_ends,
        all_is_well,
    ],
)
@pytest.mark.parametrize("play", [whole, streamed, breaks, _fails])
@pytest.mark.parametrize("old", [False, True])
async def test_nothing_holds_what_holds_it(
    happens: Callable[[Crowd], Awaitable[None]], play: Callable[[Exchange, Send], Awaitable[None]], old: bool
) -> None:
    setting = Setting(whole)
    if old:
        await setting.ask()
        setting.now += 2 * HOUR
    await leaves_nothing(setting, play, happens)


async def test_nothing_holds_a_stream_that_the_proxys_end_cuts() -> None:
    on = asyncio.Event()

    async def pauses(about: Exchange, send: Send) -> None:
        about.streamed = True
        await send(stream_start())
        await send({"type": "http.response.body", "body": EVENTS[0], "more_body": True})
        await on.wait()

    async def the_proxy_ends(crowd: Crowd) -> None:
        await crowd.comes()
        await crowd.comes()
        crowd.gated.gate.set()
        await turns()
        crowd.setting.drainables.drain()
        await turns()
        on.set()

    await leaves_nothing(Setting(whole), pauses, the_proxy_ends)


async def leaves_nothing(
    setting: Setting, play: Callable[[Exchange, Send], Awaitable[None]], happens: Callable[[Crowd], Awaitable[None]]
) -> None:
    setting.play = guarded(setting, gated := Gated(play))
    gc.disable()
    gc.freeze()  # what was there before is nobody's garbage, and takes a second to look at
    try:
        await happens(crowd := Crowd(setting, gated))
        await turns()
        await crowd.ends()
        await turns()  # the loop holds what woke us
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        held = {
            type(one).__name__ for one in gc.garbage if isinstance(one, Flight | Exchange | Guard | Capture | Search)
        }
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.unfreeze()
        gc.enable()
    assert not held
    assert not setting.answers.flights
    assert not setting.drainables
