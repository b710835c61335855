"""Names, aliases and facts of models, as the shipped config/models.yaml has them."""

from __future__ import annotations

import re
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from openai.types import AudioModel, EmbeddingModel, ModerationModel
from openai.types.audio import SpeechModel
from openai.types.shared import ChatModel

from proxy.core.catalogue import Catalogue, Pattern, micro_usd
from proxy.core.model import Model, Price
from proxy.core.prompt import MOST_IMAGE, MOST_IMAGE_ELSEWHERE

DATA: dict[str, Any] = yaml.safe_load(Path("config/models.yaml").read_text())
SHIPPED = Catalogue(DATA)
SERVED = {"active", "preview", "experimental"}

# The shipped file


def test_a_name_belongs_to_one_model() -> None:
    names = [name for model in SHIPPED.models for name in (model.id, *model.names)]
    assert len(names) == len(set(names))


def test_the_facts_have_a_day() -> None:
    assert SHIPPED.as_of == "2026-11-20"


def test_ids_are_pinned() -> None:
    assert not [model.id for model in SHIPPED.models if model.id.endswith("-latest")]


@pytest.mark.parametrize("alias", DATA["aliases"])
def test_an_alias_leads_to_an_active_model(alias: str) -> None:
    assert SHIPPED.model(SHIPPED.aliases[alias]).state == "active"


def test_a_replacement_is_a_model_that_is_served() -> None:
    for model in SHIPPED.models:
        if model.replacement:
            assert SHIPPED.model(model.replacement).state in SERVED
            assert model.replacement == SHIPPED.model(model.replacement).id


def test_every_row_is_complete() -> None:
    for model in SHIPPED.models:
        if model.state == "retired":
            assert model.replacement
        else:
            assert model.capabilities
            assert model.input_price is not None or model.unit_prices
        assert model.retirement is None or re.fullmatch(r"20\d\d-\d\d-\d\d", model.retirement)


@pytest.mark.parametrize(
    ("name", "id", "context", "prices"),
    [
        ("mistral-large-latest", "mistral-large-2512", 262144, (500_000, 1_500_000, 50_000)),
        ("mistral-large-3", "mistral-large-2512", 262144, (500_000, 1_500_000, 50_000)),
        ("mistral-large-4", "mistral-large-4-0", 1048576, (1_360_000, 4_180_000, 140_000)),
        ("mistral-medium", "mistral-medium-3-5", 262144, (1_500_000, 7_500_000, 150_000)),
        ("mistral-medium-2604", "mistral-medium-3-5", 262144, (1_500_000, 7_500_000, 150_000)),
        ("mistral-medium-3.5", "mistral-medium-3-5", 262144, (1_500_000, 7_500_000, 150_000)),
        ("magistral-medium-latest", "mistral-medium-3-5", 262144, (1_500_000, 7_500_000, 150_000)),
        ("mistral-vibe-cli-with-tools", "mistral-medium-3-5", 262144, (1_500_000, 7_500_000, 150_000)),
        ("mistral-small-2603", "mistral-small-2603", 262144, (150_000, 600_000, 15_000)),
        ("mistral-small-latest", "mistral-small-2603", 262144, (150_000, 600_000, 15_000)),
        ("magistral-small-latest", "mistral-small-2603", 262144, (150_000, 600_000, 15_000)),
        ("ministral-14b-latest", "ministral-14b-2512", 262144, (200_000, 200_000, 20_000)),
        ("ministral-3-8b-2512", "ministral-8b-2512", 262144, (150_000, 150_000, 15_000)),
        ("ministral-3b-latest", "ministral-3b-2512", 131072, (100_000, 100_000, 10_000)),
        ("labs-leanstral-1-5-1", "labs-leanstral-1-5-1", 262144, (0, 0, None)),
        ("codestral-latest", "codestral-2508", 256000, (300_000, 900_000, 30_000)),
        ("mistral-code-fim-latest", "codestral-2508", 256000, (300_000, 900_000, 30_000)),
        ("mistral-embed", "mistral-embed-2312", 8192, (100_000, None, None)),
        ("codestral-embed", "codestral-embed-2505", 8192, (150_000, None, 15_000)),
        ("mistral-moderation-2603", "mistral-moderation-2603", 131072, (0, 0, None)),
        ("voxtral-small-latest", "voxtral-small-2507", 32768, (100_000, 400_000, 10_000)),
        ("zai-glm-latest", "zai-glm-5-3", 1048576, (1_400_000, 4_400_000, 140_000)),
        ("zai-glm-5-3-flash", "zai-glm-5-3-flash", 1048576, (150_000, 500_000, 30_000)),
        ("deepseek-v4-1-flash-1017", "deepseek-v4-1-flash-1017", 1048576, (300_000, 1_200_000, 7_000)),
    ],
)
def test_facts_by_any_name(name: str, id: str, context: int, prices: tuple[int | None, ...]) -> None:
    model = SHIPPED.model(name)
    assert (model.id, model.known, model.context) == (id, True, context)
    assert (model.input_price, model.output_price, model.cached_price) == prices


@pytest.mark.parametrize(
    ("name", "prices"),
    [
        ("mistral-ocr-latest", {"page": 4_000, "annotated_page": 5_000}),
        ("mistral-ocr-3", {"page": 2_000, "annotated_page": 3_000}),
        ("voxtral-mini-latest", {"audio_minute": 3_000}),
        ("voxtral-mini-transcribe-3", {"audio_minute": 3_500}),
        ("voxtral-small-transcribe-3", {"audio_minute": 4_000}),
        ("voxtral-mini-transcribe-realtime-latest", {"audio_minute": 6_000}),
        ("voxtral-mini-realtime-2602", {"audio_minute": 6_000}),
        ("voxtral-mini-transcribe-realtime-3", {"audio_minute": 8_000}),
        ("voxtral-mini-tts-latest", {"character": 16}),
        ("voxtral-mini-tts-3", {"character": 13}),
        ("voxtral-small-latest", {"audio_minute": 4_000}),
        ("mistral-ocr-2505", {"page": 1_000, "annotated_page": 3_000}),
        ("mistral-large-latest", {}),
    ],
)
def test_prices_by_other_units(name: str, prices: dict[str, int]) -> None:
    assert SHIPPED.model(name).unit_prices == prices


@pytest.mark.parametrize(
    ("name", "prices"),
    [
        ("open-mistral-7b", (250_000, 250_000, None)),
        ("open-mixtral-8x7b", (700_000, 700_000, None)),
        ("open-mixtral-8x22b", (2_000_000, 6_000_000, None)),
        ("mistral-small-2402", (1_000_000, 3_000_000, None)),
        ("mistral-medium-2312", (2_700_000, 8_100_000, None)),
        ("mistral-large-2402", (4_000_000, 12_000_000, None)),
        ("mistral-large-2407", (4_000_000, 12_000_000, None)),
        ("mistral-tiny-2312", (250_000, 250_000, None)),
        ("mistral-small-2312", (700_000, 700_000, None)),
        ("mistral-large-2411", (2_000_000, 6_000_000, None)),
        ("devstral-medium-latest", (400_000, 2_000_000, 40_000)),
        ("mistral-saba-latest", (None, None, None)),
    ],
)
def test_the_last_prices_of_retired_models(name: str, prices: tuple[int | None, ...]) -> None:
    model = SHIPPED.model(name)
    assert (model.state, model.input_price, model.output_price, model.cached_price) == ("retired", *prices)


def test_no_shipped_price_is_below_that_of_the_cache() -> None:
    for model in SHIPPED.models:
        assert (model.cached_price or 0) <= (model.input_price or 0), model.id


def test_the_priority_tier_costs_the_same_factor_everywhere() -> None:
    assert {model.priority for model in SHIPPED.models} == {175}


def test_who_takes_reasoning_effort() -> None:
    efforts = {model.id: model.efforts for model in SHIPPED.models if model.efforts}
    assert efforts == {
        "mistral-large-4-0": ("none", "high"),
        "mistral-medium-3-5": ("none", "high"),
        "mistral-small-2603": ("none", "high"),
        "zai-glm-5-3": ("low", "high", "max"),
        "zai-glm-5-3-flash": ("low", "high", "max"),
    }


