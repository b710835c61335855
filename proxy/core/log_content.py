"""How much of prompts and answers may be logged: by the whole proxy, and by one team."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator

Content = Literal["none", "truncated", "full"]

# An unquoted `no` is `false` to some readers of YAML and a word to others: both mean what it says.
_SAID: Final[Mapping[str, Content | bool]] = MappingProxyType(
    {
        "none": "none",
        "truncated": "truncated",
        "full": "full",
        **dict.fromkeys(("true", "yes", "on"), True),
        **dict.fromkeys(("false", "no", "off"), False),
    }
)


def _of_team(value: object) -> Content | bool:
    said = _SAID.get(str(value).lower())
    if said is None:
        raise ValueError("expected true, false, none, truncated or full")
    return said


TeamContent = Annotated[Content | bool, BeforeValidator(_of_team)]
"""A word holds for this team alone; true: as `logging.content` says; false: none."""
