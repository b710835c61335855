from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from proxy.settings.load import SettingsError, load
from proxy.settings.model import Settings


@pytest.fixture(scope="session")
def read(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Settings]:
    """The settings of a text, as if it were the file."""
    file = tmp_path_factory.mktemp("settings") / "proxy.yaml"

    def read(text: str | bytes, environ: Mapping[str, str] | None = None) -> Settings:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load(file, environ or {})

    return read


@pytest.fixture(scope="session")
def refusals(read: Callable[..., Settings]) -> Callable[..., list[str]]:
    """What is wrong with a text, each problem as `line: path: reason`."""

    def refusals(text: str | bytes, environ: Mapping[str, str] | None = None) -> list[str]:
        try:
            read(text, environ)
        except SettingsError as error:
            return [line.split("proxy.yaml:", 1)[-1] for line in str(error).splitlines()]
        return []

    return refusals


@pytest.fixture
def secret_file(tmp_path: Path) -> Callable[[bytes], str]:
    """Writes a secret file; returns how the configuration names it."""

    def write(content: bytes) -> str:
        file = tmp_path / "secret"
        file.write_bytes(content)
        return f"file:{file}"

    return write
