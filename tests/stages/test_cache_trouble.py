"""Those who have joined a call, when something goes wrong with it or with whoever has made it."""

from __future__ import annotations

import asyncio
from math import inf
from typing import Any

import pytest
from starlette.types import Message, Send

from proxy import player
from proxy.capture import GRACE
from proxy.core.departure import Departure
from proxy.core.errors import (
    CircuitOpen,
    Draining,
    Elsewhere,
    Fault,
    KeyFault,
    NotInCache,
    Overloaded,
    ProviderBusy,
    ProxyError,
    RateLimited,
    UpstreamFailed,
    UpstreamRefusal,
    UpstreamTimeout,
)
from proxy.core.exchange import Exchange
from proxy.core.success import send_json, stream_start
from proxy.guard import Deadlines, Guard
from proxy.upstream.client import failure
from proxy.upstream.config import Timeouts
from proxy.upstream.transport import TransportError
from tests.asgi import Answer, call
from tests.stages.cache_setting import EVENTS, HOUR, Gated, Setting, Slowly, metered, streamed, turns, whole

REFUSED = UpstreamRefusal("Invalid value for 'metadata'", status=400, type="invalid_request_error", code="c")


def fails(error: ProxyError) -> Any:
    """After it has been asked for."""

    async def failing(about: Exchange, send: Send) -> None:
        about.attempts = 1
        await turns()
        raise error

    return failing


# Errors that are not everybody's.


async def test_what_is_wrong_with_one_request_is_told_to_nobody_who_has_not_said_it() -> None:
    async def picky(about: Exchange, send: Send) -> None:
        about.attempts = 1
        await turns()
        assert about.body
        if about.body.get("metadata") == {"bad": 1}:
            raise REFUSED
        await whole(about, send)

    setting = Setting(gated := Gated(picky))
    bad = [asyncio.create_task(setting.error(metadata={"bad": 1})) for _ in range(2)]
    good = [asyncio.create_task(setting.ask(metadata={"right": n})) for n in range(20)]
    await turns()
    gated.gate.set()
    assert {type(one) for one in await asyncio.gather(*bad)} == {UpstreamRefusal}
    found = await asyncio.gather(*good)
    assert {one.body for one in found} == {b'{"answer": 1}'}
    assert sorted(str(one.exchange.cache) for one in found) == [*["joined"] * 19, "miss"]
    assert setting.calls == 2


@pytest.mark.parametrize(("scope", "own_keys"), [("global", ("poor",)), ("global", ()), ("team", ("poor",))])
@pytest.mark.parametrize("error", [ProviderBusy(1), UpstreamFailed("no", code="upstream_auth_failed"), "429"])
async def test_a_key_that_is_refused_is_no_trouble_of_those_who_pay_with_another(
    error: ProxyError | str, scope: str, own_keys: tuple[str, ...]
) -> None:
    if isinstance(error, str):
        error = UpstreamRefusal("no", status=429, type="requests", code="rate_limit_exceeded")
        error.elsewhere, error.key = Elsewhere.YES, KeyFault.SPENT

    async def pays(about: Exchange, send: Send) -> None:
        about.attempts = 1
        await turns()
        assert about.team
        if about.team.name == "poor":
            raise error
        await whole(about, send)

    setting = Setting(gated := Gated(pays), options={"scope": scope}, own_keys=own_keys)
    poor = [asyncio.create_task(setting.error("poor")) for _ in range(2)]
    await turns()
    rich = [asyncio.create_task(setting.ask("rich")) for _ in range(5)]
    await turns()
    poor.append(asyncio.create_task(setting.error("poor")))  # which has most time, and asks again
    await turns()
    gated.gate.set()
    assert {type(one) for one in await asyncio.gather(*poor)} == {type(error)}
    answers = await asyncio.gather(*rich, return_exceptions=True)
    if own_keys:
        assert [getattr(one, "status", one) for one in answers] == [200] * 5
    else:  # then it is everybody's
        assert {type(one) for one in answers} == {type(error)}
    assert setting.calls == {"global": 3 if own_keys else 2, "team": 3}[scope]


@pytest.mark.parametrize("own_keys", [("poor",), ("somebody",)])
async def test_a_crowd_that_pays_with_the_same_key_asks_twice_whoever_else_has_one(own_keys: tuple[str, ...]) -> None:
    error = UpstreamRefusal("no", status=429, type="requests", code="rate_limit_exceeded")
    error.elsewhere, error.key = Elsewhere.YES, KeyFault.SPENT
    setting = Setting(gated := Gated(fails(error)), options={"scope": "global"}, own_keys=own_keys)
    tasks = [asyncio.create_task(setting.error("poor")) for _ in range(40)]
    await turns()
    gated.gate.set()
    assert {one.status for one in await asyncio.gather(*tasks)} == {429}
    assert setting.calls == 2


