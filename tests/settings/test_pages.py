"""proxy.yaml.example and docs/configuration.md against the model: every option is there, with its default."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.settings import document
from proxy.settings.document import Mapping, Node
from proxy.settings.load import SettingsError, load
from proxy.settings.model import Settings
from proxy.settings.overlay import FALLBACKS
from proxy.settings.schema import Kind, Named, Section, section

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "proxy.yaml.example"
PAGE = (ROOT / "docs" / "configuration.md").read_text()
TEAM = {"RESEARCH_KEY": "sk-research"}
REQUIRED = {"models.prices.<name>.input"}
NAMES = {"providers": "mistral", "teams": "research", "models.prices": "my-finetune"}
"""What stands in the example where the user chooses."""


def options(kind: Kind, path: str = "") -> Iterator[str]:
    """The path of every option; `<name>` where the user chooses the name."""
    if isinstance(kind, Section):
        for name, below in kind.keys.items():
            yield from options(below, f"{path}.{name}".removeprefix("."))
    elif isinstance(kind, Named) and isinstance(kind.of, Section):
        yield from options(kind.of, f"{path}.<name>")
    else:
        yield path


def at(settings: Settings, path: str) -> object:
    value: object = settings
    for step in path.split("."):
        value = next(iter(value.values())) if isinstance(value, dict) else getattr(value, step)
    return value


def with_team(tmp_path: Path, text: str = "") -> Settings:
    """Settings with one team and one price, since a default of `teams.<name>` needs a team, and `text` over them."""
    file = tmp_path / "proxy.yaml"
    named = {"teams": "{research: {}}", "models": "{prices: {my-finetune: {input: 1}}}"}
    rest = [f"{section}: {one}\n" for section, one in named.items() if f"{section}:" not in text]
    file.write_text(f"{text}\n" + "".join(rest))
    return load(file, TEAM)


def nested(path: str, text: str) -> str:
    """The flow mapping that sets one option."""
    chosen = next((name for owner, name in NAMES.items() if path.startswith(f"{owner}.<name>")), "")
    names = path.replace("<name>", chosen).split(".")
    beside = ", input: 1" if "prices" in names and names[-1] != "input" else ""
    return ": {".join(names[:-1]) + f": {{{names[-1]}: {text}{beside}" + "}" * (len(names) - 1)


OPTIONS = list(options(section(Settings)))
ROWS = dict(re.findall(r"^\| `([a-z0-9_.<>]+)` \|[^|]*\| (`[^`]*`|required) \|", PAGE, re.M))


def lines(node: Node, path: str = "") -> Iterator[tuple[str, int]]:
    """Every option the example has and its line."""
    assert isinstance(node, Mapping)
    for entry in node.entries:
        below = f"{path}.{entry.key}".removeprefix(".")
        for owner, name in NAMES.items():
            below = below.replace(f"{owner}.{name}", f"{owner}.<name>")
        if below in OPTIONS:
            yield below, entry.place.line or 0
        else:
            yield from lines(entry.node, below)


SHOWN = dict(lines(document.parse(EXAMPLE.read_bytes(), "example")))
COMMENTS = {path: EXAMPLE.read_text().splitlines()[line - 1].partition(" # ")[2] for path, line in SHOWN.items()}


def test_there_are_options():
    assert "server.port" in OPTIONS
    assert "providers.<name>.timeouts.first_byte" in OPTIONS
    assert "teams.<name>.log_content" in OPTIONS
    assert len(OPTIONS) > 25


def test_the_example_loads_and_shows_every_option():
    assert isinstance(load(EXAMPLE, {"MISTRAL_API_KEY": "sk-m", **TEAM}), Settings)
    assert sorted(SHOWN) == sorted(OPTIONS)


def test_the_example_says_which_variables_it_needs():
    with pytest.raises(SettingsError) as raised:
        load(EXAMPLE, {})
    assert len(raised.value.problems) == 2


@pytest.mark.parametrize("path", OPTIONS)
def test_the_example_shows_the_default(path, tmp_path):
    assert COMMENTS[path], "an option without a comment"
    default = re.match(r"default (\S+); ", COMMENTS[path])
    if path in REQUIRED:
        assert COMMENTS[path].startswith("required; ")
    elif default:
        assert at(with_team(tmp_path, nested(path, default[1])), path) == at(with_team(tmp_path), path)
    else:
        shown = load(EXAMPLE, {"MISTRAL_API_KEY": "sk-m", **TEAM})
        assert at(shown, path) == at(with_team(tmp_path), path)


def test_the_page_lists_exactly_the_options():
    assert sorted(ROWS) == sorted(OPTIONS)


@pytest.mark.parametrize("path", OPTIONS)
def test_the_page_gives_the_default(path, tmp_path):
    if path in REQUIRED:
        assert ROWS[path] == "required"
    else:
        loaded = with_team(tmp_path, nested(path, ROWS[path].strip("`")))
        assert at(loaded, path) == at(with_team(tmp_path), path)


def test_what_is_required_is_required(tmp_path):
    with pytest.raises(SettingsError, match=r"models\.prices\.ours\.input"):
        with_team(tmp_path, "models: {prices: {ours: {output: 1}}}")


def test_the_page_lists_exactly_the_variables():
    assert dict(re.findall(r"^\| `([A-Z_]+)` \| `([^`]+)` \|", PAGE, re.M)) == FALLBACKS


def test_the_errors_the_page_shows_are_the_real_ones(tmp_path):
    shown = re.search(r"```\n(proxy\.yaml:3.*?)```", PAGE, re.S)
    assert shown
    file = tmp_path / "proxy.yaml"
    file.write_text(
        "\nserver:\n  prot: 80\n\nproviders:\n  mistral:\n\n    timeouts:\n      idle: soon\n\n"
        "teams:\n  research:\n    keys:\n      - ${RESEARCH_KEY}\n"
    )
    with pytest.raises(SettingsError) as raised:
        load(file, {"DEFAULT_TEMPERATURE": "2"}, {"server.port": 70000})
    assert str(raised.value).replace(str(file), "proxy.yaml").splitlines() == shown[1].splitlines()
