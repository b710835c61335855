"""The minted key of a proxy without a configuration. How it is made and kept: test_minted.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.serving import local_key


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "mistral-proxy" / "local.key"


def test_where_it_lies() -> None:
    assert local_key.path({"XDG_STATE_HOME": "/x"}) == Path("/x/mistral-proxy/local.key")


def test_it_is_made_once(file: Path) -> None:
    first = local_key.read_or_mint(file)
    assert first.reveal().startswith("sk-local-")
    assert len(first.reveal()) > 40
    assert local_key.read_or_mint(file) == first


def test_two_users_have_two_keys(tmp_path: Path) -> None:
    assert local_key.read_or_mint(tmp_path / "a" / "k") != local_key.read_or_mint(tmp_path / "b" / "k")


def test_a_file_that_holds_no_key_is_not_used_and_not_replaced(file: Path) -> None:
    file.parent.mkdir(parents=True)
    file.write_text("short")
    with pytest.raises(OSError, match="does not hold a key") as caught:
        local_key.read_or_mint(file)
    assert str(file) in str(caught.value)
    assert file.read_text() == "short"
