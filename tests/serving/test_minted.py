"""A secret that is made once, by whoever is first, and seen by nobody else."""

from __future__ import annotations

import os
import stat
import threading
from itertools import count
from pathlib import Path

import pytest

from proxy.core.secret import Secret
from proxy.serving import minted


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "mistral-proxy" / "secret"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def mint() -> str:
    return "a-secret-of-more-than-32-characters"


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    assert minted.state_folder({"XDG_STATE_HOME": "/x"}) == Path("/x/mistral-proxy")
    monkeypatch.setenv("HOME", "/home/anna")
    for environ in ({}, {"XDG_STATE_HOME": ""}):
        assert minted.state_folder(environ) == Path("/home/anna/.local/state/mistral-proxy")


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    assert minted.state_folder({"XDG_STATE_HOME": "/x"}) == Path("/x/mistral-proxy")
    with pytest.raises(OSError, match=r"^user \d+ has no home directory, and XDG_STATE_HOME is not set$"):
        minted.state_folder({})


def test_it_is_made_once(file: Path) -> None:
    numbers = count()
    made = [minted.read_or_mint(file, lambda: f"{mint()}-{next(numbers)}") for _ in range(3)]
    assert made == [Secret(f"{mint()}-0")] * 3
    assert file.read_text() == f"{mint()}-0\n"
    assert [entry.name for entry in file.parent.iterdir()] == ["secret"]


def test_it_is_for_its_user_alone(file: Path) -> None:
    before = os.umask(0)
    try:
        minted.read_or_mint(file, mint)
    finally:
        os.umask(before)
    assert (mode(file), mode(file.parent)) == (0o600, 0o700)


def test_a_file_that_others_may_read_is_closed(file: Path) -> None:
    minted.read_or_mint(file, mint)
    file.chmod(0o644)
    minted.read_or_mint(file, mint)
    assert mode(file) == 0o600


@pytest.mark.parametrize("data", [b"", b"\n", b"short", b"x" * 31, "ü".encode() * 40, b"\xff\xfe" * 40])
def test_a_file_that_holds_no_secret_is_not_used_and_not_replaced(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True)
    file.write_bytes(data)
    assert minted.read_or_mint(file, mint) is None
    assert file.read_bytes() == data


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(OSError):
        minted.read_or_mint(tmp_path / "state" / "mistral-proxy" / "secret", mint)


def test_nothing_is_left_of_a_minting_that_fails(file: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        minted.read_or_mint(file, lambda: str(1 // 0))
    assert list(file.parent.iterdir()) == []


def test_many_first_starts_at_once_have_one_secret(file: Path) -> None:
    everyone, found, numbers = threading.Barrier(16), [], count()

    def start() -> None:
        everyone.wait()
        secret = minted.read_or_mint(file, lambda: f"{mint()}-{next(numbers)}")
        assert secret
        found.append(secret.reveal())

    threads = [threading.Thread(target=start) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert len(set(found)) == 1
    assert [entry.name for entry in file.parent.iterdir()] == ["secret"]
