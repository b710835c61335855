"""`mistral-proxy cache` as it is typed: against a proxy that runs, against what is none, and against Redis."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from click.testing import Result

from proxy.commands import cache as commands
from proxy.commands.cache import clear_text, size, stats_text, verify_text
from proxy.commands.cache_keeper import address
from proxy.core.cache import Bounds
from proxy.core.entry import Entry
from proxy.core.flight import Flight
from proxy.serving.pepper import of_answers, pepper
from proxy.settings.model import Server, Settings
from proxy.store.cache.redis import PREFIX, RedisCache
from tests.commands.conftest import CONFIG, run
from tests.programs import Program
from tests.redis_server import RedisServer

ADMIN, TEAM = "sk-admin-0123456789abcdef", "sk-team-0123456789abcdef"
EVERY = [["stats"], ["clear", "--all"], ["verify"]]
MISSING = "mistral-proxy: The proxy at {} is asked as an admin: set {} to one of its server.admin_keys."


def cache(*arguments: str) -> Result:
    return run(commands.cache, *arguments)


def refused(result: Result, code: int = 2) -> str:
    """Its one line."""
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    [line] = result.stderr.splitlines()
    return line


def told(*arguments: str, code: int = 0) -> str:
    result = cache(*arguments)
    assert (result.exit_code, result.stderr) == (code, "")
    return result.stdout.removesuffix("\n")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISTRAL_PROXY_ADMIN_KEY", ADMIN)


# Usage.


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["nonsense"], ["stats", "x"], ["clear"], ["clear", "--all", "--team", "research"], ["stats", "--team", ""],
        ["stats", "--team", "*"], ["stats", "--team", "a", "--team", "b"], ["clear", "--team", "a", "--team", "b"],
        ["verify", "--team", "research"], ["clear", "--team", "a b"],
        ["stats", "--url", ""], ["stats", "--url", "localhost:8080"], ["stats", "--url", "ftp://a"],
        ["stats", "--url", "http://"], ["stats", "--url", "http://me:secret@a"], ["stats", "--url", "http://a:0"],
        ["stats", "--url", "http://a:x"], ["stats", "--url", "http://a?b"], ["stats", "--url", "http://[a"],
        ["stats", "--url", "http://a\x1b[31m"],
    ],
)  # fmt: skip
def test_a_wrong_usage(arguments: list[str]) -> None:
    assert cache(*arguments).exit_code == 2


def test_whose_answers_are_to_be_forgotten_must_be_said() -> None:
    assert "--team TEAM, or --all" in cache("clear").stderr


# What it says.


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KB"), (12_897_485, "12.3 MB"), ((1 << 20) - 1, "1.0 MB"),
        (1 << 30, "1.0 GB"), (3 << 40, "3.0 TB"), (5 << 52, "20480.0 TB"),
    ],
)  # fmt: skip
def test_a_size_for_people(count: int, text: str) -> None:
    assert size(count) == text


def test_the_words() -> None:
    assert stats_text({"entries": 1234, "bytes": 12_897_485, "evicted": 17}) == (
        "1,234 answers, 12.3 MB; 17 made room for others"
    )
    assert stats_text({"entries": 1, "bytes": 10}) == "1 answer, 10 B"
    assert clear_text({"deleted": 1}) == "1 answer forgotten"
    assert verify_text({"right": 2, "wrong": 0}) == "2 answers right"
    assert verify_text({"right": 1, "wrong": 1}) == "1 answer right, 1 wrong: gone now"
    assert verify_text({"right": 0, "wrong": 1}) == (
        "0 answers right, 1 wrong: gone now (if that is all of them, is server.key_pepper that of the proxies?)"
    )


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:81"),
        ("0.0.0.0", "http://127.0.0.1:81"),
        ("::", "http://[::1]:81"),
        ("2001:db8::1", "http://[2001:db8::1]:81"),
        ("proxy.internal", "http://proxy.internal:81"),
    ],
)
def test_where_the_proxy_is_asked(host: str, url: str) -> None:
    assert address(Settings(server=Server(host=host, port=81))) == url


# A proxy that keeps its answers in memory.


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The configuration of one that runs: its port is in there."""
    file = tmp_path_factory.mktemp("proxy") / "proxy.yaml"
    file.write_text(f'server: {{port: {free_port()}, admin_keys: ["${{ADMIN_KEY}}"]}}\n{CONFIG}')
    environ = {"ADMIN_KEY": ADMIN, "TEAM_KEY": TEAM}
    program = Program("serve", "--simulate", "--config", str(file), env=environ, cwd=file.parent)
    program.url()
    yield file
    program.stop()


