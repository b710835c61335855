"""What a client is told of a refusal, and what is made of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core import json
from proxy.core.errors import ProxyError, UpstreamFailed, UpstreamTimeout, render
from proxy.core.model import Model
from proxy.core.table import Context
from proxy.providers.openai.error_table import TABLE
from proxy.providers.openai.errors import answer_headers, mend, refusal
from proxy.providers.openai.refused import read
from tests.providers.openai.refusals import CASES, Case, error, rpm
from tests.providers.openai.test_chat import JSON


def raw(body: Any) -> bytes:
    return body if isinstance(body, bytes) else json.encode(body)


def no_header(name: str) -> str | None:
    return None


def asking(asked: dict[str, Any] | None = None, *, strict: bool = False) -> Context:
    return Context(Model("m"), {"messages": []} if asked is None else asked, strict)


def made(case: Case, context: Context | None = None) -> ProxyError:
    return refusal(case.status, case.header.get, raw(case.body), context or asking())


@pytest.mark.parametrize("name", CASES)
def test_what_a_client_is_told_and_what_is_made_of_it(name):
    case = CASES[name]
    told = made(case)
    assert (told.status, told.type, told.code, told.param) == case.becomes
    assert (told.repeat, told.elsewhere, told.key) == case.means
    headers = {key.decode(): value.decode() for key, value in told.headers}
    assert (headers.get("retry-after"), headers.get("x-should-retry")) == case.retry
    assert b"SECRET" not in render(told)
    assert told.message
    assert told.detail["upstream"]["provider"] == "openai"
    assert told.detail["upstream"]["status"] == case.status


def test_every_row_of_the_table_is_needed_by_a_case():
    used = {
        next(at for at, row in enumerate(TABLE) if row.fits(read(case.status, case.header.get, raw(case.body))))
        for case in CASES.values()
    }
    assert used == set(range(len(TABLE)))


@pytest.mark.parametrize("name", CASES)
def test_a_client_never_hears_401(name):
    """It would give up its own key."""
    assert made(CASES[name]).status != 401


@pytest.mark.parametrize("name", ["wrong key", "502", "408", "redirect"])
def test_what_the_provider_says_that_it_has_not_done_costs_nothing(name):
    told = made(CASES[name])
    assert isinstance(told, UpstreamTimeout if name == "408" else UpstreamFailed)
    assert not told.billed


@pytest.mark.parametrize(
    ("name", "asked"),
    [("told when", 7.0), ("requests", 432.0), ("tokens", 0.02), ("tokens, by type", None), ("too large", None)],
)
def test_when_the_provider_wants_it_repeated(name, asked):
    assert made(CASES[name]).asked == asked


def test_what_is_no_rate_limit_does_not_wait_for_one():
    told = refusal(503, rpm("0", "0").get, b"", asking())
    assert told.asked is None
    assert told.headers == []


def test_the_codes_of_the_upstream_are_kept_beside():
    assert made(CASES["image"]).detail == {
        "upstream": {"provider": "openai", "status": 400, "code": "invalid_image_url"}
    }


@pytest.mark.parametrize("name", ["no such model", "context", "policy", "max_tokens", "image", "404"])
def test_what_concerns_the_request_is_said_in_the_providers_words(name):
    assert made(CASES[name]).message == CASES[name].body["error"]["message"]


def test_a_list_of_problems_is_told_without_the_input():
    assert made(CASES["422"]).message == "top_k: Input should be a valid integer"


def test_a_long_message_is_cut_and_put_on_one_line():
    told = refusal(400, no_header, raw(error("a\r\nb\x1b" + "x" * 5000)), asking())
    assert told.message == "a  b " + "x" * 495 + "…"


def test_their_words_are_redacted():
    context = asking()
    context.redact = lambda text: text.replace("sk-1", "***")
    told = refusal(400, no_header, raw(error("bad sk-1", param="a.sk-1")), context)
    assert (told.message, told.param) == ("bad ***", "a.***")


@pytest.mark.parametrize(("asked", "param"), [({"input": "x"}, "input"), ({"messages": []}, "messages"), ({}, None)])
def test_too_long_a_text_is_in_the_field_that_the_client_sent(asked, param):
    assert made(CASES["context"], asking(asked)).param == param


HEADERS = st.dictionaries(
    st.sampled_from(["retry-after", "retry-after-ms", "date", *rpm("0", "0")]),
    st.text(max_size=30) | st.sampled_from(["0", "1s"]),
)


@given(
    st.integers(-5, 1200) | st.sampled_from([400, 403, 404, 429]),
    st.binary(max_size=200) | JSON.map(json.encode) | JSON.map(lambda value: json.encode({"error": value})),
    HEADERS,
)
def test_refusal_never_raises(status, body, found):
    told = refusal(status, found.get, body, asking())
    assert 400 <= told.status < 600
    assert told.status != 401
    assert json.decode(render(told))["error"]["message"]
    assert all(value.isascii() and value.isalnum() for _, value in told.headers)


@given(st.fixed_dictionaries(dict.fromkeys(("message", "type", "param", "code", "detail"), JSON)))
def test_an_error_of_any_types_is_read(fields):
    assert json.decode(render(refusal(400, no_header, json.encode({"error": fields}), asking())))["error"]["message"]


# mend


def test_the_newer_name_of_the_limit():
    body = {"model": "o4-mini", "max_tokens": 5, "messages": []}
    assert mend(made(CASES["max_tokens"]), body) == (
        {"model": "o4-mini", "max_completion_tokens": 5, "messages": []},
        "mend:max_tokens",
    )
    assert body == {"model": "o4-mini", "max_tokens": 5, "messages": []}


def test_in_strict_mode_nothing_is_mended():
    assert mend(made(CASES["max_tokens"], asking(strict=True)), {"max_tokens": 5}) is None


@pytest.mark.parametrize("body", [{}, {"max_completion_tokens": 5}, {"max_tokens": 5, "max_completion_tokens": 5}])
def test_a_limit_that_was_not_sent_is_not_renamed(body):
    assert mend(made(CASES["max_tokens"]), body) is None


@pytest.mark.parametrize("name", sorted(set(CASES) - {"max_tokens"}))
def test_nothing_else_is_mended(name):
    assert mend(made(CASES[name]), {"max_tokens": 5, "temperature": 0.2}) is None


# answer_headers


def test_the_central_accounts_limits_stay_behind():
    found = {**rpm("1", "1"), "set-cookie": "x", "openai-organization": "org", "x-request-id": "req_1"}
    assert answer_headers(found.get) == [(b"x-upstream-request-id", b"req_1")]


@pytest.mark.parametrize(("said", "there"), [("a" * 128, True), ("a" * 129, False), ("\r\n é", False), ("", False)])
def test_an_id_is_visible_and_not_cut(said, there):
    found = answer_headers({"x-request-id": said}.get)
    assert found == ([(b"x-upstream-request-id", said.encode())] if there else [])


@given(st.text(max_size=300))
def test_the_upstream_id_is_visible_ascii(text):
    for _, value in answer_headers({"x-request-id": text}.get):
        assert len(value) <= 128
        assert all(33 <= byte <= 126 for byte in value)