async def test_of_a_model_that_is_left_alone_nothing_is_reserved_for_those_who_have_joined_either() -> None:
    """Where there is another one to turn to."""

    async def is_open(about: Exchange, send: Send) -> None:
        await turns()
        raise CircuitOpen("x", wait=1000)

    async def ask(*, others: bool) -> ProxyError:
        about = setting.exchange()
        about.others = others
        with pytest.raises(ProxyError) as caught:
            await call(setting.app, exchange=about, body=[], stays=True)
        return caught.value

    for others, counted in ((True, 1), (False, 6)):
        setting = Setting(is_open)
        errors = await asyncio.gather(*[asyncio.create_task(ask(others=others)) for _ in range(6)])
        assert {type(one) for one in errors} == {CircuitOpen}
        assert len({id(one) for one in errors}) == 6
        assert setting.counted == counted


async def test_many_who_may_not_break_up_no_crowd_of_those_who_may() -> None:
    async def admits(about: Exchange, send: Send) -> None:
        await turns(3)  # as quotas in Redis take their time
        assert about.team
        if about.key_id == "key-a":
            about.attempts = 1
            await turns()
            await whole(about, send)
            return
        raise RateLimited("x", about="requests", wait=1, detail={})

    setting = Setting(admits, options={"scope": "global"})
    refused = [asyncio.create_task(setting.error("b")) for _ in range(30)]
    allowed = [asyncio.create_task(setting.ask("a")) for _ in range(30)]
    assert {type(one) for one in await asyncio.gather(*refused)} == {RateLimited}
    found = await asyncio.gather(*allowed)
    assert sorted(str(one.exchange.cache) for one in found) == [*["joined"] * 29, "miss"]
    assert setting.calls == 31


async def test_a_call_that_has_ended_for_no_reason_of_the_providers_is_made_once_more_for_all() -> None:
    async def breaks_once(about: Exchange, send: Send) -> None:
        about.attempts = 1
        await turns()
        if setting.calls == 1:
            raise ZeroDivisionError
        await whole(about, send)

    setting = Setting(gated := Gated(breaks_once))
    tasks = [asyncio.create_task(setting.ask()) for _ in range(6)]
    await turns()
    gated.gate.set()
    first, *others = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(first, ZeroDivisionError)
    assert {getattr(one, "status", one) for one in others} == {200}
    assert setting.calls == 2


async def test_who_would_be_refused_too_does_not_wait_for_it() -> None:
    """Else each would wake all the others, one after the other."""
    looked = 0

    async def refuses(about: Exchange, send: Send) -> None:
        await turns(3)
        raise RateLimited("x", about="requests", wait=1, detail={})

    setting = Setting(refuses)
    look = setting.backend.look

    async def counted(*args: Any) -> Any:
        nonlocal looked
        looked += 1
        return await look(*args)

    setting.backend.look = counted
    found = await asyncio.gather(*(setting.error() for _ in range(200)))
    assert {type(one) for one in found} == {RateLimited}
    assert (setting.calls, looked) == (200, 1)


async def test_one_whose_time_is_over_says_that_another_model_may_do_it_for_those_who_have_time() -> None:
    late = UpstreamTimeout("late", detail={"timeout": "total"})
    late.elsewhere = Elsewhere.NO
    setting = Setting(gated := Gated(fails(late)))
    first = asyncio.create_task(setting.error())
    await turns()
    about = setting.exchange()
    about.others = True
    joined = asyncio.create_task(call(setting.app, exchange=about, body=[], stays=True))
    await turns()
    gated.gate.set()
    assert (await first).elsewhere is Elsewhere.NO
    with pytest.raises(UpstreamTimeout) as told:
        await joined
    assert told.value.elsewhere is Elsewhere.YES
    assert (about.cache, setting.calls) == ("joined", 1)


