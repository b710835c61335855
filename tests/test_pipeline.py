"""The order of the stages, seen by what a request meets first."""

from __future__ import annotations

import gc
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy import data
from proxy.core.access import AccessKey
from proxy.core.cache import Answers
from proxy.core.catalogue import Catalogue
from proxy.core.errors import BodyTooLarge, HostNotAllowed, InvalidApiKey, ModelNotAllowed, ProxyError
from proxy.core.exchange import exchange_of
from proxy.core.services import Middleware, Services
from proxy.pipeline import Configs, answering, entering, finding, fold, inner, outer, understanding
from proxy.player import Player
from proxy.providers.mistral.chat import CHAT
from proxy.providers.mistral.models import MODEL, MODELS
from proxy.stages import access_log, admin, auth, breaker, cache, deprecated, model, quota, trace, translate
from proxy.store.cache.memory import MemoryCache
from proxy.upstream.config import CircuitBreaker
from tests.asgi import Answer, Headers, Log, call, exchange, ok, services

CATALOGUE = Catalogue(data.read("models.yaml"))
KEY = "sk-team-key"
GOOD: Headers = [(b"authorization", b"Bearer " + KEY.encode()), (b"content-type", b"application/json")]


def configs(**options: Any) -> Configs:
    keys = [AccessKey(hashlib.sha256(KEY.encode()).digest())]
    return Configs(
        trusted_proxies=[],
        trace=trace.Config([CHAT, MODEL, MODELS], {"mistral": ("mistral", "https://api.mistral.ai")}, 1.0),
        access_log=access_log.Config(),
        cors_origins=options.get("cors_origins", []),
        loopback=options.get("loopback", True),
        hosts=options.get("hosts", []),
        max_requests=2_000,
        public_metrics=False,
        admin=admin.Config(options.get("admin_keys", ())),
        auth=auth.Config(teams={"research": auth.Team(keys=keys, models=["mistral-*"])}),
        max_body=options.get("max_body", 200),
        model=model.Config(),
        fallbacks=options.get("fallbacks", {}),
        context={},
        translate=translate.Config(lambda row: {"mistral": row}, strict=False, defaults={}, aliases={}),
        cache=cache.Sources(cache.Config(), lambda row: {"mistral": row}, {"mistral": cache.Place((), 600.0)}),
        quota=quota.Config({}),
        breaker=breaker.Config({"mistral": CircuitBreaker()}),
    )


def endpoint(row: Any, end: ASGIApp = ok) -> ASGIApp:
    made = services(catalogue=CATALOGUE)
    return inner(configs(), row, made, end)


async def ask(row: Any, headers: Headers, body: bytes = b"", **scope: Any) -> Answer:
    return await call(endpoint(row), headers=headers, body=[body], exchange=exchange(headers), **scope)


async def raised(row: Any, headers: Headers, body: bytes = b"", **scope: Any) -> type[ProxyError]:
    with pytest.raises(ProxyError) as caught:
        await ask(row, headers, body, **scope)
    return type(caught.value)


async def test_a_request_that_passes_them_all() -> None:
    answer = await ask(CHAT, GOOD, b'{"model": "mistral-x", "messages": [{"role": "user", "content": "x"}]}')
    assert answer.body == b"ok"
    assert answer.exchange.team
    assert (answer.exchange.team.name, answer.exchange.model) == ("research", "mistral-x")
    assert answer.exchange.body == {"model": "mistral-x", "messages": [{"role": "user", "content": "x"}]}


async def test_auth_comes_before_the_body() -> None:
    too_long = [(b"content-type", b"application/json"), (b"content-length", b"201")]
    assert await raised(CHAT, too_long) is InvalidApiKey
    assert await raised(CHAT, [*GOOD, (b"content-length", b"201")]) is BodyTooLarge


async def test_the_body_comes_before_the_model() -> None:
    assert await raised(CHAT, GOOD, b'{"model": "other"}') is ModelNotAllowed
    assert await raised(CHAT, GOOD, b'{"model": "other"' + b" " * 200 + b"}") is BodyTooLarge


def stages_of(configs: Configs, row: Any, made: Services) -> list[Middleware | None]:
    player = Player("immediate", set(), made.wall, made.monotonic)
    before = [*entering(configs, row, made, player, ok), *understanding(configs, row, made)]
    before += [deprecated.build("info", row, made), trace.asked(configs.trace, configs.fallbacks, row, made)]
    return [*before, *finding(configs, row, made, player), *answering(configs, row, made)]


async def test_an_endpoint_without_a_body_has_only_the_stages_that_it_needs() -> None:
    answers = Answers(MemoryCache(cache.Config().bounds, lambda: 0), b"secret")
    made = services(catalogue=CATALOGUE, answers=answers, tracer=object())
    every = configs(fallbacks={"a": ["b"]})

    def lacks(row: Any) -> list[str]:
        stages = ["gate", "auth", "started", "body", "recall", "parse", "model", "fallback", "deprecated", "asked"]
        stages += ["context", "translate", "cache", "pass_over", "estimate", "quota", "ledger", "replay", "breaker"]
        built = stages_of(every, row, made)
        return [name for name, stage in zip(stages, built, strict=True) if stage is None]

    without_a_body = ["body", "recall", "parse", "fallback", "asked", "context", "pass_over"]
    without_a_body += ["ledger", "replay"]
    assert lacks(CHAT) == ["ledger"]
    assert lacks(MODEL) == without_a_body
    without_a_model = [*without_a_body[:3], "model", "fallback", "deprecated", *without_a_body[4:]]
    assert lacks(MODELS) == without_a_model
    kept = services(catalogue=CATALOGUE, ledger=object())
    assert [stage is not None for stage in answering(configs(), MODELS, kept)][-3]


