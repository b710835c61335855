from __future__ import annotations

import copy
import pickle
import traceback

import pytest
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from proxy.core.secret import Secret
from proxy.settings.model import Models, Server, Settings, Store, Team, Tracing


def test_nothing_is_required():
    settings = Settings()
    assert settings.server == Server(host="127.0.0.1", port=8080, workers=1, hosts=[])
    assert (settings.server.max_body, settings.server.drain) == (32 * 1024 * 1024, 60.0)
    assert settings.mistral.api_keys == []
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
def test_a_team_may_have_no_key_yet(data):
    assert Team.model_validate(data).keys == []


@pytest.mark.parametrize(
    "url", ["redis://cache", "redis://cache:6379/0", "rediss://user@cache:6380/1", "redis://[::1]"]
)
def test_workers_need_a_store_that_they_can_share(url):
    made = Settings.model_validate({"server": {"workers": 4}, "store": {"url": url}})
    assert (made.server.workers, made.store.url.reveal(), made.store.shared) == (4, url, True)
    for alone in ({}, {"store": {"url": "memory://"}}):
        with pytest.raises(ValidationError) as raised:
            Settings.model_validate({"server": {"workers": 2}} | alone)
        assert [(error["loc"], error["type"]) for error in raised.value.errors()] == [
            (("server", "workers"), "workers_alone")
        ]
        assert Settings.model_validate({"server": {"workers": 1}} | alone).server.workers == 1


def test_the_password_of_the_store_is_a_secret():
    url = "redis://:a-password@cache:6379/0"
    made = Store.model_validate({"url": Secret(url)})
    assert made.url.reveal() == url
    assert "a-password" not in repr(made)
    with pytest.raises(ValidationError, match="a password is not written into the file"):
        Store.model_validate({"url": url})


@pytest.mark.parametrize(
    "url", ["", "memory", "memory://x", "redis:", "redis://", "redis://:x", "redis://h:0", "redis://h:x"]
)
def test_no_store(url):
    for written in (url, Secret(url)):
        with pytest.raises(ValidationError, match="expected memory://"):
            Store.model_validate({"url": written})


def test_every_alias_of_itself_is_named():
    with pytest.raises(ValidationError) as raised:
        Models.model_validate({"aliases": {"a": "a", "b": "c", "c": "b", "d": "d"}})
    assert [error["loc"] for error in raised.value.errors()] == [("aliases", "a"), ("aliases", "d")]


@pytest.mark.parametrize(
    ("written", "origin"),
    [
        ("https://chat.example.com", "https://chat.example.com"),
        ("HTTPS://Chat.Example.COM", "https://chat.example.com"),
        ("https://chat.example.com:443", "https://chat.example.com"),
        ("http://chat.example.com:443", "http://chat.example.com:443"),
        ("http://localhost:05173", "http://localhost:5173"),
        ("http://[2001:DB8:0::1]:80", "http://[2001:db8::1]"),
        ("http://127.0.0.1", "http://127.0.0.1"),
        ("*", "*"),
    ],
)
def test_c18_an_origin_is_written_as_browsers_do(written, origin):
    assert Server.model_validate({"cors_origins": [written]}).cors_origins == [origin]


NO_ORIGINS = [
    "null", "", "chat.example.com", "https://", "https:", "ftp://a", "file://", "https://a/", "https://a/b",
    "https://a?x", "https://a#x", "https://u@a", "https://u:p@a", "https://a:0", "https://a:65536", "https://a:",
    "https://a:b", "https://*.a.de", "https://*", "**", "https://::1", "https://[::1", "https://[g]", "https://a b",
    "https://a\n", " https://a", "https://ü.de", "https://a..b", "https://a,https://b",
]  # fmt: skip


@pytest.mark.parametrize("written", NO_ORIGINS)
def test_c18_no_origin(written):
    with pytest.raises(ValidationError, match=r"expected a(n origin| host name)"):
        Server.model_validate({"cors_origins": [written]})


def test_c18_everybody_stands_alone():
    with pytest.raises(ValidationError, match="it stands alone"):
        Server.model_validate({"cors_origins": ["*", "https://a.example"]})


@pytest.mark.parametrize(
    ("written", "network"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.0.0.1", "10.0.0.1/32"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("::1", "::1/128"),
        ("::ffff:10.0.0.1", "10.0.0.1/32"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
    ],
)
def test_a24_a_trusted_proxy_is_an_address_or_a_network(written, network):
    assert Server.model_validate({"trusted_proxies": [written]}).trusted_proxies == [network]


NO_NETWORKS = [
    "",
    "*",
    "proxy.internal",
    "10.0.0.1/8",
    "10.0.0.0/33",
    "10.0.0",
    "fe80::1%eth0",
    "10.0.0.1:80",
    "[::1]",
    "1",
]


@pytest.mark.parametrize("written", NO_NETWORKS)
def test_a24_no_network(written):
    with pytest.raises(ValidationError, match="expected an IP address, or a network"):
        Server.model_validate({"trusted_proxies": [written]})


@pytest.mark.parametrize("written", ["0.0.0.0/0", "::/0", "::ffff:0.0.0.0/96"])
def test_a24_nobody_trusts_everybody(written):
    with pytest.raises(ValidationError, match="every address there is"):
        Server.model_validate({"trusted_proxies": [written]})


def with_secrets():
    """Settings that hold three, as the loader makes them."""
    return Settings.model_validate(
        {
            "providers": {"mistral": {"api_keys": [Secret("sk-provider-0123")]}},
            "teams": {"research": {"keys": [Secret("sk-team-0123"), "sha256:" + "0a" * 32]}},
        }
    )


WAYS_OUT = [
    str,
    repr,
    lambda settings: f"{settings} {settings!r}",
    lambda settings: str(settings.model_dump()),
    lambda settings: repr(settings.model_dump(mode="python")),
    lambda settings: repr(dict(settings)),
    lambda settings: settings.model_dump_json(),
    lambda settings: settings.model_dump(mode="json"),
    lambda settings: settings.model_copy(deep=True),
    pickle.dumps,
    copy.deepcopy,
]


@pytest.mark.parametrize("way", WAYS_OUT)
def test_c10_settings_show_no_secret(way):
    """They print, and cannot be written down or sent anywhere."""
    try:
        shown = str(way(with_secrets()))
    except (TypeError, PydanticSerializationError) as error:
        shown = "".join(traceback.format_exception(error))
    for text in ("sk-provider", "sk-team", "0a" * 4, str(bytes.fromhex("0a" * 4))):
        assert text not in shown


@pytest.mark.parametrize(
    "url",
    ["http://otel-collector:4318", "https://otlp.example.com/prefix", "http://127.0.0.1:4318", "http://[::1]:4318"],
)
def test_a_collector_may_be_a_neighbour(url):
    tracing = Tracing(otlp_endpoint=f"{url}/")
    assert tracing.otlp_endpoint == url
    assert tracing.part == 1.0


def test_nothing_is_sampled_for_nobody():
    assert Tracing(sample=0.5).part == 0.0
