"""What the counters say when all is over. The proxy itself is asked, whose every limit is 0 for it: a refusal tells
what is used and what is reserved, and changes neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import msgspec
from aiohttp import ClientSession

from proxy.core.money import NANO
from proxy.core.quota import Unit
from proxy.proof.plan import CHAT, Trial

_BODY: Final = {"model": "mistral-small-latest", "messages": [{"role": "user", "content": "?"}], "max_tokens": 1}


@dataclass(frozen=True, slots=True)
class Counters:
    """Of one team: what its rule has `used` and `reserved` (requests, nano-USD), and how many `slots` are held."""

    used: int
    reserved: int
    slots: int = 0

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is under way."""
        return not (self.reserved or self.slots)


class Unheard(Exception):
    """The answer was no refusal of a quota. The text is what it was."""


async def counters(trial: Trial, session: ClientSession, url: str) -> Counters:
    """Raises Unheard."""
    # A list of models costs nothing: of the team's rules it falls under those that count requests and slots.
    first = await _refusal(session, "GET", f"{url}/v1/models", trial.key)
    if trial.kind is Unit.REQUESTS:
        return Counters(int(first["used"]), int(first["reserved"]))
    slots = int(first["used"]) + int(first["reserved"])
    if trial.kind is Unit.CONCURRENCY:
        return Counters(0, 0, slots)
    money = await _refusal(session, "POST", f"{url}{CHAT}", trial.key, msgspec.json.encode(_BODY))
    return Counters(nano(money["used"]), nano(money["reserved"]), slots)


def nano(usd: str) -> int:
    """`12.5 USD` in nano-USD."""
    return int(Decimal(usd.removesuffix(" USD")) * NANO)


async def _refusal(session: ClientSession, method: str, url: str, key: str, body: bytes | None = None) -> Any:
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    async with session.request(method, url, data=body, headers=headers) as answer:
        said = msgspec.json.decode(await answer.read())
        error = said.get("error") or {}
        if "rule" not in error:
            raise Unheard(f"{answer.status} {error.get('code', '')}")
        return error
