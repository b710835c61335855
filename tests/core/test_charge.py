"""What is reserved and what is charged: exact, never nonsense, never above the worst case that holds."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from proxy.core.catalogue import Catalogue
from proxy.core.charge import MOST_CHOICES, MOST_COMPLETION, NOTHING, Charge, Estimate, charge, estimate, partial, whole
from proxy.core.model import Model
from proxy.core.prompt import measure
from proxy.providers.mistral.answer import clean_usage
from tests.providers.mistral.bodies import any_json, damaged

SHIPPED = Catalogue(yaml.safe_load(Path("config/models.yaml").read_text()))
SMALL = SHIPPED.model("mistral-small-latest")  # 150, 600 and 15 nano-USD a token: prompt, answer, cached
EMBED = SHIPPED.model("mistral-embed")
VOXTRAL = SHIPPED.model("voxtral-small-latest")
UNPRICED = Model("mine")

prices = st.integers(0, 10**8)
counts = st.integers(0, 10**7)
tiers = st.sampled_from([None, "default", "priority"])


@st.composite
def priced(draw: Any) -> Model:
    """A model with prices that no list has, one of which may be missing."""
    paid = draw(prices)
    minute = draw(st.just({}) | prices.map(lambda price: {"audio_minute": price}))
    return Model(
        "m",
        context=draw(st.none() | st.integers(1, 10**6)),
        input_price=paid,
        output_price=draw(prices),
        cached_price=draw(st.none() | st.integers(0, paid)),
        unit_prices=minute,
        priority=draw(st.sampled_from([100, 175])),
    )


def used(prompt: int, completion: int = 0, cached: int | None = None, **more: Any) -> dict[str, Any]:
    details = {} if cached is None else {"prompt_tokens_details": {"cached_tokens": cached}}
    counted = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return counted | details | more


def hello(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "Hello there"}]} | fields


# The provider's own count


@given(priced(), counts, counts, counts, st.integers(0, 10**5), tiers)
def test_a_cost_is_that_of_a_recount_in_decimals(
    model: Model, prompt: int, completion: int, cached: int, seconds: int, tier: str | None
) -> None:
    assume(cached <= prompt)
    assert model.input_price is not None
    assert model.output_price is not None
    kept = model.input_price if model.cached_price is None else model.cached_price
    per_token = [Decimal(price).scaleb(-12) for price in (model.input_price, kept, model.output_price)]
    usd = sum(
        (count * price for count, price in zip((prompt - cached, cached, completion), per_token, strict=True)),
        Decimal(0),
    )
    sixtieths = usd * 60 + seconds * Decimal(model.unit_prices.get("audio_minute", 0)).scaleb(-6)
    if tier == "priority":
        assert model.priority
        sixtieths *= Decimal(model.priority) / 100
    nano, rest = divmod(sixtieths * 10**9, 60)
    found = charge(used(prompt, completion, cached, prompt_audio_seconds=seconds), model, tier)
    assert found.cost == nano + bool(rest)
    assert not found.estimated


def test_a_million_calls_of_one_token_cost_exactly_what_one_of_a_million_does() -> None:
    once, cached = charge(used(1, 1), SMALL, None).cost, charge(used(1, 0, 1), SMALL, None).cost
    assert (once, cached) == (750, 15)
    assert sum(charge(used(1, 1), SMALL, None).cost or 0 for _ in range(1_000_000)) == 750_000_000
    assert charge(used(10**6, 10**6), SMALL, None).cost == 750_000_000


@pytest.mark.parametrize("model", [model for model in SHIPPED.models if model.input_price is not None])
def test_shipped_prices_divide_exactly(model: Model) -> None:
    assert not [
        price for price in (model.input_price, model.output_price, model.cached_price) if price and price % 1000
    ]


@given(priced(), counts, counts, st.integers(0, 10**4), st.sampled_from([(1, 0, 0), (0, 1, 0), (0, 0, 1)]), tiers)
def test_more_never_costs_less(
    model: Model, prompt: int, completion: int, seconds: int, more: tuple[int, int, int], tier: str | None
) -> None:
    def cost(*amounts: int) -> int:
        found = charge(used(amounts[0], amounts[1], prompt_audio_seconds=amounts[2]), model, tier).cost
        assert found is not None
        return found

    amounts = (prompt, completion, seconds)
    assert cost(*amounts) <= cost(*(a + b for a, b in zip(amounts, more, strict=True)))


@given(priced(), counts, counts, counts)
def test_what_is_cached_never_costs_more(model: Model, prompt: int, cached: int, more: int) -> None:
    less = charge(used(prompt, 0, cached + more), model, None)
    assert less.cost is not None
    assert less.cost <= (charge(used(prompt, 0, cached), model, None).cost or 0)


def test_without_a_price_of_their_own_cached_tokens_cost_what_others_do() -> None:
    assert EMBED.cached_price is None
    assert charge(used(10, 0, 4), EMBED, None).cost == charge(used(10), EMBED, None).cost == 1000


def test_the_priority_tier_costs_more() -> None:
    assert charge(used(4, 4), SMALL, "priority").cost == 5250
    assert charge(used(1, 0, 1), SMALL, "priority").cost == 27  # 26.25


def test_sound_costs_by_the_second_where_it_has_a_price() -> None:
    assert charge(used(10, 0, prompt_audio_seconds=60), VOXTRAL, None).cost == 4_000_000 + 1000
    assert charge(used(10, 0, prompt_audio_seconds=60), SMALL, None) == Charge(10, audio_seconds=60, cost=1500)


def test_the_parts_of_a_count() -> None:
    usage = used(10, 7, 4, completion_tokens_details={"reasoning_tokens": 3})
    assert charge(usage, SMALL, None) == Charge(10, 4, 7, 3, cost=6 * 150 + 4 * 15 + 7 * 600)


@pytest.mark.parametrize(("name", "usage"), [("mine", used(1)), ("mistral-embed", used(1, 1))])
def test_what_has_no_price_is_not_free(name: str, usage: dict[str, Any]) -> None:
    assert charge(usage, SHIPPED.model(name), None).cost is None


def test_nothing_is_nothing() -> None:
    assert (NOTHING.cost, NOTHING.estimated, NOTHING.prompt, NOTHING.completion) == (0, False, 0, 0)


def test_a_part_that_is_more_than_the_whole_is_the_whole() -> None:
    usage = used(10, 7, 11, completion_tokens_details={"reasoning_tokens": 8})
    assert charge(usage, SMALL, None) == Charge(10, 10, 7, 7, cost=10 * 15 + 7 * 600)


NAMES = ("prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details", "completion_tokens_details")
odd_counts = counts | any_json | st.integers(-(10**20), 10**20)
odd_usage = st.fixed_dictionaries(
    dict.fromkeys(NAMES[:3], odd_counts),
    optional={
        name: st.dictionaries(st.sampled_from(["cached_tokens", "reasoning_tokens", "x"]), odd_counts) | any_json
        for name in (*NAMES[3:], "num_cached_tokens", "prompt_audio_seconds")
    },
)


@given(odd_usage | st.dictionaries(st.sampled_from(NAMES), odd_counts), tiers)
def test_no_usage_that_an_upstream_can_send_is_charged_nonsense(usage: dict[str, Any], tier: str | None) -> None:
    cleaned = clean_usage(usage)
    if cleaned is None:
        return
    found = charge(cleaned, SMALL, tier)
    assert 0 <= found.cached <= found.prompt == usage["prompt_tokens"]
    assert 0 <= found.reasoning <= found.completion == usage["completion_tokens"]
    assert found.cost is not None
    assert 0 <= found.cost <= 2 * (found.prompt * 150 + found.completion * 600)


@given(st.dictionaries(st.sampled_from([*NAMES, "prompt_audio_seconds"]), odd_counts))
def test_nor_is_one_that_nobody_has_cleaned(usage: dict[str, Any]) -> None:
    found = charge(usage, VOXTRAL, None)
    assert found.cost is not None
    assert found.cost >= 0


# The worst case


@pytest.mark.parametrize(
    ("fields", "completion", "answers"),
    [
        ({}, 300, 1),
        ({"max_tokens": 20}, 20, 1),
        ({"max_completion_tokens": 10, "max_tokens": 20}, 10, 1),
        ({"max_completion_tokens": None, "max_tokens": 20, "n": None}, 20, 1),
        ({"max_tokens": 20, "n": 3}, 20, 3),
        ({"max_tokens": 10**12}, 262_144, 1),
        ({"n": 10**12}, 300, MOST_CHOICES),
        # refused later
        ({"max_tokens": 0, "n": 0}, 300, 1),
        ({"max_tokens": -5, "n": -5}, 300, 1),
        ({"max_tokens": True, "n": True}, 300, 1),
        ({"max_tokens": "20", "n": [2]}, 300, 1),
        ({"max_tokens": 2.5, "n": 2.5, "service_tier": ["priority"]}, 300, 1),
    ],
)
def test_what_is_asked_for_is_the_worst_case(fields: dict[str, Any], completion: int, answers: int) -> None:
    body = hello(**fields)
    prompt = measure(body, SMALL.context)
    found = estimate(body, SMALL, 300)
    assert found == Estimate(
        prompt.tokens,
        completion,
        prompt.tokens + answers * completion,
        prompt.most * 150 + answers * completion * 600,
    )


def test_an_answer_is_not_longer_than_the_context() -> None:
    assert estimate(hello(max_tokens=500), Model("m", context=100), 4096).completion == 100
    assert estimate(hello(max_tokens=10**12), UNPRICED, 4096).completion == MOST_COMPLETION


@pytest.mark.parametrize("tier", ["priority", "fast"])
def test_the_priority_tier_is_reserved_for_who_asks_for_it(tier: str) -> None:
    asked, not_asked = estimate(hello(service_tier=tier), SMALL, 400), estimate(hello(service_tier="auto"), SMALL, 400)
    assert asked.cost is not None
    assert not_asked.cost is not None
    assert asked.cost == -(-not_asked.cost * 7 // 4)


def test_embeddings_have_no_answer_in_tokens() -> None:
    found = estimate({"input": ["Hello"], "max_tokens": 5, "n": 2}, EMBED, 300)
    assert (found.completion, found.tokens) == (0, found.prompt)
    assert found.cost == measure({"input": ["Hello"]}, None).most * 100


def test_texts_to_embed_beside_a_conversation_do_not_hide_it() -> None:
    assert estimate(hello(input="Hello"), SMALL, 300).completion == 300


def test_the_cost_of_what_has_no_price_is_not_known() -> None:
    assert estimate(hello(), UNPRICED, 300).cost is None
    assert estimate(hello(), EMBED, 300).cost is None


@given(damaged() | st.dictionaries(st.sampled_from(["messages", "n", "max_tokens", "input"]), any_json))
def test_no_body_is_too_odd_for_an_estimate(body: dict[str, Any]) -> None:
    found = estimate(body, SMALL, 300)
    assert 0 <= found.prompt <= found.tokens
    assert found.cost is not None
    assert found.cost > 0


texts = st.text(max_size=200)


@given(priced(), st.lists(texts, max_size=3), st.integers(1, 300), st.integers(1, 4), st.data())
def test_no_charge_is_above_the_worst_case_that_holds(
    model: Model, texts: list[str], limit: int, n: int, data: st.DataObject
) -> None:
    tier = data.draw(st.sampled_from(["default", "priority"]))
    body = hello(max_tokens=limit, n=n, service_tier=tier)
    body["messages"] = [{"role": "user", "content": text} for text in texts]
    worst = estimate(body, model, 4096)
    size = sum(len(text.encode()) for text in texts)
    prompt = data.draw(st.integers(0, min(size, model.context or size)))
    completion = data.draw(st.integers(0, n * min(limit, model.context or limit)))
    found = charge(used(prompt, completion, data.draw(st.none() | st.integers(0, prompt))), model, tier)
    assert found.cost is not None
    assert worst.cost is not None
    assert found.cost <= worst.cost


# Streams that were cut, and calls of which nothing is known


@given(priced(), damaged(), st.integers(0, 10**6), st.integers(1, 10**4))
def test_what_was_delivered_is_charged_up_to_the_worst_case(
    model: Model, body: dict[str, Any], delivered: int, default: int
) -> None:
    worst = estimate(body, model, default)
    assert worst.cost is not None
    found = partial(worst, model, delivered)
    assert found.cost is not None
    assert (found.prompt, found.estimated) == (worst.prompt, True)
    assert found.prompt + found.completion <= worst.tokens
    assert found.cost <= worst.cost
    most = worst.tokens - worst.prompt
    assert found.completion == min(delivered, most)
    assert found.cost * 1000 >= found.completion * (model.output_price or 0)
    assert found.cost <= (partial(worst, model, delivered + 1).cost or 0)


def test_a_delivered_token_is_never_free() -> None:
    paid_by_answer = Model("m", input_price=0, output_price=1)
    assert partial(estimate(hello(), paid_by_answer, 10), paid_by_answer, 1).cost == 1


def test_a_cut_stream_in_the_tier_that_was_asked_for() -> None:
    worst = estimate(hello(service_tier="priority", max_tokens=40), SMALL, 0)
    assert partial(worst, SMALL, 4).cost == -(-(worst.prompt * 150 + 4 * 600) * 7 // 4)


def test_a_cut_stream_about_sound() -> None:
    body = hello(max_tokens=10)
    body["messages"][0]["content"] = [{"type": "input_audio", "input_audio": {"data": "A" * 64_000}}]
    worst = estimate(body, VOXTRAL, 0)
    found = partial(worst, VOXTRAL, 0)
    assert found.audio_seconds == 40
    assert found.cost == -(-40 * 4_000_000 // 60) + found.prompt * 100
    assert worst.cost is not None
    assert worst.cost > found.cost


def test_what_has_no_price_has_none_when_it_is_cut() -> None:
    worst = estimate(hello(), UNPRICED, 10)
    assert partial(worst, UNPRICED, 1).cost is None
    assert whole(worst).cost is None


def test_the_worst_case_is_charged_whole() -> None:
    worst = estimate(hello(max_tokens=7, n=2), SMALL, 0)
    assert whole(worst) == Charge(worst.prompt, completion=14, cost=worst.cost, estimated=True)