@pytest.mark.parametrize("before", [False, True])
async def test_the_end_of_another_ones_time_is_no_trouble_and_who_has_most_time_asks_again(before: bool) -> None:
    """Whoever has waited longest would ask with hardly any time left, and all who have time would lose theirs."""
    ends: list[float] = []

    async def hangs(about: Exchange, send: Send) -> None:
        assert about.end
        about.attempts = 1
        ends.append(about.end)
        if len(ends) == 1 and before:
            raise UpstreamFailed("no")
        if len(ends) < 4:
            raise UpstreamTimeout("late", detail={"timeout": "total"})
        await whole(about, send)

    setting, now = Setting(gated := Gated(hangs)), asyncio.get_running_loop().time()
    abouts = [setting.exchange() for _ in range(7)]
    for about, seconds in zip(abouts, (10, 20, 60, 30, 50, 40, 25), strict=True):
        about.end = now + seconds
    tasks = [asyncio.create_task(call(setting.app, exchange=one, body=[], stays=True)) for one in abouts]
    await turns()
    gated.gate.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [round(end - now) for end in ends] == [10, 60, 50, 40]
    assert [type(one) for one in found].count(Answer) == 4
    assert (abouts[5].cache, setting.calls) == ("miss", 4)


async def test_of_those_whose_time_is_over_nobody_waits_for_more_than_a_few() -> None:
    """Then each asks for itself."""
    under_way, most = 0, list[int]()

    async def late(about: Exchange, send: Send) -> None:
        nonlocal under_way
        about.attempts = 1
        under_way += 1
        await turns()
        most.append(under_way)
        under_way -= 1
        raise UpstreamTimeout("late", detail={"timeout": "total"})

    setting = Setting(gated := Gated(late))
    tasks = [asyncio.create_task(setting.error()) for _ in range(20)]
    await turns()
    gated.gate.set()
    await asyncio.gather(*tasks)
    assert (setting.calls, most[:8], max(most)) == (20, [1] * 8, 12)


async def test_where_no_connection_is_free_a_crowd_is_told_so_and_does_not_ask_one_by_one() -> None:
    async def plays(about: Exchange, send: Send) -> None:
        await turns()
        raise no_connection()  # nothing was sent

    setting = Setting(gated := Gated(plays))
    tasks = [asyncio.create_task(setting.error()) for _ in range(30)]
    await turns()
    gated.gate.set()
    found = await asyncio.gather(*tasks)
    assert {(type(one), one.fault) for one in found} == {(Overloaded, Fault.PROXY)}
    assert setting.calls == 2


async def test_where_a_connection_is_free_again_one_call_answers_the_crowd() -> None:
    async def plays(about: Exchange, send: Send) -> None:
        if setting.calls == 1:
            raise no_connection()
        await whole(about, send)

    setting = Setting(gated := Gated(plays))
    tasks = [asyncio.create_task(setting.ask()) for _ in range(30)]
    await turns()
    gated.gate.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in found].count(Overloaded) == 1
    assert setting.calls == 2


def no_connection() -> ProxyError:
    error = failure(TransportError("pool", "full"), Timeouts(), sent=False)
    assert isinstance(error, Overloaded)
    return error


async def test_a_model_that_is_not_there_any_more_is_told_and_not_answered_with_what_is_old() -> None:
    gone = UpstreamRefusal("no", status=404, type="invalid_request_error", code="model_not_found", param="model")
    gone.elsewhere = Elsewhere.YES
    setting = Setting(whole)
    await setting.ask()
    setting.now += 2 * HOUR
    setting.play = fails(gone)
    assert (await setting.error()).code == "model_not_found"


async def test_what_is_of_a_later_time_is_nothing_for_bad_times_either() -> None:
    setting = Setting(whole)
    setting.now += 2 * HOUR
    await setting.ask()
    setting.now -= HOUR
    setting.play = fails(UpstreamFailed("x"))
    assert isinstance(await setting.error(), UpstreamFailed)


async def test_whoever_has_waited_has_so_much_less_time_for_a_call_of_its_own() -> None:
    ends: list[float | None] = []

    async def fails_once(about: Exchange, send: Send) -> None:
        ends.append(about.end)
        about.attempts = 1
        await turns()
        if len(ends) == 1:
            raise UpstreamFailed("x")
        await whole(about, send)

    setting = Setting(gated := Gated(fails_once))
    first = asyncio.create_task(setting.error())
    await turns()
    begun = asyncio.get_running_loop().time()
    second = asyncio.create_task(setting.ask())
    await turns()
    gated.gate.set()
    await first
    assert (await second).exchange.cache == "miss"
    own, theirs = ends
    assert own is None
    assert theirs
    assert theirs == pytest.approx(begun + 600.0, abs=60.0)


# Who leaves, or does not read.


