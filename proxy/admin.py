"""What an admin may look at and do: `/admin/*`. Who is one has been found out before (stages/admin.py)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core import json
from proxy.core.cache import Backend, CacheGone
from proxy.core.errors import BadRequest, StoreUnavailable
from proxy.core.success import send_json
from proxy.core.team_name import RULE, is_team_name

_MOST_SHOWN: Final = 256
"""Characters of names that a client made up that it is told back."""

Report = Mapping[str, int]
Work = Callable[[Backend, str | None], Awaitable[Report]]
"""(the cache, the team that is asked about; None: all). Raises CacheGone."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One path, and what can be done there. `reads`: it takes a body."""

    path: str
    methods: tuple[str, ...]
    app: ASGIApp
    reads: bool = False


def resources(backend: Backend) -> list[Resource]:
    return [
        _resource("/admin/cache", {"GET": stats, "DELETE": delete}, frozenset({"team"}), backend),
        _resource("/admin/cache/verify", {"POST": verify}, frozenset(), backend),
    ]


def _resource(path: str, works: Mapping[str, Work], parameters: frozenset[str], backend: Backend) -> Resource:
    return Resource(path, tuple(works), OfCache(works, parameters, backend))


async def stats(backend: Backend, team: str | None) -> Report:
    """Of all entries, or of those of a team."""
    found = await backend.stats(team)
    report = {"entries": found.entries, "bytes": found.bytes}
    return report if found.evicted is None else report | {"evicted": found.evicted}


async def delete(backend: Backend, team: str | None) -> Report:
    """Forget all entries, or those of a team."""
    return {"deleted": await backend.delete(team)}


async def verify(backend: Backend, team: str | None = None) -> Report:
    """Look at all entries, and forget those that are not what they were."""
    found = await backend.verify()
    return {"right": found.right, "wrong": found.wrong}


class OfCache:
    """`works` are what is done for each method, `parameters` what the query may have. HEAD is GET; the server leaves
    the body out."""

    def __init__(self, works: Mapping[str, Work], parameters: frozenset[str], backend: Backend) -> None:
        self._works = works
        self._parameters = parameters
        self._backend = backend

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = query(scope, self._parameters)
        refuse_body(scope)
        team = asked.get("team")
        if team is not None and not is_team_name(team):
            raise BadRequest(f"This can be no team: {RULE}.", param="team")
        method = scope["method"]
        work = self._works["GET" if method == "HEAD" else method]
        try:
            report = await work(self._backend, team)
        except CacheGone:
            raise StoreUnavailable("The cache cannot be reached at the moment. Send the request again later.") from None
        await send_json(send, json.encode(report), (b"cache-control", b"no-store"))


def refuse_body(scope: Scope) -> None:
    """A team that is named there would be ignored, too."""
    for name, value in scope["headers"]:
        if name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0")):
            raise BadRequest("This takes no body: what it is about is said in the query, as ?team=NAME.")


def query(scope: Scope, parameters: frozenset[str]) -> Mapping[str, str]:
    """Each once. What is misspelled must not be ignored: all entries would be deleted in place of a team's."""
    pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    names = [name for name, _ in pairs]
    unknown = [name for name in dict.fromkeys(names) if name not in parameters]
    if unknown:
        known = f"the only one is {' or '.join(sorted(parameters))}" if parameters else "there are none here"
        listed = ", ".join(unknown)[:_MOST_SHOWN]
        raise BadRequest(
            f"Unknown query parameters: {listed}; {known}.",
            param=unknown[0][:_MOST_SHOWN],
            code="unknown_parameter",
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise BadRequest(f"The query parameter {twice} is given twice.", param=twice)
    return dict(pairs)
