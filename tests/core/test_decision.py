"""`x-proxy-decision`: whatever has happened, it is a Dictionary of RFC 9651 and says so."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core import decision
from proxy.core.errors import CircuitOpen, InvalidApiKey, ProxyError, UpstreamRefusal
from proxy.core.exchange import Before, Exchange, Failed, Stand, Team
from tests.asgi import exchange

TEAM = Team("research", lambda model: True)

Item = tuple[Any, dict[str, Any]]

_KEY = re.compile(r"[a-z*][a-z0-9_\-.*]*")
_NUMBER = re.compile(r"-?[0-9]{1,15}(?![0-9.])")
_DECIMAL = re.compile(r"-?[0-9]{1,12}\.[0-9]{1,3}(?![0-9])")
_STRING = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')
_TOKEN = re.compile(r"[A-Za-z*][A-Za-z0-9!#$%&'*+\-.^_`|~:/]*")


class Dictionary:
    """Section 4.2.2 of RFC 9651, for what may stand here; it fails where a parser must."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def parse(self) -> dict[str, Item]:
        found: dict[str, Item] = {}
        while True:
            key = self._take(_KEY)
            assert key not in found
            value = self._bare() if self._is("=") else True
            parameters: dict[str, Any] = {}
            while self._is(";"):
                name = self._take(_KEY)
                assert name not in parameters
                parameters[name] = self._bare() if self._is("=") else True
            found[key] = value, parameters
            if self._at == len(self._text):
                return found
            assert self._is(", "), self._text[self._at :]

    def _is(self, mark: str) -> bool:
        if not self._text.startswith(mark, self._at):
            return False
        self._at += len(mark)
        return True

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        assert match, self._text[self._at :]
        self._at = match.end()
        return match[0]

    def _bare(self) -> Any:
        for pattern, make in (
            (_STRING, lambda text: re.sub(r"\\(.)", r"\1", text[1:-1])),
            (_DECIMAL, Decimal),
            (_NUMBER, int),
            (_TOKEN, lambda text: text),
        ):
            if pattern.match(self._text, self._at):
                return make(self._take(pattern))
        raise AssertionError(f"no item of RFC 9651: {self._text[self._at :]}")


def told(found: Exchange, now: float = 0.0) -> dict[str, Item]:
    return Dictionary(dict(decision.headers(found, now))[b"x-proxy-decision"].decode("ascii")).parse()


def test_all_that_can_be_said() -> None:
    found = exchange(
        team=TEAM, key_id="k-5f2a", stand=lambda: Stand('"requests 60/minute"', "5", "1", "60"), cache="miss",
        circuit="half_open", upstream="mistral/mistral-small-latest", attempts=1, before=Before(attempts=2),
        in_vain=(
            Failed("mistral", 1, "upstream_timeout"), Failed("mistral", 2, "rate_limit_exceeded", "another model")
        ),
        rewrites=dict.fromkeys(("drop:user", "rename:seed>random_seed")),
    )  # fmt: skip
    assert told(found, 0.000312) == {
        "auth": ("research", {"key": "k-5f2a"}),
        "quota": ("requests 60/minute", {"used": 5, "reserved": 1, "limit": 60}),
        "cache": ("miss", {}),
        "breaker": ("half_open", {}),
        "route": (
            "mistral/mistral-small-latest",
            {"attempts": 3, "causes": "upstream_timeout rate_limit_exceeded"},
        ),
        "rewrites": (2, {}),
        "own_us": (312, {}),
    }


def test_the_least() -> None:
    assert told(exchange()) == {"own_us": (0, {})}


@pytest.mark.parametrize(
    ("fields", "auth"),
    [
        ({"team": TEAM, "key_id": "k-1"}, ("research", {"key": "k-1"})),
        ({"key_id": "k-1"}, ("admin", {"key": "k-1"})),
        ({"error": ProxyError("no")}, ("none", {})),
    ],
)
def test_who_asks(fields: dict[str, Any], auth: Item) -> None:
    assert told(exchange(**fields))["auth"] == auth


def test_a_failure_says_whose_it_is() -> None:
    found = exchange(team=TEAM, key_id="k-1", circuit="open", error=CircuitOpen("no", wait=5))
    assert told(found)["fault"] == ("provider", {"code": "circuit_open"})


def test_an_error_without_a_code_is_one_too() -> None:
    error = UpstreamRefusal("no", status=400, type="invalid_request_error", code=None)
    assert told(exchange(error=error))["fault"] == ("caller", {})


def test_the_age_of_an_answer() -> None:
    assert told(exchange(cache="hit", age=7))["cache"] == ("hit", {"age": 7})
    assert told(exchange(cache="stale", age=0))["cache"] == ("stale", {"age": 0})


def test_money_is_text_since_no_decimal_has_so_many_places() -> None:
    found = exchange(stand=lambda: Stand('"spend 5 USD/day"', '"0.000000001"', '"0"', '"5"'))
    assert told(found)["quota"] == ("spend 5 USD/day", {"used": "0.000000001", "reserved": "0", "limit": "5"})


def test_a_team_without_rules_stands_nowhere() -> None:
    assert "quota" not in told(exchange(stand=lambda: None))


def test_causes_are_not_without_end() -> None:
    found = exchange(upstream="mistral/m", attempts=20, in_vain=tuple(Failed("mistral", n, "e") for n in range(20)))
    [route, parameters] = told(found)["route"]
    assert (route, parameters["causes"].split()) == ("mistral/m", ["e"] * decision.MOST_CAUSES)


@given(st.text(), st.text(), st.text(min_size=1), st.text(alphabet=st.characters(max_codepoint=127)))
def test_no_text_breaks_it(team: str, key: str, upstream: str, rule: str) -> None:
    found = exchange(
        team=Team(team, lambda model: True), key_id=key, upstream=upstream,
        stand=lambda: Stand(decision.quoted(rule), "1", "2", "3"),
    )  # fmt: skip
    parts = told(found)
    assert list(parts) == ["auth", "quota", "route", "own_us"]
    assert len(parts["auth"][0]) == len(team)
    if rule.isprintable():
        assert parts["quota"][0] == rule


def test_browsers_are_told_milliseconds() -> None:
    assert dict(decision.headers(exchange(), 0.0015))[b"server-timing"] == b"proxy;dur=1.500"
    called = exchange(called=0.25, returned=1.0)
    assert dict(decision.headers(called, 1.001953125))[b"server-timing"] == b"proxy;dur=251.953, upstream;dur=750.000"


def test_who_has_no_key_is_told_no_times() -> None:
    refused = exchange(error=InvalidApiKey("no"))
    assert decision.headers(refused, 0.001) == [(b"x-proxy-decision", b"auth=none, fault=caller;code=invalid_api_key")]
