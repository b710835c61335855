"""The data files of config/: in a checkout they lie beside the package, in a wheel inside it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

_HERE = Path(__file__).parent
_FOLDER = _HERE / "config" if (_HERE / "config").is_dir() else _HERE.parent / "config"
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(name: str) -> Any:
    """The parsed content of one YAML file of config/."""
    return yaml.load((_FOLDER / name).read_bytes(), _Loader)  # noqa: S506 (a safe loader either way)


@cache
def read_once(name: str) -> Any:
    """The content as it was at first: at a reload the files of another version may lie there already."""
    return read(name)
