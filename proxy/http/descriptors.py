"""How many connections the process has room for: each is a file descriptor, and the kernel gives only so many."""

from __future__ import annotations

import resource
from contextlib import suppress

from proxy.http.framing import Limits

RESERVE = 64
"""Descriptors that are no client's: the listener, the event loop, the log, settings and names being looked up."""

MOST = 1 << 20
"""As many as anybody needs: a limit that is higher, or none, promises more than there is memory for."""


def raised() -> int:
    """Raise the soft limit of open files to the hard one; how many may then be open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS promises more than it grants
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return MOST if soft == resource.RLIM_INFINITY else min(soft, MOST)


def limits_within(descriptors: int) -> Limits:
    """Limits with as many connections as fit: two fifths are answered, as many stay free for their calls upstream, and
    one fifth is for those that are told that there is no room."""
    fifth = max(1, (descriptors - RESERVE) // 5)
    return Limits(connections=2 * fifth, most_connections=3 * fifth)