async def test_nobody_joins_a_call_that_is_about_to_be_ended() -> None:
    left = asyncio.Event()

    async def leaves(about: Exchange, send: Send) -> None:
        if setting.calls > 1:
            await streamed(about, send)
            return
        about.streamed = True
        await send(stream_start())
        await send({"type": "http.response.body", "body": EVENTS[0], "more_body": True})
        assert about.stays
        assert not about.stays(lambda: None)
        left.set()
        await turns()
        about.client_gone = True

    setting = Setting(leaves)
    first = asyncio.create_task(setting.ask())
    await left.wait()
    again = await setting.ask()
    assert (again.exchange.cache, again.body) == ("miss", b"".join(EVENTS))
    await first


async def test_nobody_joins_a_call_that_the_last_follower_has_left() -> None:
    setting = Setting(gated := Gated(whole))
    first = asyncio.create_task(setting.ask())
    await turns()
    second = asyncio.create_task(setting.ask())
    await turns()
    (flight,) = setting.answers.flights.values()
    assert flight.stays(lambda: None)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert not flight.open
    gated.gate.set()
    await first


@pytest.mark.parametrize("play", [whole, streamed])
async def test_a_client_that_does_not_even_take_the_head_holds_nobody_up(play: Any) -> None:
    setting, reads = Setting(gated := Gated(play)), asyncio.Event()

    async def taking(message: Message) -> None:
        await reads.wait()

    first = asyncio.create_task(setting.ask(taking=taking))
    await turns()
    others = [asyncio.create_task(setting.ask()) for _ in range(3)]
    await turns()
    gated.gate.set()
    found = await asyncio.wait_for(asyncio.gather(*others), 5)
    assert {one.exchange.cache for one in found} == {"joined"}
    assert not first.done()
    reads.set()
    answer = await first
    assert {one.body for one in found} == {answer.body}
    assert (answer.status, answer.exchange.status, setting.calls) == (200, 200, 1)


@pytest.mark.parametrize("blocks_at", ["start", "body"])
@pytest.mark.parametrize(("most", "joined"), [("1MB", 0), ("1MB", 1), ("10B", 1)])
async def test_what_was_not_taken_and_comes_again_is_there_once(most: str, joined: int, blocks_at: str) -> None:
    """A relay whose send is cancelled sends it again, with what follows (relay.py)."""
    reads = asyncio.Event()

    async def relayed(about: Exchange, send: Send) -> None:
        def body(data: bytes, *, more: bool) -> Message:
            return {"type": "http.response.body", "body": data, "more_body": more}

        about.streamed = True
        await send(stream_start())
        if blocks_at == "body":
            await send(body(EVENTS[0], more=True))
        first = asyncio.ensure_future(send(body(EVENTS[1], more=True)))
        await turns()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        reads.set()
        metered(about)
        await send(body((EVENTS[1] if first.cancelled() else b"") + EVENTS[2], more=False))

    async def taking(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"x-once", b"1")]  # as the begin stage does
            if blocks_at == "start":
                await reads.wait()
        elif message["body"].startswith(EVENTS[1]):
            await reads.wait()

    setting = Setting(gated := Gated(relayed), options={"max_entry": most})
    first = asyncio.create_task(setting.ask(taking=taking))
    await turns()
    others = [asyncio.create_task(setting.ask()) for _ in range(joined)]
    await turns()
    gated.gate.set()
    whole_of_it = b"".join(EVENTS if blocks_at == "body" else EVENTS[1:])
    answers = await asyncio.gather(first, *others)
    assert {one.body for one in answers} == {whole_of_it}
    assert [name for name, _ in answers[0].headers].count(b"x-once") == 1
    if most == "1MB":
        kept = await setting.ask()
        assert (kept.exchange.cache, kept.body, setting.calls) == ("hit", whole_of_it, 1)


async def test_who_has_fallen_too_far_behind_is_cut_and_the_call_is_for_those_who_are_left() -> None:
    """And if they leave, too, it is for nobody."""
    reads, gave_up, cut = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def endless(about: Exchange, send: Send) -> None:
        about.streamed = True
        await send(stream_start())
        for n in range(1_000):
            await send({"type": "http.response.body", "body": b"data: %d\n\n" % n, "more_body": True})
            await asyncio.sleep(0)
            assert not about.client_gone  # of how the call ends others hear
            if cut.is_set() and about.departure and not about.departure.gone:
                about.departure.happen()
                assert about.stays
                assert about.stays(gave_up.set)
            if gave_up.is_set():
                about.client_gone = True
                return

    async def taking(message: Message) -> None:
        await reads.wait()

    setting = Setting(gated := Gated(endless), options={"max_entry": "100B"})
    about = setting.exchange()
    about.departure = Departure(lambda: None, cut.set)
    first = asyncio.create_task(call(setting.app, exchange=about, body=[], stays=True, taking=taking))
    await turns()
    second = asyncio.create_task(setting.ask())
    await turns()
    gated.gate.set()
    async with asyncio.timeout(5):
        await cut.wait()
        await turns()
        second.cancel()
        await gave_up.wait()
        await first
    assert about.client_gone


