"""What settings are made of: read once, the same in every process, and silent about itself."""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from proxy.settings.load import SettingsError, Sources, settings_of
from proxy.settings.references import MAX_SECRET_FILE

KEY = "sk-secret-0123456789abcdef"
ENVIRON = {"ONE": KEY, "MISTRAL_API_KEY": "sk-mistral-0123456789", "DEFAULT_MODEL": "a-model"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "proxy.yaml"
    path.write_text(f'teams: {{a: {{keys: ["${{ONE}}", "file:{tmp_path}/secret"]}}}}')
    path.chmod(0o644)
    secret(tmp_path, b"sk-of-the-file-0123456789\n")
    return path


def secret(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    path = folder / "secret"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def keys(sources: Sources) -> list[str]:
    found = settings_of(sources).settings.teams["a"].keys
    return [key.secret.reveal() for key in found if key.secret]


def test_the_same_sources_make_the_same_settings_without_any_file(file: Path, tmp_path: Path) -> None:
    sources = Sources.read(file, ENVIRON, {"server.port": 1})
    file.unlink()
    (tmp_path / "secret").unlink()
    other = Sources(str(file), b"", ENVIRON, {"server.port": 1}).changed(sources.changes())
    assert other == sources
    assert keys(other) == keys(sources) == [KEY, "sk-of-the-file-0123456789"]
    settings = settings_of(other).settings
    assert (settings.server.port, settings.models.default) == (1, "a-model")


def test_without_a_file(tmp_path: Path) -> None:
    sources = Sources.read(None, ENVIRON)
    assert (sources.file, sources.digest, sources.files) == (None, None, ())
    assert sources.changed(sources.changes()) == sources == sources.again()


def test_a_name_of_a_file_that_is_no_text(file: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(b"a\xffb")
    (tmp_path / odd).write_text("sk-of-the-odd-file-0123456789")
    sources = Sources.read(file, ENVIRON | {"ONE": f"file:{tmp_path}/{odd}"})
    assert replace(sources, secrets={}).changed(sources.changes()) == sources
    assert keys(sources)[0] == "sk-of-the-odd-file-0123456789"


def test_what_cannot_change_is_no_change(file: Path) -> None:
    """The environment may be large, and is full of secrets."""
    assert KEY.encode() not in Sources.read(file, ENVIRON).changes()


def test_they_are_what_has_to_be_watched(file: Path, tmp_path: Path) -> None:
    assert Sources.read(file, ENVIRON).files == (str(file), str(tmp_path / "secret"))


def test_a_new_secret_makes_new_sources(file: Path, tmp_path: Path) -> None:
    before = Sources.read(file, ENVIRON)
    assert before.again() == before
    secret(tmp_path, b"sk-another-0123456789")
    after = before.again()
    assert after != before
    assert after.digest == before.digest
    assert keys(after)[1] == "sk-another-0123456789"


def test_another_mode_makes_none(file: Path, tmp_path: Path) -> None:
    before = Sources.read(file, ENVIRON)
    (tmp_path / "secret").chmod(0o644)
    file.chmod(0o666)
    assert before.again() == before


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "does not exist"),
        (b"", "the secret is empty"),
        (b"x" * (MAX_SECRET_FILE + 1), "is larger than"),
        (b"two words", "printable ASCII"),
    ],
)
def test_what_is_wrong_with_a_secret_file_is_said_by_its_line(
    file: Path, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    (tmp_path / "secret").unlink()
    if content is not None:
        secret(tmp_path, content)
    sources = Sources.read(file, ENVIRON)
    sources = sources.changed(sources.changes())
    with pytest.raises(SettingsError) as raised:
        settings_of(sources)
    [problem] = raised.value.problems
    assert (problem.line, problem.path) == (1, "teams.a.keys[1]")
    assert reason in problem.reason


def test_a_broken_file_has_sources_too(file: Path) -> None:
    """Whoever mends it makes a change of them."""
    file.write_text("server: [")
    sources = Sources.read(file, ENVIRON)
    assert sources.files == (str(file),)
    with pytest.raises(SettingsError, match="not valid YAML"):
        settings_of(sources)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        Sources.read(tmp_path / "none", {})
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        Sources.read(tmp_path, {})


def test_what_came_through_a_pipe_stays_as_it_was(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("server: {port: 7}",))
    writer.start()
    sources = Sources.read(pipe, {})
    writer.join()
    assert settings_of(sources.again()).settings.server.port == 7


def test_the_digest_is_of_the_file_alone(file: Path) -> None:
    one, two = Sources.read(file, ENVIRON), Sources.read(file, ENVIRON | {"ONE": "sk-other-0123456789"})
    assert one != two
    assert one.digest == two.digest == hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def test_c10_no_secret_is_shown(file: Path) -> None:
    sources = Sources.read(file, ENVIRON)
    for shown in (repr(sources), str(sources), f"{sources}", repr(sources.secrets), repr([sources])):
        assert "sk-" not in shown


def test_k4_a_secret_file_that_everybody_can_read(file: Path, tmp_path: Path) -> None:
    assert settings_of(Sources.read(file, ENVIRON)).warnings == ()
    (tmp_path / "secret").chmod(0o644)
    sources = Sources.read(file, ENVIRON)
    [warning] = settings_of(replace(sources, secrets={}).changed(sources.changes())).warnings
    assert str(warning) == f"{file}:1: teams.a.keys[1]: every user of this machine can read the secret file"


def test_k4_a_configuration_that_everybody_can_change(file: Path) -> None:
    file.chmod(0o666)
    sources = Sources.read(file, ENVIRON)
    [warning] = settings_of(replace(sources, writable=False).changed(sources.changes())).warnings
    assert str(warning) == f"{file}: every user of this machine can change this file"
