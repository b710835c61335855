"""A configuration that was written to do harm, or that YAML reads otherwise than people do."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.settings import document
from proxy.settings.load import SettingsError, Sources, load
from proxy.settings.model import Settings

Read = Callable[..., Settings]
Refusals = Callable[[str | bytes], list[str]]

ALIASES = "aliases (*name) are not read: write the value out"
TAGS = "tags (!name) are not read: write the value alone"
BOMB = "models:\n  aliases:\n    a0: &a0 {x: y}\n" + "".join(
    f"    a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 100)
)


def test_k3_a_bomb_is_no_larger_than_it_is_written(refusals: Refusals) -> None:
    tracemalloc.start()
    try:
        problems = refusals(BOMB)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    assert len(problems) == 100
    assert refusals("server: &a {}\nmodels: *a") == [f"2: models: {ALIASES}"]


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.system", "!!python/name:os.system", "!!python/object:x.Y", "!!binary", "!x", "!!str"],
)
@pytest.mark.parametrize("value", ["a", "[a]", "{a: b}"])
def test_k3_a_tag_makes_nothing(refusals: Refusals, tag: str, value: str) -> None:
    assert refusals(f"models:\n  default: {tag} {value}") == [f"2: models.default: {TAGS}"]


def test_k3_a_tagged_key(refusals: Refusals) -> None:
    assert refusals("models: {!!python/name:os.system x: y}") == ["1: a key must be a plain word"]


def test_k3_of_ten_megabytes_no_more_is_read_than_tells(tmp_path: Path) -> None:
    file = tmp_path / "proxy.yaml"
    file.write_bytes(b"# comment\n" * 1_000_000)
    assert len(Sources.read(file, {}).data) == document.MAX_BYTES + 1
    with pytest.raises(SettingsError, match="larger than 1,000,000 bytes"):
        load(file, {})


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 100_000, "- " * 100_000, "? " * 100_000])
def test_k3_a_deep_one(refusals: Refusals, text: str) -> None:
    [problem] = refusals(text)
    assert "levels deep" in problem or "not valid YAML" in problem or "a plain word" in problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("server: {}\nserver: {}", "2: server: given twice, first on line 1"),
        ("server:\n  port: 1\n  'port': 2", "3: server.port: given twice, first on line 2"),
        ("models:\n  aliases:\n    a: b\n    \"\\x61\": c", "4: models.aliases.a: given twice, first on line 3"),
        ("teams: {a: {keys: [file:/none]}, a: {keys: []}}", "1: teams.a: given twice, first on line 1"),
    ],
)  # fmt: skip
def test_k3_of_two_keys_none_wins(refusals: Refusals, text: str, problem: str) -> None:
    assert problem in refusals(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("0123", "0123"), ("0o17", "0o17"), ("0x1F", "0x1F"), ("1_000", "1_000"), ("1e3", "1e3"), ("yes", "yes"),
     ("no", "no"), ("off", "off"), ("12:30:45", "12:30:45"), ("2026-11-20", "2026-11-20"), (".inf", ".inf")],
)  # fmt: skip
def test_k3_text_is_what_was_written(read: Read, refusals: Refusals, text: str, value: str) -> None:
    aliases = read(f"models: {{aliases: {{x: {text}, '{text}y': b, {text}: c}}}}").models.aliases
    assert aliases == {"x": value, f"{value}y": "b", value: "c"}
    assert refusals(f"server: {{port: {text}}}") == ["1: server.port: expected an integer"]
    assert refusals(f"providers: {{mistral: {{http2: {text}}}}}") == [
        "1: providers.mistral.http2: expected true or false"
    ]


def test_k3_keys_that_look_like_numbers_are_names(read: Read) -> None:
    names = ["1e3", "1000", "0x3e8", "0b1", "true", "null", "1.0", "01"]
    aliases = read("models:\n  aliases:\n" + "".join(f"    {name}: a\n" for name in names)).models.aliases
    assert list(aliases) == names
