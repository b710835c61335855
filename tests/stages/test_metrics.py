"""What each request adds to which series, however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy import data
from proxy.core.catalogue import Catalogue
from proxy.core.charge import NOTHING, Charge
from proxy.core.errors import BadFraming, BadRequest, Overloaded, RateLimited, UpstreamFailed, UpstreamRefusal
from proxy.core.exchange import Before, Failed, Team, exchange_of
from proxy.core.gaps import Gaps
from proxy.core.metrics import families
from proxy.core.metrics.board import Board
from proxy.core.metrics.families import Family, Kind
from proxy.core.services import Traffic
from proxy.pipeline import fold
from proxy.stages import begin, metrics, rescue
from tests.asgi import Answer, call, ok, services

CATALOGUE = Catalogue(data.read("models.yaml"), providers=("mistral", "openai"))
SMALL, LARGE = (CATALOGUE.model(f"mistral-{size}-latest").id for size in ("small", "large"))
CHAT = SimpleNamespace(path="/v1/chat/completions", operation="chat.completions")
TEAM = Team("research", lambda model: True)
COST = 123_456

Fields = dict[str, Any]
Counts = dict[tuple[str, ...], int]
Watch = Callable[[Any], Any] | None

ASKED: Fields = {"team": TEAM, "model": SMALL, "attempts": 1, "charge": Charge(prompt=3, completion=5, cost=COST)}


async def streamed(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for piece in (b"a", b"b"):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"c", "more_body": False})


async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """The client has left: there is nobody to tell."""


def raising(error: BaseException, app: ASGIApp = nothing) -> ASGIApp:
    async def raised(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)
        raise error

    return raised


def begun(scope: Scope, receive: Receive, send: Send) -> Any:
    """It has begun, and never ends."""
    return send({"type": "http.response.start", "status": 200, "headers": []})


class Setting:
    """The stage where it stands, around an end that does what the test says."""

    def __init__(self, models: tuple[str, ...] = ()) -> None:
        self.board, self.traffic = Board(), Traffic()
        self.now = 0.0
        catalogue = Catalogue(data.read("models.yaml"), providers=("mistral", "openai"), named=models)
        made = services(catalogue=catalogue, part=self.board.parts[0], traffic=self.traffic, monotonic=lambda: self.now)
        self._end: ASGIApp = ok
        self._fields: Fields = {}
        self.stage = metrics.build(made)
        self._app = fold((begin.build((), made), self.stage, rescue.build(made)), self._inside)

    async def _inside(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = exchange_of(scope)
        for name, value in self._fields.items():
            setattr(found, name, value)
        await self._end(scope, receive, send)

    async def ask(self, end: ASGIApp = ok, route: Any = CHAT, watch: Watch = None, **fields: Any) -> Answer:
        self._end, self._fields = end, fields
        scope: Fields = {"route": route} if route else {}
        return await call(self._app, taking=watch, **scope)

    def __call__(self, family: Family) -> Counts:
        """What has been counted; of a histogram how often."""
        [part] = self.board.parts
        found: Counts = {}
        for one, labels, at in part.series():
            if one is family:
                cells = part.cells[at : at + family.cells]
                count = sum(cells[1:]) if family.kind is Kind.HISTOGRAM else cells[0]
                if count:
                    found[labels] = count
        return found

    def seconds(self, family: Family) -> dict[tuple[str, ...], float]:
        [part] = self.board.parts
        return {labels: part.cells[at] / 1e9 for one, labels, at in part.series() if one is family and part.cells[at]}


@pytest.fixture
def setting() -> Setting:
    return Setting()


async def test_one_that_was_answered(setting: Setting) -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        setting.now = 0.3
        await ok(scope, receive, send)

    await setting.ask(slow, cache="bypass", **ASKED)
    assert setting(families.REQUESTS) == {("mistral", "chat.completions", "2xx", SMALL): 1}
    assert setting(families.TEAM_REQUESTS) == {("research", "/v1/chat/completions", "2xx"): 1}
    assert setting(families.DURATION) == {("mistral", "chat.completions", "2xx"): 1}
    assert setting.seconds(families.DURATION) == {("mistral", "chat.completions", "2xx"): pytest.approx(0.3)}
    assert setting(families.TOKENS) == {("mistral", "input", SMALL): 3, ("mistral", "output", SMALL): 5}
    assert setting(families.COST) == {("research", SMALL): COST}
    assert setting(families.CACHE) == {("research", "bypass"): 1}
    for family in (families.ERRORS, families.FAULTS, families.RETRIES, families.CANCELS, families.FIRST_TOKEN):
        assert setting(family) == {}


@pytest.mark.parametrize(("outcome", "saved"), [("hit", COST), ("joined", COST), ("stale", 0), ("miss", 0)])
async def test_what_the_cache_did(setting: Setting, outcome: str, saved: int) -> None:
    charge = ASKED["charge"] if outcome == "miss" else NOTHING
    await setting.ask(**ASKED | {"cache": outcome, "saved": saved, "charge": charge})
    assert setting(families.CACHE) == {("research", outcome): 1}
    assert setting(families.SAVED) == ({("research", SMALL): saved} if saved else {})
    assert setting(families.COST) == ({("research", SMALL): COST} if outcome == "miss" else {})


@pytest.mark.parametrize("end", [ok, streamed])
async def test_whoever_has_the_last_byte_has_been_counted(setting: Setting, end: ASGIApp) -> None:
    seen: list[tuple[int, bool]] = []

    async def look(message: Any) -> None:
        last = message["type"] == "http.response.body" and not message.get("more_body")
        seen.append((sum(setting(families.REQUESTS).values()), last))

    await setting.ask(end, watch=look, **ASKED)
    assert [(count == 1) == last for count, last in seen] == [True] * len(seen)
    assert setting(families.DURATION) == {("mistral", "chat.completions", "2xx"): 1}  # and once only


async def test_a_stream(setting: Setting) -> None:
    gaps = Gaps()
    gaps.add(0.02)
    gaps.add(20.0)
    open_streams: list[int] = []

    async def watch(message: Any) -> None:
        open_streams.append(setting.traffic.streams)
        setting.now += 0.5

    await setting.ask(streamed, watch=watch, streamed=True, gaps=gaps, **ASKED)
    assert open_streams == [1, 1, 1, 1]
    assert setting.traffic.streams == 0
    assert setting(families.REQUESTS) == {("mistral", "chat.completions_stream", "2xx", SMALL): 1}
    assert setting(families.FIRST_TOKEN) == {(SMALL,): 1}
    assert setting.seconds(families.FIRST_TOKEN) == {(SMALL,): 1.0}
    assert setting(families.GAPS) == {("mistral",): 2}
    assert setting.seconds(families.GAPS) == {("mistral",): pytest.approx(20.02)}


async def test_a_stream_of_one_piece_has_a_first_token(setting: Setting) -> None:
    async def at_once(scope: Scope, receive: Receive, send: Send) -> None:
        setting.now = 0.25
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"all"})

    await setting.ask(at_once, streamed=True, **ASKED)
    assert setting.seconds(families.FIRST_TOKEN) == {(SMALL,): 0.25}


async def test_an_error_in_place_of_a_stream_is_no_first_token(setting: Setting) -> None:
    await setting.ask(raising(UpstreamFailed("no")), streamed=True, **ASKED)
    assert setting(families.FIRST_TOKEN) == {}


async def test_a_stream_out_of_the_cache_has_no_first_token_of_a_provider(setting: Setting) -> None:
    await setting.ask(streamed, **ASKED | {"streamed": True, "cache": "hit", "attempts": 0})
    assert setting(families.FIRST_TOKEN) == setting(families.GAPS) == {}
    assert setting(families.REQUESTS) == {("mistral", "chat.completions_stream", "2xx", SMALL): 1}


async def test_a_stream_of_old_after_a_call_has_no_first_token_of_a_provider_either(setting: Setting) -> None:
    setting.now = 1.0
    await setting.ask(streamed, **ASKED | {"streamed": True, "cache": "stale", "attempts": 1})
    assert setting(families.FIRST_TOKEN) == {}


async def test_a_stream_that_ends_with_an_error_was_an_answer_and_is_a_failure(setting: Setting) -> None:
    await setting.ask(streamed, streamed=True, error=UpstreamFailed("no"), **ASKED)
    assert setting(families.REQUESTS) == {("mistral", "chat.completions_stream", "2xx", SMALL): 1}
    assert setting(families.ERRORS) == {("mistral", "upstream_error", "true"): 1}
    assert setting(families.FAULTS) == {("research", "provider"): 1}


@pytest.mark.parametrize(
    ("error", "status", "code", "retryable", "fault"),
    [
        (BadRequest("no"), "4xx", "invalid_value", "false", "caller"),
        (UpstreamFailed("no"), "5xx", "upstream_error", "true", "provider"),
        (Overloaded("no"), "5xx", "overloaded", "true", "proxy"),
        (ValueError("a bug"), "5xx", "internal_error", "true", "proxy"),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, Exception) else "",
)
async def test_an_error(setting: Setting, error: Exception, status: str, code: str, retryable: str, fault: str) -> None:
    await setting.ask(raising(error), team=TEAM, model=SMALL)
    assert setting(families.REQUESTS) == {("mistral", "chat.completions", status, SMALL): 1}
    assert setting(families.ERRORS) == {("mistral", code, retryable): 1}
    assert setting(families.FAULTS) == {("research", fault): 1}
    assert setting(families.COST) == setting(families.TOKENS) == setting(families.REFUSALS) == {}


async def test_what_failed_and_may_be_billed_costs_nonetheless(setting: Setting) -> None:
    await setting.ask(raising(UpstreamFailed("no")), **ASKED)
    assert setting(families.COST) == {("research", SMALL): COST}


async def test_an_error_without_a_code_has_an_empty_one(setting: Setting) -> None:
    error = UpstreamRefusal("no", status=400, type="invalid_request_error", code=None)
    await setting.ask(raising(error), team=TEAM)
    assert setting(families.ERRORS) == {("mistral", "", "false"): 1}


async def test_an_answer_that_breaks_off_is_counted_when_it_does(setting: Setting) -> None:
    await setting.ask(raising(ValueError("a bug"), begun), **ASKED)
    assert setting(families.REQUESTS) == {("mistral", "chat.completions", "2xx", SMALL): 1}
    assert setting(families.FAULTS) == {("research", "proxy"): 1}


async def test_a_client_that_leaves_before_the_first_byte(setting: Setting) -> None:
    answer = await setting.ask(nothing, client_gone=True, cancelled=True, **ASKED)
    assert answer.status == 0
    assert setting(families.REQUESTS) == {("mistral", "chat.completions", "4xx", SMALL): 1}
    assert setting(families.FAULTS) == {("research", "caller"): 1}
    assert setting(families.CANCELS) == {("mistral",): 1}
    assert setting(families.COST) == {("research", SMALL): COST}
    assert setting(families.ERRORS) == {}


async def test_a_client_that_leaves_in_a_stream(setting: Setting) -> None:
    await setting.ask(begun, streamed=True, client_gone=True, cancelled=True, **ASKED)
    assert setting(families.REQUESTS) == {("mistral", "chat.completions_stream", "2xx", SMALL): 1}
    assert setting(families.CANCELS) == {("mistral",): 1}
    assert setting(families.FIRST_TOKEN) == {}
    assert setting.traffic.streams == 0


@pytest.mark.parametrize("attempts", [0, 1])
async def test_a_client_for_which_no_call_was_ended(setting: Setting, attempts: int) -> None:
    """It had only joined somebody's, or its own went on for others."""
    await setting.ask(nothing, **ASKED | {"client_gone": True, "attempts": attempts})
    assert setting(families.CANCELS) == {}
    assert setting(families.FAULTS) == {("research", "caller"): 1}


