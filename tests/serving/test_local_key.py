"""The minted key: made once, by whoever is first, and seen by nobody else."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from proxy.serving import local_key


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "mistral-proxy" / "local.key"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_key.path({"XDG_STATE_HOME": "/x"}) == Path("/x/mistral-proxy/local.key")
    monkeypatch.setenv("HOME", "/home/anna")
    for environ in ({}, {"XDG_STATE_HOME": ""}):
        assert local_key.path(environ) == Path("/home/anna/.local/state/mistral-proxy/local.key")


def test_it_is_made_once(file: Path) -> None:
    first = local_key.read_or_mint(file)
    assert first.reveal().startswith("sk-local-")
    assert len(first.reveal()) > 40
    assert local_key.read_or_mint(file) == first
    assert file.read_text() == first.reveal() + "\n"
    assert [entry.name for entry in file.parent.iterdir()] == ["local.key"]


def test_two_users_have_two_keys(tmp_path: Path) -> None:
    assert local_key.read_or_mint(tmp_path / "a" / "k") != local_key.read_or_mint(tmp_path / "b" / "k")


def test_it_is_for_its_user_alone(file: Path) -> None:
    before = os.umask(0)
    try:
        local_key.read_or_mint(file)
    finally:
        os.umask(before)
    assert (mode(file), mode(file.parent)) == (0o600, 0o700)


def test_a_file_that_others_may_read_is_closed(file: Path) -> None:
    local_key.read_or_mint(file)
    file.chmod(0o644)
    local_key.read_or_mint(file)
    assert mode(file) == 0o600


@pytest.mark.parametrize("text", ["", "\n", "short", "x" * 31, "ü" * 40])
def test_a_file_that_holds_no_key_is_not_used_and_not_replaced(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(OSError, match="does not hold a key") as caught:
        local_key.read_or_mint(file)
    assert str(file) in str(caught.value)
    assert file.read_text() == text


def test_a_file_that_holds_bytes_of_another_kind(file: Path) -> None:
    file.parent.mkdir(parents=True)
    file.write_bytes(b"\xff\xfe" * 40)
    with pytest.raises(OSError, match="does not hold a key"):
        local_key.read_or_mint(file)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(OSError):
        local_key.read_or_mint(tmp_path / "state" / "mistral-proxy" / "local.key")


def test_many_first_starts_at_once_have_one_key(file: Path) -> None:
    everyone, found = threading.Barrier(16), []

    def start() -> None:
        everyone.wait()
        found.append(local_key.read_or_mint(file).reveal())

    threads = [threading.Thread(target=start) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert len(set(found)) == 1
    assert [entry.name for entry in file.parent.iterdir()] == ["local.key"]