async def test_a_cache_that_is_off_is_one_stage_and_that_says_so() -> None:
    answers = Answers(MemoryCache(cache.Config().bounds, lambda: 0), b"secret")
    made = services(catalogue=CATALOGUE, answers=answers)
    off = replace(configs(), cache=replace(configs().cache, config=cache.Config(mode="off")))
    built = [stages_of(each, CHAT, made) for each in (configs(), off)]
    gone = [on is not None and without is None for on, without in zip(*built, strict=True)]
    assert gone.count(True) == 2
    assert cache.Nothing in built[1]


@pytest.mark.parametrize("row", [CHAT, MODEL, MODELS], ids=lambda row: row.operation)
async def test_no_endpoint_is_open_to_everybody(row: Any) -> None:
    assert await raised(row, [], path_params={"id": "mistral-x"}) is InvalidApiKey


def around(app: ASGIApp, log: Log | None = None, **options: Any) -> ASGIApp:
    return fold(outer(configs(**options), services(log, CATALOGUE)), app)


HOST: Headers = [(b"host", b"localhost:8080")]


async def test_an_unknown_host_reaches_no_route_and_is_logged_with_what_it_was_told() -> None:
    async def no_route(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError

    log = Log()
    answer = await call(around(no_route, log), headers=[(b"host", b"evil.example")])
    assert answer.status == HostNotAllowed.status
    assert answer.header("x-request-id")
    [(level, event, fields)] = log.lines
    assert (level, event, fields["status_code"], fields["error_code"]) == (
        "warning",
        "request",
        421,
        "host_not_allowed",
    )


async def test_whatever_is_raised_becomes_an_answer_and_a_line() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        exchange_of(scope).upstream = "mistral/x"
        raise RuntimeError("sk-secret in the text")

    log = Log()
    answer = await call(around(broken, log), headers=HOST)
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (500, "internal_error")
    assert answer.header("x-proxy-upstream") == "mistral/x"
    assert b"secret" not in answer.body
    assert [(level, event) for level, event, _ in log.lines] == [("error", "unexpected"), ("error", "request")]
    assert "secret" not in str(log.lines)


async def test_other_scopes_pass_all_of_them() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def nothing(*_: Any) -> Any:
        raise AssertionError

    await around(app)({"type": "lifespan"}, nothing, nothing)
    assert seen == ["lifespan"]


async def test_fold_puts_the_first_stage_outermost_and_leaves_out_what_is_none() -> None:
    called: list[str] = []

    def stage(name: str) -> Middleware:
        def middleware(app: ASGIApp) -> ASGIApp:
            async def passing(scope: Scope, receive: Receive, send: Send) -> None:
                called.append(name)
                await app(scope, receive, send)

            return passing

        return middleware

    await call(fold((stage("a"), None, stage("b")), ok))
    assert called == ["a", "b"]


PAGE = (b"origin", b"https://chat.example.com")


async def test_c18_without_a_setting_there_is_no_header_of_cors() -> None:
    for headers in ([*HOST, PAGE], [*HOST, PAGE, (b"access-control-request-method", b"POST")]):
        answer = await call(around(ok), "OPTIONS", headers=headers)
        assert not [name for name, _ in answer.headers if name == b"vary" or name.startswith(b"access-control-")]
    assert len(outer(configs(), services(catalogue=CATALOGUE))) == 5


@pytest.mark.parametrize("host", [b"localhost", b"evil.example"])
async def test_c18_a_page_can_read_its_errors(host: bytes) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError

    app = around(broken, cors_origins=[PAGE[1].decode()])
    answer = await call(app, headers=[(b"host", host), PAGE])
    assert answer.status == (500 if host == b"localhost" else 421)
    assert answer.header("access-control-allow-origin") == PAGE[1].decode()
    assert "x-request-id" in (answer.header("access-control-expose-headers") or "")


async def test_c18_a_preflight_is_logged_and_asks_for_no_key() -> None:
    async def never(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError

    log = Log()
    app = around(never, log, cors_origins=[PAGE[1].decode()])
    answer = await call(app, "OPTIONS", headers=[*HOST, PAGE, (b"access-control-request-method", b"POST")])
    assert (answer.status, answer.header("x-request-id") is not None) == (204, True)
    [(level, event, fields)] = log.lines
    assert (level, event, fields["status_code"], fields["team"]) == ("info", "request", 204, None)


async def test_c23_names_that_clients_invent_leave_nothing_behind() -> None:
    """Ten thousand models that do not exist, asked for, refused and logged: the process is as large as before."""
    headers = [*HOST, *GOOD]
    log = Log()
    made = services(log, CATALOGUE)
    app = fold(outer(configs(), made), inner(configs(), CHAT, made, ok))

    async def ask_for(names: Iterator[str], status: int) -> None:
        for name in names:
            answer = await call(
                app,
                headers=headers,
                body=[b'{"model": "%b", "messages": [{"role": "user", "content": "x"}]}' % name.encode()],
            )
            assert answer.status == status
            log.lines.clear()

    await ask_for((f"mistral-{number}" for number in range(200)), 200)
    await ask_for((f"other-{number}" for number in range(200)), 403)
    gc.collect()
    before = sys.getallocatedblocks()
    await ask_for((f"mistral-x{number}" for number in range(5000)), 200)
    await ask_for((f"{number}-other@example.com" for number in range(5000)), 403)
    gc.collect()
    assert sys.getallocatedblocks() - before < 2000  # one for each name would be 10,000
