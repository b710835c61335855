"""Who has a place when there are more connections than the process has room for; pure.

A place belongs to who has something to say: a request takes that of the connection that has been idle for longest.
When there is none it is told that there is no room, and to tell it so more connections are let in than have places.
Beyond these the oldest that has not asked anything goes, as the newest may be a probe of our health.
"""

from __future__ import annotations

from typing import Any, Protocol

from proxy.http.framing import Limits


class Member(Protocol):
    """One connection."""

    def has_told_all(self) -> bool:
        """Whether nothing of what was answered still waits for the client."""

    def leave(self) -> None:
        """Close; nobody misses anything."""

    def give_way(self) -> None:
        """Go at once and without a word."""


class Crowd:
    """All connections of a process. They say themselves how many are open: uvicorn has the list. When it `leaves_soon`,
    none is kept for another request."""

    def __init__(self, limits: Limits) -> None:
        self.leaves_soon = False
        self.watched_by: Any = None
        """The loop that looks whether anybody has been idle for too long."""
        self._limits = limits
        self._strangers: dict[Member, None] = {}  # no whole head has come yet, or only what nobody reads; oldest first
        self._idle: dict[Member, float] = {}  # all is answered, and nothing has come since then; the longest first

    def enters(self, member: Member, count: int) -> None:
        """A new one; with it, `count` are open."""
        self._strangers[member] = None
        if count > self._limits.most_connections:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.give_way()

    def is_full(self, count: int) -> bool:
        """Whether fewer than `count` have a place."""
        return count > self._limits.connections

    def makes_room(self) -> bool:
        """Whether somebody could be sent away for a request that is here."""
        member = next((one for one in self._idle if one.has_told_all()), None)
        if member is None:
            return False
        del self._idle[member]
        member.leave()
        return True

    def asks(self, member: Member) -> None:
        """It has sent a whole head."""
        self._strangers.pop(member, None)

    def rests(self, member: Member, now: float) -> None:
        """It has all its answers. `now` is in seconds, and never goes back."""
        self._idle[member] = now

    def tires_of(self, moment: float) -> float | None:
        """Whoever has been idle since then, or for longer, leaves. Returns since when the next one has been."""
        while self._idle:
            member, since = next(iter(self._idle.items()))
            if since > moment:
                return since
            del self._idle[member]
            member.leave()
        return None

    def stirs(self, member: Member) -> None:
        """It has begun another request."""
        self._idle.pop(member, None)

    def is_ignored(self, member: Member) -> None:
        """What it sends is for nobody."""
        self._idle.pop(member, None)
        self._strangers[member] = None

    def leaves(self, member: Member) -> None:
        """It is gone."""
        self._strangers.pop(member, None)
        self._idle.pop(member, None)
