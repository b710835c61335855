"""Clients of the soak that mean no good: they send what is no request, or leave before they have their answer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.leaving import leave
from bench.load import Route
from tests.fuzz import targets as fuzz
from tests.fuzz.mutate import mutated

PATIENCE = 30.0
"""Seconds after which an answer counts as missing."""

DRIPPING = 1.0
"""Seconds that a client stays that does not end its request."""


@dataclass(slots=True)
class Mischief:
    """Every method is one client from its connect to its leaving. `route` has a team's key."""

    route: Route
    dice: random.Random
    _framings: list[bytes] = field(default_factory=lambda: [file.read_bytes() for file in fuzz.kept("framing")])
    _bodies: list[bytes] = field(default_factory=lambda: [file.read_bytes() for file in fuzz.kept("bodies")])

    async def garbage(self) -> None:
        """No HTTP, or nearly."""
        await self.leaves(mutated(self._framings, self.dice), 0.02)

    async def drips(self, request: bytes) -> None:
        """The beginning of a request, and then nothing."""
        await self.leaves(request[: self.dice.randrange(1, len(request))], DRIPPING)

    async def leaves(self, data: bytes, after: float) -> None:
        """Sends this, and hangs up or resets after so many seconds."""
        _, writer = await asyncio.open_connection(self.route.host, self.route.port)
        writer.write(data)
        await asyncio.sleep(after)
        leave(writer, reset=self.dice.random() < 0.5)

    async def bad_body(self, around: Callable[[bytes], bytes]) -> bytes:
        """A body that is no JSON, or another than it was; `around` makes a request of it. The answer, as it came."""
        reader, writer = await asyncio.open_connection(self.route.host, self.route.port)
        try:
            writer.write(around(mutated(self._bodies, self.dice)))
            return await asyncio.wait_for(reader.read(-1), PATIENCE)
        except TimeoutError:
            return b"(no answer)"
        finally:
            writer.close()
