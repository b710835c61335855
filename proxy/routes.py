"""The route table: the endpoints of the provider, health, what is for admins, and a helpful 404 for all else."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy import __version__
from proxy.admin import Resource
from proxy.core.endpoint import Endpoint
from proxy.core.errors import MethodNotAllowed, NotFound, UnsupportedEndpoint
from proxy.core.model import is_id
from proxy.core.services import direct

UNSERVED = {
    "/v1/completions": "POST /v1/chat/completions answers prompts as messages",
    "/v1/responses": "POST /v1/chat/completions takes the same input as messages",
    "/v1/assistants": "POST /v1/chat/completions takes the same input as messages",
    "/v1/threads": "POST /v1/chat/completions takes the same input as messages",
    "/v1/conversations": "POST /v1/chat/completions takes the same input as messages",
    "/v1/moderations": "POST /v1/chat/completions can classify text",
    "/v1/images": "POST /v1/chat/completions can describe images, not make them",
    "/v1/audio": "POST /v1/chat/completions takes input_audio parts for voxtral models",
    "/v1/realtime": "POST /v1/chat/completions with stream: true",
    "/v1/files": "POST /v1/chat/completions takes files as data URLs",
    "/v1/uploads": "POST /v1/chat/completions takes files as data URLs",
    "/v1/batches": "POST /v1/chat/completions answers single requests",
    "/v1/vector_stores": "POST /v1/embeddings makes vectors for a store of your own",
    "/v1/fine_tuning": "GET /v1/models lists the models there are",
    "/v1/evals": "POST /v1/chat/completions answers single requests",
    "/v1/videos": "POST /v1/chat/completions answers with text",
    "/v1/containers": "POST /v1/chat/completions with tools of your own",
}
"""OpenAI's endpoints that no provider serves here, and the nearest thing that works."""


def router(
    endpoints: Iterable[tuple[Endpoint, ASGIApp]],
    health: Health,
    metrics: ASGIApp,
    admin: Iterable[tuple[Resource, ASGIApp]] = (),
) -> Router:
    """Deny by default: what is not in this list is 404. The endpoints come first, since routes are tried in order."""
    listed = [
        *(Exact(row.path, app, methods=[row.method], operation=row.span) for row, app in endpoints),
        Exact("/health", health.status, methods=["GET"], operation="health"),
        Exact("/health/live", health.live, methods=["GET"], operation="health"),
        Exact("/health/ready", health.ready, methods=["GET"], operation="health"),
        Exact("/metrics", metrics, methods=["GET"], operation="metrics"),
        *(Exact(resource.path, app, methods=resource.methods, operation="admin") for resource, app in admin),
    ]
    # A redirect would carry the client's key to a URL made of its Host header.
    return Routes(listed, redirect_slashes=False, default=_not_found)


class Routes(Router):
    """Most requests name a path that has no id in it and a method that it has: they need not try one route after the
    other."""

    def __init__(self, routes: Sequence[Exact], **more: Any) -> None:
        super().__init__(routes, **more)
        self._plain: dict[tuple[str, bytes | None], Exact] = {
            (method, route.plain): route for route in reversed(routes) for method in route.methods or ()
        }

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:  # type: ignore[override]
        route = self._plain.get((scope["method"], scope.get("raw_path"))) if scope["type"] == "http" else None
        if route is None:
            return super().__call__(scope, receive, send)
        scope["route"], scope["endpoint"], scope["path_params"] = route, route.endpoint, {}
        return route.app(scope, receive, send)


class Exact(Route):
    """A path as it is written in the request line, letter by letter, but for `{id}`: that is decoded once, and what
    comes out must be an id. Starlette's own comparison takes `%2f` for a slash, a line break at the end for nothing and
    anything for an id, a way up included. `operation` says what it is for.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], *, methods: Sequence[str], operation: str) -> None:
        super().__init__(path, endpoint, methods=methods)
        self.app = direct(self.app)
        self.operation = operation
        self.plain = path.encode()
        with_id = re.escape(path).replace(r"\{id\}", "(?P<id>[^/]+)").encode()
        self._pattern = re.compile(with_id) if "{" in path else None
        self._allow = ", ".join(sorted(self.methods or ()))

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        params = self._params(scope)
        if params is None:
            return Match.NONE, {}
        allowed = self.methods is None or scope["method"] in self.methods
        return Match.FULL if allowed else Match.PARTIAL, {"endpoint": self.endpoint, "path_params": params}

    def _params(self, scope: Scope) -> dict[str, str] | None:
        """What stands in the path's `{id}`; None if this is another path."""
        written = _written(scope)
        if self._pattern is None:
            return {} if written == self.plain else None
        found = self._pattern.fullmatch(written)
        if found is None:
            return None
        name = unquote_to_bytes(found["id"]).decode("latin-1")  # ids are ASCII: other bytes are part of none
        return {"id": name} if is_id(name) else None

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.methods and scope["method"] not in self.methods:
            raise MethodNotAllowed(
                f"This method is not allowed here; use {self._allow}.", headers=[(b"allow", self._allow.encode())]
            )
        await self.app(scope, receive, send)


def _written(scope: Scope) -> bytes:
    raw: bytes | None = scope.get("raw_path")
    return scope["path"].encode() if raw is None else raw  # ASGI leaves it to the server whether there is one


class Health:
    """Answers from what the process knows; nothing is asked of the upstream. `generation` is the number of the
    configuration in force, `config` tells its file from others."""

    def __init__(
        self, *, configured: bool, draining: Callable[[], bool], generation: int = 1, config: str | None = None
    ) -> None:
        self._configured = configured
        self._draining = draining
        self._ready = {"status": "ready", "generation": generation, "config": config}

    async def status(self, request: Request) -> Response:
        return JSONResponse(
            {
                "status": "draining" if self._draining() else "ok",
                "service": "mistral-proxy",
                "version": __version__,
                "mistral_configured": self._configured,
            }
        )

    async def live(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        if self._draining():
            return JSONResponse({"status": "draining"}, 503, {"retry-after": "5"})
        return JSONResponse(self._ready)


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    path = scope["path"]
    for prefix, nearest in UNSERVED.items():
        if path == prefix or path.startswith(prefix + "/"):
            raise UnsupportedEndpoint(f"{prefix} is not served by this proxy. The nearest thing: {nearest}.")
    raise NotFound("There is no such URL here. The API is under /v1, for example POST /v1/chat/completions.")
