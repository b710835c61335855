"""The table of refusals: which ones there are, and what each means for the client, the key and the next attempt.

Bodies name the same thing differently: OpenAI by `code`, vLLM and Ollama in words, OpenRouter by the status alone. So a
row goes by any of these. Sources: OpenAI's guide "Error codes", bodies in public reports from 2023 to 2026; vLLM,
Ollama, llama.cpp, OpenRouter and Azure, where they differ.

Two rules run through the table. A 422 becomes a 400, because OpenAI has no 422 and its clients do not catch one. What
the account behind this proxy may or may not do is told in our words: the provider's are for its owner, they name the
organization and quote the key, and the client is not the owner.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, replace

from proxy.core import wording
from proxy.core.errors import Elsewhere, KeyFault, Repeat
from proxy.core.json import Json
from proxy.providers import refusals
from proxy.providers.openai.limits import LIMITS, REQUESTS_LEFT, TOKENS_LEFT
from proxy.providers.openai.refused import Refused

Mend = Callable[[Refused, Json], Json | None]


@dataclass(frozen=True, slots=True)
class Row(refusals.Row):
    """One of proxy/providers/refusals.py; `param` "messages" is "input" where that was asked. `repeat` is whether we
    may make the call again."""

    repeat: Repeat = Repeat.NEVER


def _input(
    *marks: str, text: str = "", code: str = "invalid_value", of: str | None = None, mend: Mend | None = None
) -> Row:
    """The request is at fault."""
    return Row((400, 422), marks, text, status=400, code=code, param=of, mend=mend)


def _model(
    on: Container[int],
    *marks: str,
    text: str = "",
    status: int = 404,
    code: str = "model_not_found",
    message: str | None = None,
    key: KeyFault = KeyFault.NONE,
) -> Row:
    """This model cannot be had here."""
    kind = "invalid_request_error" if status == 404 else "permission_error"
    row = Row(on, marks, text, status=status, type=kind, code=code, param="model", message=message)
    return replace(row, key=key, elsewhere=Elsewhere.YES)


def _rate(
    *marks: str,
    text: str = "",
    zero: tuple[str, ...] = (),
    message: str,
    again: int | None,
    of: str = "requests",
    key: KeyFault = KeyFault.SPENT,
) -> Row:
    """Too much at once."""
    row = Row((429,), marks, text, zero=zero, type=of, code="rate_limit_exceeded", message=message, again=again)
    repeat = Repeat.NEVER if again is None else Repeat.SAFE
    return replace(row, repeat=repeat, key=key, elsewhere=Elsewhere.YES)


def _quota(on: Container[int], *marks: str, message: str, key: KeyFault, zero: tuple[str, ...] = ()) -> Row:
    """Nothing left, and waiting does not help."""
    row = Row(on, marks, zero=zero, status=429, type="insufficient_quota", code="insufficient_quota", message=message)
    return replace(row, key=key, elsewhere=Elsewhere.YES)


def _failure(
    on: Container[int] | None,
    *marks: str,
    message: str,
    status: int | None = 502,
    code: str = "upstream_error",
    again: int | None = 0,
    repeat: Repeat = Repeat.NEVER,
    key: KeyFault = KeyFault.NONE,
) -> Row:
    """The client has done nothing wrong."""
    row = Row(on, marks, status=status, type="server_error", code=code, message=message, again=again)
    return replace(row, repeat=repeat, key=key, elsewhere=Elsewhere.YES)


def with_the_newer_limit(refused: Refused, body: Json) -> Json | None:
    """OpenAI's reasoning models know only the newer name of the limit of an answer."""
    if "max_tokens" not in body or "max_completion_tokens" in body:
        return None
    return {("max_completion_tokens" if key == "max_tokens" else key): value for key, value in body.items()}


_TOO_LARGE = (
    "The request has more tokens than the provider account behind this proxy may use of this model within a minute: "
    "shorten it, or choose another model."
)

_NO_SUCH_MODEL = (
    r"model .*(does not exist|not found|has been deprecated)|not a chat model|"
    r"^No (endpoints found|allowed providers)|deployment .*does not exist"
)
_TOO_LONG = (
    r"maximum context length|maximum model length|context size|context window|exceed n_ctx|"
    r"max_tokens must be at least 1, got -"
)
_FLAGGED = r"requires moderation|content management policy|flagged as potentially violating"

TABLE = (
    # The model, the account. No access is told as such, or as if there were no such model.
    _model(
        (400, 403, 404),
        text="not have access to (the )?model|organization must be verified",
        status=403,
        code="model_not_available",
        message=wording.NO_ACCESS,
        key=KeyFault.NO_MODEL,
    ),
    _model(
        (403,),
        "model_not_found",
        status=403,
        code="model_not_available",
        message=wording.NO_ACCESS,
        key=KeyFault.NO_MODEL,
    ),
    _model((404,), text="or you do not have access to it", key=KeyFault.NO_MODEL),
    _model((404,), "model_not_found", "DeploymentNotFound", text=_NO_SUCH_MODEL),
    _model((400, 422), "model_not_found", "invalid_model", text="^invalid model|is not a valid model ID"),
    Row((403,), ("content_filter",), _FLAGGED, status=400, code="content_filter"),
    # A limit of the account that money sets. The type alone is what a null code of 2023 left.
    _quota(
        (400, 403, 429),
        *("insufficient_quota", "billing_hard_limit_reached", "billing_not_active"),
        message=wording.NO_CREDIT,
        key=KeyFault.REFUSED,
    ),
    _quota((402,), message=wording.NO_CREDIT, key=KeyFault.REFUSED),
    # Never a 401 or 403: the client would give up its own key, which is not the one at fault.
    _failure((401, 403), code="upstream_auth_failed", message=wording.KEY_REFUSED, again=None, key=KeyFault.REFUSED),
    # The request.
    Row(
        (400, 413, 422),
        ("context_length_exceeded", "exceed_context_size_error"),
        _TOO_LONG,
        status=400,
        code="context_length_exceeded",
        param="messages",
        elsewhere=Elsewhere.LARGER,
    ),
    _input(
        *("content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation", "invalid_prompt"),
        text=_FLAGGED,
        code="content_filter",
    ),
    _input(
        text="'max_tokens' is not supported.*'max_completion_tokens'",
        code="unsupported_parameter",
        of="max_tokens",
        mend=with_the_newer_limit,
    ),
    # Not `unknown_parameter`: that is an alarm, that a table let an unknown key through. This one is meant to.
    _input(
        *("unsupported_parameter", "unknown_parameter"),
        text="^Unrecognized request argument|^Unknown parameter|Extra inputs are not permitted",
        code="unsupported_parameter",
    ),
    _input("unsupported_value", text="^Unsupported value", code="unsupported_value"),
    _input(
        *("missing_required_parameter",),
        text="^Missing required parameter|^you must provide|Field required",
        code="missing_required_parameter",
    ),
    _input("invalid_type", text="^Invalid type for|is not of type", code="invalid_type"),
    _input(),
    # Rates. A limit of 0 is a model that the account does not have; a request beyond a limit never comes within it.
    _quota((429,), zero=LIMITS, message=wording.NO_ALLOWANCE, key=KeyFault.NO_MODEL),
    _rate(text="^Request too large", message=_TOO_LARGE, again=None, of="tokens", key=KeyFault.NONE),
    # Capacity is shared by all of the provider's customers: another key would meet the same.
    _rate(
        *("engine_overloaded", "resource_unavailable", "slow_down"),
        text="currently overloaded",
        message=wording.NO_CAPACITY,
        again=20,
        key=KeyFault.NONE,
    ),
    # The window moves on all the time, and OpenAI says how soon there is room; where a server does not, it is a guess.
    _rate(zero=(REQUESTS_LEFT,), message=wording.NO_MORE_REQUESTS, again=20),
    _rate(zero=(TOKENS_LEFT,), message=wording.NO_MORE_TOKENS, again=20, of="tokens"),
    _rate(
        "tokens", text="tokens per (min|day)|token rate limit", message=wording.NO_MORE_TOKENS, again=20, of="tokens"
    ),
    _rate(message=wording.NO_MORE_REQUESTS, again=20),
    # Other refusals. What no endpoint answers is a wrong base_url: another provider may have it.
    Row(
        (404,),
        ("unknown_url",),
        "^(Invalid URL|Not Found$|404 page not found)",
        code="unknown_url",
        message=wording.NO_ENDPOINT,
        elsewhere=Elsewhere.YES,
    ),
    Row((404,), code="not_found"),
    Row((413,), code="body_too_large", message=wording.TOO_LARGE),
    _failure(
        (408, 504, 522, 524), status=504, code="upstream_timeout", message=wording.TIMED_OUT, repeat=Repeat.UNSAFE
    ),
    # About the way there, an egress proxy or the connection, and never about what the client sent.
    _failure((407, 417, 421, 426, 431, 511), message=wording.NO_SENSE, again=None),
    Row(range(400, 500), code="request_refused", message=wording.REFUSED, again=0),
    # Failures.
    _failure((503,), "slow_down", status=None, message=wording.FAILED, again=20, repeat=Repeat.SAFE),
    _failure((500, 503), status=None, message=wording.FAILED, repeat=Repeat.SAFE),
    _failure((502, 529), message=wording.FAILED, repeat=Repeat.SAFE),
    _failure(range(500, 600), message=wording.FAILED),
    _failure(range(300, 400), message=wording.REDIRECT, again=None),
    _failure(None, message=wording.NO_SENSE),
)
