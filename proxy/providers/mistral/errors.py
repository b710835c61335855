"""What Mistral says when it refuses, and the OpenAI error that each refusal becomes.

`TABLE` has the facts and its first fitting row wins; `refusal` is its interpreter. The codes and texts are those of
recorded traffic and public reports from 2024 to 2026; Mistral's own page of errors shows some that nobody has received.

Two rules run through the table. A 422 becomes a 400, because OpenAI has no 422 and its clients do not catch one. What
the central account may or may not do is told in our words: Mistral's are for its owner, and the client is not.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import replace
from functools import partial
from typing import Any

from proxy.core import wording
from proxy.core.errors import (
    Elsewhere,
    Headers,
    KeyFault,
    ProxyError,
    Repeat,
    UpstreamFailed,
    UpstreamRefusal,
    UpstreamTimeout,
)
from proxy.core.json import Json
from proxy.core.provider import Header, Left
from proxy.core.table import Context
from proxy.providers.mistral.mending import (
    Mend,
    with_bridges,
    with_calls_alone,
    with_full_top_p,
    without_effort,
    without_thinking,
    without_unknown_keys,
)
from proxy.providers.mistral.refused import Refused, read
from proxy.providers.mistral.spelling import param, spelled
from proxy.providers.refusals import Row, one_line, visible
from proxy.providers.retry_after import advice, asked

_LONGEST_COUNT = 16


def _input(
    *marks: str, text: str = "", code: str = "invalid_value", of: str | None = None, mend: Mend | None = None
) -> Row:
    """The request is at fault."""
    return Row((400, 422), marks, text, status=400, code=code, param=of, mend=mend)


def _rate(
    *marks: str,
    message: str,
    again: int,
    zero: tuple[str, ...] = (),
    of: str = "requests",
    key: KeyFault = KeyFault.SPENT,
) -> Row:
    """Too much at once."""
    row = Row((429,), marks, zero=zero, type=of, code="rate_limit_exceeded", message=message, again=again)
    return replace(row, key=key, elsewhere=Elsewhere.YES)


def _quota(on: int, message: str, key: KeyFault, zero: tuple[str, ...] = ()) -> Row:
    """Nothing left, and waiting does not help."""
    row = Row((on,), zero=zero, status=429, type="insufficient_quota", code="insufficient_quota", message=message)
    return replace(row, key=key, elsewhere=Elsewhere.YES)


def _failure(
    on: Container[int] | None,
    *marks: str,
    message: str,
    status: int | None = 502,
    code: str = "upstream_error",
    again: int | None = 0,
    key: KeyFault = KeyFault.NONE,
) -> Row:
    """The client has done nothing wrong."""
    row = Row(on, marks, status=status, type="server_error", code=code, message=message, again=again)
    return replace(row, key=key, elsewhere=Elsewhere.YES)


# Header names: those of 2026, then those of 2024-25.
_ALLOWANCE = (
    "x-ratelimit-limit-req-minute",
    "x-ratelimit-limit-tokens-minute",
    "x-ratelimitbysize-limit-minute",
    "ratelimitbysize-limit",
)
_LEFT_THIS_MONTH = (
    "x-ratelimit-remaining-req-month",
    "x-ratelimit-remaining-tokens-month",
    "x-ratelimitbysize-remaining-month",
)
_REQUESTS_LEFT = ("x-ratelimit-remaining-req-minute",)
_TOKENS_LEFT = (
    "x-ratelimit-remaining-tokens-minute",
    "x-ratelimitbysize-remaining-minute",
    "ratelimitbysize-remaining",
)

# pydantic's names for "not the JSON type that was expected".
_WRONG_TYPE = (
    *("string_type", "int_type", "int_parsing", "int_from_float", "float_type", "float_parsing", "bool_type"),
    *("bool_parsing", "list_type", "dict_type", "model_type", "model_attributes_type"),
)

_NO_MONTH = "The provider account behind this proxy has used up its allowance for this month; its operator must act."

TABLE = (
    # The model, the URL, the account. An unknown model is a 404 at OpenAI and a 400 at Mistral.
    Row(
        (400, 404, 422),
        ("1500", "invalid_model"),
        "^Invalid model",
        status=404,
        code="model_not_found",
        param="model",
        elsewhere=Elsewhere.YES,
    ),
    Row(
        (404,),
        text="^Model .*(was not found|is deprecated)",
        code="model_not_found",
        param="model",
        elsewhere=Elsewhere.YES,
    ),
    Row((404,), text="^(no Route matched|Not Found$)", code="unknown_url", message=wording.NO_ENDPOINT),
    Row(
        (403,),
        ("1910", "1913", "tier_not_allowed", "labs_not_enabled"),
        type="permission_error",
        code="model_not_available",
        param="model",
        message=wording.NO_ACCESS,
        key=KeyFault.NO_MODEL,
        elsewhere=Elsewhere.YES,
    ),
    Row((403,), ("1920", "guardrail_violation"), status=400, code="content_filter"),
    # Never a 401 or 403: the client would give up its own key, which is not the one at fault.
    _failure((401, 403), code="upstream_auth_failed", message=wording.KEY_REFUSED, again=None, key=KeyFault.REFUSED),
    _quota(402, wording.NO_CREDIT, KeyFault.REFUSED),
    # The request. One code, 3051, stands for many mistakes: these rows go by text.
    Row(
        (400, 422),
        ("model_context_exceeded", "prompt_too_long"),
        "too large for model with|model_context_exceeded|prompt_too_long|couldn't fit with truncation",
        status=400,
        code="context_length_exceeded",
        param="messages",
        elsewhere=Elsewhere.LARGER,
    ),
    _input(
        text="reasoning_effort.* is not (supported|enabled) for this model",
        code="unsupported_value",
        of="reasoning_effort",
        mend=without_effort,
    ),
    _input(text="^Reasoning prompt mode is not enabled", code="unsupported_value", of="prompt_mode"),
    _input(text="^Reasoning input is not enabled", of="messages", mend=without_thinking),
    _input(text="^Logprobs are not enabled", code="unsupported_parameter", of="logprobs"),
    _input(text="does not support output_dimension", code="unsupported_parameter", of="output_dimension"),
    _input(text="^top_p must be 1", of="top_p", mend=with_full_top_p),
    _input("3210", "invalid_request_prompt", text="^Too many (inputs|tokens)", of="input"),
    # Two rules of a conversation differ between models; what breaks the others is repaired before anything is sent.
    _input(text="Unexpected role 'user' after role 'tool'", of="messages", mend=with_bridges),
    _input(text="content (and|or) tool_calls,? but not both", of="messages", mend=with_calls_alone),
    _input("3230", "invalid_request_message_order", text="^(Unexpected role|Expected last role)", of="messages"),
    _input(text="^Not the same number of function calls and responses", of="messages"),
    _input("3240", "invalid_request_assistant_message", text="^Assistant message must have", of="messages"),
    _input("3280", "invalid_function_call", text="^Tool call id was", of="messages"),
    _input("3310", "invalid_request_file", of="file"),
    _input("3740", "document_parser_invalid_file", of="messages"),
    # An unknown key means that our own tables let it through: the operator wants to know.
    _input("extra_forbidden", code="unknown_parameter", mend=without_unknown_keys),
    _input("missing", code="missing_required_parameter"),
    _input(*_WRONG_TYPE, code="invalid_type"),
    _input(),
    # Rates. Capacity is shared by all of Mistral's customers. A limit of 0 is a model that the plan does not have.
    _rate("3505", "service_tier_capacity_exceeded", message=wording.NO_CAPACITY, again=20, key=KeyFault.NONE),
    _rate("3810", "engine_max_pending_tokens", message=wording.NO_CAPACITY, again=5, key=KeyFault.NONE),
    _quota(429, wording.NO_ALLOWANCE, KeyFault.NO_MODEL, zero=_ALLOWANCE),
    _quota(429, _NO_MONTH, KeyFault.NO_MODEL, zero=_LEFT_THIS_MONTH),
    # The window slides and its reset is not told, but 60 seconds later it is another one. Where the requests are used
    # up, the pair of token headers is missing.
    _rate(zero=_REQUESTS_LEFT, message=wording.NO_MORE_REQUESTS, again=60),
    _rate(zero=_TOKENS_LEFT, message=wording.NO_MORE_TOKENS, again=60, of="tokens"),
    _rate(message=wording.NO_MORE_REQUESTS, again=60),
    # Other refusals.
    Row((404,), code="not_found"),
    Row((413,), code="body_too_large", message=wording.TOO_LARGE),
    _failure((408, 504, 522, 524), status=504, code="upstream_timeout", message=wording.TIMED_OUT),
    # About the way there, an egress proxy or the connection, and never about what the client sent.
    _failure((407, 417, 421, 426, 431, 511), message=wording.NO_SENSE, again=None),
    Row(range(400, 500), code="request_refused", message=wording.REFUSED, again=0),
    # Failures. 3800 is the one that wants patience.
    _failure((503,), "3800", status=None, message=wording.FAILED, again=20),
    _failure((500, 503), status=None, message=wording.FAILED),
    _failure(range(500, 600), message=wording.FAILED),
    _failure(range(300, 400), message=wording.REDIRECT, again=None),
    _failure(None, message=wording.NO_SENSE),
)

_CLASSES = {502: UpstreamFailed, 504: UpstreamTimeout}


def refusal(status: int, header: Header, body: bytes, context: Context) -> ProxyError:
    """The error for an answer that is no success. Never raises, whatever the body is.

    The message never holds the `input` that a 422 repeats: it is the user's prompt. Where Mistral's own words quote the
    request, they may: they go to its sender alone, and into a log only with the rest of what was said. In strict mode
    nothing is mended: the client has asked to be told instead.
    """
    refused = read(status, header, body)
    row = next(row for row in TABLE if row.fits(refused))
    becomes = row.status or status
    detail: Json = {"upstream": {"provider": "mistral", "status": status, "code": refused.code}}
    if row.code == "content_filter" and refused.guardrails:
        detail["guardrails"] = refused.guardrails
    more: dict[str, Any] = {
        "code": row.code,
        "param": _field(row, refused, context),
        "detail": detail,
        "headers": advice(becomes, row.again, header),
    }
    message = one_line(row.message or _told(refused, context) or wording.REFUSED).replace("{status}", str(status))
    error: ProxyError
    if becomes in _CLASSES:
        error = _CLASSES[becomes](message, billed=False, **more)
    else:
        mend = partial(row.mend, refused) if row.mend and not context.strict else None
        error = UpstreamRefusal(message, status=becomes, type=row.type, mend=mend, **more)
    error.repeat, error.asked = _repeat(status, becomes, row), asked(header)
    error.elsewhere, error.key = row.elsewhere, row.key
    return error


def _repeat(status: int, becomes: int, row: Row) -> Repeat:
    """Mistral has said itself that it has not done it; but not where its own gateway has only not heard of it."""
    if row.again is None or not (status == 429 or status >= 500 or becomes == 504):
        return Repeat.NEVER
    return Repeat.UNSAFE if becomes == 504 else Repeat.SAFE


def _field(row: Row, refused: Refused, context: Context) -> str | None:
    if row.param:
        return spelled(row.param, context)
    return None if row.message else param(refused.lead, context)  # our own words are about no field


def _told(refused: Refused, context: Context) -> str:
    """Mistral's own words, with the fields named as the client spelled them."""
    if not refused.issues:
        return refused.text
    told = ((param(issue, context), issue.text) for issue in refused.issues)
    return "; ".join(f"{where}: {text}" if where else text for where, text in told)