async def test_who_reads_gets_all_of_it_when_another_one_was_cut() -> None:
    """However fast it comes then."""
    pieces = [b"data: %d\n\n" % n for n in range(100)]

    async def burst(about: Exchange, send: Send) -> None:
        about.streamed = True
        await send(stream_start())
        for n, piece in enumerate(pieces):
            await send({"type": "http.response.body", "body": piece, "more_body": n + 1 < len(pieces)})

    async def never(message: Message) -> None:
        await asyncio.Event().wait()

    setting = Setting(gated := Gated(burst), options={"max_entry": "100B"})
    first = asyncio.create_task(setting.ask(taking=never))
    await turns()
    others = [asyncio.create_task(setting.ask()) for _ in range(3)]
    await turns()
    gated.gate.set()
    async with asyncio.timeout(5):
        found = await asyncio.gather(*others)
    assert {one.body for one in found} == {b"".join(pieces)}
    assert setting.calls == 1
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)


async def test_who_is_alone_may_be_as_slow_as_it_likes() -> None:
    """Also when somebody has followed until a moment ago."""
    setting, reads = Setting(gated := Gated(streamed), options={"max_entry": "5B"}), asyncio.Event()

    async def taking(message: Message) -> None:
        await reads.wait()

    first = asyncio.create_task(setting.ask(taking=taking))
    await turns()
    second = asyncio.create_task(setting.ask())
    await turns()
    gated.gate.set()
    await turns()
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    await asyncio.sleep(2 * GRACE)
    reads.set()
    answer = await first
    assert (answer.body, answer.exchange.client_gone) == (b"".join(EVENTS), False)


@pytest.mark.parametrize("cadence", ["immediate", "original"])
async def test_who_is_given_what_is_old_holds_up_nobody(cadence: str) -> None:
    """Its call is over: who follows it, and whoever comes, is not kept waiting until it has taken that."""

    async def failing(about: Exchange, send: Send) -> None:
        about.attempts = 1
        await turns()
        raise UpstreamFailed("x")

    setting, reads = Setting(streamed, options={"cadence": cadence}), asyncio.Event()
    await setting.ask()
    setting.now += 2 * HOUR
    setting.play = gated = Gated(failing)

    async def taking(message: Message) -> None:
        await reads.wait()

    first = asyncio.create_task(setting.ask(taking=taking))
    await turns()
    second = asyncio.create_task(setting.ask())
    await turns()
    gated.gate.set()
    assert (await second).exchange.cache == "stale"
    assert (await setting.ask()).exchange.cache == "stale"
    assert not first.done()
    reads.set()
    assert (await first).exchange.cache == "stale"


async def test_what_goes_wrong_with_its_own_client_at_once_is_not_hidden_either() -> None:
    """And it is sent nothing twice."""
    setting, sent = Setting(gated := Gated(streamed)), list[str]()

    async def breaks(message: Message) -> None:
        sent.append(message["type"])
        raise ZeroDivisionError

    first = asyncio.create_task(setting.ask(taking=breaks))
    await turns()
    second = asyncio.create_task(setting.ask())
    await turns()
    gated.gate.set()
    assert (await second).body == b"".join(EVENTS)
    with pytest.raises(ZeroDivisionError):
        await first
    assert sent == ["http.response.start"]


async def test_what_goes_wrong_with_its_own_client_is_not_hidden() -> None:
    setting, reads = Setting(gated := Gated(whole)), asyncio.Event()

    async def breaks(message: Message) -> None:
        await reads.wait()
        raise ZeroDivisionError

    first = asyncio.create_task(setting.ask(taking=breaks))
    await turns()
    second = asyncio.create_task(setting.ask())
    await turns()
    gated.gate.set()
    assert (await second).exchange.cache == "joined"
    reads.set()
    with pytest.raises(ZeroDivisionError):
        await first


