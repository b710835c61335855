"""Who sends wrong keys: each address by itself, so that nobody can lock a team out, or a neighbour with a good key."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from ipaddress import IPv6Address, ip_address

ALLOWED, WITHIN = 20, 60.0
"""Wrong keys of one address, and the seconds they are counted for."""

FIRST, LONGEST = 60.0, 900.0
"""Seconds that it is told to wait after one more and, doubling with each that it sends all the same, at most. After
FIRST nothing of WITHIN is left, so whoever has waited is told what a stranger is. LONGEST after the end of a wait, the
next one begins with FIRST again."""

MOST_ADDRESSES = 10_000
"""Half a kilobyte each. Whoever has not failed for longest is forgotten first."""


class Failures:
    """Counts wrong keys. It knows nothing of right ones: they neither ask it nor change what it has counted."""

    def __init__(self, most: int = MOST_ADDRESSES) -> None:
        self._most = most
        self._records: OrderedDict[str, _Record] = OrderedDict()

    @property
    def addresses(self) -> int:
        """How many are remembered."""
        return len(self._records)

    def failed(self, client: str, now: float) -> float:
        """Count a wrong key. How many seconds this client is to wait before its next one; 0.0: as many as it likes."""
        address = _neighbourhood(client)
        record = self._records.setdefault(address, _Record())
        self._records.move_to_end(address)
        if len(self._records) > self._most:
            self._records.popitem(last=False)
        return record.failed(now)


class _Record:
    """One address. `_times` are those of its last failures that were answered as such."""

    __slots__ = ("_times", "_until", "_wait")

    def __init__(self) -> None:
        self._times = array("d")
        self._wait = 0.0
        self._until = float("-inf")

    def failed(self, now: float) -> float:
        while self._times and now - self._times[0] >= WITHIN:
            del self._times[0]
        if now >= self._until and len(self._times) < ALLOWED:
            self._times.append(now)
            return 0.0
        self._wait = min(LONGEST, self._wait * 2 or FIRST) if now - self._until < LONGEST else FIRST
        self._until = now + self._wait
        return self._wait


def _neighbourhood(client: str) -> str:
    """What one client can have at will: its IPv4 address, or the /64 of its IPv6 address. What is no address stands for
    itself."""
    try:
        address = ip_address(client.partition("%")[0])
    except ValueError:
        return client
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(IPv6Address(int(address) >> 64 << 64))