def mend(error: ProxyError, body: Json) -> tuple[Json, str] | None:
    """A corrected copy of the refused upstream `body`, to be sent once more, and a word for `x-proxy-rewrites` such as
    "mend:top_p". None when nothing can be done."""
    mended = error.mend(body) if isinstance(error, UpstreamRefusal) and error.mend else None
    if mended is None:
        return None
    field = re.sub(r"\[\d+\]", "", error.param or "body")
    return mended, "mend:" + re.sub(r"[^A-Za-z0-9_.-]", "?", field)


def left(header: Header) -> Left:
    """What the key's account may still ask of the model within its sliding minute."""
    return Left(_count(header, _REQUESTS_LEFT), _count(header, _TOKENS_LEFT))


def _count(header: Header, names: tuple[str, ...]) -> int | None:
    """What the first of them says that is there; nothing if that is no number of a sensible length."""
    for name in names:
        said = header(name)
        if said:
            return int(said) if said.isascii() and said.isdigit() and len(said) < _LONGEST_COUNT else None
    return None


# Rate-limit headers stay behind: their numbers are the central account's, and a team sees its own quota's under the
# same names.
_PASSED_ON = (("mistral-correlation-id", b"x-upstream-request-id"),)


def answer_headers(header: Header) -> Headers:
    """The headers of an answer that clients may see, under the names they see."""
    return visible(header, _PASSED_ON)