def test_who_reasons() -> None:
    assert SHIPPED.model("magistral-small-latest").reasons
    assert SHIPPED.model("deepseek-v4-1-flash-1017").reasons
    assert not SHIPPED.model("mistral-large-latest").reasons
    assert not SHIPPED.model("never-heard-of").reasons


@pytest.mark.parametrize(
    ("name", "retirement", "replacement"),
    [
        ("devstral-medium-latest", "2026-08-31", "mistral-medium-3-5"),
        ("open-mistral-nemo", "2026-07-31", "ministral-8b-2512"),
        ("pixtral-large-latest", "2026-05-31", "mistral-medium-3-5"),
        ("labs-leanstral-1-5", "2026-09-30", "labs-leanstral-1-5-1"),
        ("glm-5-2", "2026-10-31", "zai-glm-5-3"),
        ("mistral-tiny", None, "ministral-8b-2512"),
    ],
)
def test_retired_models_say_what_replaces_them(name: str, retirement: str | None, replacement: str) -> None:
    model = SHIPPED.model(name)
    assert (model.state, model.retirement, model.replacement) == ("retired", retirement, replacement)


# OpenAI's names


@pytest.mark.parametrize(
    ("capability", "names"),
    [
        ("completion_chat", get_args(ChatModel)),
        ("embeddings", get_args(EmbeddingModel)),
        ("moderation", get_args(ModerationModel)),
        ("audio_transcription", get_args(AudioModel)),
        ("audio_speech", get_args(SpeechModel)),
        ("completion_fim", ("gpt-3.5-turbo-instruct", "gpt-3.5-turbo-instruct-0914", "davinci-002", "babbage-002")),
    ],
)
def test_every_name_openais_sdk_knows_leads_to_a_model_of_its_kind(capability: str, names: tuple[str, ...]) -> None:
    assert names
    for name in names:
        assert capability in SHIPPED.model(SHIPPED.resolve(name)).capabilities, name


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("gpt-4o", "mistral-large-latest"),
        ("gpt-4o-2024-11-20", "mistral-large-latest"),
        ("gpt-4o-mini", "mistral-small-latest"),
        ("gpt-4o-mini-2024-07-18", "mistral-small-latest"),
        ("gpt-4.1-nano-2025-04-14", "mistral-small-latest"),
        ("gpt-4-turbo-preview", "mistral-large-latest"),
        ("gpt-3.5-turbo-0125", "mistral-small-latest"),
        ("gpt-3.5-turbo-instruct", "codestral-latest"),
        ("gpt-5-mini-2025-08-07", "mistral-medium-latest"),
        ("gpt-7-whatever", "mistral-medium-latest"),
        ("o1", "mistral-medium-latest"),
        ("o4-mini-2025-04-16", "mistral-medium-latest"),
        ("gpt-4o-mini-transcribe-2025-12-15", "voxtral-mini-latest"),
        ("gpt-4o-mini-tts-2025-12-15", "voxtral-mini-tts-latest"),
        ("gpt-4o-mini-audio-preview-2024-12-17", "voxtral-small-latest"),
        ("whisper-1", "voxtral-mini-latest"),
        ("text-embedding-3-large", "mistral-embed"),
        ("omni-moderation-2024-09-26", "mistral-moderation-2603"),
    ],
)
def test_aliases(name: str, target: str) -> None:
    assert SHIPPED.resolve(name) == target


@pytest.mark.parametrize(
    "name", ["mistral-small-latest", "mistral-small-2701", "ft:mistral-small-latest:x", "o10", "", "*"]
)
def test_other_names_are_sent_as_they_are(name: str) -> None:
    assert SHIPPED.resolve(name) == name


# Aliases of proxy.yaml


def test_an_own_alias_goes_before_what_is_shipped() -> None:
    catalogue = Catalogue(DATA, {"gpt-4o": "ministral-8b-latest", "mine": "gpt-4o"})
    assert catalogue.resolve("gpt-4o") == "ministral-8b-latest"
    assert catalogue.resolve("gpt-4o-mini") == "mistral-small-latest"
    assert catalogue.resolve("mine") == "gpt-4o"