@pytest.fixture
def there(proxy: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the proxy, whose configuration is that of this folder, with no answer in it."""
    monkeypatch.setenv("ADMIN_KEY", ADMIN)
    Path("proxy.yaml").write_text(proxy.read_text())
    told("clear", "--all")
    found = re.search(r"port: (\d+)", proxy.read_text())
    assert found
    return f"http://127.0.0.1:{found[1]}"


def answers(url: str, count: int, key: str = TEAM) -> None:
    """Have so many kept."""
    for number in range(count):
        body = {"model": "mistral-embed", "input": f"text {number}"}
        answer = httpx2.post(f"{url}/v1/embeddings", json=body, headers={"authorization": f"Bearer {key}"})
        assert answer.headers["x-proxy-cache"] == "miss"


def test_a_proxy_that_runs(there: str) -> None:
    answers(there, 3)
    answers(there, 2, TEAM + "-2")
    assert re.fullmatch(r"5 answers, [0-9.]+ KB; \d+ made room for others", told("stats"))
    assert re.fullmatch(r"3 answers, [0-9.]+ KB", told("stats", "--team", "research"))
    assert told("stats", "--team", "gone") == "0 answers, 0 B"
    exact = json.loads(told("stats", "--json", "--url", there + "/"))
    assert exact == {"entries": 5, "bytes": exact["bytes"], "evicted": exact["evicted"]}
    assert exact["bytes"] > 5 * 1000
    assert set(json.loads(told("stats", "--team", "support", "--json"))) == {"entries", "bytes"}
    assert told("verify") == "5 answers right"
    assert json.loads(told("verify", "--json")) == {"right": 5, "wrong": 0}
    assert told("clear", "--team", "research") == "3 answers forgotten"
    assert json.loads(told("clear", "--all", "--json")) == {"deleted": 2}
    assert told("stats").startswith("0 answers, 0 B")


def test_a_proxy_at_a_url_needs_no_configuration(there: str) -> None:
    Path("proxy.yaml").write_text("server: {prt: 1}")
    assert told("stats", "--url", there).startswith("0 answers")


@pytest.mark.parametrize("arguments", EVERY)
def test_without_the_right_key(arguments: list[str], there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISTRAL_PROXY_ADMIN_KEY", TEAM)
    assert refused(cache(*arguments)) == (
        f"mistral-proxy: The proxy at {there} does not know the admin key in MISTRAL_PROXY_ADMIN_KEY."
    )
    for bad in ("sk admin", "sk-ädmin", "sk-\n"):
        monkeypatch.setenv("MISTRAL_PROXY_ADMIN_KEY", bad)
        assert "is no key" in refused(cache(*arguments))
    for nothing in ("", None):
        if nothing is None:
            monkeypatch.delenv("MISTRAL_PROXY_ADMIN_KEY")
        else:
            monkeypatch.setenv("MISTRAL_PROXY_ADMIN_KEY", nothing)
        assert refused(cache(*arguments)) == MISSING.format(there, "MISTRAL_PROXY_ADMIN_KEY")


def test_a_proxy_of_the_environment_never_sees_the_key(there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    assert told("stats").startswith("0 answers")


# What cannot be asked.


@pytest.mark.parametrize("arguments", EVERY)
def test_a_proxy_that_does_not_run(arguments: list[str]) -> None:
    port = free_port()
    Path("proxy.yaml").write_text(f"server: {{port: {port}}}\n{CONFIG}")
    assert refused(cache(*arguments)) == (
        f"mistral-proxy: The proxy at http://127.0.0.1:{port} does not answer (ConnectError). --url says where to ask."
    )


def test_a_port_that_nobody_knows() -> None:
    Path("proxy.yaml").write_text("server: {port: 0}\n" + CONFIG)
    assert refused(cache("stats")) == (
        "mistral-proxy: server.port of proxy.yaml is 0: say with --url where the proxy is."
    )


def test_a_configuration_that_is_wrong() -> None:
    Path("proxy.yaml").write_text("server: {prt: 1}\n")
    assert "proxy.yaml:1: server.prt" in refused(cache("stats"))
    assert "missing.yaml" in refused(cache("stats", "--config", "missing.yaml"))


@contextmanager
def answering(status: int, body: bytes, **headers: str) -> Iterator[tuple[str, list[str]]]:
    """Its address, and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            asked.append(f"{self.command} {self.path}")
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_DELETE = _answer  # noqa: N815

        def log_message(self, *arguments: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def error(code: str, message: object) -> bytes:
    return json.dumps({"error": {"code": code, "message": message}}).encode()


STRANGE = "mistral-proxy: What is at {} does not answer as this proxy does"


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (
            404,
            error("unknown_url", "There is no such URL."),
            "The proxy at {} cannot be asked: it has no server.admin_keys, or --url has a path too many.",
        ),
        (
            503,
            error("store_unavailable", "The cache cannot be reached"),
            "The proxy at {} says: The cache cannot be re",
        ),
        (429, error("too_many_auth_failures", "Too many"), "The proxy at {} says: Too many"),
        (502, b"<html>", STRANGE + " (status 502)"),
        (400, b'{"error": "no"}', STRANGE + " (status 400)"),
        (400, b"[]", STRANGE + " (status 400)"),
        (400, error("x", "\x1b[31mred"), STRANGE + " (status 400)"),
        (400, error("x", None), STRANGE + " (status 400)"),
        (302, b"", STRANGE + " (status 302)"),
        (200, b"", STRANGE),
        (200, b'{"entries": 1}', STRANGE),
        (200, b'{"entries": "1", "bytes": 2}', STRANGE),
        (200, b'{"entries": true, "bytes": 2}', STRANGE),
        (200, b"\xff", STRANGE),
        (204, b"", STRANGE + " (status 204)"),
    ],
)
def test_what_answers_otherwise(status: int, body: bytes, said: str) -> None:
    with answering(status, body, location="/elsewhere") as (url, asked):
        line = refused(cache("stats", "--url", url))
        assert said.format(url) in line
        assert len(line) < 500
        assert asked == ["GET /admin/cache"]


