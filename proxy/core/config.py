"""The vocabulary of settings: a strict base class and the types a YAML value can have.

Each part of the program declares its own frozen `Config(Strict)` beside the code that reads it; proxy/settings
assembles them into the schema of proxy.yaml.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from proxy.core.model import is_name
from proxy.core.secret import Secret

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZES = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}


class Strict(BaseModel):
    """Frozen, no unknown keys, no coercion between types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)


def _duration(value: Any) -> float:
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)", value) if isinstance(value, str) else None
    if not match:
        raise ValueError("expected a duration such as 250ms, 30s, 5m, 1h or 7d")
    return float(match[1]) * _UNITS[match[2]]


def _size(value: Any) -> int:
    match = re.fullmatch(r"([0-9]{1,9})(B|KB|MB|GB)", value) if isinstance(value, str) else None
    if not match:
        raise ValueError("expected a size such as 64KB or 32MB")
    return int(match[1]) * _SIZES[match[2]]


def _secret(value: Any) -> Secret:
    # The loader has already replaced every reference (${NAME}, file:) by a Secret; text left here was written out.
    if not isinstance(value, Secret):
        raise ValueError(
            "a secret is not written into the file: use ${NAME}, file:/path or, for team keys, sha256:<hex>"
        )
    return value


def _model_name(value: str) -> str:
    if not is_name(value):
        raise ValueError("a model's name is at most 256 visible ASCII characters, without spaces and without '..'")
    return value


Duration = Annotated[float, BeforeValidator(_duration)]
"""Seconds. Written 250ms, 30s, 5m, 1h, 7d."""

Size = Annotated[int, BeforeValidator(_size)]
"""Bytes, in powers of 1024. Written 64KB, 32MB."""

SecretText = Annotated[Secret, BeforeValidator(_secret)]
"""A secret that came from the environment or a secret file."""

ModelName = Annotated[str, AfterValidator(_model_name)]