def test_an_own_pattern_goes_before_shipped_names_and_before_mistrals() -> None:
    catalogue = Catalogue(DATA, {"gpt-*": "mistral-small-latest", "mistral-large-*": "mistral-medium-latest"})
    assert catalogue.resolve("gpt-4o") == "mistral-small-latest"
    assert catalogue.resolve("gpt-4o-2024-08-06") == "mistral-small-latest"
    assert catalogue.resolve("mistral-large-latest") == "mistral-medium-latest"
    assert catalogue.resolve("o3") == "mistral-medium-latest"


def test_an_exact_name_goes_first_then_the_longest_pattern() -> None:
    catalogue = Catalogue(DATA, {"*": "d", "a*": "c", "a*z": "b", "abz": "a"})
    assert [catalogue.resolve(name) for name in ("abz", "acz", "ac", "other")] == ["a", "b", "c", "d"]


def test_the_aliases_shown_are_the_ones_that_hold() -> None:
    catalogue = Catalogue(DATA, {"gpt-4o": "ministral-8b-latest", "mine": "codestral-latest"})
    assert catalogue.aliases == DATA["aliases"] | {"gpt-4o": "ministral-8b-latest", "mine": "codestral-latest"}
    assert list(catalogue.aliases)[:2] == ["gpt-4o", "mine"]


# Patterns


@pytest.mark.parametrize("pattern", ["", "a", "*", "a*", "*a", "a*b", "ab*ba", "*a*", "a*b*c", "**", "a.b*", "[a]*?"])
@given(name=st.text("abc.[]?*", max_size=8))
def test_a_pattern_matches_as_its_regular_expression_does(pattern: str, name: str) -> None:
    expected = re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name)
    assert Pattern(pattern).matches(name) == bool(expected)


def test_the_parts_of_a_pattern_do_not_overlap() -> None:
    assert not Pattern("ab*ba").matches("aba")
    assert not Pattern("a*ab*b").matches("aab")


def test_a_pattern_with_many_stars_is_no_trap() -> None:
    assert not Pattern("*a" * 50 + "b").matches("a" * 100_000)


# Unknown names


def test_an_unknown_name_has_no_facts() -> None:
    assert SHIPPED.model("mistral-small-2701") == Model(id="mistral-small-2701")


def test_a_fine_tune_has_the_facts_of_its_base_and_no_price() -> None:
    model = SHIPPED.model("ft:mistral-small-latest:587a6b29:20261120:7e773925")
    base = SHIPPED.model("mistral-small-latest")
    assert model.id == "ft:mistral-small-latest:587a6b29:20261120:7e773925"
    assert (model.efforts, model.capabilities, model.context) == (base.efforts, base.capabilities, base.context)
    assert (model.input_price, model.output_price, model.cached_price) == (None, None, None)
    assert (model.known, model.names) == (False, ())
    assert not SHIPPED.model("ft:voxtral-mini-tts-2603:x").unit_prices


@pytest.mark.parametrize("name", ["ft:", "ft:x", "ft", ":", "xft:mistral-small-latest:a", ""])
def test_what_is_no_fine_tune_of_a_known_model_is_unknown(name: str) -> None:
    assert SHIPPED.model(name) == Model(id=name)


