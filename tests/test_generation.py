"""What is made of one configuration."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from proxy import data
from proxy.core.secret import Secret
from proxy.generation import prepare
from proxy.settings.model import Settings
from proxy.stages.auth import TeamKey

KEY = "sk-team-key-0123456789abcdef"


def test_every_key_is_known_to_the_log() -> None:
    digest = hashlib.sha256(b"sk-only-its-digest-0123456789").digest()
    made = Settings.model_validate(
        {
            "providers": {"mistral": {"api_keys": [Secret("mistral-key-0123456789")]}},
            "teams": {"a": {"keys": [Secret(KEY)]}, "b": {"keys": [TeamKey(digest)]}},
        }
    )
    text = prepare(made).redact.text(f"mistral-key-0123456789 {KEY} sk-only-its-digest-0123456789 rest")
    assert text == "*** *** *** rest"


def test_the_data_of_the_running_version_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upgrade may have put other files there by the time of a reload."""
    prepare(Settings())

    def read(name: str) -> Any:
        raise AssertionError(name)

    monkeypatch.setattr(data, "read", read)
    assert prepare(Settings(models={"aliases": {"house": "m"}})).catalogue.resolve("house") == "m"  # type: ignore[arg-type]
