from __future__ import annotations

from typing import Any

import pytest

from proxy.core import json
from proxy.providers.openai.refused import Refused, read


def told(body: Any) -> Refused:
    return read(400, lambda name: None, body if isinstance(body, bytes) else json.encode(body))


WHOLE = {"message": "why", "type": "invalid_request_error", "param": "messages[0].content", "code": "invalid_value"}


@pytest.mark.parametrize(
    "body", [{"error": WHOLE}, {"object": "error", **WHOLE}, [{"error": WHOLE}], {"error": {"error": WHOLE}}]
)
def test_the_error_object_is_found_wherever_it_is(body):
    refused = told(body)
    assert (refused.text, refused.kind, refused.param, refused.code) == tuple(WHOLE.values())
    assert refused.marks == {"invalid_request_error", "invalid_value"}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"message": "Not enough quota.", "statusCode": 401}, "Not enough quota."),
        ({"detail": "Not Found"}, "Not Found"),
        ({"error": "model 'x' not found"}, "model 'x' not found"),
        ({"error": {"message": None, "detail": "there"}}, "there"),
        (b'data: {"error": {"message": "in a stream"}}\n\n', "in a stream"),
        (b"Unauthorized\n", "Unauthorized"),
        ("in quotes", "in quotes"),
        (b"", ""),
        (b"\xff\xfe", "��"),
        (b"<html>502</html>", ""),
        (b'{"error": {"message": "cut o', ""),
        ({"error": {}}, ""),
        ({"error": {"error": {"error": {"error": "deep"}}}}, ""),
        ([], ""),
        (b"null", ""),
        (b"5", ""),
        ({"message": {"a": 1}}, ""),
    ],
)
def test_the_sentence(body, text):
    assert told(body).text == text


PROBLEM = {"type": "missing", "loc": ["body", "messages", 0, "role"], "msg": "Field required", "input": "the prompt"}


def test_a_list_of_problems_names_the_fields():
    other = {"loc": None, "msg": "Wrong"}
    assert told({"detail": [PROBLEM, other, None, {"msg": 5}]}).text == "messages.0.role: Field required; Wrong"


@pytest.mark.parametrize("message", [str([PROBLEM]), json.encode([PROBLEM]).decode()])
def test_a_printed_list_of_problems_is_not_used(message):
    assert told({"error": {"message": message}}).text == ""


@pytest.mark.parametrize(
    ("code", "read_as"), [("x", "x"), (402, "402"), (None, None), (True, None), ("a\nb", None), ("x" * 65, None)]
)
def test_codes(code, read_as):
    refused = told({"error": {"message": "m", "code": code, "type": code}})
    assert (refused.code, refused.kind) == (read_as, read_as)


@pytest.mark.parametrize(
    ("param", "message", "read_as"),
    [
        ("n", "m", "n"),
        ("a b", "m", None),
        (5, "m", None),
        (None, "Unrecognized request argument supplied: random_seed", "random_seed"),
        (None, "Unrecognized request arguments supplied: a, b", "a"),
        (None, "Unknown parameter: 'messages[0].prefix'.", "messages[0].prefix"),
        (None, "Not at the start: Unknown parameter: 'x'", None),
    ],
)
def test_the_field(param, message, read_as):
    assert told({"error": {"message": message, "param": param}}).param == read_as