async def test_one_that_never_ended(setting: Setting) -> None:
    await setting.ask(nothing, **ASKED)
    assert setting(families.REQUESTS) == {("mistral", "chat.completions", "none", SMALL): 1}


async def test_the_server_ends_one(setting: Setting) -> None:
    await setting.ask(raising(asyncio.CancelledError()), **ASKED)
    assert setting(families.ERRORS) == {("mistral", "draining", "true"): 1}


async def test_attempts_made_again(setting: Setting) -> None:
    failed = [Failed("mistral", number, "upstream_timeout") for number in (1, 2, 8, 9, 10, 30)]
    # After this one another model was asked: for that it was the first.
    failed.append(Failed("mistral", 1, "upstream_timeout", then="another model"))
    failed.append(Failed("openai", 1, "upstream_timeout"))
    await setting.ask(in_vain=tuple(failed), **ASKED | {"provider": "openai", "model": "openai/x"})
    assert setting(families.RETRIES) == {
        ("mistral", "2"): 1, ("mistral", "3"): 1, ("mistral", "9"): 1, ("mistral", "10+"): 3, ("openai", "2"): 1,
    }  # fmt: skip
    assert setting(families.ERRORS) == {}


async def test_a_fallback_costs_what_each_model_has_cost() -> None:
    setting = Setting(("openai/gpt-4o",))
    each = (
        (LARGE, "mistral", Charge(prompt=10, completion=1, cost=7)),
        ("made-up", "mistral", Charge(prompt=20, completion=2, cost=None)),
    )
    asked = ASKED | {"model": "openai/gpt-4o", "provider": "openai", "before": Before(2, each[0][2], each)}
    await setting.ask(**asked)
    assert setting(families.COST) == {("research", LARGE): 7, ("research", "openai/gpt-4o"): COST}
    assert setting(families.TOKENS) == {
        ("mistral", "input", LARGE): 10, ("mistral", "output", LARGE): 1,
        ("mistral", "input", "other"): 20, ("mistral", "output", "other"): 2,
        ("openai", "input", "openai/gpt-4o"): 3, ("openai", "output", "openai/gpt-4o"): 5,
    }  # fmt: skip
    assert setting(families.REQUESTS) == {("openai", "chat.completions", "2xx", "openai/gpt-4o"): 1}