async def test_who_comes_while_a_whole_answer_is_not_taken_yet_has_it() -> None:
    setting, reads = Setting(whole), asyncio.Event()

    async def taking(message: Message) -> None:
        await reads.wait()

    first = asyncio.create_task(setting.ask(taking=taking))
    await turns()
    found = await asyncio.wait_for(setting.ask(), 5)
    assert (found.exchange.cache, setting.calls) == ("hit", 1)
    reads.set()
    assert (await first).body == found.body


@pytest.mark.parametrize("size", [40, 400])
async def test_who_reads_gets_all_of_it_however_little_may_be_kept(size: int) -> None:
    pieces = [b"data: %s %d\n\n" % (b"x" * size, n) for n in range(30)]

    async def burst(about: Exchange, send: Send) -> None:
        about.streamed = True
        await send(stream_start())
        for n, piece in enumerate(pieces):
            await send({"type": "http.response.body", "body": piece, "more_body": n + 1 < len(pieces)})

    setting = Setting(gated := Gated(burst), options={"max_entry": "100B"})
    tasks = [asyncio.create_task(setting.ask()) for _ in range(4)]
    await turns()
    gated.gate.set()
    found = await asyncio.gather(*tasks)
    assert {one.body for one in found} == {b"".join(pieces)}
    assert {one.exchange.error for one in found} == {None}
    assert setting.calls == 1


async def test_its_own_client_may_take_longer_than_the_call_was_allowed_to() -> None:
    """Nobody is asked any more: what is late is the client, and not the provider."""
    setting, reads = Setting(gated := Gated(streamed)), asyncio.Event()

    async def taking(message: Message) -> None:
        await reads.wait()

    about = setting.exchange()
    first = asyncio.create_task(call(setting.app, exchange=about, body=[], stays=True, taking=taking))
    await turns()
    second = asyncio.create_task(setting.ask())
    await turns()
    about.end = asyncio.get_running_loop().time() - 1  # as dispatch leaves it
    gated.gate.set()
    await second
    await turns()
    assert not first.done()
    reads.set()
    assert (await first).body == b"".join(EVENTS)


# How it came, and how it comes.


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("play", [whole, streamed])
async def test_who_was_asked_before_in_vain_is_told_whose_answer_it_has_joined(play: Any, turned: bool) -> None:
    setting = Setting(gated := Gated(play))
    first = asyncio.create_task(setting.ask())
    await turns()
    about = setting.exchange()
    about.turned, about.sent_as = turned, "mistral-small-latest"
    second = asyncio.create_task(call(setting.app, exchange=about, body=[], stays=True))
    await turns()
    gated.gate.set()
    await asyncio.gather(first, second)
    assert about.cache == "joined"
    assert about.upstream == ("mistral/mistral-small-latest" if turned else None)