def size(value: Any, seen: set[int]) -> int:
    """Bytes of an object and of everything it refers to."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    parts = [*value.keys(), *value.values()] if hasattr(value, "keys") else []
    parts += value if isinstance(value, list | tuple | set | frozenset) else []
    parts += [getattr(value, name) for name in getattr(value, "__slots__", ())] + list(
        getattr(value, "__dict__", {}).values()
    )
    return sys.getsizeof(value) + sum(size(part, seen) for part in parts)


def test_invented_names_leave_nothing_behind() -> None:
    catalogue = Catalogue(DATA, {"mine-*": "mistral-small-latest"})
    before = size(catalogue, set())
    for number in range(1000):
        for name in (f"gpt-{number}", f"mine-{number}", f"invented-{number}", f"ft:mistral-small-latest:{number}"):
            catalogue.model(catalogue.resolve(name))
    assert size(catalogue, set()) == before


# Prices


@given(st.integers(0, 10**12))
def test_a_price_in_micro_usd_is_exact(micro: int) -> None:
    assert micro_usd(str(Decimal(micro).scaleb(-6))) == micro
    assert micro_usd(f"{micro // 10**6}.{micro % 10**6:06}") == micro


@pytest.mark.parametrize(("price", "micro"), [("0.15", 150_000), (0.5, 500_000), (2, 2_000_000), ("0", 0), ("1e-6", 1)])
def test_a_price_may_be_written_as_text_or_number(price: str | float, micro: int) -> None:
    assert micro_usd(price) == micro


@pytest.mark.parametrize(
    "price", ["", "free", "-1", "NaN", "Infinity", "0.0000001", "1e999999", "1000001", "1,5", True]
)
def test_what_is_no_price_is_refused(price: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(price))):
        micro_usd(price)


# Prices of proxy.yaml

FINE_TUNE = "ft:mistral-small-latest:587a6b29:20261120:7e773925"


@pytest.mark.parametrize("name", ["mistral-large-2512", "mistral-large-latest", "mistral-large-3"])
def test_an_own_price_holds_for_all_names_of_the_model(name: str) -> None:
    catalogue = Catalogue(DATA, prices={name: Price(1, 2)})
    for called in ("mistral-large-2512", "mistral-large-latest", "mistral-large-3"):
        model = catalogue.model(called)
        assert (model.input_price, model.output_price, model.cached_price) == (1, 2, None)
        assert (model.id, model.known, model.context) == ("mistral-large-2512", True, 262144)
    assert catalogue.model("mistral-large-2512") in catalogue.models
    assert catalogue.model("mistral-small-latest") == SHIPPED.model("mistral-small-latest")


def test_a_fine_tune_can_be_given_a_price() -> None:
    model = Catalogue(DATA, prices={FINE_TUNE: Price(3, 4, 2)}).model(FINE_TUNE)
    assert (model.id, model.known, model.context) == (FINE_TUNE, False, 262144)
    assert (model.input_price, model.output_price, model.cached_price, model.priority) == (3, 4, 2, 175)


def test_so_can_a_model_that_is_newer_than_this_release() -> None:
    catalogue = Catalogue(DATA, {"mine": "mistral-small-2701"}, {"mistral-small-2701": Price(3, 4)})
    expected = Model("mistral-small-2701", input_price=3, output_price=4, priority=175)
    assert catalogue.model(catalogue.resolve("mine")) == expected
    assert catalogue.model("mistral-small-2702") == Model("mistral-small-2702")


def test_other_units_keep_their_prices() -> None:
    model = Catalogue(DATA, prices={"voxtral-small-latest": Price(1, 1)}).model("voxtral-small-latest")
    assert (model.input_price, model.unit_prices) == (1, {"audio_minute": 4_000})


@pytest.mark.parametrize(
    ("prices", "reason"),
    [
        ({"mistral-embed": Price(1), "mistral-embed-2312": Price(1)}, "mistral-embed-2312 and mistral-embed are one"),
        ({"gpt-4o": Price(1, 1)}, "gpt-4o is never sent, it is an alias of mistral-large-latest"),
        ({"gpt-9": Price(1, 1)}, "gpt-9 is never sent"),
        ({"mistral-embed": Price(1, cached=2)}, "mistral-embed: cached tokens cost more"),
        ({"mine": Price(1, 1, 2)}, "mine: cached tokens cost more"),
    ],
)
def test_a_price_that_cannot_be_meant_is_refused(prices: dict[str, Price], reason: str) -> None:
    with pytest.raises(ValueError, match=f"prices: {reason}"):
        Catalogue(DATA, prices=prices)


def test_the_version_of_the_prices_tells_them_apart() -> None:
    one, same, other, more = (
        Catalogue(DATA, prices=prices).price_version
        for prices in (
            {"a": Price(1, 2), "b": Price(3)},
            {"b": Price(3), "a": Price(1, 2)},
            {"a": Price(1, 2), "b": Price(4)},
            {"a": Price(1, 2), "b": Price(3), "c": Price(0)},
        )
    )
    assert SHIPPED.price_version == Catalogue(DATA, prices={}).price_version == "2026-11-20"
    assert re.fullmatch(r"2026-11-20\+[0-9a-f]{8}", one)
    assert one == same
    assert len({one, other, more}) == 3


# Bad data


def test_the_factor_of_a_tier_has_two_decimals() -> None:
    with pytest.raises(ValueError, match="finer than a hundredth"):
        Catalogue(DATA | {"priority": "1.755"})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": "x", "input": "much"}, "model x: 'much' is not an amount in USD"),
        ({"id": "x", "contxt": 1}, "model x: .*contxt"),
        ({"names": ["y"]}, r"model \?: .*id"),
        ({"id": "mistral-embed"}, "model mistral-embed: the name mistral-embed belongs to mistral-embed-2312 already"),
    ],
)
def test_a_bad_row_is_refused_by_name(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Catalogue(DATA | {"models": [*DATA["models"], row]})


# Other providers

ELSEWHERE = Catalogue(
    DATA,
    {"best": "openai/gpt-4o", "main": "mistral/mistral-small-latest", "slash": "other/x"},
    {"openai/gpt-4o": Price(2_500_000, 10_000_000, context=128_000), "mine": Price(1, context=7)},
    ("mistral", "openai", "local"),
)


@pytest.mark.parametrize(
    ("asked", "name", "place"),
    [
        ("openai/gpt-4o", "openai/gpt-4o", ("openai", "gpt-4o")),
        ("best", "openai/gpt-4o", ("openai", "gpt-4o")),
        ("local/meta/llama-3", "local/meta/llama-3", ("local", "meta/llama-3")),  # of its slashes the first counts
        ("other/x", "other/x", ("other", "x")),  # there is no such provider, and it is nobody else's
        ("slash", "other/x", ("other", "x")),
        ("OpenAI/gpt-4o", "OpenAI/gpt-4o", ("OpenAI", "gpt-4o")),
        ("mistral/meta/llama-3", "mistral/meta/llama-3", ("mistral", "meta/llama-3")),
        ("mistral/mistral-small-latest", "mistral-small-latest", ("mistral", "mistral-small-latest")),
        ("main", "mistral-small-latest", ("mistral", "mistral-small-latest")),
        ("mistral/gpt-4o", "gpt-4o", ("mistral", "gpt-4o")),  # whoever names the provider means the model
        ("openai/", "openai/", ("openai", "")),
        ("mistral/", "mistral/", ("mistral", "")),
        ("/x", "/x", ("", "x")),
    ],
)
def test_a_name_says_where_its_model_is(asked: str, name: str, place: tuple[str, str]) -> None:
    assert ELSEWHERE.resolve(asked) == name
    assert ELSEWHERE.place(name) == place


def test_a_tier_at_another_provider_costs_what_proxy_yaml_says() -> None:
    made = Catalogue(DATA, {}, {"x/dear": Price(100, 100, priority=200), "x/odd": Price(100, 100)}, ("mistral", "x"))
    assert made.model("x/dear").price_of(prompt=1_000_000, completion=0, priority=True) == 200_000
    assert made.model("x/odd").price_of(prompt=1_000_000, completion=0, priority=True) is None
    assert made.model("x/odd").price_of(prompt=1_000_000, completion=0) == 100_000


def test_a_price_says_what_is_known_of_a_model_elsewhere() -> None:
    model = ELSEWHERE.model("openai/gpt-4o")
    assert (model.id, model.input_price, model.context) == ("openai/gpt-4o", 2_500_000, 128_000)
    assert model.most_image == MOST_IMAGE_ELSEWHERE
    assert (ELSEWHERE.model("mine").context, ELSEWHERE.model("mine").most_image) == (7, MOST_IMAGE)
    assert ELSEWHERE.model("openai/o3") == Model(id="openai/o3")


def test_what_nobody_has_made_up() -> None:
    aliases, prices = {"ours": "ft:mistral-small-latest:a:b"}, {"house/priced": Price(1, None, None, None, None)}
    found = Catalogue(DATA, aliases, prices, ["mistral", "house"], ["house/next", "gpt-4o"])
    known = ["mistral-small-latest", "gpt-4o", "ours", "ft:mistral-small-latest:a:b", "house/priced", "house/next"]
    assert all(map(found.has, known))
    assert not any(map(found.has, ["", "house/other", "ft:mistral-small-latest:a:c", "mistral-small-latest ", "sk-1"]))
