"""An upstream that behaves as OpenAI does, for `tests.e2e.upstream.upstream`: it knows its own arguments and models."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from openai.types.chat.completion_create_params import CompletionCreateParamsBase
from openai.types.embedding_create_params import EmbeddingCreateParams

from tests.e2e.upstream import DONE, JSON, STREAM
from tests.upstream.scripted import Peer, Received, answer, chunk

KNOWN = {
    "/v1/chat/completions": {*get_type_hints(CompletionCreateParamsBase), "stream"},
    "/v1/embeddings": set(get_type_hints(EmbeddingCreateParams)),
}
"""Each endpoint's arguments. Of any other OpenAI says that it is not recognised."""

USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
WORDS = ("Hello", "!")


@dataclass
class OpenAIUpstream:
    """A Reply (upstream.py). `key` None: any will do. What came is in `bodies`, the JSON of each request that had one,
    and in `authorizations`, that header of each request."""

    models: tuple[str, ...]
    key: str | None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    failures: list[tuple[int, dict[str, str]]] = field(default_factory=list)

    def fail(self, *statuses: int, **headers: str) -> None:
        """Answer the next calls with these statuses, and with headers such as retry_after."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.failures += [(status, named) for status in statuses]

    async def __call__(self, peer: Peer, received: Received) -> None:
        body = json.loads(received.body) if received.body else {}
        self.authorizations.append(received.header("authorization"))
        if received.body:
            self.bodies.append(body)
        await peer.send(self._answer(received, body))

    def _answer(self, received: Received, body: dict[str, Any]) -> bytes:
        path = received.line.split(" ")[1]
        if self.failures:
            status, headers = self.failures.pop(0)
            return refused(status, "The server had an error while processing your request.", "server_error", **headers)
        if self.key is not None and received.header("authorization") != f"Bearer {self.key}":
            wrong = (received.header("authorization") or "").removeprefix("Bearer ")
            return refused(401, f"Incorrect API key provided: {wrong}.", code="invalid_api_key")
        if path == "/v1/models":
            return _json({"object": "list", "data": [_card(model) for model in self.models]})
        model = path.removeprefix("/v1/models/") if path.startswith("/v1/models/") else body.get("model")
        if unknown := [name for name in body if name not in KNOWN.get(path, body)]:
            return refused(400, f"Unrecognized request argument supplied: {unknown[0]}")
        if model not in self.models:
            text = f"The model `{model}` does not exist or you do not have access to it."
            return refused(404, text, code="model_not_found")
        if path == "/v1/chat/completions":
            return _stream(body) if body.get("stream") else _json(_completion(body))
        if path == "/v1/embeddings":
            return _json(_embeddings(body))
        if path == f"/v1/models/{model}":
            return _json(_card(model))
        return refused(404, f"Invalid URL ({received.line.split(' ')[0]} {path})")


def openai_reply(models: Iterable[str] = ("gpt-4o-mini",), key: str | None = None) -> OpenAIUpstream:
    return OpenAIUpstream(tuple(models), key)


def refused(
    status: int, message: str, kind: str = "invalid_request_error", *, code: str | None = None, **headers: str
) -> bytes:
    """An answer with OpenAI's error body."""
    error = {"message": message, "type": kind, "param": None, "code": code}
    head = b"HTTP/1.1 %d No\r\ncontent-type: application/json\r\n" % status
    head += b"".join(f"{name}: {value}\r\n".encode() for name, value in headers.items())
    return answer(json.dumps({"error": error}).encode(), head)


def _json(body: dict[str, Any]) -> bytes:
    return answer(json.dumps(body).encode(), JSON + b"x-request-id: req_1\r\n")


def _card(model: str) -> dict[str, Any]:
    return {"id": model, "object": "model", "created": 1721172741, "owned_by": "system"}


def _head(body: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": body["model"], "service_tier": "default"}


def _completion(body: dict[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": "".join(WORDS), "refusal": None}
    choices = [
        {"index": at, "message": message, "logprobs": None, "finish_reason": "stop"} for at in range(body.get("n", 1))
    ]
    return _head(body, "chat.completion") | {"choices": choices, "usage": USAGE}


def _stream(body: dict[str, Any]) -> bytes:
    """OpenAI sends usage, in a chunk of its own, to those alone who ask for it; the other chunks then have null."""
    options = body.get("stream_options") or {}
    usage = {"usage": None} if options.get("include_usage") else {}
    head = _head(body, "chat.completion.chunk")
    deltas = [({"role": "assistant", "content": ""}, None), *(({"content": word}, None) for word in WORDS)]
    chunks = [
        head | {"choices": [{"index": at, "delta": delta, "finish_reason": finish}]} | usage
        for delta, finish in (*deltas, ({}, "stop"))
        for at in range(body.get("n", 1))
    ]
    if usage:
        chunks.append(head | {"choices": [], "usage": USAGE})
    events = [b"data: " + json.dumps(one).encode() + b"\n\n" for one in chunks]
    return STREAM + b"".join(map(chunk, [*events, DONE])) + chunk(b"")


def _embeddings(body: dict[str, Any]) -> dict[str, Any]:
    """Four zeros for each input, as the request wants them."""
    asked = body["input"]
    count = 1 if isinstance(asked, str) or all(type(token) is int for token in asked) else len(asked)
    vector = "A" * 22 + "==" if body.get("encoding_format") == "base64" else [0.0] * 4
    data = [{"object": "embedding", "index": at, "embedding": vector} for at in range(count)]
    return {"object": "list", "data": data, "model": body["model"], "usage": {"prompt_tokens": 5, "total_tokens": 5}}