async def test_a_stream_that_is_played_as_it_came_may_be_taken_as_slowly_as_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No provider is waited for."""
    waits: list[Deadlines] = []

    class Watched(Guard):
        def __init__(self, receive: Any, deadlines: Deadlines, *args: Any, **options: Any) -> None:
            waits.append(deadlines)
            super().__init__(receive, deadlines, *args, **options)

    monkeypatch.setattr(player, "Guard", Watched)
    setting = Setting(streamed, options={"cadence": "original"})
    await setting.ask()
    assert (await setting.ask()).exchange.cache == "hit"
    assert waits == [Deadlines.together(inf)]


async def test_who_has_joined_has_waited_already() -> None:
    async def slow(about: Exchange, send: Send) -> None:
        about.streamed = True
        await send(stream_start())
        setting.seconds += 3_600
        await send({"type": "http.response.body", "body": EVENTS[0], "more_body": True})
        metered(about)
        await send({"type": "http.response.body", "body": EVENTS[2], "more_body": False})

    setting = Setting(gated := Gated(slow), options={"cadence": "original"})
    tasks = [asyncio.create_task(setting.ask()) for _ in range(3)]
    await turns()
    gated.gate.set()
    async with asyncio.timeout(5):
        found = await asyncio.gather(*tasks)
    assert [one.exchange.cache for one in found] == ["miss", "joined", "joined"]
    assert {one.body for one in found} == {EVENTS[0] + EVENTS[2]}


async def test_of_a_call_that_the_proxys_end_has_cut_all_are_told_the_same() -> None:
    async def drained(about: Exchange, send: Send) -> None:
        about.streamed = True
        await send(stream_start())
        await send({"type": "http.response.body", "body": EVENTS[0], "more_body": True})
        await turns()
        about.error = Draining("The end")
        await send({"type": "http.response.body", "body": b"data: the end\n\n", "more_body": False})

    setting = Setting(gated := Gated(drained))
    first, second = (asyncio.create_task(setting.ask()) for _ in range(2))
    await turns()
    gated.gate.set()
    found = await asyncio.gather(first, second)
    assert {one.body for one in found} == {EVENTS[0] + b"data: the end\n\n"}
    assert {type(one.exchange.error) for one in found} == {Draining}


async def test_a_newer_call_is_joined_though_an_older_one_has_ended_by_then() -> None:
    async def numbered(about: Exchange, send: Send) -> None:
        about.attempts = 1
        gate = gates[setting.calls]
        metered(about)
        await gate.wait()
        await send_json(send, b"%d" % setting.calls)

    gates = {1: asyncio.Event(), 2: asyncio.Event()}
    setting = Setting(numbered)
    older = asyncio.create_task(setting.ask(control="no-cache"))
    await turns()
    setting.seconds += 1
    newer = asyncio.create_task(setting.ask())
    await turns()
    gates[1].set()
    await older
    third = asyncio.create_task(setting.ask(control="max-age=0"))
    await turns()
    gates[2].set()
    assert (await newer).exchange.cache == "miss"
    assert (await third).exchange.cache == "joined"
    assert setting.calls == 2


async def test_who_makes_no_call_may_have_what_others_have() -> None:
    """What has come is there, though it is not kept yet."""
    setting, keeping = Setting(gated := Gated(whole)), Slowly()
    setting.backend.keep = keeping
    first = asyncio.create_task(setting.ask())
    await turns()
    assert isinstance(await setting.error(control="only-if-cached"), NotInCache)
    gated.gate.set()
    await first
    assert (await setting.ask(control="only-if-cached")).exchange.cache == "hit"
    assert isinstance(await setting.error(control="only-if-cached, max-age=0"), NotInCache)
    assert setting.calls == 1


@pytest.mark.parametrize("control", ["max-age=1", "only-if-cached, max-age=1", ""])
async def test_what_is_being_kept_is_no_younger_for_that(control: str) -> None:
    """A Redis may take its time."""
    setting = Setting(whole)
    setting.backend.keep = Slowly()
    await setting.ask()
    setting.now += 1_000
    assert (await setting.ask(control=control)).exchange.cache == "hit"
    setting.now += 1_000 if control else 2 * HOUR
    if "only" in control:
        assert isinstance(await setting.error(control=control), NotInCache)
    else:
        assert (await setting.ask(control=control)).exchange.cache == "miss"


async def test_what_cannot_even_begin_to_be_kept_is_nobodys_answer() -> None:
    setting = Setting(whole)

    def keep(*_: Any) -> None:
        raise ZeroDivisionError

    setting.backend.keep = keep
    with pytest.raises(ZeroDivisionError):
        await setting.ask()
    assert not setting.answers.flights


async def test_who_has_taken_all_of_it_has_not_left() -> None:
    """By a server that says so of a client that has its answer."""
    setting = Setting(gated := Gated(streamed))
    about = setting.exchange()
    gone = asyncio.Event()

    async def taking(message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body"):
            gone.set()

    async def receive() -> Message:
        await gone.wait()
        return {"type": "http.disconnect"}

    scope: dict[str, Any] = {"type": "http", "headers": []}
    about.keep_in(scope)
    first = asyncio.ensure_future(setting.app(scope, receive, taking))
    await turns()
    second = asyncio.create_task(setting.ask())
    await turns()
    gated.gate.set()
    await asyncio.gather(first, second)
    assert not about.client_gone


async def test_what_has_been_made_is_not_made_now() -> None:
    """While it is being kept its flight is still there."""
    setting, keeping = Setting(whole), Slowly()
    setting.backend.keep = keeping
    await setting.ask()
    again = await setting.ask(control="max-age=0")
    assert (setting.calls, again.exchange.cache) == (2, "miss")


# Who is told an error is counted like anybody else.


async def test_who_is_told_anothers_error_is_a_request_all_the_same() -> None:
    async def failing(about: Exchange, send: Send) -> None:
        about.attempts = 1
        await turns()
        raise UpstreamFailed("x")

    setting = Setting(gated := Gated(failing))
    tasks = [asyncio.create_task(setting.error()) for _ in range(6)]
    await turns()
    gated.gate.set()
    errors = await asyncio.gather(*tasks)
    assert {type(one) for one in errors} == {UpstreamFailed}
    assert len({id(one) for one in errors}) == 6  # each has its own, with its own headers
    assert (setting.calls, setting.counted) == (2, 6)


@pytest.mark.parametrize("old", [False, True])
async def test_whose_own_time_is_over_while_it_waits_is_a_request_all_the_same(old: bool) -> None:
    setting = Setting(whole)
    if old:
        await setting.ask()
        setting.now += 2 * HOUR
    setting.play = gated = Gated(whole)
    first = asyncio.create_task(setting.ask())
    await turns()
    about, counted = setting.exchange(), setting.counted
    about.end = asyncio.get_running_loop().time()
    waiting = call(setting.app, exchange=about, body=[], stays=True)
    if old:
        assert (await waiting).exchange.cache == "stale"
    else:
        with pytest.raises(UpstreamTimeout):
            await waiting
        assert about.cache == "joined"
    assert setting.counted == counted + 1
    gated.gate.set()
    await first


async def test_whom_the_proxys_end_meets_while_it_waits_is_a_request_all_the_same() -> None:
    setting = Setting(gated := Gated(whole))
    first = asyncio.create_task(setting.ask())
    await turns()
    second = asyncio.create_task(setting.error())
    await turns()
    setting.drainables.drain()
    assert isinstance(await second, Draining)
    assert setting.counted == 2
    gated.gate.set()
    await first


# What a follower's own slowness comes to.


@pytest.mark.parametrize("how", ["time", "drain"])
async def test_what_has_come_may_be_taken_as_slowly_by_who_follows(how: str) -> None:
    """Time and drain are about calls, and this one is over."""
    setting, reads = Setting(gated := Gated(streamed)), asyncio.Event()

    async def taking(message: Message) -> None:
        if message.get("body"):
            await reads.wait()

    first = asyncio.create_task(setting.ask())
    await turns()
    about = setting.exchange()
    second = asyncio.create_task(call(setting.app, exchange=about, body=[], stays=True, taking=taking))
    await turns()
    gated.gate.set()
    await first
    if how == "time":
        [guard] = setting.drainables
        assert isinstance(guard, Guard)
        guard._end = 0.0
        guard._check()  # as its timer does
    else:
        setting.drainables.drain()
    await turns()
    assert not second.done()
    reads.set()
    assert ((await second).body, about.error) == (b"".join(EVENTS), None)


async def test_who_follows_and_does_not_read_is_cut_like_one_that_does_not_read_its_own() -> None:
    """It is no fault of the provider's."""
    setting = Setting(gated := Gated(streamed), options={"max_entry": "5B"})

    async def taking(message: Message) -> None:
        if message.get("body"):
            await asyncio.Event().wait()

    async def reads(message: Message) -> None:
        await turns(2)

    first = asyncio.create_task(setting.ask(taking=reads))
    await turns()
    about = setting.exchange()
    cuts: list[bool] = []
    about.departure = Departure(lambda: None, lambda: cuts.append(True))
    second = asyncio.create_task(call(setting.app, exchange=about, body=[], stays=True, taking=taking))
    await turns()
    gated.gate.set()
    assert (await first).body == b"".join(EVENTS)
    async with asyncio.timeout(5):
        await second  # though it never asks for the next piece
    assert (cuts, about.client_gone, about.error) == ([True], True, None)


