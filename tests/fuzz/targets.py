"""Which fuzz targets there are, and what is kept for each."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"

Check = Callable[[bytes], None]


def names() -> list[str]:
    """The modules of this folder that have a `check`; none is imported, as a fuzzer wants to do that itself."""
    return sorted(file.stem for file in HERE.glob("*.py") if "\ndef check(" in file.read_text("utf-8"))


def load(name: str) -> Check:
    """The `check` of the target `name`."""
    check: Check = importlib.import_module(f"tests.fuzz.{name}").check
    return check


def kept(name: str) -> list[Path]:
    """The kept inputs of the target `name`; what begins with a dot is not one."""
    return sorted(file for file in (CORPUS / name).glob("*") if not file.name.startswith("."))
