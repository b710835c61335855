"""The error bodies: the table of codes and the shapes of the different layers."""

from typing import Any

import msgspec
import pytest

from proxy.simulator.errors import CODES, injected, plain


def body(*, status: int | None = None, code: str | None = None, shape: str | None = None, message: str = "") -> Any:
    reply = injected(status, code, shape, message, "body.messages.0.user.name")
    return reply.status, msgspec.json.decode(reply.body) if reply.body.startswith(b"{") else reply.body


@pytest.mark.parametrize("code", CODES)
def test_every_code_has_its_status_type_and_message(code: str) -> None:
    status, kind, message = CODES[code]
    found_status, found = body(code=code)
    extra = {"guardrails": found.get("guardrails")} if code == "1920" else {}
    assert found_status == status
    assert found == {
        "object": "error",
        "message": message,
        "type": kind,
        "param": None,
        "code": code,
        "raw_status_code": status,
        **extra,
    }


UNKNOWN_KEY = {
    "type": "extra_forbidden",
    "loc": ["body", "messages", 0, "user", "name"],
    "msg": "Extra inputs are not permitted",
    "input": "a private text",
}


@pytest.mark.parametrize(
    ("shape", "status", "expected"),
    [
        ("wrapped", 422, {"message": {"detail": [UNKNOWN_KEY]}, "type": "invalid_request_error", "code": None}),
        ("bare", 422, {"detail": [UNKNOWN_KEY]}),
        ("agents", 422, {"object": "Error", "message": [UNKNOWN_KEY], "detail": [UNKNOWN_KEY], "code": 3001}),
        ("gateway", 401, {"detail": "Unauthorized"}),
        ("kong", 404, {"message": "no Route matched with those values"}),
        ("models", 404, {"message": "Model mistral-unknown was not found."}),
        ("old", 429, {"message": "Requests rate limit exceeded", "code": None, "type": "invalid_request_error"}),
        ("flat", 500, {"object": "error", "code": "3000", "raw_status_code": 500}),
    ],
)
def test_shapes(shape: str, status: int, expected: dict[str, Any]) -> None:
    found_status, found = body(shape=shape)
    assert found_status == status
    assert expected.items() <= found.items()
    assert body(shape=shape, status=418)[0] == 418


def test_bodies_that_are_no_json() -> None:
    assert body(shape="empty") == (504, b"")
    status, page = body(shape="html")
    assert status == 502
    assert page.startswith(b"<html>")


@pytest.mark.parametrize(
    ("status", "expected"),
    [(401, {"detail": "Unauthorized"}), (404, {"message": "no Route matched with those values"})],
)
def test_the_usual_body_of_a_status(status: int, expected: dict[str, str]) -> None:
    assert body(status=status) == (status, expected)


@pytest.mark.parametrize(
    ("status", "code"), [(400, "3051"), (403, "1910"), (429, "1300"), (500, "3000"), (503, "3800")]
)
def test_the_usual_code_of_a_status(status: int, code: str) -> None:
    found_status, found = body(status=status)
    assert (found_status, found["code"], found["raw_status_code"]) == (status, code, status)


def test_a_status_nobody_has_seen_has_no_body() -> None:
    assert body(status=529) == (529, b"")


def test_the_message_can_be_chosen() -> None:
    assert body(status=400, message="so there")[1]["message"] == "so there"
    assert body(shape="gateway", message="so there")[1] == {"detail": "so there"}
    assert msgspec.json.decode(plain(404, "message", "x").body) == {"message": "x"}