def test_what_it_asks_and_how_it_ends() -> None:
    with answering(200, b'{"right": 1, "wrong": 2, "deleted": 3, "entries": 4, "bytes": 5}') as (url, asked):
        assert told("verify", "--url", url, code=1) == "1 answer right, 2 wrong: gone now"
        told("clear", "--team", "a.b-c", "--url", url)
        told("clear", "--all", "--url", f"{url}/behind/")
        told("stats", "--team", "research", "--url", url)
    assert asked == [
        "POST /admin/cache/verify",
        "DELETE /admin/cache?team=a.b-c",
        "DELETE /behind/admin/cache",
        "GET /admin/cache?team=research",
    ]


# Redis.


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    one = RedisServer()
    yield one
    one.stop()


@pytest.fixture
def shared(server: RedisServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> RedisServer:
    """One that holds three answers of research's and one of support's, of a proxy of the same user."""
    monkeypatch.delenv("MISTRAL_PROXY_ADMIN_KEY")
    Path("proxy.yaml").write_text(f"store: {{url: {server.url.reveal()}}}\n{CONFIG}")
    server.command("FLUSHALL")
    asyncio.run(keep(server, of_answers(pepper(None, {"XDG_STATE_HOME": f"{folder}/state"}))))
    return server


def wall() -> int:
    return time.time_ns() // 1_000_000


async def keep(server: RedisServer, secret: bytes) -> None:
    bounds = Bounds(3_600_000, 1 << 28, 1 << 20)
    backend = RedisCache(
        server.url, bounds, secret, owner="w1", log=lambda *line, **fields: None, wall=wall, monotonic=time.monotonic
    )
    await backend.start()
    for number, team in enumerate(("research", "research", "research:0123456789ab", "support")):
        entry = Entry(wall(), False, b"x" * 1000, 1, 2, 3)
        backend.keep(f"{team}/{number:064x}", entry, Flight(0, time.monotonic), lambda *_: None)
    await backend.close()


def test_with_a_shared_store_redis_is_asked_and_no_key_is_needed(shared: RedisServer) -> None:
    assert re.fullmatch(r"4 answers, [0-9.]+ KB; 0 made room for others", told("stats"))
    assert re.fullmatch(r"3 answers, [0-9.]+ KB", told("stats", "--team", "research"))
    assert json.loads(told("stats", "--json"))["entries"] == 4
    assert told("verify") == "4 answers right"
    assert told("clear", "--team", "research") == "3 answers forgotten"
    assert json.loads(told("clear", "--all", "--json")) == {"deleted": 1}
    assert told("stats").startswith("0 answers, 0 B")


def test_what_is_wrong_in_redis_is_found_and_gone(shared: RedisServer) -> None:
    name = f"{PREFIX}support/{3:064x}"
    shared.command("APPEND", name, "x")
    assert told("verify", code=1) == "3 answers right, 1 wrong: gone now"
    assert shared.command("EXISTS", name) == 0
    assert told("verify") == "3 answers right"


def test_no_entry_is_called_wrong_for_want_of_the_pepper(shared: RedisServer, folder: Path) -> None:
    """It would be deleted."""
    file = folder / "state/mistral-proxy/pepper"
    for content in ("spilt", None):
        if content is None:
            file.unlink()
        else:
            file.write_text(content)
        assert "server.key_pepper" in refused(cache("verify"))
        assert told("stats").startswith("4 answers")
    assert not file.exists()
    assert told("clear", "--all") == "4 answers forgotten"


def test_a_pepper_that_is_configured(shared: RedisServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "state/mistral-proxy/pepper"
    monkeypatch.setenv("PEPPER", file.read_text().strip())
    file.unlink()
    with Path("proxy.yaml").open("a") as config:
        config.write('server: {key_pepper: "${PEPPER}"}\n')
    assert told("verify") == "4 answers right"


@pytest.mark.parametrize("arguments", EVERY)
def test_a_redis_that_is_gone(arguments: list[str], shared: RedisServer) -> None:
    Path("proxy.yaml").write_text(f"store: {{url: redis://127.0.0.1:{free_port()}/0}}\n{CONFIG}")
    line = refused(cache(*arguments))
    assert re.fullmatch(r"mistral-proxy: The Redis of store.url cannot be asked \(\w+\)\.", line)


def test_a_url_is_asked_in_place_of_redis(shared: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISTRAL_PROXY_ADMIN_KEY", ADMIN)
    with answering(200, b'{"deleted": 7}') as (url, _):
        assert told("clear", "--all", "--url", url) == "7 answers forgotten"
    assert told("stats").startswith("4 answers")
