"""Every body that Mistral is known to send, and what an OpenAI client is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core import json
from proxy.core.errors import BadRequest, Repeat, UpstreamFailed, UpstreamRefusal, UpstreamTimeout, render
from proxy.core.model import Model
from proxy.core.table import Context
from proxy.providers.mistral.errors import TABLE, answer_headers, mend, refusal
from proxy.providers.mistral.mending import KEPT
from proxy.providers.mistral.refused import read

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


def headers(found: Mapping[str, str]) -> Callable[[str], str | None]:
    return found.get


def asking(asked: dict[str, Any] | None = None, *, strict: bool = False) -> Context:
    return Context(model=Model("m"), asked={"messages": [], "model": "m"} if asked is None else asked, strict=strict)


def flat(message: Any, kind: str, code: str | int | None, status: int = 400) -> dict[str, Any]:
    return {
        **{"object": "error", "message": message, "type": kind},
        **{"param": None, "code": code, "raw_status_code": status},
    }


def issue(kind: str, *loc: str | int, msg: str = "Extra inputs are not permitted", **more: Any) -> dict[str, Any]:
    return {"type": kind, "loc": ["body", *loc], "msg": msg, "input": False, **more}


class Case(NamedTuple):
    status: int
    body: Any
    becomes: tuple[int, str, str, str | None]
    header: Mapping[str, str] = {}
    retry: tuple[str | None, str | None] = (None, None)  # retry-after, x-should-retry


BAD = "invalid_request_error"
ARGS = "invalid_request_invalid_args"
NO_STORE = issue("extra_forbidden", "store")
LIMITED = flat("Rate limit exceeded", "rate_limited", "1300", 429)
LABS = "labs-devstral is a Labs model. To use Labs models, an admin has to enable them."
MULTIPART = "Invalid request, make sure the request is formatted as a multipart/form-data request."
MINUTE = {"x-ratelimit-limit-req-minute": "60", "x-ratelimit-limit-tokens-minute": "500000"}

CASES = {
    # the ten shapes
    "api error": Case(
        *(400, flat("Invalid model: mistral-huge", "invalid_model", "1500")), (404, BAD, "model_not_found", "model")
    ),
    "wrapped 422": Case(422, flat({"detail": [NO_STORE]}, BAD, None, 422), (400, BAD, "unknown_parameter", "store")),
    "bare 422": Case(422, {"detail": [NO_STORE]}, (400, BAD, "unknown_parameter", "store")),
    "agents variant": Case(
        422,
        {"object": "Error", "detail": [NO_STORE], "message": [NO_STORE], "type": BAD, "code": 3001},
        (400, BAD, "unknown_parameter", "store"),
    ),
    "gateway 2026": Case(
        401, {"detail": "Invalid API Key"}, (502, "server_error", "upstream_auth_failed", None), {}, (None, "false")
    ),
    "gateway 2025": Case(
        401, {"detail": "Unauthorized"}, (502, "server_error", "upstream_auth_failed", None), {}, (None, "false")
    ),
    "codestral host": Case(
        401,
        {"message": "Unauthorized", "request_id": "0f3a"},
        (502, "server_error", "upstream_auth_failed", None),
        {},
        (None, "false"),
    ),
    "kong": Case(404, {"message": "no Route matched with those values"}, (404, BAD, "unknown_url", None)),
    "kong with id": Case(
        404, {"message": "no Route matched with those values", "request_id": "1"}, (404, BAD, "unknown_url", None)
    ),
    "fastapi 404": Case(404, {"detail": "Not Found"}, (404, BAD, "unknown_url", None)),
    "model gone": Case(404, {"message": "Model x was not found."}, (404, BAD, "model_not_found", "model")),
    "model old": Case(404, {"message": "Model x is deprecated."}, (404, BAD, "model_not_found", "model")),
    "empty 504": Case(504, b"", (504, "server_error", "upstream_timeout", None)),
    "html 502": Case(502, b"<html><h1>502</h1></html>", (502, "server_error", "upstream_error", None)),
    "event of a stream": Case(
        500,
        b"data: " + json.encode(flat("Internal error", "internal_error", "3000", 500)) + b"\n\n",
        (500, "server_error", "upstream_error", None),
    ),
    "2024 model": Case(400, flat("Invalid model: x", BAD, None), (404, BAD, "model_not_found", "model")),
    "2024 proxy": Case(
        500, flat("Internal error", "internal_error_proxy", "1000", 500), (500, "server_error", "upstream_error", None)
    ),
    "2024 limit": Case(
        429,
        {"message": "Requests rate limit exceeded"},
        (429, "requests", "rate_limit_exceeded", None),
        {},
        ("60", "true"),
    ),
    "as OpenAI wraps it": Case(
        400, {"error": flat("Invalid model: x", "invalid_model", 1500)}, (404, BAD, "model_not_found", "model")
    ),
    # the account
    "not on the tier": Case(
        403,
        flat("This model is not available in your subscription tier", "tier_not_allowed", "1910", 403),
        (403, "permission_error", "model_not_available", "model"),
    ),
    "labs": Case(
        403, flat(LABS, "labs_not_enabled", "1913", 403), (403, "permission_error", "model_not_available", "model")
    ),
    "guardrail": Case(
        403,
        flat("Request blocked by guardrail policy", "guardrail_violation", "1920", 403),
        (400, BAD, "content_filter", None),
    ),
    "another 403": Case(
        403, b"<html>blocked</html>", (502, "server_error", "upstream_auth_failed", None), {}, (None, "false")
    ),
    "no credit": Case(402, b"", (429, "insufficient_quota", "insufficient_quota", None), {}, (None, "false")),
    # 422
    "missing": Case(
        422,
        {"detail": [issue("missing", "model", msg="Field required")]},
        (400, BAD, "missing_required_parameter", "model"),
    ),
    "too much": Case(
        422,
        {"detail": [issue("less_than_equal", "temperature", msg="Input should be less than or equal to 1.5")]},
        (400, BAD, "invalid_value", "temperature"),
    ),
    "no string": Case(
        422,
        {"detail": [issue("string_type", "messages", 2, "user", "content", "str", msg="Input should be a string")]},
        (400, BAD, "invalid_type", "messages[2].content"),
    ),
    "role": Case(
        422,
        {"detail": [issue("union_tag_invalid", "messages", 0, msg="Input tag 'developer' found using 'role' …")]},
        (400, BAD, "invalid_value", "messages[0]"),
    ),
    "enum": Case(
        422,
        {"detail": [issue("enum", "tool_choice", "str-enum[ToolChoiceEnum]", msg="Input should be 'auto', 'none' …")]},
        (400, BAD, "invalid_value", "tool_choice"),
    ),
    "multipart": Case(422, flat(MULTIPART, BAD, None, 422), (400, BAD, "invalid_value", None)),
    "runtime context": Case(
        422, flat("prompt_too_long: 40000", BAD, None, 422), (400, BAD, "context_length_exceeded", "messages")
    ),
    "runtime context, by type": Case(
        422,
        flat("The context is exceeded", "model_context_exceeded", None, 422),
        (400, BAD, "context_length_exceeded", "messages"),
    ),
    "runtime truncation": Case(
        422, flat("couldn't fit with truncation", BAD, None, 422), (400, BAD, "context_length_exceeded", "messages")
    ),
    # 400
    "context": Case(
        400,
        flat(
            "Prompt contains 40107 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
            *(ARGS, "3051"),
        ),
        (400, BAD, "context_length_exceeded", "messages"),
    ),
    "effort": Case(
        400,
        flat("reasoning_effort='low' is not supported for this model. Must be one of ('none', 'high')", ARGS, "3051"),
        (400, BAD, "unsupported_value", "reasoning_effort"),
    ),
    "no effort": Case(
        400,
        flat("reasoning_effort is not enabled for this model", ARGS, "3051"),
        (400, BAD, "unsupported_value", "reasoning_effort"),
    ),
    "prompt mode": Case(
        400,
        flat("Reasoning prompt mode is not enabled for this model", ARGS, "3051"),
        (400, BAD, "unsupported_value", "prompt_mode"),
    ),
    "logprobs": Case(
        400,
        flat("Logprobs are not enabled for this model", ARGS, "3051"),
        (400, BAD, "unsupported_parameter", "logprobs"),
    ),
    "thinking": Case(
        400,
        flat("Reasoning input is not enabled for this model", ARGS, "3051"),
        (400, BAD, "invalid_value", "messages"),
    ),
    "dimensions": Case(
        400,
        flat("This model does not support output_dimension.", ARGS, "3051"),
        (400, BAD, "unsupported_parameter", "dimensions"),
    ),
    "greedy": Case(
        400, flat("top_p must be 1 when using greedy sampling.", ARGS, None), (400, BAD, "invalid_value", "top_p")
    ),
    "too many inputs": Case(
        400,
        flat("Too many inputs in request, split into more batches.", "invalid_request_prompt", "3210"),
        (400, BAD, "invalid_value", "input"),
    ),
    "too many tokens": Case(
        400,
        flat("Too many tokens overall, split into more batches.", BAD, None),
        (400, BAD, "invalid_value", "input"),
    ),
    "order": Case(
        400,
        flat("Expected last role User or Tool … but got assistant", "invalid_request_message_order", "3230"),
        (400, BAD, "invalid_value", "messages"),
    ),
    "order, 2024": Case(
        400,
        flat("Not the same number of function calls and responses", BAD, None),
        (400, BAD, "invalid_value", "messages"),
    ),
    "tool then user": Case(
        400,
        flat("Unexpected role 'user' after role 'tool'", "invalid_request_message_order", "3230"),
        (400, BAD, "invalid_value", "messages"),
    ),
    "neither": Case(
        400,
        flat(
            "Assistant message must have either content or tool_calls, but not none.",
            *("invalid_request_assistant_message", "3240"),
        ),
        (400, BAD, "invalid_value", "messages"),
    ),
    "both": Case(
        400,
        flat(
            "Assistant message must have either content or tool_calls, but not both.",
            *("invalid_request_assistant_message", "3240"),
        ),
        (400, BAD, "invalid_value", "messages"),
    ),
    "call id": Case(
        400,
        flat("Tool call id was call_1 but must be a-z, A-Z, 0-9, with a length of 9.", "invalid_function_call", "3280"),
        (400, BAD, "invalid_value", "messages"),
    ),
    "audio": Case(
        400,
        flat("Audio input could not be decoded.", "invalid_request_file", "3310"),
        (400, BAD, "invalid_value", "file"),
    ),
    "pdf": Case(
        400,
        flat("Document is not a valid PDF.", "document_parser_invalid_file", "3740"),
        (400, BAD, "invalid_value", "messages"),
    ),
    "anything else": Case(400, flat("Some new rule", ARGS, "3051"), (400, BAD, "invalid_value", None)),
    # 429
    "requests": Case(
        429,
        LIMITED,
        (429, "requests", "rate_limit_exceeded", None),
        {**MINUTE, "x-ratelimit-remaining-req-minute": "0"},
        ("60", "true"),
    ),
    "tokens": Case(
        429,
        LIMITED,
        (429, "tokens", "rate_limit_exceeded", None),
        {**MINUTE, "x-ratelimit-remaining-req-minute": "7", "x-ratelimit-remaining-tokens-minute": "0"},
        ("60", "true"),
    ),
    "tokens, 2024": Case(
        429,
        LIMITED,
        (429, "tokens", "rate_limit_exceeded", None),
        {"ratelimitbysize-limit": "500000", "ratelimitbysize-remaining": "0"},
        ("60", "true"),
    ),
    "not on the plan": Case(
        429,
        LIMITED,
        (429, "insufficient_quota", "insufficient_quota", None),
        {"x-ratelimit-limit-req-minute": "0", "x-ratelimit-remaining-req-minute": "0", "retry-after": "5"},
        (None, "false"),
    ),
    "no tokens on the plan": Case(
        429,
        LIMITED,
        (429, "insufficient_quota", "insufficient_quota", None),
        {"x-ratelimit-limit-req-minute": "60", "x-ratelimit-limit-tokens-minute": "0"},
        (None, "false"),
    ),
    "month": Case(
        429,
        LIMITED,
        (429, "insufficient_quota", "insufficient_quota", None),
        {**MINUTE, "x-ratelimit-remaining-tokens-month": "0"},
        (None, "false"),
    ),
    "Mistral says when": Case(
        429, LIMITED, (429, "requests", "rate_limit_exceeded", None), {**MINUTE, "retry-after": "7"}, ("7", "true")
    ),
    "tier capacity": Case(
        429,
        flat("Service tier capacity exceeded for this model.", "service_tier_capacity_exceeded", "3505", 429),
        (429, "requests", "rate_limit_exceeded", None),
        MINUTE,
        ("20", "true"),
    ),
    "engine capacity": Case(
        429,
        flat("Capacity exceeded for this model.", "engine_max_pending_tokens", "3810", 429),
        (429, "requests", "rate_limit_exceeded", None),
        MINUTE,
        ("5", "true"),
    ),
    # failures
    "internal": Case(
        500, flat("Internal error", "internal_error", "3000", 500), (500, "server_error", "upstream_error", None)
    ),
    "backend": Case(
        503,
        flat("Internal server error", "unreachable_backend", "1100", 503),
        (503, "server_error", "upstream_error", None),
    ),
    "unavailable": Case(
        503,
        flat("Service unavailable.", "internal_server_error", "3800", 503),
        (503, "server_error", "upstream_error", None),
        {},
        ("20", "true"),
    ),
    "unavailable until": Case(
        503, b"", (503, "server_error", "upstream_error", None), {"retry-after": "3"}, ("3", "true")
    ),
    "cloudflare": Case(520, b"error code: 520", (502, "server_error", "upstream_error", None)),
    "cloudflare overloaded": Case(529, b"", (502, "server_error", "upstream_error", None)),
    "cloudflare timeout": Case(524, b"error code: 524", (504, "server_error", "upstream_timeout", None)),
    "redirect": Case(307, b"", (502, "server_error", "upstream_error", None), {}, (None, "false")),
    "error with 200": Case(
        200, flat("Internal error", "internal_error", "3000"), (502, "server_error", "upstream_error", None)
    ),
    # the rest
    "no such thing": Case(404, {"message": "File not found"}, (404, BAD, "not_found", None)),
    "too large": Case(413, b"<html></html>", (413, BAD, "body_too_large", None)),
    "too slow": Case(408, b"", (504, "server_error", "upstream_timeout", None)),
    "a login on the way": Case(407, b"", (502, "server_error", "upstream_error", None), {}, (None, "false")),
    "conflict": Case(409, {"detail": "workspace acme is busy"}, (409, BAD, "request_refused", None)),
}


def made(case: Case, context: Context | None = None) -> Any:
    body = case.body if isinstance(case.body, bytes) else json.encode(case.body)
    return refusal(case.status, headers(case.header), body, context or asking())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_table(case):
    error = made(case)
    assert (error.status, error.type, error.code, error.param) == case.becomes
    sent = dict(error.headers)
    wait, again = (text.encode() if text else None for text in case.retry)
    assert sent.get(b"retry-after") == wait
    assert sent.get(b"retry-after-ms") == (wait + b"000" if wait else None)
    assert sent.get(b"x-should-retry") == again


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_error_keeps_mistrals_status_and_code(case):
    upstream = made(case).detail["upstream"]
    told = case.body if isinstance(case.body, dict) else {}
    code = "3000" if case is CASES["event of a stream"] else told.get("error", told).get("code")
    assert upstream == {"provider": "mistral", "status": case.status, "code": None if code is None else str(code)}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_error_has_a_sentence(case):
    assert 10 < len(made(case).message) <= 501


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.on}-{row.marks}-{row.text[:20]}-{row.zero[:1]}")
def test_every_row_is_reached(row):
    def reached(case: Case) -> bool:
        body = case.body if isinstance(case.body, bytes) else json.encode(case.body)
        refused = read(case.status, headers(case.header), body)
        return next(one for one in TABLE if one.fits(refused)) is row

    assert any(reached(case) for case in CASES.values())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_mistral_says_itself_is_never_billed(case):
    assert not getattr(made(case), "billed", False)


@pytest.mark.parametrize(
    ("status", "body", "header", "repeat"),
    [
        (429, {"message": "x"}, {}, Repeat.SAFE),
        (429, {"message": "x"}, {"x-ratelimit-limit-req-minute": "0"}, Repeat.NEVER),
        (500, {}, {}, Repeat.SAFE),
        (502, b"", {}, Repeat.SAFE),
        (503, b"<html>", {}, Repeat.SAFE),
        (504, b"", {}, Repeat.UNSAFE),
        (524, b"", {}, Repeat.UNSAFE),
        (529, b"", {}, Repeat.SAFE),
        (408, b"", {}, Repeat.UNSAFE),
        *((status, {"message": "x"}, {}, Repeat.NEVER) for status in (301, 400, 401, 402, 403, 404, 409, 413, 422)),
    ],
)
def test_what_a_repeat_would_do(status, body, header, repeat):
    assert made(Case(status, body, (0, "", "", None), header)).repeat is repeat


@pytest.mark.parametrize(
    ("header", "asked"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"date": "Sat, 28 Nov 2026 01:00:00 GMT", "retry-after": "Sat, 28 Nov 2026 01:01:30 GMT"}, 90.0),
        ({"retry-after": "soon"}, None),
    ],
)
def test_when_mistral_wants_it_repeated(header, asked):
    assert made(Case(503, b"", (0, "", "", None), header)).asked == asked


def test_the_classes_are_those_of_the_tree():
    assert isinstance(made(CASES["html 502"]), UpstreamFailed)
    assert isinstance(made(CASES["gateway 2026"]), UpstreamFailed)
    assert isinstance(made(CASES["empty 504"]), UpstreamTimeout)
    assert isinstance(made(CASES["internal"]), UpstreamRefusal)
    assert not isinstance(made(CASES["missing"]), BadRequest)


@pytest.mark.parametrize(
    "name", ["gateway 2026", "no credit", "not on the tier", "labs", "internal", "conflict", "kong"]
)
def test_what_concerns_the_account_is_said_in_our_words(name):
    case = CASES[name]
    said = case.body.get("message") or case.body.get("detail") if isinstance(case.body, dict) else "<html"
    assert said not in made(case).message


@pytest.mark.parametrize("status", [401, 402, 429, 500, 502])
def test_what_is_no_fault_of_the_request_names_no_field(status):
    assert refusal(status, headers({}), json.encode({"detail": [NO_STORE]}), asking()).param is None


def test_our_key_has_its_own_sentence():
    assert made(CASES["gateway 2025"]).message == (
        "The proxy's own key was refused by the provider; its operator must act."
    )


@pytest.mark.parametrize("name", ["api error", "multipart", "context", "effort", "order", "pdf", "guardrail"])
def test_what_concerns_the_request_is_said_in_mistrals_words(name):
    assert made(CASES[name]).message == CASES[name].body["message"]


def test_a_422_names_each_field_as_openai_does():
    body = {
        "detail": [
            issue("greater_than", "output_dimension", msg="Input should be greater than 0"),
            issue("string_type", "messages", 2, "user", "content", "str", msg="Input should be a valid string"),
        ]
    }
    error = refusal(422, headers({}), json.encode(body), asking({"dimensions": 0, "messages": []}))
    assert error.param == "dimensions"
    assert error.message == (
        "dimensions: Input should be greater than 0; messages[2].content: Input should be a valid string"
    )


def test_guardrails_are_kept_beside_the_error():
    blocked = [{"name": "moderation_llm_v2", "action": "block"}]
    body = {**CASES["guardrail"].body, "guardrails": blocked}
    told = json.decode(render(refusal(403, headers({}), json.encode(body), asking())))
    assert told["error"]["guardrails"] == blocked
    assert told["error"]["upstream"] == {"provider": "mistral", "status": 403, "code": "1920"}


def test_guardrails_of_another_error_are_not():
    body = {"detail": [issue("missing", "model")], "guardrails": ["private"]}
    assert b"private" not in render(refusal(422, headers({}), json.encode(body), asking()))


def test_a_long_message_is_cut_and_put_on_one_line():
    error = refusal(400, headers({}), json.encode(flat("a\r\nb\x1b" + "x" * 5000, ARGS, "3051")), asking())
    assert error.message == "a  b " + "x" * 495 + "…"


@pytest.mark.parametrize("asked", [{"input": "x"}, {"prompt": "x"}])
def test_too_long_a_text_is_in_the_field_that_the_client_sent(asked):
    assert made(CASES["context"], asking(asked)).param == next(iter(asked))


PROMPT = "a canary from the user's own prompt"


@pytest.mark.parametrize(
    "body",
    [
        {"detail": [issue("string_type", "messages", 0, msg="Wrong", **{"input": PROMPT})]},
        {"detail": [issue("value_error", "messages", 0, msg=f"Value error, got {PROMPT}!", **{"input": PROMPT})]},
        flat({"detail": [issue("missing", "m", msg="no", **{"input": {"content": [PROMPT]}})]}, BAD, None),
        flat(str([issue("missing", "m", **{"input": PROMPT})]), BAD, None),
        flat(json.encode([issue("missing", "m", **{"input": PROMPT})]).decode(), BAD, None),
    ],
)
def test_the_input_that_a_422_repeats_is_never_told(body):
    told = render(refusal(422, headers({}), json.encode(body), asking()))
    assert b"canary" not in told


@given(
    st.integers(-5, 1200),
    st.binary(max_size=200) | JSON.map(json.encode),
    st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms", "date", *MINUTE]), st.text(max_size=30)),
)
def test_refusal_never_raises(status, body, found):
    error = refusal(status, headers(found), body, asking())
    assert 400 <= error.status < 600
    assert json.decode(render(error))["error"]["message"]
    assert all(value.isascii() and value.isalnum() for _, value in error.headers)


LOCS = st.lists(st.text(max_size=15) | st.integers(-3, 9) | st.sampled_from(["body", "messages", "user", "content"]))
ECHO = st.text("abcdefghij ", max_size=20).map("what was sent: {}".format)


@given(
    st.lists(st.tuples(st.sampled_from(["missing", "extra_forbidden", "x"]), LOCS, JSON), max_size=4), ECHO, st.data()
)
def test_an_error_never_holds_the_input(problems, echo, data):
    shapes = st.sampled_from([echo, {"content": echo}, [echo]])
    detail = [
        {"type": kind, "loc": loc, "msg": str(text)[:30], "input": data.draw(shapes)} for kind, loc, text in problems
    ]
    wrapped = data.draw(st.sampled_from([{"detail": detail}, flat({"detail": detail}, BAD, None), {"message": detail}]))
    error = refusal(422, headers({}), json.encode(wrapped), asking())
    assert echo.encode() not in render(error)


# mend

CHAT: dict[str, Any] = {
    "model": "m",
    "temperature": 0,
    "store": False,
    "reasoning_effort": "low",
    "messages": [{"role": "user", "content": "hi", "name": "bob"}],
}


@pytest.mark.parametrize(
    ("name", "changes", "word"),
    [
        ("bare 422", {"store": None}, "mend:store"),
        ("effort", {"reasoning_effort": None}, "mend:reasoning_effort"),
        ("greedy", {"top_p": 1}, "mend:top_p"),
    ],
)
def test_mending_gives_a_corrected_copy_and_a_word(name, changes, word):
    expected = {key: value for key, value in {**CHAT, **changes}.items() if value is not None}
    assert mend(made(CASES[name]), CHAT) == (expected, word)


def test_the_word_has_no_positions():
    body = {"detail": [issue("extra_forbidden", "messages", 0, "user", "name")]}
    mended = mend(refusal(422, headers({}), json.encode(body), asking()), CHAT)
    assert mended is not None
    assert mended[0]["messages"] == [{"role": "user", "content": "hi"}]
    assert mended[1] == "mend:messages.name"


@given(st.text(min_size=1, max_size=40).filter(lambda key: key not in KEPT))
def test_the_word_is_fit_for_a_header(key):
    body = {"detail": [issue("extra_forbidden", "metadata", key)]}
    error = refusal(422, headers({}), json.encode(body), asking())
    mended = mend(error, {"metadata": {key: 1}})
    assert mended is not None
    assert mended[0] == {"metadata": {}}
    assert mended[1].isascii()
    assert mended[1].isprintable()
    assert not set(mended[1]) & set(", \r\n")


@pytest.mark.parametrize(
    "name", ["missing", "logprobs", "api error", "requests", "internal", "html 502", "gateway 2026"]
)
def test_what_cannot_be_mended_is_left(name):
    assert mend(made(CASES[name]), CHAT) is None


def test_a_refusal_about_something_that_was_not_sent_is_left():
    assert mend(made(CASES["effort"]), {"model": "m"}) is None


def test_in_strict_mode_nothing_is_mended():
    assert mend(made(CASES["bare 422"], asking(strict=True)), CHAT) is None


# answer_headers


def test_the_central_accounts_limits_stay_behind():
    found = {**MINUTE, "set-cookie": "__cf_bm=1", "mistral-correlation-id": "0191-abc", "x-kong-request-id": "1"}
    assert answer_headers(headers(found)) == [(b"x-upstream-request-id", b"0191-abc")]


def test_without_an_id_there_is_no_header():
    assert answer_headers(headers({})) == []
    assert answer_headers(headers({"mistral-correlation-id": "\r\n é"})) == []


@pytest.mark.parametrize(("length", "there"), [(128, True), (129, False)])
def test_an_id_is_not_cut(length, there):
    found = answer_headers(headers({"mistral-correlation-id": "é" + "a" * length}))
    assert found == ([(b"x-upstream-request-id", b"a" * 128)] if there else [])


@given(st.text(max_size=300))
def test_the_upstream_id_is_visible_ascii(text):
    for _, value in answer_headers(headers({"mistral-correlation-id": text})):
        assert len(value) <= 128
        assert all(33 <= byte <= 126 for byte in value)
