"""What a request may cost, and what it is charged. Money is nano-USD, and rounded up once for each request.

    before it is sent            estimate   the worst case: what is reserved
    the provider's own count     charge     exact
    a stream that was cut        partial    the prompt's estimate and what was delivered; never above the worst case
    nothing is known of it       whole      the worst case

Where a model has no price, or none for what is asked of it, a cost is None and never 0.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from proxy.core.json import Json
from proxy.core.model import Model
from proxy.core.prompt import measure

MOST_CHOICES: Final = 128
"""Answers that one request may ask for; more is refused by translation."""

MOST_COMPLETION: Final = 10_000_000
"""Tokens of an answer that may be asked for; more is refused by translation."""

_MOST_COUNT = 10**9
_PRIORITY_ASKED = ("priority", "fast")  # OpenAI's words for what is sent as Mistral's `auto`
_PRIORITY = "priority"


class Estimate(msgspec.Struct, frozen=True, gc=False):
    """The worst case of one request. `tokens` is `prompt`, an estimate, and the most tokens of all its answers, each of
    which has at most `completion`. `cost` is for a prompt of as many tokens as it can possibly have (prompt.py), which
    makes it a bound: it holds as long as the provider counts at most a token per byte, cuts answers at the limit that
    it was told, and takes no more than the model's context.
    """

    prompt: int
    completion: int
    tokens: int
    cost: int | None
    priority: bool = False
    audio_seconds: int = 0


class Charge(msgspec.Struct, frozen=True, gc=False):
    """`prompt` includes the `cached` tokens, `completion` those of `reasoning`. `estimated`: the provider's own count
    was not had."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0
    audio_seconds: int = 0
    pages: int = 0
    cost: int | None = 0
    estimated: bool = False


FREE: Final = Estimate(0, 0, 0, 0)
"""Of what is answered without a call."""

NOTHING: Final = Charge()


def estimate(body: Json, model: Model, default_completion: int) -> Estimate:
    """For the body as its client sent it, of any shape: what is wrong with it is told later. `default_completion` is
    the limit of an answer for which none is asked."""
    prompt = measure(body, model.context, model.most_image)
    completion = answers = 0
    if body.get("messages") is not None:
        completion, answers = _completion(body, model, default_completion), _choices(body)
    priority = body.get("service_tier") in _PRIORITY_ASKED
    cost = model.price_of(
        prompt=prompt.most, completion=answers * completion, audio_seconds=prompt.most_seconds, priority=priority
    )
    return Estimate(prompt.tokens, completion, prompt.tokens + answers * completion, cost, priority, prompt.seconds)


def _completion(body: Json, model: Model, default: int) -> int:
    asked = body.get("max_completion_tokens")
    if asked is None:
        asked = body.get("max_tokens")
    if type(asked) is not int or asked < 1:
        asked = default
    return min(asked, model.context or MOST_COMPLETION)


def _choices(body: Json) -> int:
    asked = body.get("n")
    return min(asked, MOST_CHOICES) if type(asked) is int and asked > 1 else 1


def charge(usage: Json, model: Model, tier: str | None) -> Charge:
    """For an answer's usage, in OpenAI's form and cleaned of what cannot be believed. `tier` is OpenAI's `service_tier`
    of the answer. Parts of a count that are more than the whole count as the whole."""
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    cached = min(_detail(usage, "prompt_tokens_details", "cached_tokens"), prompt)
    seconds = _count(usage.get("prompt_audio_seconds"))
    return Charge(
        prompt=prompt,
        cached=cached,
        completion=completion,
        reasoning=min(_detail(usage, "completion_tokens_details", "reasoning_tokens"), completion),
        audio_seconds=seconds,
        cost=model.price_of(
            prompt=prompt,
            cached=cached,
            completion=completion,
            audio_seconds=seconds,
            priority=tier == _PRIORITY,
        ),
    )


def partial(estimate: Estimate, model: Model, delivered: int) -> Charge:
    """For a stream of which `delivered` tokens went to the client before it was cut. Not below what they cost at the
    model's price for answers, so not 0 where that is not; not above the worst case."""
    completion = min(delivered, estimate.tokens - estimate.prompt)
    cost = model.price_of(
        prompt=estimate.prompt,
        completion=completion,
        audio_seconds=estimate.audio_seconds,
        priority=estimate.priority,
    )
    return Charge(
        prompt=estimate.prompt,
        completion=completion,
        audio_seconds=estimate.audio_seconds,
        cost=cost,
        estimated=True,
    )


def whole(estimate: Estimate) -> Charge:
    """For a request that may have been answered in full: all that was reserved."""
    return Charge(
        prompt=estimate.prompt,
        completion=estimate.tokens - estimate.prompt,
        audio_seconds=estimate.audio_seconds,
        cost=estimate.cost,
        estimated=True,
    )


def both(one: Charge, other: Charge) -> Charge:
    """For a request that the provider may have done twice."""
    cost = None if one.cost is None or other.cost is None else one.cost + other.cost
    return Charge(
        prompt=one.prompt + other.prompt,
        cached=one.cached + other.cached,
        completion=one.completion + other.completion,
        reasoning=one.reasoning + other.reasoning,
        audio_seconds=one.audio_seconds + other.audio_seconds,
        pages=one.pages + other.pages,
        cost=cost,
        estimated=True,
    )


def _detail(usage: Json, group: str, name: str) -> int:
    details = usage.get(group)
    return _count(details.get(name)) if type(details) is dict else 0


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value <= _MOST_COUNT else 0
