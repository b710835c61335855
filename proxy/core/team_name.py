"""What a team may be called: a name that can stand in a log, a path, a key of Redis and a query."""

from __future__ import annotations

import re
from typing import Final

RULE: Final = "a team name has 1 to 64 letters, digits, '_', '.' or '-' and begins with a letter or digit"

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def is_team_name(text: str) -> bool:
    """Whether a team may be called so."""
    return bool(_NAME.fullmatch(text))
