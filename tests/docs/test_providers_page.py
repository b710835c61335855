"""docs/providers.md: its configuration loads, and means what the page says."""

from __future__ import annotations

import re
from pathlib import Path

from proxy.settings.load import load
from proxy.settings.rules import catalogue_of

PAGE = (Path(__file__).parents[2] / "docs" / "providers.md").read_text()
KEYS = ("MISTRAL_API_KEY", "OPENAI_API_KEY", "EU_KEY", "RESEARCH_KEY")


def test_its_configuration_is_one(tmp_path: Path) -> None:
    [shown] = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    file = tmp_path / "proxy.yaml"
    file.write_text(shown)
    made = load(file, {name: f"{name.lower()}-0123456789" for name in KEYS})
    places = {name: (one.type, one.base_url) for name, one in made.providers.items()}
    assert places == {
        "mistral": ("mistral", "https://api.mistral.ai"),
        "openai": ("openai", "https://api.openai.com"),
        "local": ("openai", "http://127.0.0.1:8000"),
        "mistral-eu": ("mistral", "https://eu.example.com"),
    }
    catalogue = catalogue_of(made)
    assert catalogue.place(catalogue.resolve("best")) == ("openai", "gpt-4o")
    assert catalogue.place("local/llama-3") == ("local", "llama-3")
    assert catalogue.model("openai/gpt-4o").context == 128_000
