"""Refusals that OpenAI and its likes are known to send, the error that each becomes, and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from proxy.core.errors import Elsewhere, KeyFault, Repeat

BAD = "invalid_request_error"
QUOTA = "insufficient_quota"
DOCS = "For more information on this error, read the docs: https://platform.openai.com/docs/guides/error-codes."
NEVER, SAFE, UNSAFE = Repeat.NEVER, Repeat.SAFE, Repeat.UNSAFE
NO, LARGER, YES = Elsewhere.NO, Elsewhere.LARGER, Elsewhere.YES
NONE, SPENT, NO_MODEL, REFUSED = KeyFault.NONE, KeyFault.SPENT, KeyFault.NO_MODEL, KeyFault.REFUSED


class Case(NamedTuple):
    status: int
    body: Any
    becomes: tuple[int, str, str, str | None]
    means: tuple[Repeat, Elsewhere, KeyFault]
    header: Mapping[str, str] = {}
    retry: tuple[str | None, str | None] = (None, None)  # retry-after, x-should-retry


def error(message: str, kind: str | None = BAD, param: str | None = None, code: Any = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def rpm(requests: str, tokens: str) -> dict[str, str]:
    return {
        "x-ratelimit-limit-requests": "500", "x-ratelimit-limit-tokens": "30000",
        "x-ratelimit-remaining-requests": requests, "x-ratelimit-remaining-tokens": tokens,
        "x-ratelimit-reset-requests": "7m12s", "x-ratelimit-reset-tokens": "20ms",
    }  # fmt: skip


def limited(what: str, kind: str) -> dict[str, Any]:
    text = (
        f"Rate limit reached for gpt-4o in organization org-SECRET on {what}: Limit 3, Used 3. Please try again in 20s."
    )
    return error(text, kind, code="rate_limit_exceeded")


FAULT = (NEVER, NO, NONE)
OUT = (502, "server_error", "upstream_auth_failed", None)
GONE = (404, BAD, "model_not_found", "model")
DENIED = (403, "permission_error", "model_not_available", "model")
SPENT_ALL = (429, QUOTA, QUOTA, None)
LONG = (400, BAD, "context_length_exceeded", "messages")
STOP: tuple[Mapping[str, str], tuple[None, str]] = ({}, (None, "false"))
BUSY = (429, "requests", "rate_limit_exceeded", None)
MANY = (429, "tokens", "rate_limit_exceeded", None)
FLAGGED = (400, BAD, "content_filter", None)

CASES = {
    # the key and the account
    "wrong key": Case(
        401,
        error(
            "Incorrect API key provided: sk-SECRET***SECRET. You can find your API key at https://…",
            code="invalid_api_key",
        ),
        OUT,
        (NEVER, YES, REFUSED),
        *STOP,
    ),
    "no key": Case(401, error("You didn't provide an API key. SECRET", code=None), OUT, (NEVER, YES, REFUSED), *STOP),
    "vllm key": Case(401, {"error": "Unauthorized"}, OUT, (NEVER, YES, REFUSED), *STOP),
    "azure key": Case(
        401, {"statusCode": 401, "message": "Access denied due to SECRET"}, OUT, (NEVER, YES, REFUSED), *STOP
    ),
    "country": Case(
        403,
        error(
            "Country, region, or territory not supported",
            "request_forbidden",
            code="unsupported_country_region_territory",
        ),
        OUT,
        (NEVER, YES, REFUSED),
        *STOP,
    ),
    "forbidden page": Case(403, b"<html>SECRET</html>", OUT, (NEVER, YES, REFUSED), *STOP),
    "quota": Case(
        429,
        error(f"You exceeded your current quota, please check your plan and SECRET. {DOCS}", QUOTA, code=QUOTA),
        SPENT_ALL,
        (NEVER, YES, REFUSED),
        *STOP,
    ),
    "quota 2023": Case(429, error("You exceeded your SECRET quota", QUOTA), SPENT_ALL, (NEVER, YES, REFUSED), *STOP),
    "hard limit": Case(
        400,
        error("Billing hard limit SECRET", code="billing_hard_limit_reached"),
        SPENT_ALL,
        (NEVER, YES, REFUSED),
        *STOP,
    ),
    "not active": Case(
        429,
        error("Your SECRET is not active", "billing_not_active", code="billing_not_active"),
        SPENT_ALL,
        (NEVER, YES, REFUSED),
        *STOP,
    ),
    "openrouter credit": Case(
        402,
        {"error": {"message": "Insufficient credits. SECRET", "code": 402}},
        SPENT_ALL,
        (NEVER, YES, REFUSED),
        *STOP,
    ),
    "never": Case(
        429,
        limited("requests per min", "requests"),
        SPENT_ALL,
        (NEVER, YES, NO_MODEL),
        rpm("0", "0") | {"x-ratelimit-limit-tokens": "0"},
        (None, "false"),
    ),
    # the model
    "no such model": Case(
        404,
        error("The model `gpt-9` does not exist or you do not have access to it.", code="model_not_found"),
        GONE,
        (NEVER, YES, NO_MODEL),
    ),
    "old model": Case(
        404,
        error("The model `gpt-4-vision-preview` has been deprecated", code="model_not_found"),
        GONE,
        (NEVER, YES, NONE),
    ),
    "project": Case(
        403,
        error("Project `proj_SECRET` does not have access to model `gpt-4o`", code="model_not_found"),
        DENIED,
        (NEVER, YES, NO_MODEL),
    ),
    "403 by code": Case(403, error("SECRET", code="model_not_found"), DENIED, (NEVER, YES, NO_MODEL)),
    "verified": Case(
        400,
        error(
            "Your organization must be verified to stream this model. SECRET", param="stream", code="unsupported_value"
        ),
        DENIED,
        (NEVER, YES, NO_MODEL),
    ),
    "vllm model": Case(
        404,
        {
            "object": "error",
            "message": "The model `x` does not exist.",
            "type": "NotFoundError",
            "param": None,
            "code": 404,
        },
        GONE,
        (NEVER, YES, NONE),
    ),
    "ollama model": Case(
        404, error('model "x" not found, try pulling it first', "api_error"), GONE, (NEVER, YES, NONE)
    ),
    "ollama model, bare": Case(404, {"error": "model 'x' not found"}, GONE, (NEVER, YES, NONE)),
    "azure model": Case(
        404,
        {"error": {"code": "DeploymentNotFound", "message": "The API deployment for this resource is not there."}},
        GONE,
        (NEVER, YES, NONE),
    ),
    "no chat model": Case(
        404, error("This is not a chat model and thus not supported", param="model"), GONE, (NEVER, YES, NONE)
    ),
    "openrouter model": Case(
        400, {"error": {"message": "x is not a valid model ID", "code": 400}}, GONE, (NEVER, YES, NONE)
    ),
    "openrouter endpoints": Case(
        404, {"error": {"message": "No endpoints found for x.", "code": 404}}, GONE, (NEVER, YES, NONE)
    ),
    # the request
    "context": Case(
        400,
        error(
            "This model's maximum context length is 8192 tokens. However, …",
            param="messages",
            code="context_length_exceeded",
        ),
        LONG,
        (NEVER, LARGER, NONE),
    ),
    "vllm context": Case(
        400,
        {
            "object": "error",
            "message": "This model's maximum context length is 32768 tokens.",
            "type": "BadRequestError",
            "code": 400,
        },
        LONG,
        (NEVER, LARGER, NONE),
    ),
    "vllm prompt": Case(
        400,
        error(
            "The decoder prompt (length 9000) is longer than the maximum model length of 8192.",
            "BadRequestError",
            code=400,
        ),
        LONG,
        (NEVER, LARGER, NONE),
    ),
    "vllm, of before": Case(
        400, {"message": "max_tokens must be at least 1, got -186.", "code": 400}, LONG, (NEVER, LARGER, NONE)
    ),
    "llama.cpp context": Case(
        400,
        error("the request exceeds the available limit", "exceed_context_size_error", code=400),
        LONG,
        (NEVER, LARGER, NONE),
    ),
    "azure filter": Case(
        400,
        error("The response was filtered due to the prompt triggering …", None, "prompt", "content_filter"),
        (400, BAD, "content_filter", "prompt"),
        FAULT,
    ),
    "policy": Case(400, error("Your request was rejected", code="content_policy_violation"), FLAGGED, FAULT),
    "invalid prompt": Case(
        400, error("Invalid prompt: your prompt was flagged as …", code="invalid_prompt"), FLAGGED, FAULT
    ),
    "openrouter moderation": Case(
        403,
        {"error": {"code": 403, "message": "x requires moderation on OpenRouter. Your input was flagged"}},
        FLAGGED,
        FAULT,
    ),
    "unknown": Case(
        400,
        error("Unrecognized request argument supplied: random_seed"),
        (400, BAD, "unsupported_parameter", "random_seed"),
        FAULT,
    ),
    "unknown 2025": Case(
        400,
        error("Unknown parameter: 'messages[0].x'.", param="messages[0].x", code="unknown_parameter"),
        (400, BAD, "unsupported_parameter", "messages[0].x"),
        FAULT,
    ),
    "max_tokens": Case(
        400,
        error(
            "Unsupported parameter: 'max_tokens' is not supported with this model. "
            "Use 'max_completion_tokens' instead.",
            param="max_tokens",
            code="unsupported_parameter",
        ),
        (400, BAD, "unsupported_parameter", "max_tokens"),
        FAULT,
    ),
    "temperature": Case(
        400,
        error(
            "Unsupported value: 'temperature' does not support 0.2 with this model. "
            "Only the default (1) value is supported.",
            param="temperature",
            code="unsupported_value",
        ),
        (400, BAD, "unsupported_value", "temperature"),
        FAULT,
    ),
    "missing": Case(
        400,
        error("Missing required parameter: 'messages'.", param="messages", code="missing_required_parameter"),
        (400, BAD, "missing_required_parameter", "messages"),
        FAULT,
    ),
    "type": Case(
        400,
        error("Invalid type for 'n': expected an integer", param="n", code="invalid_type"),
        (400, BAD, "invalid_type", "n"),
        FAULT,
    ),
    "image": Case(
        400, error("Failed to download image", code="invalid_image_url"), (400, BAD, "invalid_value", None), FAULT
    ),
    "422": Case(
        422,
        {
            "detail": [
                {
                    "loc": ["body", "top_k"],
                    "msg": "Input should be a valid integer",
                    "type": "int_type",
                    "input": "SECRET",
                }
            ]
        },
        (400, BAD, "invalid_value", None),
        FAULT,
    ),
    "400 without a word": Case(400, b"", (400, BAD, "invalid_value", None), FAULT),
    # rates
    "requests": Case(
        429, limited("requests per day (RPD)", "requests"), BUSY, (SAFE, YES, SPENT), rpm("0", "9"), ("432", "false")
    ),
    "tokens": Case(
        429, limited("tokens per min (TPM)", "tokens"), MANY, (SAFE, YES, SPENT), rpm("9", "0"), ("1", "true")
    ),
    "tokens, by type": Case(429, limited("x", "tokens"), MANY, (SAFE, YES, SPENT), {}, ("20", "true")),
    "tokens, by text": Case(
        429,
        error("Requests have exceeded token rate limit of your current SECRET tier.", code="429"),
        MANY,
        (SAFE, YES, SPENT),
        {},
        ("20", "true"),
    ),
    "told when": Case(
        429, limited("x", "requests"), BUSY, (SAFE, YES, SPENT), rpm("0", "0") | {"retry-after": "7"}, ("7", "true")
    ),
    "429 without a word": Case(429, b"", BUSY, (SAFE, YES, SPENT), {}, ("20", "true")),
    "too large": Case(
        429,
        error(
            "Request too large for gpt-4o in organization org-SECRET on tokens per min (TPM)",
            "tokens",
            code="rate_limit_exceeded",
        ),
        MANY,
        (NEVER, YES, NONE),
        rpm("9", "0"),
        (None, "false"),
    ),
    "overloaded": Case(
        429,
        error("The engine is currently overloaded, please try again later", "server_error"),
        BUSY,
        (SAFE, YES, NONE),
        {},
        ("20", "true"),
    ),
    "flex": Case(429, error("SECRET", code="resource_unavailable"), BUSY, (SAFE, YES, NONE), {}, ("20", "true")),
    # the rest
    "no url": Case(
        404, error("Invalid URL (POST /v1/v1/chat/completions)"), (404, BAD, "unknown_url", None), (NEVER, YES, NONE)
    ),
    "fastapi 404": Case(404, {"detail": "Not Found"}, (404, BAD, "unknown_url", None), (NEVER, YES, NONE)),
    "ollama 404": Case(404, b"404 page not found", (404, BAD, "unknown_url", None), (NEVER, YES, NONE)),
    "404": Case(404, error("No such File object: x", param="id"), (404, BAD, "not_found", "id"), FAULT),
    "413": Case(413, b"<html>", (413, BAD, "body_too_large", None), FAULT),
    "413 context": Case(413, error("x", code="context_length_exceeded"), LONG, (NEVER, LARGER, NONE)),
    "conflict": Case(409, error("SECRET"), (409, BAD, "request_refused", None), FAULT),
    "proxy": Case(407, b"SECRET", (502, "server_error", "upstream_error", None), (NEVER, YES, NONE), *STOP),
    "500": Case(
        500,
        error("The server had an SECRET error", "server_error"),
        (500, "server_error", "upstream_error", None),
        (SAFE, YES, NONE),
    ),
    "502": Case(502, b"<html>", (502, "server_error", "upstream_error", None), (SAFE, YES, NONE)),
    "503": Case(503, error("SECRET", "server_error"), (503, "server_error", "upstream_error", None), (SAFE, YES, NONE)),
    "slow down": Case(
        503,
        error("Slow down", code="slow_down"),
        (503, "server_error", "upstream_error", None),
        (SAFE, YES, NONE),
        {},
        ("20", "true"),
    ),
    "529": Case(529, b"", (502, "server_error", "upstream_error", None), (SAFE, YES, NONE)),
    "520": Case(520, b"", (502, "server_error", "upstream_error", None), (NEVER, YES, NONE)),
    **{
        str(status): Case(status, b"", (504, "server_error", "upstream_timeout", None), (UNSAFE, YES, NONE))
        for status in (408, 504, 522, 524)
    },
    "redirect": Case(301, b"", (502, "server_error", "upstream_error", None), (NEVER, YES, NONE), *STOP),
    "nonsense": Case(99, b"", (502, "server_error", "upstream_error", None), (NEVER, YES, NONE)),
}