@pytest.mark.parametrize("mode", ["enforce", "shadow"])
async def test_a_quota_that_refuses_or_would(setting: Setting, mode: str) -> None:
    rule = "requests 60/minute"
    error = RateLimited("no", about="requests", wait=1, detail={"rule": rule})
    if mode == "enforce":
        await setting.ask(raising(error), team=TEAM, model=SMALL)
    else:
        await setting.ask(shadow_refusals=(rule,), **ASKED)
    assert setting(families.REFUSALS) == {("research", rule, mode): 1}
    assert setting(families.FAULTS) == ({("research", "policy"): 1} if mode == "enforce" else {})


async def test_names_that_clients_make_up_are_one_and_are_not_remembered() -> None:
    named = "ours-in-the-configuration"
    setting = Setting((named,))
    for model in (named, SMALL, "open-mistral-made-up", "ft:mistral-small-latest:me:2026", "x" * 500, "\x00 é\n"):
        await setting.ask(**ASKED | {"model": model})
    counted = {labels[-1]: count for labels, count in setting(families.REQUESTS).items()}
    assert counted == {named: 1, SMALL: 1, "other": 4}
    before = setting.board.parts[0].series()
    count, kinds = len(before), len(vars(setting_stage(setting))["_known"])
    for number in range(300):
        await setting.ask(**ASKED | {"model": f"made-up-{number}"})
    assert (len(setting.board.parts[0].series()), len(vars(setting_stage(setting))["_known"])) == (count, kinds)


