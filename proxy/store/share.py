"""What one of several workers may grant while none can ask the others: so little that their sum holds the limit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from proxy.core.calendar import Calendar
from proxy.core.quota import Claim, Counter, Standing, StoreGone, Verdict, Window
from proxy.core.rate import MOST
from proxy.store.memory import MemoryStore

MOST_SEEN: Final = 100_000
"""Counters that are remembered; one beyond counts as full, like any that was never seen."""


class Grants:
    """What this process has granted during one outage. `owed` until the store knows of it."""

    def __init__(self, calendar: Calendar, wall: Callable[[], int]) -> None:
        self.local = MemoryStore(calendar, wall)
        self.counters: dict[str, Counter] = {}
        self._told: dict[str, int] = {}

    async def owed(self) -> list[Claim]:
        """What counts still, and was not `told` to the store yet."""
        asked = [Claim(counter, MOST, 0) for counter in self.counters.values()]
        totals = [standing.used + standing.reserved for standing in await self.local.standing(asked)]
        rest = [total - self._told.get(claim.counter.name, 0) for claim, total in zip(asked, totals, strict=True)]
        return [Claim(claim.counter, MOST, more) for claim, more in zip(asked, rest, strict=True) if more > 0]

    def told(self, claims: Sequence[Claim]) -> None:
        """The store knows of these now."""
        for claim in claims:
            self._told[claim.counter.name] = self._told.get(claim.counter.name, 0) + claim.amount


class Share:
    """An equal part of each limit, without what is known to be used; counted in this process.

    In the window in which the outage began the part is one of what was left then. That is known from the last time that
    the store told of a counter, if it was in that window; else nothing is left of it until the window is over. What
    others were granted after that last time is not known, and may come on top. `wall` gives Unix milliseconds.
    """

    def __init__(self, calendar: Calendar, wall: Callable[[], int], peers: Callable[[], int]) -> None:
        self._wall = wall
        self._peers = peers
        self._now = Grants(calendar, wall)
        self._earlier: list[Grants] = []
        self._begun = 0
        self._seen: OrderedDict[str, tuple[int, int]] = OrderedDict()  # a counter's total, and when
        self._slots: dict[str, int] = {}
        self._holding: dict[str, list[tuple[str, int]]] = {}
        self._open: dict[str, list[tuple[str, int]]] = {}
        """Slots that were granted here; `_slots` has them from the next outage on."""

    @property
    def calendar(self) -> Calendar:
        return self._now.local.calendar

    @calendar.setter
    def calendar(self, calendar: Calendar) -> None:
        self._now.local.calendar = calendar

    def learn(self, call: str, claims: Sequence[Claim], verdict: Verdict) -> None:
        """Remember what the store has told, and which of its slots this worker holds."""
        now = self._wall()
        slots = []
        for claim, standing in zip(claims, verdict.standings, strict=True):
            name = claim.counter.name
            if claim.counter.window is None:
                if claim.amount:
                    slots.append((name, claim.amount))
            else:
                self._seen[name] = standing.used + standing.reserved, now
                self._seen.move_to_end(name)
        while len(self._seen) > MOST_SEEN:
            self._seen.popitem(last=False)
        if verdict.granted and slots:
            self._hold(call, slots)

    def begin(self) -> None:
        """From now on the store tells nothing. What it was not told since the last time is owed still."""
        self._begun = self._wall()
        self._earlier.append(self._now)
        self._now = Grants(self.calendar, self._wall)
        for call, slots in self._open.items():
            self._hold(call, slots)
        self._open.clear()

    async def owed(self) -> list[tuple[Grants, list[Claim]]]:
        """What the store has to be told of, and whom to say that it was."""
        owed = [(grants, await grants.owed()) for grants in (*self._earlier, self._now)]
        self._earlier = [grants for grants, claims in owed if claims and grants is not self._now]
        return [(grants, claims) for grants, claims in owed if claims]

    async def reserve(self, call: str, claims: Sequence[Claim]) -> Verdict:
        """Raises StoreGone where the share is used up: the team may well have more left."""
        mine = self._mine(claims)
        grants = self._now
        verdict = _of_the_whole(claims, mine, await grants.local.reserve(call, mine))
        grants.counters.update((claim.counter.name, claim.counter) for claim in claims if claim.counter.window)
        slots = [(one.counter.name, one.amount) for one in claims if one.counter.window is None and one.amount]
        if slots:
            self._open[call] = slots
        return verdict

    async def look(self, claims: Sequence[Claim]) -> Verdict:
        """What `reserve` would say now; nothing is granted. Raises StoreGone where that does."""
        mine = self._mine(claims)
        verdict = await self._now.local.look(mine)
        return _of_the_whole(claims, mine, verdict)

    def settle(self, call: str, claims: Sequence[Claim], used: Sequence[int]) -> None:
        """A call that was granted here, or by the store; any other is ignored."""
        for grants in (*self._earlier, self._now):
            grants.local.settle(call, claims, used)
        self._open.pop(call, None)
        for name, amount in self._holding.pop(call, ()):
            self._slots[name] -= amount
            if not self._slots[name]:
                del self._slots[name]

    def _hold(self, call: str, slots: list[tuple[str, int]]) -> None:
        self._holding[call] = slots
        for name, amount in slots:
            self._slots[name] = self._slots.get(name, 0) + amount

    def _mine(self, claims: Sequence[Claim]) -> list[Claim]:
        return [Claim(claim.counter, self._of(claim), claim.amount) for claim in claims]

    def _of(self, claim: Claim) -> int:
        counter, peers = claim.counter, max(1, self._peers())
        if counter.window is None:
            return max(0, claim.limit // peers - self._slots.get(counter.name, 0))
        if not self._is_one(counter.window, self._begun, self._wall()):
            return claim.limit // peers
        used, at = self._seen.get(counter.name, (claim.limit, self._begun))
        known = self._is_one(counter.window, at, self._begun)
        return max(0, claim.limit - used) // peers if known else 0

    def _is_one(self, window: Window, earlier: int, later: int) -> bool:
        """Whether what was used at the earlier moment still counts at the later one."""
        if window.span is not None:
            return later - earlier < window.span
        return self.calendar.period(window, later).start <= earlier


def _of_the_whole(claims: Sequence[Claim], mine: Sequence[Claim], verdict: Verdict) -> Verdict:
    """Raises StoreGone for what was not granted: the team may well have more left."""
    if not verdict.granted:
        raise StoreGone
    return Verdict(True, tuple(map(_as_of_the_whole, claims, mine, verdict.standings)))


def _as_of_the_whole(claim: Claim, mine: Claim, standing: Standing) -> Standing:
    """What is not this worker's to grant is as good as used."""
    others = claim.limit - mine.limit
    return Standing(standing.used + others, standing.reserved, standing.reset, standing.wait)
