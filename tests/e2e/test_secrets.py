"""No key is ever seen where it does not belong: not in the log, not on stderr, not in an answer.

One proxy that logs as much as it can, one of each kind of key, and every way in which a key can come along.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.conftest import Proxy, Simulator
from tests.e2e.wire import CHAT, Answer, ask, request
from tests.programs import Program, until

PROVIDER = "Pr0v1der-canary-7f3a9c51e2"
TEAM = "sk-t3am-canary-5d1b8e07c4"
HASHED = "sk-h4shed-canary-91c6f2ab35"
FROM_FILE = "sk-f1le-canary-c27e4d90b8"
TEAM_KEYS = (TEAM, HASHED, FROM_FILE)
MODEL = "mistral-small-latest"

CONFIG = """
server: {{port: 0, max_body: 1MB}}
providers:
  mistral: {{base_url: "{simulator}", api_keys: ["${{PROVIDER}}"], timeouts: {{first_byte: 500ms, idle: 500ms}}}}
teams:
  research: {{keys: ["${{TEAM}}", "sha256:{hashed}", "file:{file}"], log_content: true}}
logging: {{level: debug, format: {format}, content: full}}
"""


@dataclass
class Loud:
    """A proxy that logs everything, and all that its clients were told."""

    url: str
    program: Program
    answers: list[Answer] = field(default_factory=list)
    seen: int = 0

    async def ask(self, method: str, target: str, body: Any = None, key: str = TEAM, **headers: str) -> Answer:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        fields = {"authorization": f"Bearer {key}"} | headers
        self.answers.append(await ask(self.url, request(method, target, data, **fields)))
        return self.answers[-1]

    def told(self) -> str:
        """All that clients were told in this test."""
        return "".join(str(answer.headers) + answer.body.decode(errors="replace") for answer in self.answers)

    async def logged(self) -> str:
        """All that was printed in this test."""
        mark = f"mark-{next(_MARKS)}"
        await ask(self.url, request(target="/nowhere", x_request_id=mark))
        await asyncio.to_thread(until, lambda: mark in self._printed(), "the line of the last request")
        return self._printed()

    def _printed(self) -> str:
        return "".join(self.program.out[self.seen :] + self.program.err)


_MARKS = count()


@pytest.fixture(scope="module", params=["json", "console"])
def program(
    request: pytest.FixtureRequest, simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Program]:
    folder = tmp_path_factory.mktemp("loud")
    (folder / "key").write_text(FROM_FILE + "\n")
    config = CONFIG.format(
        simulator=simulator.url,
        hashed=hashlib.sha256(HASHED.encode()).hexdigest(),
        file=folder / "key",
        format=request.param,
    )
    (folder / "proxy.yaml").write_text(config)
    program = Program("serve", env={"PROVIDER": PROVIDER, "TEAM": TEAM}, cwd=folder)
    program.url()
    yield program
    program.stop()


@pytest.fixture
def loud(program: Program) -> Loud:
    return Loud(program.url(), program, seen=len(program.out))


def says(text: str, model: str = MODEL, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}]} | fields


def hidden(output: str) -> None:
    """Not one key, and no half of one, however it is spelled."""
    for secret in (PROVIDER, *TEAM_KEYS):
        canary = secret[3:]
        for spelling in (canary[:12], canary[-12:], canary.upper(), canary.encode().hex()):
            at = output.find(spelling)
            assert at < 0, f"{spelling!r} in …{output[max(at - 80, 0) : at + 40]}…"


GOOD = [says("Hello"), says("Hello", stream=True), says("Hello", model="gpt-4o", user=TEAM, seed=1)]

FAULTS = [
    "echo_auth", "echo_auth+status=401", "echo_auth+status=403", "echo_auth+status=422", "echo_auth+status=429",
    "echo_auth+status=500+body=html", "status=401", "cut_headers", "stall", "html", "redirect", "gzip", "cut_bytes=20",
    "echo_auth+cut_events=2", "stall_events=2+echo_auth", "garbage_events=1+echo_auth", "usage=odd", "usage=none",
]  # fmt: skip


@pytest.mark.parametrize("key", TEAM_KEYS)
async def test_good_requests(loud: Loud, key: str) -> None:
    for body in GOOD:
        assert (await loud.ask("POST", CHAT, body, key)).status == 200
    assert (await loud.ask("POST", "/v1/embeddings", {"model": "mistral-embed", "input": "x"}, key)).status == 200
    assert (await loud.ask("GET", "/v1/models", key=key)).status == 200
    hidden(await loud.logged())
    hidden(loud.told())


@pytest.mark.parametrize("stream", [False, True])
async def test_an_upstream_that_fails_and_tells(loud: Loud, stream: bool) -> None:
    for fault in FAULTS:
        await loud.ask("POST", CHAT, says("Hello", model=f"{MODEL}+{fault}", stream=stream))
    hidden(await loud.logged())
    hidden(loud.told())


async def test_a_wrong_key_of_which_the_most_is_right(loud: Loud) -> None:
    for key in (TEAM + "x", "x" + TEAM, f"{TEAM} {HASHED}", PROVIDER, TEAM.upper()):
        assert (await loud.ask("POST", CHAT, says("Hello"), key)).status == 401
    hidden(loud.told())
    hidden(await loud.logged())


PLACES = [
    "/v1/models?api_key={}", "/nowhere?key={}", "/{}", "/nowhere/{}", "/v1/models/{}/x", "/a/%7B{}", "/x={}&y=1",
    "/" + "a" * 178 + "/{}", "/" + "a" * 190 + "/{}", "/" + "a/" * 92 + "{}/x",
]  # fmt: skip


@pytest.mark.parametrize("key", [*TEAM_KEYS, PROVIDER])
async def test_a_key_in_the_url(loud: Loud, key: str) -> None:
    for place in PLACES:
        await loud.ask("GET", place.format(key), key="none")
    hidden(await loud.logged())


@pytest.mark.parametrize("key", [*TEAM_KEYS, PROVIDER])
async def test_a_key_as_the_name_of_a_model(loud: Loud, key: str) -> None:
    for body in (
        says("x", model=key),
        says("x", model=f"a-{key}-b"),
        says("x", model="m", stream=True) | {"model": key},
    ):
        await loud.ask("POST", CHAT, body)
    await loud.ask("GET", f"/v1/models/{key}")
    hidden(await loud.logged())


@pytest.mark.parametrize("key", [*TEAM_KEYS, PROVIDER])
async def test_a_key_as_the_request_id(loud: Loud, key: str) -> None:
    await loud.ask("GET", "/v1/models", x_request_id=key)
    hidden(await loud.logged())


@pytest.mark.parametrize("key", [*TEAM_KEYS, PROVIDER])
@pytest.mark.parametrize("mode", ["lenient", "strict"])
async def test_a_key_as_the_name_of_a_field(loud: Loud, key: str, mode: str) -> None:
    for fields in ({key: 1}, {"metadata": {key: 1}}, {"tools": [{"type": "function", key: 1}]}):
        await loud.ask("POST", CHAT, says("x") | fields, x_proxy_translation=mode)
    hidden(await loud.logged())


@pytest.mark.parametrize("key", [*TEAM_KEYS, PROVIDER])
async def test_a_key_in_a_prompt(loud: Loud, key: str) -> None:
    """It stands in the prompt and in the answer that repeats it, and the log has neither."""
    for text in (f"My key is {key}, keep it.", key, f"{'a' * 5000} {key}", json.dumps({"k": key}), quote(f"?k={key}")):
        await loud.ask("POST", CHAT, says(text))
        await loud.ask("POST", CHAT, says(text, stream=True))
    output = await loud.logged()
    hidden(output)
    assert "keep it" in output  # the rest is what was asked for


async def test_a_key_in_other_headers(loud: Loud) -> None:
    for key in (*TEAM_KEYS, PROVIDER):
        await loud.ask("GET", "/v1/models", x_api_key=key, cookie=f"k={key}", referer=f"https://a.example/?k={key}")
    hidden(await loud.logged())
    hidden(loud.told())


async def test_bytes_that_are_no_request(loud: Loud) -> None:
    for key in (*TEAM_KEYS, PROVIDER):
        for data in (f"GET /{key} HTTP/9.9\r\n\r\n", f"{key}\r\n\r\n", f"GET / HTTP/1.1\r\n{key}\r\n\r\n"):
            loud.answers.append(await ask(loud.url, data.encode()))
    hidden(await loud.logged())
    hidden(loud.told())


async def test_the_provider_key_never_comes_back_even_to_who_knows_it(loud: Loud) -> None:
    for stream in (False, True):
        answer = await loud.ask("POST", CHAT, says(f"Is it {PROVIDER}?", stream=stream))
        assert answer.status == 200
        assert PROVIDER.encode() not in answer.body


def test_the_key_of_a_start_without_configuration_is_in_the_banner_and_nowhere_else(tmp_path: Path) -> None:
    program = Program("serve", "--simulate", "--port", "0", env={"XDG_STATE_HOME": str(tmp_path)}, cwd=tmp_path)
    try:
        proxy = Proxy(program.url(), program)
        key = (tmp_path / "mistral-proxy" / "local.key").read_text().strip()
        with proxy.client(headers={"authorization": f"Bearer {key}"}) as client:
            assert client.get("/v1/models").status_code == 200
            assert client.get(f"/v1/models?key={key}").status_code == 200
            assert client.get(f"/{key}").status_code == 404
            assert client.post(CHAT, json=says(key)).status_code == 200
        program.line(status_code=404)
    finally:
        program.stop()
    log = [line for line in program.out if line.startswith("{")]
    assert len(log) == 4
    assert key not in "".join(log + program.err)
    assert key in "".join(program.out)
