"""The order of the stages. Nothing else in the program may add one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.types import ASGIApp

from proxy.core.endpoint import Endpoint
from proxy.core.services import Middleware, Services, direct
from proxy.player import Player
from proxy.stages import (
    access_log,
    admin,
    auth,
    begin,
    body,
    breaker,
    cache,
    context,
    cors,
    deprecated,
    details,
    estimate,
    fallback,
    gate,
    host,
    ledger,
    metrics,
    model,
    parse,
    pass_over,
    quota,
    recall,
    replay,
    rescue,
    started,
    trace,
    translate,
)


@dataclass(frozen=True, slots=True)
class Configs:
    """The part of the settings that each stage needs; see its `build`."""

    trusted_proxies: Sequence[str]
    trace: trace.Config
    access_log: access_log.Config
    cors_origins: Sequence[str]
    loopback: bool
    hosts: list[str]
    max_requests: int
    auth: auth.Config
    admin: admin.Config
    public_metrics: bool
    max_body: int
    model: model.Config
    fallbacks: fallback.Chains
    context: Mapping[str, context.WhenTooLong]
    translate: translate.Config
    cache: cache.Sources
    quota: quota.Config
    breaker: breaker.Config


def outer(configs: Configs, services: Services) -> tuple[Middleware, ...]:
    """Around the whole application: these see every request, also those that no route takes."""
    stages = (
        # first: everything after it needs the Exchange, and its headers go on every answer
        begin.build(configs.trusted_proxies, services, sample=configs.trace.sample),
        trace.build(configs.trace, services),  # outside rescue, as the log: it tells what the client was told
        # outside rescue: it logs what the client was told
        access_log.build(configs.access_log, services, content=configs.auth.log_content),
        metrics.build(services),  # outside rescue, as the log
        details.build(configs.access_log.level, services),  # inside access_log: a request's last line is that one's
        cors.build(configs.cors_origins, services),  # outside rescue: a page must be able to read errors, too
        rescue.build(services),  # every error of everything below becomes an answer here
        host.build(configs.loopback, configs.hosts, services),  # before any route: an unknown Host learns nothing
    )
    return tuple(stage for stage in stages if stage)


def inner(configs: Configs, endpoint: Endpoint, services: Services, end: ASGIApp) -> ASGIApp:
    """The stages of one endpoint, around what calls the provider."""
    answered = fold(answering(configs, endpoint, services), end)
    player = Player(configs.cache.config.cadence, services.drainables, services.wall, services.monotonic)
    stages = (
        *entering(configs, endpoint, services, player, answered),
        *understanding(configs, endpoint, services),
        deprecated.build(configs.access_log.level, endpoint, services),  # of each model that is asked
        trace.asked(configs.trace, configs.fallbacks, endpoint, services),
        *finding(configs, endpoint, services, player),
    )
    return fold(stages, answered)


def explaining(
    configs: Configs, endpoint: Endpoint, services: Services, player: Player, each: Middleware, end: ASGIApp
) -> ASGIApp:
    """The same for a request whose sender and body are known, in place of a call. `each` is around all that is done for
    one model."""
    answered = fold(answering(configs, endpoint, services), end)
    found = fold(finding(configs, endpoint, services, player), answered)
    return fold((*understanding(configs, endpoint, services), each), found)


def entering(
    configs: Configs, endpoint: Endpoint, services: Services, player: Player, answered: ASGIApp
) -> tuple[Middleware | None, ...]:
    """Who asks; None where a stage does not apply. `answered` is where a request goes whose answer is there."""
    policy = configs.cache.config.policy(services.wall)
    return (
        gate.build(configs.max_requests, services),  # before all that costs something
        auth.build(configs.auth, endpoint, services),  # before the body: an unknown key uploads nothing
        started.build(configs.access_log.level, endpoint, services),  # of those who may come in, before all that lasts
        body.build(configs.max_body, endpoint, services),
        # before anything is made of the body: what has been understood before, and answered, need not be again
        recall.build(policy, player, endpoint, services, answered, on=configs.cache.on),
    )


def understanding(configs: Configs, endpoint: Endpoint, services: Services) -> tuple[Middleware | None, ...]:
    """What is asked."""
    return (
        parse.build(endpoint, services),
        model.build(configs.model, endpoint, services),  # after the body, which names the model
        # around all that is done for one model: each that is asked has its own
        fallback.build(configs.fallbacks, endpoint, services),
    )


def finding(configs: Configs, endpoint: Endpoint, services: Services, player: Player) -> tuple[Middleware | None, ...]:
    """What would be sent, and whether its answer is there."""
    policy = configs.cache.config.policy(services.wall)
    return (
        # before anything is reckoned: what is cut costs nothing
        context.build(configs.context, configs.model.default_max_tokens, endpoint, services),
        translate.build(configs.translate, endpoint, services),  # of what is left
        # by what would be sent, and before anything is reckoned: what it finds costs nothing
        cache.build(configs.cache, policy, player, endpoint, services),
        # unless there is an answer already
        pass_over.build(configs.fallbacks, configs.breaker.rules, endpoint, services),
    )


def answering(configs: Configs, endpoint: Endpoint, services: Services) -> tuple[Middleware | None, ...]:
    """What is done for each model that is asked, and for each answer that is there."""
    return (
        estimate.build(configs.model.default_max_tokens, endpoint, services),  # quota and ledger hold what it says
        quota.build(configs.quota, endpoint, services),
        # inside quota: what was used is written down before it counts as free again
        ledger.build(endpoint, services),
        replay.build(endpoint, services, on=configs.cache.on),  # in place of a call, or when it has failed
        # innermost: it counts what is really asked
        breaker.build(configs.breaker, endpoint, services),
    )


def administration(configs: Configs, services: Services, end: ASGIApp, *, reads: bool = False) -> ASGIApp:
    """The stages of what is for admins alone. `reads`: it takes a body."""
    reading = body.reading(configs.max_body, services) if reads else None
    return fold((gate.build(configs.max_requests, services), admin.build(configs.admin, services), reading), end)


def measuring(configs: Configs, services: Services, end: ASGIApp) -> ASGIApp:
    """The stages of what a monitoring system asks for; no gate: that it is crowded is what it is to see."""
    return end if configs.public_metrics else fold((admin.build(configs.admin, services, near=configs.loopback),), end)


def fold(stages: tuple[Middleware | None, ...], end: ASGIApp) -> ASGIApp:
    """The stages around `end`, the first one outermost."""
    for stage in reversed(stages):
        end = stage(direct(end)) if stage else end
    return end
