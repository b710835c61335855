"""Mistral's errors: the table of real codes, and the body shapes in which its layers answer.

Sources: recorded traffic and public reports of 2025-26; the API's own glossary shows a shape nobody has received.
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from proxy.simulator.reply import HTML, JSON, Reply

#: code -> (HTTP status, type, a message that has come with it)
CODES: Mapping[str, tuple[int, str, str]] = {
    "1000": (500, "internal_error_proxy", "Internal error"),
    "1100": (503, "unreachable_backend", "Internal server error"),
    "1300": (429, "rate_limited", "Rate limit exceeded"),
    "1500": (400, "invalid_model", "Invalid model: mistral-unknown"),
    "1910": (403, "tier_not_allowed", "This model is not available in your subscription tier"),
    "1913": (403, "labs_not_enabled", "This model is a Labs model. To use Labs models, an admin has to enable them."),
    "1920": (403, "guardrail_violation", "Request blocked by guardrail policy"),
    "3000": (500, "internal_error", "Internal error"),
    "3051": (400, "invalid_request_invalid_args", "Logprobs are not enabled for this model"),
    "3210": (400, "invalid_request_prompt", "Too many inputs in request, split into more batches."),
    "3230": (400, "invalid_request_message_order", "Not the same number of function calls and responses"),
    "3240": (
        400,
        "invalid_request_assistant_message",
        "Assistant message must have either content or tool_calls, but not none.",
    ),
    "3280": (400, "invalid_function_call", "Tool call id was x but must be a-z, A-Z, 0-9, with a length of 9."),
    "3310": (400, "invalid_request_file", "File could not be fetched from url"),
    "3505": (429, "service_tier_capacity_exceeded", "Service tier capacity exceeded for this model."),
    "3740": (400, "document_parser_invalid_file", "Document is not a valid PDF."),
    "3800": (503, "internal_server_error", "Service unavailable."),
    "3810": (429, "engine_max_pending_tokens", "Capacity exceeded for this model."),
}

#: What a status is answered with when nothing else is said: a code above, or one of the shapes below.
USUAL: Mapping[int, str] = {
    **{400: "3051", 401: "gateway", 403: "1910", 404: "kong", 422: "bare", 429: "1300"},
    **{500: "3000", 502: "html", 503: "3800", 504: "empty"},
}


class Refusal(Exception):
    """The request is answered with this error of the API."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def reply(self) -> Reply:
        return _coded(self.code, None, self.message)


def flat(status: int, kind: str, message: Any, code: str | None) -> dict[str, Any]:
    """The API's own error object; `message` is an object in the wrapped form of a 422."""
    return {
        "object": "error",
        "message": message,
        "type": kind,
        "param": None,
        "code": code,
        "raw_status_code": status,
    }


def detail(*loc: str | int) -> list[dict[str, Any]]:
    """What pydantic says of one unknown key."""
    return [
        {
            "type": "extra_forbidden",
            "loc": list(loc),
            "msg": "Extra inputs are not permitted",
            "input": "a private text",
        }
    ]


def invalid(problems: list[dict[str, Any]]) -> Reply:
    """422 as FastAPI answers it."""
    return Reply(422, JSON, msgspec.json.encode({"detail": problems}))


def plain(status: int, key: str, text: str) -> Reply:
    """An error of the gateway: one key, one sentence."""
    return Reply(status, JSON, msgspec.json.encode({key: text}))


def _agents(message: str, keys: list[str | int]) -> Any:
    found = detail(*keys)
    return {"object": "Error", "detail": found, "message": found, "type": "invalid_request_error", "code": 3001}


def _old(message: str, keys: list[str | int]) -> Any:
    body = flat(429, "invalid_request_error", message or "Requests rate limit exceeded", None)
    del body["raw_status_code"]
    return body


#: shape -> (usual status, body made of a message, which may be empty, and of the loc of a refused key). The API's own
#: object, which has a code, is `flat`; `html` and `empty` are no JSON.
SHAPES: Mapping[str, tuple[int, Callable[[str, list[str | int]], Any]]] = {
    "wrapped": (422, lambda message, keys: flat(422, "invalid_request_error", {"detail": detail(*keys)}, None)),
    "bare": (422, lambda message, keys: {"detail": detail(*keys)}),
    "agents": (422, _agents),
    "gateway": (401, lambda message, keys: {"detail": message or "Unauthorized"}),
    "kong": (404, lambda message, keys: {"message": message or "no Route matched with those values"}),
    "models": (404, lambda message, keys: {"message": message or "Model mistral-unknown was not found."}),
    "old": (429, _old),
}

_PAGE = b"<html>\r\n<head><title>%d</title></head>\r\n<body><center><h1>%d</h1></center></body>\r\n</html>\r\n"


def injected(status: int | None, code: str | None, shape: str | None, message: str, loc: str) -> Reply:
    """The error a fault asks for; what it leaves open is as the API usually does it."""
    usual = code or shape or USUAL.get(status or 500, "empty")
    code = usual if usual in CODES else code
    shape = shape or ("flat" if code else usual)
    if shape == "empty":
        return Reply(status or 504, (), b"")
    if shape == "html":
        return Reply(status or 502, HTML, _PAGE % (status or 502, status or 502))
    if shape == "flat":
        return _coded(code or "3000", status, message)
    usual_status, body = SHAPES[shape]
    keys: list[str | int] = [int(key) if key.isdigit() else key for key in loc.split(".")]
    return Reply(status or usual_status, JSON, msgspec.json.encode(body(message, keys)))


def _coded(code: str, status: int | None, message: str) -> Reply:
    usual_status, kind, text = CODES[code]
    body = flat(status or usual_status, kind, message or text, code)
    if code == "1920":
        body["guardrails"] = [{"name": "moderation_llm_v2", "action": "block", "categories": ["violence_and_threats"]}]
    return Reply(status or usual_status, JSON, msgspec.json.encode(body))


def frame(message: str = "Internal error") -> dict[str, Any]:
    """The error object inside a stream whose headers said 200."""
    return flat(500, "internal_error", message, "3000")
