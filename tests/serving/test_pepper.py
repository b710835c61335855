"""The pepper: the configured one, or one that is minted and kept. How it is made and kept: test_minted.py."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from proxy.core.secret import Secret
from proxy.serving.pepper import path, pepper, read_or_mint


def test_the_configured_one_goes_first_and_no_file_is_made(tmp_path: Path) -> None:
    configured = Secret("a-pepper-of-the-configuration-0123456789")
    assert pepper(configured, {"XDG_STATE_HOME": str(tmp_path)}) is configured
    assert list(tmp_path.iterdir()) == []


def test_without_one_it_is_made_once_for_this_user(tmp_path: Path) -> None:
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    first = pepper(None, environ)
    assert len(first.reveal()) >= 43  # 256 bits
    assert pepper(None, environ) == first
    file = tmp_path / "mistral-proxy" / "pepper"
    assert path(environ) == file
    assert file.read_text().strip() == first.reveal()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert pepper(None, {"XDG_STATE_HOME": str(tmp_path / "other")}) != first


def test_a_file_that_holds_none_is_not_replaced_and_its_loss_is_told(tmp_path: Path) -> None:
    file = tmp_path / "pepper"
    file.write_text("spilt")
    with pytest.raises(OSError, match="does not hold a pepper") as caught:
        read_or_mint(file)
    assert "issue all keys anew" in str(caught.value)
    assert "spilt" not in str(caught.value)
    assert file.read_text() == "spilt"
