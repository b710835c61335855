"""The door: at which address, under which name, on which path; and one answer for everybody who is sent away."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.conftest import TEAM_KEY, Proxy
from tests.e2e.wire import ask, request
from tests.programs import Program

MODELS = "/v1/models"

# Addresses.


def test_it_listens_on_the_loopback_unless_told_otherwise(proxy: Proxy) -> None:
    process = psutil.Process(proxy.program.process.pid)
    listening = [one.laddr.ip for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN]
    assert listening == ["127.0.0.1"]
    assert proxy.url.startswith("http://127.0.0.1:")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
@pytest.mark.parametrize("simulate", [False, True])
def test_without_teams_it_listens_nowhere_else(tmp_path: Path, host: str, simulate: bool) -> None:
    arguments = ["serve", "--host", host, "--port", "0", *(["--simulate"] if simulate else [])]
    program = Program(*arguments, env={"MISTRAL_API_KEY": "sk-mistral-0123456789"}, cwd=tmp_path)
    assert program.process.wait(20) == 2
    program.stop()
    assert not program.out
    [line] = program.err
    assert "at least one team" in line
    assert host in line


def test_with_a_team_it_may(tmp_path: Path) -> None:
    (tmp_path / "proxy.yaml").write_text('teams: {a: {keys: ["${TEAM_KEY}"]}}')
    program = Program(
        "serve", "--host", "0.0.0.0", "--port", "0", "--simulate", env={"TEAM_KEY": TEAM_KEY}, cwd=tmp_path
    )
    try:
        assert program.url().startswith("http://127.0.0.1:")  # an address to paste
        assert TEAM_KEY not in program.everything()
    finally:
        program.stop()


# Host.


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST:1", "127.0.0.1:8080", "[::1]:80"])
async def test_hosts_that_are_ours(proxy: Proxy, host: str) -> None:
    assert (await ask(proxy.url, request(host=host))).status == 200


@pytest.mark.parametrize(
    "host", ["example.org", "127.0.0.1.example.org", "localhost.", "0.0.0.0", "[::]", "127.0.0.2", "2130706433", "a:80"]
)
@pytest.mark.parametrize("target", ["/health", MODELS, "/nowhere"])
async def test_hosts_that_are_not(proxy: Proxy, host: str, target: str) -> None:
    """DNS rebinding: a web page whose name leads to this machine learns nothing, whatever it asks."""
    refused = await ask(proxy.url, request(target=target, host=host))
    assert (refused.status, refused.error()["code"]) == (421, "host_not_allowed")
