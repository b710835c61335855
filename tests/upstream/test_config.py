"""Where the provider's key may go."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from proxy.upstream.config import Config, is_loopback


@pytest.mark.parametrize(
    "url",
    [
        "https://api.mistral.ai", "https://api.mistral.ai/", "https://eu.example.com:8443/mistral", "http://127.0.0.1:9000",
        "http://localhost", "http://[::1]:9000", "https://10.0.0.5", "http://127.9.9.9",
    ],
)  # fmt: skip
def test_c19_places_that_may_have_the_key(url: str) -> None:
    assert Config(base_url=url).base_url == url.rstrip("/")


NO_PLACES = {
    "https is required": [
        "http://api.mistral.ai", "http://10.0.0.5", "http://169.254.169.254", "http://0.0.0.0", "http://localhost.evil.example",
        "http://127.0.0.1.evil.example", "http://2130706433", "http://[::ffff:10.0.0.1]", "http://[::]", "HTTP://evil.example",
    ],
    "no user name or password": [
        "https://user:secret@api.mistral.ai", "https://user@api.mistral.ai", "https://@api.mistral.ai", "http://localhost@evil.example",
    ],
    "expected a URL": [
        "", "api.mistral.ai", "//api.mistral.ai", "ftp://a", "file:///etc/passwd", "gopher://127.0.0.1", "unix:///run/x",
        "https://", "https:api.mistral.ai", "https://a b", "https://a%2eb", "https://[::1", "https://a:0",
        "https://a:65536", "https://a:x", "javascript:x", "https://é.example", "https://a\u2028", "https://a\\b",
    ],
    "no query and no fragment": ["https://a/?x=1", "https://a/#x"],
    "leave /v1 out": ["https://a/v1", "https://a/v1/", "https://a/x/v1"],
}  # fmt: skip


@pytest.mark.parametrize(("why", "url"), [(why, url) for why, urls in NO_PLACES.items() for url in urls])
def test_c19_places_that_may_not(why: str, url: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Config(base_url=url)


@pytest.mark.parametrize("url", ["http://user:secret@proxy:3128", "socks5://proxy", "http://proxy/x", "proxy:3128"])
def test_c19_places_that_may_not_pass_it_on(url: str) -> None:
    with pytest.raises(ValidationError):
        Config(transport="httpx", proxy_url=url)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("localhost", True), ("127.0.0.1", True), ("::1", True), ("127.1", False), ("0.0.0.0", False), ("::", False)],
)
def test_c19_this_machine_is_known_without_asking_dns(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback
