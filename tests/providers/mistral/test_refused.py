from __future__ import annotations

import pytest

from proxy.core import json
from proxy.providers.mistral.refused import Issue, read

ISSUE = {"type": "extra_forbidden", "loc": ["body", "store"], "msg": "Extra inputs are not permitted", "input": False}
READ = Issue("extra_forbidden", ("store",), "Extra inputs are not permitted")


def told(body):
    return read(422, lambda name: None, body if isinstance(body, bytes) else json.encode(body))


@pytest.mark.parametrize(
    "body",
    [
        {"detail": [ISSUE]},
        {"object": "error", "message": {"detail": [ISSUE]}, "type": "invalid_request_error", "code": None},
        {"object": "Error", "message": [ISSUE], "detail": [ISSUE], "code": 3001},
        {"error": {"message": {"detail": [ISSUE]}}},
    ],
)
def test_the_list_of_problems_is_found_wherever_it_is(body):
    refused = told(body)
    assert refused.issues == (READ,)
    assert refused.text == READ.text
    assert refused.lead == READ


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"message": "Model x is deprecated."}, "Model x is deprecated."),
        ({"detail": "Unauthorized"}, "Unauthorized"),
        ({"message": "", "detail": "Unauthorized"}, "Unauthorized"),
        ({"error": "nope", "message": "why"}, "why"),
        (b'data: {"message": "in a stream"}\n\n', "in a stream"),
        (b'  {"message": "padded"}\r\n', "padded"),
        (b"", ""),
        (b"<html>502</html>", ""),
        (b"\xff\xfe", ""),
        (b"null", ""),
        ([{"message": "a list"}], ""),
        ({"message": 5, "detail": "not reached"}, ""),
        ({"message": {"detail": {"a": 1}}}, ""),
    ],
)
def test_the_sentence(body, text):
    assert told(body).text == text


@pytest.mark.parametrize(
    ("code", "read_as"),
    [("1500", "1500"), (3001, "3001"), (None, None), (True, None), ("a\nb", None), ("x" * 65, None)],
)
def test_codes(code, read_as):
    assert told({"message": "m", "code": code, "type": code}).code == read_as
    assert told({"message": "m", "code": code, "type": code}).kind == read_as


def test_an_unknown_key_leads_over_the_other_branches_of_a_union():
    other = {"type": "string_type", "loc": ["body", "content", "str"], "msg": "a string", "input": []}
    refused = told({"detail": [other, ISSUE]})
    assert refused.lead == READ
    assert refused.marks == {None, "extra_forbidden"}


def test_without_an_unknown_key_the_first_problem_leads():
    first = {"type": "missing", "loc": ["body", "model"], "msg": "Field required"}
    second = {"type": "string_type", "loc": ["body", "input"], "msg": "a string"}
    assert told({"detail": [first, second]}).lead == Issue("missing", ("model",), "Field required")


@pytest.mark.parametrize("loc", [None, "body", 5, [], ["body"], [{"a": 1}, None, True], ["body", *("a" * 17)]])
def test_a_loc_that_leads_nowhere_is_empty(loc):
    assert told({"detail": [{"type": "missing", "loc": loc, "msg": "m"}]}).issues == (Issue("missing", (), "m"),)


def test_problems_without_a_text_have_an_empty_one():
    assert told({"detail": [{"loc": ["body", 1, "a"]}, "odd", None]}).issues == (Issue("", (1, "a"), ""),)


def test_the_input_is_taken_out_of_a_text_that_quotes_it():
    quoting = {"type": "value_error", "loc": [], "msg": "got the whole prompt, no", "input": "the whole prompt"}
    assert told({"detail": [quoting]}).text == "got …, no"


def test_guardrails():
    assert told({"message": "m", "guardrails": [{"name": "a"}]}).guardrails == [{"name": "a"}]
    assert told({"message": "m", "guardrails": "a"}).guardrails is None
