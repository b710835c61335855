"""The route table: the endpoints of the provider, health, and a helpful 404 for everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NoReturn

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from proxy import __version__
from proxy.core.endpoint import Endpoint
from proxy.core.errors import MethodNotAllowed, NotFound, UnsupportedEndpoint

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


def routes(endpoints: Iterable[tuple[Endpoint, ASGIApp]], health: Health) -> list[Route]:
    """Deny by default: what is not in this list is 404. The endpoints come first, since routes are tried in order."""
    return [Route(row.path, app, methods=[row.method]) for row, app in endpoints] + [
        Route("/health", health.status, methods=["GET"]),
        Route("/health/live", health.live, methods=["GET"]),
        Route("/health/ready", health.ready, methods=["GET"]),
    ]


class Health:
    """Answers from what the process knows; nothing is asked of the upstream."""

    def __init__(self, *, configured: bool, draining: Callable[[], bool]) -> None:
        self._configured = configured
        self._draining = draining

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
        return JSONResponse({"status": "ready"})


async def http_error(request: Request, error: Exception) -> NoReturn:
    """Starlette's own 404 and 405, raised again as ours."""
    assert isinstance(error, HTTPException)
    path = request.scope["path"]
    if error.status_code == 405:
        allow = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
        raise MethodNotAllowed(
            f"This method is not allowed here; use {allow}.", headers=[(b"allow", allow.encode())]
        ) from None
    for prefix, nearest in UNSERVED.items():
        if path == prefix or path.startswith(prefix + "/"):
            raise UnsupportedEndpoint(f"{prefix} is not served by this proxy. The nearest thing: {nearest}.") from None
    raise NotFound("There is no such URL here. The API is under /v1, for example POST /v1/chat/completions.") from None
