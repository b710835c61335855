"""What the cache stage keeps, for whom, and for how long; and a crowd that asks the same."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Message, Send

from proxy.core.cache import Answers, Found, Role, Then
from proxy.core.entry import Entry
from proxy.core.errors import (
    BadRequest,
    CircuitOpen,
    Draining,
    Elsewhere,
    NotInCache,
    ProxyError,
    RateLimited,
    UpstreamFailed,
    UpstreamRefusal,
)
from proxy.core.exchange import Exchange
from proxy.core.flight import Flight
from proxy.core.overhead import upstream
from proxy.core.sse import KEEP_ALIVE
from proxy.core.success import send_json, stream_start
from proxy.core.table import Context
from proxy.providers.mistral.chat import CHAT
from proxy.providers.mistral.embeddings import EMBEDDINGS
from proxy.providers.mistral.models import MODELS
from proxy.providers.openai.chat import CHAT as OPENAI_CHAT
from proxy.stages import cache
from proxy.store.cache.memory import MemoryCache
from tests.asgi import call
from tests.stages.cache_setting import (
    EVENTS,
    HOUR,
    MODEL,
    Gated,
    Provider,
    Setting,
    Slowly,
    metered,
    streamed,
    turns,
    whole,
)
from tests.steps import NoTimer

# What is kept.


@pytest.mark.parametrize("play", [whole, streamed])
async def test_the_second_time_nobody_is_asked(play: Provider) -> None:
    setting = Setting(play)
    first = await setting.ask()
    setting.now += 2_500
    second = await setting.ask()
    assert setting.calls == 1
    assert (first.body, first.status) == (second.body, second.status)
    assert first.headers == second.headers
    assert (first.exchange.cache, first.exchange.age, first.exchange.saved) == ("miss", None, 0)
    assert (second.exchange.cache, second.exchange.age, second.exchange.saved) == ("hit", 2, 70)
    assert second.exchange.charge
    assert second.exchange.charge.cost == 0
    assert second.exchange.streamed == first.exchange.streamed


@pytest.mark.parametrize(
    ("row", "mode", "fields", "kept"),
    [
        (CHAT, "deterministic", {}, True),
        (CHAT, "deterministic", {"temperature": 0.0}, True),
        (CHAT, "deterministic", {"temperature": 0.1}, False),
        (CHAT, "deterministic", {"temperature": None}, False),
        (OPENAI_CHAT, "deterministic", {"temperature": 0}, True),
        (OPENAI_CHAT, "deterministic", {"temperature": False}, False),
        (CHAT, "all", {"temperature": 0.7}, True),
        (EMBEDDINGS, "deterministic", {"temperature": None}, True),
        (OPENAI_CHAT, "all", {"store": True}, False),
        (OPENAI_CHAT, "all", {"store": False}, True),
        (OPENAI_CHAT, "deterministic", {"web_search_options": {"a": 1}}, False),
        (OPENAI_CHAT, "deterministic", {"web_search_options": {}}, False),
        (OPENAI_CHAT, "deterministic", {"web_search_options": None}, True),
        (OPENAI_CHAT, "deterministic", {"search_parameters": {"mode": "auto"}}, False),
        (OPENAI_CHAT, "deterministic", {"plugins": [{"id": "web"}]}, False),
        (OPENAI_CHAT, "deterministic", {"tools": [{"type": "function"}, {"type": "web_search"}]}, False),
        (OPENAI_CHAT, "deterministic", {"tools": [{"type": "function"}, {"type": "custom"}, {}]}, True),
        (OPENAI_CHAT, "deterministic", {"tools": "search"}, False),
        (CHAT, "all", {"tools": [{"type": "connector", "connector_id": "x"}]}, False),
    ],
)
async def test_what_may_be_kept(row: Any, mode: str, fields: dict[str, Any], kept: bool) -> None:
    setting = Setting(whole, row=row, options={"mode": mode})
    found = [await setting.ask(**fields) for _ in range(2)]
    assert [one.exchange.cache for one in found] == (["miss", "hit"] if kept else ["bypass", "bypass"])
    assert setting.calls == 2 - kept


@pytest.mark.parametrize(("row", "same"), [(CHAT, True), (OPENAI_CHAT, False)])
async def test_where_a_field_goes_on_as_it_is_written_its_order_counts(row: Any, same: bool) -> None:
    setting = Setting(whole, row=row)
    schemas: list[Any] = [{"properties": {"b": {}, "a": {}}}, {"properties": {"a": {}, "b": {}}}]
    found = [await setting.ask(guided_json=schema) for schema in schemas]
    assert [one.exchange.cache for one in found] == ["miss", "hit" if same else "miss"]


@pytest.mark.parametrize(
    ("field", "inert"), [("metadata", True), ("prompt_cache_key", True), ("stop", False), ("made_up", False)]
)
async def test_what_does_not_bear_on_the_answer(field: str, inert: bool) -> None:
    setting = Setting(whole)
    asked: list[dict[str, Any]] = [{field: {"a": 1}}, {field: {"a": 2}}]
    found = [await setting.ask(**fields) for fields in asked]
    assert [one.exchange.cache for one in found] == ["miss", "hit" if inert else "miss"]


async def test_an_answer_lives_so_long_and_no_longer() -> None:
    setting = Setting(whole, options={"stale_if_error": "0s"})
    await setting.ask()
    setting.now += HOUR - 1
    assert (await setting.ask()).exchange.cache == "hit"
    setting.now += 2
    assert (await setting.ask()).exchange.cache == "miss"


async def unmetered(about: Exchange, send: Send) -> None:
    await send_json(send, b"{}")


async def spoiled(about: Exchange, send: Send) -> None:
    assert about.context
    about.context.spoiled = True
    await whole(about, send)


async def broken(about: Exchange, send: Send) -> None:
    """As dispatch ends a stream that its provider has cut."""
    about.streamed = True
    await send(stream_start())
    await send({"type": "http.response.body", "body": EVENTS[0], "more_body": True})
    about.error = UpstreamFailed("cut")
    await send({"type": "http.response.body", "body": b"data: error\n\n", "more_body": False})


async def left(about: Exchange, send: Send) -> None:
    await send(stream_start())
    about.streamed = about.client_gone = True


@pytest.mark.parametrize("play", [unmetered, spoiled, broken, left])
async def test_what_is_not_kept(play: Provider) -> None:
    setting = Setting(play)
    found = [await setting.ask() for _ in range(2)]
    assert [one.exchange.cache for one in found] == ["miss", "miss"]


async def test_what_is_sent_to_keep_a_connection_open_is_no_part_of_the_answer() -> None:
    async def slow(about: Exchange, send: Send) -> None:
        about.streamed = True
        await send(stream_start())
        for event in (EVENTS[0], KEEP_ALIVE, *EVENTS[1:]):
            if event is EVENTS[-1]:
                metered(about)
            await send({"type": "http.response.body", "body": event, "more_body": event is not EVENTS[-1]})

    setting = Setting(slow)
    assert (await setting.ask()).body == EVENTS[0] + KEEP_ALIVE + EVENTS[1] + EVENTS[2]
    assert (await setting.ask()).body == b"".join(EVENTS)


async def test_what_was_reported_with_an_answer_is_reported_again() -> None:
    async def mended(about: Exchange, send: Send) -> None:
        about.rewrites["mend:seed"] = None
        if about.rewrites.get("drop:user", 0) is None:
            about.rewrites["mend:metadata"] = None  # which is no part of what others have asked
        await whole(about, send)

    setting = Setting(mended)
    about = setting.exchange()
    about.rewrites["drop:user"] = None  # which is about what this one has sent, and nobody else
    await call(setting.app, exchange=about, body=[], stays=True)
    assert list(about.rewrites) == ["drop:user", "mend:seed", "mend:metadata"]
    assert list((await setting.ask()).exchange.rewrites) == ["mend:seed"]


# What is asked of it.


async def test_no_store_touches_nothing() -> None:
    setting = Setting(whole)
    assert (await setting.ask(control="no-store")).exchange.cache == "bypass"
    assert (await setting.backend.stats(None)).entries == 0


async def test_no_cache_makes_it_anew_and_keeps_it() -> None:
    async def numbered(about: Exchange, send: Send) -> None:
        metered(about)
        await send_json(send, b"%d" % setting.calls)

    setting = Setting(numbered)
    bodies = [(await setting.ask(control=control)).body for control in ("", "", "no-cache", "")]
    assert bodies == [b"1", b"1", b"2", b"2"]


async def test_a_clock_that_has_gone_back_a_little_makes_nothing_younger_than_new() -> None:
    setting = Setting(whole)
    await setting.ask()
    setting.now -= 1_500
    found = await setting.ask()
    assert (found.exchange.cache, found.exchange.age) == ("hit", 0)


async def test_max_age() -> None:
    setting = Setting(whole)
    await setting.ask()
    setting.now += 10_000
    assert (await setting.ask(control="max-age=10")).exchange.cache == "hit"
    assert (await setting.ask(control="max-age=9")).exchange.cache == "miss"


async def test_where_nothing_is_ever_kept_no_call_is_made_either() -> None:
    setting = Setting(whole, row=MODELS)
    assert isinstance(await setting.error(control="only-if-cached"), NotInCache)
    assert (await setting.ask(control="max-age=60")).exchange.cache is None
    assert setting.calls == 1


async def test_who_asks_after_all_was_deleted_is_not_given_what_another_had_found_before() -> None:
    async def fails(about: Exchange, send: Send) -> None:
        about.attempts = 1
        await turns()
        raise UpstreamFailed("no")

    setting = Setting(whole)
    await setting.ask()
    setting.now += 2 * HOUR
    setting.play = gated = Gated(fails)
    before = [asyncio.create_task(setting.ask()) for _ in range(2)]
    await turns()
    assert await setting.backend.delete(None) == 1
    after = asyncio.create_task(setting.error())
    await turns()
    gated.gate.set()
    assert {one.exchange.cache for one in await asyncio.gather(*before)} == {"stale"}
    assert isinstance(await after, UpstreamFailed)


async def test_only_if_cached() -> None:
    setting = Setting(whole)
    assert isinstance(await setting.error(control="only-if-cached"), NotInCache)
    assert isinstance(await setting.error(control="only-if-cached", temperature=1), NotInCache)
    assert isinstance(await setting.error(control="only-if-cached, no-cache"), NotInCache)
    await setting.ask()
    assert (await setting.ask(control="only-if-cached")).exchange.cache == "hit"
    assert setting.calls == 1


async def test_where_there_is_no_cache_nothing_is_in_it() -> None:
    setting = Setting(whole, options={"mode": "off"})
    assert isinstance(await setting.error(control="only-if-cached"), NotInCache)
    assert (await setting.ask(control="max-age=60")).exchange.cache is None
    assert setting.calls == 1


async def test_what_is_old_says_why_it_is() -> None:
    async def fails(about: Exchange, send: Send) -> None:
        about.attempts = 2
        raise UpstreamFailed("x")

    setting = Setting(whole)
    await setting.ask()
    setting.now += 2 * HOUR
    setting.play = fails
    found = await setting.ask()
    assert [(one.number, one.code, one.then) for one in found.exchange.in_vain] == [
        (2, "upstream_error", "an older answer")
    ]


# When it is asked by many.


@pytest.mark.parametrize("play", [whole, streamed])
async def test_a_crowd_makes_one_call(play: Provider) -> None:
    setting = Setting(gated := Gated(play))
    tasks = [asyncio.create_task(setting.ask()) for _ in range(50)]
    await turns()
    gated.gate.set()
    found = await asyncio.gather(*tasks)
    assert setting.calls == 1
    assert len({one.body for one in found}) == 1
    assert [one.exchange.cache for one in found] == ["miss", *["joined"] * 49]
    assert [one.exchange.saved for one in found] == [0, *[70] * 49]
    assert {one.exchange.age for one in found} == {None}
    assert not setting.answers.flights


@pytest.mark.parametrize("play", [whole, streamed])
async def test_what_it_saves_is_known_before_the_last_of_it_goes(play: Provider) -> None:
    """Whoever counts a request does so then."""
    setting = Setting(gated := Gated(play))
    first = asyncio.create_task(setting.ask())
    await turns()
    about, saved = setting.exchange(), list[int]()

    async def look(message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body"):
            saved.append(about.saved)

    second = asyncio.create_task(call(setting.app, exchange=about, body=[], stays=True, taking=look))
    await turns()
    gated.gate.set()
    await asyncio.gather(first, second)
    assert (about.cache, saved) == ("joined", [70])


async def test_who_comes_between_the_end_and_the_keeping_asks_nobody() -> None:
    setting, keeping = Setting(whole), Slowly()
    keep, setting.backend.keep = setting.backend.keep, keeping
    await setting.ask()
    between = (await call(setting.app, exchange=setting.exchange(), body=[], stays=True)).exchange
    assert (between.cache, between.age) == ("hit", 0)
    [arguments] = keeping.asked
    keep(*arguments)
    assert not setting.answers.flights
    assert (await setting.ask()).exchange.cache == "hit"
    assert setting.calls == 1


@pytest.mark.parametrize("play", [whole, streamed])
async def test_a_client_that_does_not_read_holds_nobody_up(play: Provider) -> None:
    """The first one takes nothing of what it is sent, from the moment at which others have joined it."""
    setting, reads = Setting(gated := Gated(play)), asyncio.Event()

    async def taking(message: Message) -> None:
        if message["type"] == "http.response.body":
            await reads.wait()

    first = asyncio.create_task(setting.ask(taking=taking))
    await turns()
    others = [asyncio.create_task(setting.ask()) for _ in range(3)]
    await turns()
    gated.gate.set()
    bodies = {one.body for one in await asyncio.wait_for(asyncio.gather(*others), 5)}
    assert not first.done()
    reads.set()
    assert {(await first).body} == bodies
    assert setting.calls == 1


async def test_a_comment_that_is_not_taken_holds_nobody_up() -> None:
    """A client that has stopped to read before the stream was silent for long."""
    reads, events = asyncio.Event(), [b"x" * 10] * 5

    async def silent(about: Exchange, send: Send) -> None:
        about.streamed = True
        await send(stream_start())
        for event in events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})
            await asyncio.sleep(0)
        metered(about)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def taking(message: Message) -> None:
        if message["type"] == "http.response.body":
            await reads.wait()

    setting = Setting(gated := Gated(silent))
    first = asyncio.create_task(setting.ask(taking=taking))
    await turns()
    second = asyncio.create_task(setting.ask())
    await turns()
    gated.gate.set()
    assert (await asyncio.wait_for(second, 5)).body == b"".join(events)
    reads.set()
    assert (await first).body.replace(KEEP_ALIVE, b"") == b"".join(events)


async def test_who_does_not_read_for_too_long_is_cut_and_nobody_else() -> None:
    """Others follow, and what is kept for those who are behind has a bound."""
    events = [b"x" * 40] * 10

    async def long(about: Exchange, send: Send) -> None:
        about.streamed = True
        await send(stream_start())
        for event in events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
            await asyncio.sleep(0)
        metered(about)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def taking(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    setting = Setting(gated := Gated(long))
    setting.build(cache.Config.model_validate({"max_entry": "100B"}))
    first = asyncio.create_task(setting.ask(taking=taking))
    await turns()
    second = asyncio.create_task(setting.ask())
    await turns()
    gated.gate.set()
    assert (await asyncio.wait_for(second, 5)).body == b"".join(events)
    answer = await asyncio.wait_for(first, 5)
    assert answer.exchange.client_gone
    assert answer.body == b""
    assert setting.calls == 1


@pytest.mark.parametrize("drained", ["before", "meanwhile"])
async def test_what_its_own_client_has_not_taken_yet_is_not_lost_to_the_drain(drained: str) -> None:
    async def ended(about: Exchange, send: Send) -> None:
        if drained == "before":
            setting.drainables.drain()
        await streamed(about, send)

    async def taking(message: Message) -> None:
        if message["type"] == "http.response.body":
            await reads.wait()

    setting, reads = Setting(gated := Gated(ended)), asyncio.Event()
    first = asyncio.create_task(setting.ask(taking=taking))
    await turns()
    second = asyncio.create_task(setting.ask())
    await turns()
    gated.gate.set()
    await asyncio.gather(second, return_exceptions=True)
    await turns()
    setting.drainables.drain()
    await turns()
    reads.set()
    assert (await first).body == b"".join(EVENTS)


async def test_who_is_cancelled_while_its_client_takes_the_answer_leaves_nobody_writing() -> None:
    """Others have it, and it is kept."""
    setting, before = Setting(gated := Gated(streamed)), asyncio.all_tasks()

    async def taking(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    first = asyncio.create_task(setting.ask(taking=taking))
    await turns()
    second = asyncio.create_task(setting.ask())
    await turns()
    gated.gate.set()
    await second
    assert not setting.answers.flights
    assert not first.done()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await turns()
    assert asyncio.all_tasks() <= before


async def test_a_stream_that_is_played_as_it_came_ends_with_a_word_when_the_proxy_stops() -> None:
    async def slow(about: Exchange, send: Send) -> None:
        about.streamed = True
        await send(stream_start())
        await send({"type": "http.response.body", "body": EVENTS[0], "more_body": True})
        setting.seconds += 3_600
        metered(about)
        await send({"type": "http.response.body", "body": EVENTS[2], "more_body": False})

    setting = Setting(slow, options={"cadence": "original"})
    assert (await setting.ask()).body == EVENTS[0] + EVENTS[2]
    again = asyncio.create_task(setting.ask())
    await turns()
    for one in list(setting.drainables):
        one.drain()
    answer = await again
    assert answer.body.startswith(EVENTS[0] + b'data: {"error"')
    assert b'"code":"draining"' in answer.body
    assert isinstance(answer.exchange.error, Draining)
    assert answer.exchange.saved == 0  # nobody has got it


async def test_what_is_played_as_it_came_takes_a_providers_time_and_none_of_the_proxys_own() -> None:
    setting = Setting(streamed, options={"cadence": "original"})
    await setting.ask()

    async def taking(message: Message) -> None:
        setting.seconds += 10

    about = (await setting.ask(taking=taking)).exchange
    assert (about.cache, about.saved, about.called, about.returned) == ("hit", 70, 0.0, None)
    assert upstream(about, setting.seconds) == setting.seconds > 10


async def test_what_is_old_and_played_as_it_came_takes_up_the_time_of_the_provider_that_has_failed() -> None:
    async def fails(about: Exchange, send: Send) -> None:
        about.called, about.attempts = setting.seconds, 1
        setting.seconds += 1
        about.returned = setting.seconds
        raise UpstreamFailed("no")

    setting = Setting(streamed, options={"cadence": "original"}, seconds=5.0)
    await setting.ask()
    setting.now += 2 * HOUR
    setting.play = fails
    about = (await setting.ask()).exchange
    assert (about.cache, about.called, about.returned) == ("stale", 5.0, None)


async def test_a_call_is_told_who_asks_whether_its_client_matters() -> None:
    async def leaves(about: Exchange, send: Send) -> None:
        assert about.stays
        left: list[bool] = []
        assert about.stays(lambda: left.append(True)) is (setting.calls == 1)
        await whole(about, send)

    setting = Setting(gated := Gated(leaves))
    first, second = (asyncio.create_task(setting.ask()) for _ in range(2))
    await turns()
    gated.gate.set()
    await asyncio.gather(first, second)
    await setting.ask(control="no-cache")  # which nobody follows


async def test_who_comes_after_an_answer_that_is_not_kept_does_not_get_it() -> None:
    """Though its own client has not taken it yet."""
    setting, reads = Setting(spoiled), asyncio.Event()

    async def taking(message: Message) -> None:
        if message["type"] == "http.response.body":
            await reads.wait()

    first = asyncio.create_task(setting.ask(taking=taking))
    await turns()
    assert (await asyncio.wait_for(setting.ask(), 5)).exchange.cache == "miss"
    assert setting.calls == 2
    reads.set()
    await first


@pytest.mark.parametrize("held_at", ["http.response.start", EVENTS[0], EVENTS[1]])
async def test_nobody_joins_one_that_its_client_holds_up(held_at: str | bytes) -> None:
    setting, reads = Setting(streamed), asyncio.Event()

    async def taking(message: Message) -> None:
        if held_at in (message["type"], message.get("body")):
            await reads.wait()

    first = asyncio.create_task(setting.ask(taking=taking))
    await turns()
    assert (await asyncio.wait_for(setting.ask(), 5)).exchange.cache == "miss"
    assert setting.calls == 2
    reads.set()
    assert (await first).body == b"".join(EVENTS)


@pytest.mark.parametrize(
    ("error", "alone"),
    [
        (RateLimited("x", about="requests", wait=1, detail={}), 5),  # what one may not do, another may
        (Draining("x"), 5),
        (UpstreamFailed("x"), 2),  # a provider in trouble is not asked by all of them
        (CircuitOpen("x", wait=1000), 2),
        (UpstreamRefusal("x", status=400, type="t", code="c"), 1),  # it would be refused each time
    ],
)
async def test_how_often_a_crowd_asks_when_it_fails(error: ProxyError, alone: int) -> None:
    async def fails(about: Exchange, send: Send) -> None:
        await turns()  # as every call takes its time
        raise error

    setting = Setting(gated := Gated(fails))
    tasks = [asyncio.create_task(setting.error()) for _ in range(5)]
    await turns()
    gated.gate.set()
    found = await asyncio.gather(*tasks)
    assert {type(one) for one in found} == {type(error)}
    assert setting.calls == alone
    assert not setting.answers.flights


async def test_who_has_joined_asks_itself_when_that_fails() -> None:
    async def once(about: Exchange, send: Send) -> None:
        if setting.calls == 1:
            raise UpstreamFailed("x")
        await turns()
        await whole(about, send)

    setting = Setting(gated := Gated(once))
    first, *others = [asyncio.create_task(setting.ask()) for _ in range(5)]
    await turns()
    gated.gate.set()
    with pytest.raises(UpstreamFailed):
        await first
    found = await asyncio.gather(*others)
    assert sorted(str(one.exchange.cache) for one in found) == ["joined", "joined", "joined", "miss"]
    assert setting.calls == 2


async def test_a_stream_that_breaks_breaks_for_all_who_have_a_part_of_it() -> None:
    setting = Setting(gated := Gated(broken))
    tasks = [asyncio.create_task(setting.ask()) for _ in range(3)]
    await turns()
    gated.gate.set()
    found = await asyncio.gather(*tasks)
    assert {one.body for one in found} == {EVENTS[0] + b"data: error\n\n"}
    assert all(isinstance(one.exchange.error, UpstreamFailed) for one in found)


async def test_one_that_is_cancelled_leaves_nothing_and_the_others_go_on() -> None:
    setting = Setting(gated := Gated(whole))
    first, second = (asyncio.create_task(setting.ask()) for _ in range(2))
    await turns()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await turns()
    gated.gate.set()
    assert (await second).exchange.cache == "miss"
    assert setting.calls == 2
    assert not setting.answers.flights


async def test_who_waits_is_told_when_the_proxy_stops() -> None:
    setting = Setting(gated := Gated(whole))
    first = asyncio.create_task(setting.ask())
    await turns()
    second = asyncio.create_task(setting.error())
    await turns()
    for one in list(setting.drainables):
        one.drain()
    assert isinstance(await second, Draining)
    gated.gate.set()
    await first


async def test_who_waits_and_leaves_is_gone() -> None:
    setting = Setting(gated := Gated(whole))
    first = asyncio.create_task(setting.ask())
    await turns()
    answer = await setting.ask(leaves=True)
    assert (answer.status, answer.exchange.client_gone) == (0, True)
    gated.gate.set()
    assert (await first).exchange.cache == "miss"


# When the provider fails.


async def works_once(setting: Setting, error: ProxyError) -> None:
    async def play(about: Exchange, send: Send) -> None:
        if setting.calls > 1:
            raise error
        await whole(about, send)

    setting.play = play
    await setting.ask()


def elsewhere(error: ProxyError) -> ProxyError:
    error.elsewhere = Elsewhere.YES
    return error


@pytest.mark.parametrize(
    "error",
    [
        UpstreamFailed("x"),
        CircuitOpen("x", wait=1),
        elsewhere(UpstreamRefusal("x", status=503, type="t", code="c")),
    ],
)
async def test_what_is_old_is_better_than_nothing(error: ProxyError) -> None:
    setting = Setting(whole)
    await works_once(setting, error)
    setting.now += HOUR + 60_000
    answer = await setting.ask()
    assert (answer.body, answer.exchange.cache, answer.exchange.age) == (b'{"answer": 1}', "stale", 3_660)
    assert answer.exchange.saved == 70
    assert [event for _, event, _ in setting.log.lines] == ["stale_answer"]
    setting.now += 24 * HOUR
    assert type(await setting.error()) is type(error)


async def test_a_crowd_gets_what_is_old_after_one_call() -> None:
    setting = Setting(whole)
    await works_once(setting, UpstreamFailed("x"))
    setting.now += 2 * HOUR
    gated = Gated(setting.play)
    setting.play = gated
    tasks = [asyncio.create_task(setting.ask()) for _ in range(20)]
    await turns()
    gated.gate.set()
    found = await asyncio.gather(*tasks)
    assert {one.exchange.cache for one in found} == {"stale"}
    assert setting.calls == 2
    assert [event for _, event, _ in setting.log.lines] == ["stale_answer"] * 20
    assert {fields["request_id"] for _, _, fields in setting.log.lines} == {one.exchange.request_id for one in found}


@pytest.mark.parametrize(
    "error", [BadRequest("x"), UpstreamRefusal("x", status=400, type="t", code="c"), Draining("x")]
)
async def test_what_is_the_requests_own_fault_is_told(error: ProxyError) -> None:
    setting = Setting(whole)
    await works_once(setting, error)
    setting.now += 2 * HOUR
    assert type(await setting.error()) is type(error)


@pytest.mark.parametrize("control", ["no-cache", "max-age=60", "no-store"])
async def test_who_wants_nothing_old_gets_nothing_old(control: str) -> None:
    setting = Setting(whole)
    await works_once(setting, UpstreamFailed("x"))
    setting.now += 2 * HOUR
    assert isinstance(await setting.error(control=control), UpstreamFailed)


async def test_where_another_model_may_answer_it_is_for_the_fallback_to_say() -> None:
    setting = Setting(whole)
    await works_once(setting, UpstreamFailed("x"))
    setting.now += 2 * HOUR
    about = setting.exchange()
    about.others = True
    with pytest.raises(UpstreamFailed):
        await call(setting.app, exchange=about, body=[], stays=True)
    assert about.stale
    assert about.stale.model == "mistral-small-latest"
    first = about.cache_key
    about.turn_to("mistral-large-latest", "mistral", "mistral-large-latest")
    about.others = False
    about.sending, about.context = {"model": "other", "temperature": 0}, Context(MODEL, {})
    with pytest.raises(UpstreamFailed):
        await call(setting.app, exchange=about, body=[], stays=True)
    about.turn_to("mistral-small-latest", "mistral", "mistral-small-latest")
    about.replay = about.stale.replay
    answer = await call(setting.app, exchange=about, body=[], stays=True)
    assert (answer.status, answer.exchange.cache_key, setting.calls) == (200, first, 3)
    assert answer.exchange.upstream == "mistral/mistral-small-latest"


async def test_what_a_body_comes_to_is_not_what_another_model_makes_of_it() -> None:
    """The first model's answer is not to be kept (as with `store: true`), the second one's is."""
    setting = Setting(whole)
    about = setting.exchange(temperature=1)
    await call(setting.app, exchange=about, body=[], stays=True)
    assert about.known is None
    about.turn_to("other", "mistral", "other")
    about.sending, about.context = {"model": "other", "temperature": 0}, Context(MODEL, {})
    await call(setting.app, exchange=about, body=[], stays=True)
    assert about.known is None


# When the cache itself does.


async def test_what_another_is_only_looking_for_may_be_too_old_for_this_one() -> None:
    """The look of the first one takes its time, and finds what is fresh for it."""
    old, gate = Entry(0, False, b"old", 1, 2, 3), asyncio.Event()

    class Slow(MemoryCache):
        def at_hand(self, key: str) -> Entry | None:
            return None

        async def look(self, key: str, since: int, flight: Flight) -> Found:
            await gate.wait()
            return Found(Role.DONE if since <= old.created else Role.LEAD, old)

    setting = Setting(whole, now=1_000_000)
    setting.answers = Answers(Slow(cache.Config().bounds, lambda: setting.now, lambda s, do: NoTimer()), b"secret")
    setting.build(cache.Config())
    any_age = asyncio.create_task(setting.ask())
    await turns()
    another, young = (asyncio.create_task(setting.ask(control=control)) for control in ("", "max-age=1"))
    await turns()
    gate.set()
    assert ((await any_age).body, (await another).body) == (b"old", b"old")
    assert (await another).exchange.age == 1_000
    assert (await young).body != b"old"


async def test_a_crowd_that_wants_nothing_old_makes_one_call_too() -> None:
    """In a Redis a look takes its time."""

    class Slow(MemoryCache):
        async def look(self, key: str, since: int, flight: Flight) -> Found:
            await turns()
            return await super().look(key, since, flight)

    setting = Setting(gated := Gated(whole))
    setting.answers = Answers(Slow(cache.Config().bounds, lambda: setting.now, lambda s, do: NoTimer()), b"secret")
    setting.build(cache.Config())
    controls = ["max-age=60", "", "max-age=0", "max-age=5", ""] * 4
    tasks = [asyncio.create_task(setting.ask(control=control)) for control in controls]
    await turns(100)
    gated.gate.set()
    found = await asyncio.gather(*tasks)
    assert setting.calls == 1
    assert sorted(str(one.exchange.cache) for one in found) == ["joined"] * 19 + ["miss"]


async def test_who_wants_it_made_anew_waits_for_nobodys_look() -> None:
    class Hanging(MemoryCache):
        async def look(self, key: str, since: int, flight: Flight) -> Found:
            await asyncio.Event().wait()
            raise AssertionError

    setting = Setting(whole)
    setting.answers = Answers(Hanging(cache.Config().bounds, lambda: setting.now, lambda s, do: NoTimer()), b"secret")
    setting.build(cache.Config())
    looks = asyncio.create_task(setting.ask())
    await turns()
    assert (await asyncio.wait_for(setting.ask(control="no-cache, max-age=5"), 5)).exchange.cache == "miss"
    looks.cancel()
    await asyncio.gather(looks, return_exceptions=True)


@pytest.mark.parametrize("play", [whole, streamed])
async def test_who_makes_no_call_breaks_up_no_crowd(play: Provider) -> None:
    setting = Setting(gated := Gated(play))
    tasks = [asyncio.create_task(setting.ask())]
    await turns()
    for _ in range(5):
        assert isinstance(await setting.error(control="only-if-cached"), NotInCache)
        tasks.append(asyncio.create_task(setting.ask()))
        await turns()
    gated.gate.set()
    found = await asyncio.gather(*tasks)
    assert setting.calls == 1
    assert [one.exchange.cache for one in found] == ["miss"] + ["joined"] * 5


class Numbered:
    """Each call has a gate of its own, and says which it was."""

    def __init__(self) -> None:
        self.gates: list[asyncio.Event] = []
        self.answers: dict[int, bytes] = {}

    async def __call__(self, about: Exchange, send: Send) -> None:
        number = len(self.gates)
        self.gates.append(asyncio.Event())
        await self.gates[number].wait()
        metered(about)
        await send_json(send, self.answers.get(number, b"%d" % number))


@pytest.mark.parametrize("first", ["", "no-cache"])
async def test_an_older_call_does_not_take_the_place_of_a_newer_one(first: str) -> None:
    setting = Setting(numbered := Numbered())
    older = asyncio.create_task(setting.ask(control=first))
    await turns()
    setting.now += 10
    newer = asyncio.create_task(setting.ask(control="" if first else "no-cache"))
    await turns()
    setting.now += 10
    numbered.gates[1].set()
    assert (await newer).body == b"1"
    between = await setting.ask()  # it neither joins the older one nor waits for it
    assert (between.body, between.exchange.cache) == (b"1", "hit")
    setting.now += 10
    numbered.gates[0].set()
    assert (await older).body == b"0"
    after = await setting.ask()
    assert (after.body, after.exchange.cache, after.exchange.age) == (b"1", "hit", 0)
    assert setting.calls == 2


@pytest.mark.parametrize(("newest", "is_kept"), [(b"12345", True), (b"123456", False)])
async def test_a_newer_answer_that_is_too_large_to_be_kept_leaves_the_older_call_as_it_was(
    newest: bytes, is_kept: bool
) -> None:
    setting = Setting(numbered := Numbered(), options={"max_entry": "5B"})
    older = asyncio.create_task(setting.ask())
    await turns()
    setting.now += 10
    numbered.answers = {1: newest}
    newer = asyncio.create_task(setting.ask(control="no-cache"))
    await turns()
    numbered.gates[1].set()
    assert (await newer).body == newest
    after = asyncio.create_task(setting.ask())
    await turns()
    numbered.gates[0].set()
    assert (await older).body == b"0"
    expected = newest if is_kept else b"0"
    async with asyncio.timeout(5):
        assert ((await after).body, (await setting.ask()).body, setting.calls) == (expected, expected, 2)


async def test_what_is_larger_than_all_that_may_be_kept_is_too_large() -> None:
    setting = Setting(numbered := Numbered(), options={"max_entry": "4MB", "max_bytes": "1MB"})
    numbered.answers = {1: bytes(2 << 20)}
    older = asyncio.create_task(setting.ask())
    await turns()
    setting.now += 10
    newer = asyncio.create_task(setting.ask(control="no-cache"))
    await turns()
    for gate in reversed(numbered.gates):
        gate.set()
        await turns()
    await asyncio.gather(older, newer)
    async with asyncio.timeout(5):
        assert (await setting.ask()).body == b"0"


@pytest.mark.parametrize("between", [True, False])
async def test_nobody_joins_a_call_that_is_older_than_what_is_kept(between: bool) -> None:
    """Where what is kept has to be asked for, whoever joins does not ask. The older one is not even taken at once."""
    reads = asyncio.Event()

    async def taking(message: Message) -> None:
        await reads.wait()

    class Far(MemoryCache):
        def at_hand(self, key: str) -> Entry | None:
            return None

        async def look(self, key: str, since: int, flight: Flight) -> Found:
            return self._found(self.peek(key), since)

    setting = Setting(numbered := Numbered())
    setting.answers = Answers(Far(cache.Config().bounds, lambda: setting.now, lambda s, do: NoTimer()), b"secret")
    setting.build(cache.Config())
    older = asyncio.create_task(setting.ask(taking=taking))
    await turns()
    setting.now += 10
    newer = asyncio.create_task(setting.ask(control="no-cache"))
    await turns()
    numbered.gates[1].set()
    await newer
    if between:
        assert (await setting.ask()).body == b"1"
    numbered.gates[0].set()
    await turns()
    assert (await setting.ask()).body == b"1"
    reads.set()
    assert (await older).body == b"0"
    assert (await setting.ask()).body == b"1"
    only = await setting.ask(control="only-if-cached")
    assert (only.body, only.exchange.cache) == (b"1", "hit")
    assert not setting.answers.flights


async def test_a_call_from_before_everything_was_deleted_is_not_kept() -> None:
    setting = Setting(numbered := Numbered())
    begun = asyncio.create_task(setting.ask())
    await turns()
    setting.now += 10
    assert await setting.backend.delete("a") == 0
    numbered.gates[0].set()
    assert (await begun).exchange.cache == "miss"
    setting.now += 10
    again = asyncio.create_task(setting.ask())
    await turns()
    numbered.gates[1].set()
    assert (await again).exchange.cache == "miss"
    assert (await setting.ask()).body == b"1"


async def test_no_older_than_nothing_is_made_now() -> None:
    setting = Setting(whole)
    await setting.ask()
    assert (await setting.ask(control="max-age=0")).exchange.cache == "miss"  # within the same millisecond
    assert (await setting.ask(control="max-age=1")).exchange.cache == "hit"
    assert setting.calls == 2


async def test_what_was_found_for_one_is_there_for_all_who_joined_it() -> None:
    """In a Redis, only the first one looks. When the provider fails, all get what it has found."""
    old = Entry(0, False, b"old", 1, 2, 3)

    class Far(MemoryCache):
        near = False

        def at_hand(self, key: str) -> Entry | None:
            return None

        async def look(self, key: str, since: int, flight: Flight) -> Found:
            return Found(Role.LEAD, old)

    async def fails(about: Exchange, send: Send) -> None:
        await turns()
        raise UpstreamFailed("x")

    setting = Setting(gated := Gated(fails), now=2 * HOUR)
    setting.answers = Answers(Far(cache.Config().bounds, lambda: setting.now, lambda s, do: NoTimer()), b"secret")
    setting.build(cache.Config())
    tasks = [asyncio.create_task(setting.ask()) for _ in range(10)]
    await turns()
    gated.gate.set()
    assert {(one.body, one.exchange.cache) for one in await asyncio.gather(*tasks)} == {(b"old", "stale")}
    assert setting.calls == 1


async def test_an_entry_of_tomorrow_is_not_fresh() -> None:
    """Of a replica whose clock is ahead."""
    setting = Setting(whole)
    await setting.ask()
    setting.now -= 6_000
    assert (await setting.ask()).exchange.cache == "miss"
    setting.now -= 4_000
    assert (await setting.ask()).exchange.cache == "hit"


async def test_a_backend_that_leads_nobody_is_no_trouble() -> None:
    """As a Redis that is gone: it has nothing, keeps nothing, and everybody asks."""

    class Gone:
        near = False

        def at_hand(self, key: str) -> Entry | None:
            return None

        async def look(self, key: str, since: int, flight: Flight) -> Found:
            await asyncio.sleep(0)
            return Found(Role.LEAD, None)

        def keep(self, key: str, entry: Entry, flight: Flight, then: Then) -> None:
            then(key, flight)

        def drop(self, key: str, flight: Flight) -> None:
            pass

    setting = Setting(whole)
    setting.answers = Answers(Gone(), b"secret")  # type: ignore[arg-type]
    setting.build(cache.Config())
    found = [await setting.ask() for _ in range(3)]
    assert [one.exchange.cache for one in found] == ["miss"] * 3
    assert len({one.exchange.cache_key for one in found}) == 1


@pytest.mark.parametrize("answered", [True, False])
async def test_an_answer_that_another_process_gets(answered: bool) -> None:
    """All who ask here wait for it; if it does not come, one of them asks."""
    flights: list[Flight] = []

    class Shared(MemoryCache):
        async def look(self, key: str, since: int, flight: Flight) -> Found:
            flights.append(flight)
            return Found(Role.LEAD if len(flights) > 1 else Role.FOLLOW, None)

    setting = Setting(whole)
    bounds = cache.Config().bounds
    setting.answers = Answers(Shared(bounds, lambda: setting.now, lambda seconds, do: NoTimer()), b"secret")
    setting.build(cache.Config())
    tasks = [asyncio.create_task(setting.ask()) for _ in range(5)]
    await turns()
    assert len(flights) == 1
    if answered:
        flights[0].finish(Entry(setting.now, False, b"from elsewhere", 3, 5, 70), 70)
    else:
        flights[0].fail(None)
    found = await asyncio.gather(*tasks)
    if answered:
        assert {(one.body, one.exchange.cache, one.exchange.saved) for one in found} == {
            (b"from elsewhere", "joined", 70)
        }
    else:
        assert sorted(str(one.exchange.cache) for one in found) == [*["hit"] * 4, "miss"]
    assert setting.calls == (0 if answered else 1)
    assert not setting.answers.flights