async def test_who_is_left_behind_before_it_has_anything_is_told_so_and_no_other_model_is_asked() -> None:
    """It waits for its quota, while more comes than is kept."""
    setting = Setting(gated := Gated(streamed), options={"max_entry": "5B"})
    first = asyncio.create_task(setting.ask())
    await turns()
    admitted = asyncio.Event()
    setting.admits = admitted.wait
    second = asyncio.create_task(setting.error())
    await turns()
    gated.gate.set()
    await first
    admitted.set()
    error = await second
    assert (type(error), error.elsewhere, error.fault) == (Overloaded, Elsewhere.NO, Fault.PROXY)
    assert setting.calls == 1


async def test_what_is_wrong_with_all_of_them_is_not_found_out_one_after_the_other() -> None:
    """Each has said something of its own, so each has to ask; but not in a row."""
    under_way, most = 0, list[int]()

    async def refuses(about: Exchange, send: Send) -> None:
        nonlocal under_way
        about.attempts = 1
        under_way += 1
        most.append(under_way)
        await turns()
        under_way -= 1
        raise REFUSED.again()

    setting = Setting(refuses)
    errors = await asyncio.gather(*[asyncio.create_task(setting.error(metadata={"n": n})) for n in range(20)])
    assert {one.status for one in errors} == {400}
    assert (setting.calls, most[:2], max(most)) == (20, [1, 1], 18)
