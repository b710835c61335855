from __future__ import annotations

import pytest
from pydantic import ValidationError

from proxy.core.secret import Secret
from proxy.settings.model import Models, Server, Settings, Team


def test_nothing_is_required():
    settings = Settings()
    assert settings.server == Server(host="127.0.0.1", port=8080, workers=1, hosts=[])
    assert (settings.server.max_body, settings.server.drain) == (32 * 1024 * 1024, 60.0)
    assert settings.providers.mistral.api_keys == []
    assert settings.translation.mode == "lenient"
    assert settings.teams == {}


@pytest.mark.parametrize(
    ("written", "host"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("0.0.0.0", "0.0.0.0"),
        ("LocalHost", "localhost"),
        ("proxy-1.example.com", "proxy-1.example.com"),
        ("my_proxy", "my_proxy"),
    ],
)
def test_host(written, host):
    assert Server.model_validate({"host": written}).host == host


NO_HOSTS = [
    "[::1]",
    "a:80",
    "0.0.0",
    "256.0.0.1",
    "127.1",
    "8080",
    "a..b",
    "-a",
    "a-",
    ".",
    "http://a",
    "*",
    "ü",
    "é.de",
]
NO_HOSTS += ["", "a b", "a\n", "a" * 64, ".".join(["a" * 60] * 5)]


@pytest.mark.parametrize("written", NO_HOSTS)
def test_no_host(written):
    with pytest.raises(ValidationError, match="expected a host name or an IP address"):
        Server.model_validate({"host": written})


def test_further_hosts_are_kept_as_the_header_has_them():
    hosts = ["Proxy.Example.com", "10.0.0.5", "2001:DB8::1", "[2001:db8::2]"]
    assert Server.model_validate({"hosts": hosts}).hosts == [
        "proxy.example.com",
        "10.0.0.5",
        "[2001:db8::1]",
        "[2001:db8::2]",
    ]
    for wrong in ("a:80", "[::1]:80", "*.example.com", "[a", "[]"):
        with pytest.raises(ValidationError):
            Server.model_validate({"hosts": [wrong]})


@pytest.mark.parametrize("name", ["a", "Team.1", "9_a-b", "x" * 64])
def test_team_name(name):
    assert list(Settings.model_validate({"teams": {name: {"keys": [Secret("k")]}}}).teams) == [name]


@pytest.mark.parametrize("name", ["", "a b", "-a", ".a", "ü", "a/b", "a\n", "x" * 65])
def test_no_team_name(name):
    with pytest.raises(ValidationError, match="a team name has"):
        Settings.model_validate({"teams": {name: {"keys": [Secret("k")]}}})


@pytest.mark.parametrize("data", [{}, {"keys": []}])
def test_a_team_without_a_key_is_no_team(data):
    with pytest.raises(ValidationError, match="a team needs at least one key"):
        Team.model_validate(data)


def test_only_one_worker():
    for count in (0, 2, -1):
        with pytest.raises(ValidationError, match="must be 1: more workers need a shared store"):
            Server.model_validate({"workers": count})


def test_every_alias_of_itself_is_named():
    with pytest.raises(ValidationError) as raised:
        Models.model_validate({"aliases": {"a": "a", "b": "c", "c": "b", "d": "d"}})
    assert [error["loc"] for error in raised.value.errors()] == [("aliases", "a"), ("aliases", "d")]
