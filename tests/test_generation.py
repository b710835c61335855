"""What is made of one configuration."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from proxy import data
from proxy.core.access import AccessKey
from proxy.core.provider import MAIN
from proxy.core.secret import Secret
from proxy.generation import own_keys, places, prepare
from proxy.providers import PROVIDERS
from proxy.settings.model import Settings
from proxy.stages.cache import Place

KEY = "sk-team-key-0123456789abcdef"


def test_every_key_is_known_to_the_log() -> None:
    digest = hashlib.sha256(b"sk-only-its-digest-0123456789").digest()
    admins = hashlib.sha256(b"sk-an-admins-digest-0123456789").digest()
    made = Settings.model_validate(
        {
            "providers": {
                "mistral": {"api_keys": [Secret("mistral-key-0123456789"), Secret("another-key-0123456789")]},
                "openai": {"api_keys": [Secret("openai-key-0123456789")]},
            },
            "server": {"admin_keys": [Secret("admin-key-0123456789"), AccessKey(admins)]},
            "teams": {
                "a": {"keys": [Secret(KEY)], "provider_keys": {"openai": Secret("own-key-0123456789")}},
                "b": {"keys": [AccessKey(digest)]},
            },
        }
    )
    paid = "mistral-key-0123456789 another-key-0123456789 openai-key-0123456789 own-key-0123456789"
    admin = "admin-key-0123456789 sk-an-admins-digest-0123456789"
    text = prepare(made).redact.text(f"{paid} {KEY} sk-only-its-digest-0123456789 {admin} rest")
    assert text == "*** *** *** *** *** *** *** *** rest"


def test_every_other_secret_is_known_to_the_log() -> None:
    """The passwords of the stores, as whoever sends them to a client would spell them, and the pepper."""
    pepper = "pepper/0123456789abcdef0123456789"
    made = Settings.model_validate(
        {
            "server": {"key_pepper": Secret(pepper)},
            "store": {"url": Secret("redis://:red%2Fis-password@127.0.0.1/0")},
            "ledger": {"url": Secret("postgresql://user:postgres-password@127.0.0.1/db")},
        }
    )
    text = prepare(made).redact.text(f"red/is-password red%2Fis-password postgres-password {pepper} user")
    assert text == "*** *** *** *** user"


def test_all_providers_serve_a_path_in_the_same_way() -> None:
    """Stages are built by the main one's row: what they read of it must hold for the others."""
    rows = {(row.method, row.path): row for row in PROVIDERS[MAIN].endpoints}
    for provider in PROVIDERS.values():
        for row in provider.endpoints:
            same = rows[row.method, row.path]
            for fact in ("operation", "model", "stream", "meter", "cache", "retry"):
                assert getattr(row, fact) == getattr(same, fact), (provider.name, row.path, fact)
            assert (row.request is None) is (same.request is None)


def test_where_the_cache_finds_the_providers() -> None:
    made = Settings.model_validate(
        {
            "providers": {
                "mistral": {"api_keys": [Secret("mistral-key-0123456789")], "timeouts": {"total": "90s"}},
                "openai": {"api_keys": [Secret("openai-key-0123456789")], "base_url": "https://elsewhere.example"},
            },
            "teams": {"a": {"keys": [Secret(KEY)], "provider_keys": {"openai": Secret("own-key-0123456789")}}},
        }
    )
    assert places(made, simulated=False) == {
        "mistral": Place(("mistral", "https://api.mistral.ai"), 90.0),
        "openai": Place(
            ("openai", "https://elsewhere.example"), made.providers["openai"].timeouts.total, frozenset(("a",))
        ),
    }
    found = places(made, simulated=True)
    assert [found[name].address for name in ("mistral", "openai")] == [
        ("simulated", "mistral"),
        ("simulated", "openai"),
    ]


def test_who_pays_a_provider_with_a_key_of_its_own() -> None:
    own = Secret("own-key-0123456789")
    teams = {"a": {"provider_keys": {"openai": own}}, "b": {}}
    made = Settings.model_validate({"providers": {"openai": {}}, "teams": teams})
    assert own_keys(made, "openai") == {"a": own}
    assert own_keys(made, "mistral") == {}


def test_the_data_of_the_running_version_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upgrade may have put other files there by the time of a reload."""
    prepare(Settings())

    def read(name: str) -> Any:
        raise AssertionError(name)

    monkeypatch.setattr(data, "read", read)
    assert prepare(Settings(models={"aliases": {"house": "m"}})).catalogue.resolve("house") == "m"  # type: ignore[arg-type]