def setting_stage(setting: Setting) -> metrics.Metrics:
    """The stage itself, inside `begin`."""
    stage: metrics.Metrics = vars(setting._app)["_app"].__self__
    return stage


async def test_another_name_of_a_model_is_that_model(setting: Setting) -> None:
    for model in (SMALL, "mistral-small-latest"):
        await setting.ask(**ASKED | {"model": model})
    assert setting(families.COST) == {("research", SMALL): 2 * COST}


async def test_a_request_of_nobody_is_the_proxys(setting: Setting) -> None:
    await setting.ask(route=SimpleNamespace(path="/health", operation="health"))
    await setting.ask(raising(BadRequest("no")), route=None, path="/\x00/../a-clients/text")
    assert setting(families.REQUESTS) == {("proxy", "health", "2xx", ""): 1, ("proxy", "other", "4xx", ""): 1}
    assert setting(families.TEAM_REQUESTS) == {("", "/health", "2xx"): 1, ("", "other", "4xx"): 1}
    assert setting(families.FAULTS) == {("", "caller"): 1}


async def test_the_proxys_own_time_by_stage(setting: Setting) -> None:
    async def end(scope: Scope, receive: Receive, send: Send) -> None:
        setting.now = 18.5
        await ok(scope, receive, send)

    times = {"admitted": 1.0, "received": 3.0, "understood": 3.5, "looked_up": 3.75, "called": 4.0, "returned": 18.0}
    await setting.ask(end, **ASKED | times)
    assert setting.seconds(families.OVERHEAD) == {
        ("door",): 1.0, ("understand",): 0.5, ("cache",): 0.25, ("admit",): 0.25, ("answer",): 0.5,
    }  # fmt: skip
    assert setting(families.OVERHEAD) == dict.fromkeys(setting.seconds(families.OVERHEAD), 1)


async def test_what_is_refused_before_it_is_a_request_is_counted(setting: Setting) -> None:
    for error in (BadFraming("no"), Overloaded("no")):
        metrics.count_at_the_door(setting.board.parts[0], error)
    assert setting(families.REQUESTS) == {("proxy", "other", "4xx", ""): 1, ("proxy", "other", "5xx", ""): 1}
    assert setting(families.TEAM_REQUESTS) == {("", "other", "4xx"): 1, ("", "other", "5xx"): 1}
    assert setting(families.ERRORS) == {("proxy", "bad_framing", "false"): 1, ("proxy", "overloaded", "true"): 1}
    assert setting(families.FAULTS) == {("", "caller"): 1, ("", "proxy"): 1}
    assert setting(families.DURATION) == {}


async def test_what_is_no_request_passes(setting: Setting) -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    await setting.stage(app)({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert seen == ["lifespan"]
    assert setting(families.REQUESTS) == {}


async def test_series_are_found_again_and_not_made_anew(setting: Setting) -> None:
    await setting.ask(**ASKED)
    before = len(setting.board.parts[0].series())
    for _ in range(20):
        await setting.ask(**ASKED)
    assert len(setting.board.parts[0].series()) == before
    assert setting(families.REQUESTS) == {("mistral", "chat.completions", "2xx", SMALL): 21}
