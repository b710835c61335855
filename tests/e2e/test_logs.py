"""What an operator reads: each request begins, ends and fails on a line of its level, with its cost and no secret."""

from __future__ import annotations

import asyncio
import json
import signal
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest

from proxy.core.secret import Secret
from tests.conftest import PROVIDER_KEY
from tests.e2e.upstream import DONE, STREAM, Reply, completion, event, listener, upstream, url_of
from tests.e2e.wire import CHAT, Answer, ask, chat, connect, request
from tests.programs import Program, until
from tests.upstream.scripted import Peer, Received, chunk

SECRET = 'sk-c4nary/"+"-5d1b8e07c49f'
"""A key with what URLs, JSON and base64 write in another way."""

HASHED = "sk-h4shed-canary-91c6f2ab35"
TEAMS = ("silent", "short", "open", "asked")

CONFIG = """
server: {{port: 0}}
providers:
  mistral:
    base_url: {upstream}
    api_keys: ["${{PROVIDER}}"]
    retry: {{max_attempts: 2, initial_delay: 1ms, max_delay: 1ms, budget: 100%}}
    circuit_breaker: {{failure_threshold: 4}}
cache: {{mode: off}}
teams:
  silent: {{keys: ["${{SILENT}}", "sha256:{hashed}"], log_content: no}}
  short: {{keys: ["${{SHORT}}"], log_content: truncated, quotas: [{{requests: 1/day, model: codestral-latest}}]}}
  open: {{keys: ["${{OPEN}}"], log_content: full}}
  asked: {{keys: ["${{ASKED}}"], log_content: true}}
logging: {{level: {level}, content: none, content_max_chars: 40}}
"""

KEYS = {"SILENT": "sk-silent-team-0123456789", "SHORT": "sk-short-team-0123456789", "OPEN": SECRET} | {
    "ASKED": "sk-asked-team-0123456789", "PROVIDER": PROVIDER_KEY,
}  # fmt: skip


class Setting:
    """A proxy whose upstream the test plays, and what it logs of one request."""

    def __init__(self, folder: Path, ends: ExitStack, level: str = "info") -> None:
        self.held = ends.enter_context(listener())
        self.file = folder / "proxy.yaml"
        self.write(level)
        self.program = Program("serve", "--config", str(self.file), env=KEYS, cwd=folder)
        ends.callback(self.program.stop)
        self.url = self.program.url()

    def write(self, level: str) -> None:
        hashed = Secret(HASHED).digest().hex()
        self.file.write_text(CONFIG.format(upstream=url_of(self.held), level=level, hashed=hashed))

    async def ask(self, reply: Reply, team: str = "silent", **fields: Any) -> tuple[Answer, list[dict[str, Any]]]:
        """The answer, and the lines of the request in their order."""
        headers = {"authorization": f"Bearer {KEYS[team.upper()]}", "x_request_id": uuid4().hex}
        headers |= fields.pop("headers", {})
        async with upstream(self.held, reply):
            answer = await ask(self.url, chat(headers=headers, **fields))
        return answer, await self.lines(headers["x_request_id"])

    async def lines(self, mark: str) -> list[dict[str, Any]]:
        """Those of a request that has ended."""
        await asyncio.to_thread(self.program.line, request_id=mark)
        lines = [json.loads(line) for line in list(self.program.out) if mark in line]
        return [line for line in lines if line["request_id"] == mark]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    with ExitStack() as ends:
        yield Setting(tmp_path_factory.mktemp("logs"), ends)


def levels(lines: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(line["event"], line["level"]) for line in lines]


async def good(peer: Peer, received: Received) -> None:
    await peer.send(completion())


def refusing(*statuses: int) -> Reply:
    """An upstream that says these one after the other, and is well then."""
    left = list(statuses)

    async def reply(peer: Peer, received: Received) -> None:
        if not left:
            await good(peer, received)
            return
        await peer.send(
            b"HTTP/1.1 %d No\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}" % left.pop(0)
        )

    return reply


# Levels.


async def test_a_request_that_goes_well(setting: Setting) -> None:
    answer, (started, ended) = await setting.ask(good)
    assert answer.status == 200
    told = {"team": "silent", "operation": "chat.create", "endpoint": CHAT, "level": "info"}
    assert started.items() >= told.items()
    assert started["event"] == "request_started"
    assert started["key_id"] == ended["key_id"]
    tokens = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    # 3 at 0.15 and 5 at 0.6 USD per million
    assert ended.items() >= (told | tokens | {"event": "request", "status_code": 200, "cost_usd": "0.00000345"}).items()
    assert answer.header("x-proxy-cost-usd") == ended["cost_usd"]


async def test_a_stream_has_its_tokens_and_its_cost_too(setting: Setting) -> None:
    _, lines = await setting.ask(streaming(["Hello"]), stream=True)
    assert levels(lines) == [("request_started", "info"), ("request", "info")]
    assert (lines[-1]["stream"], lines[-1]["total_tokens"], lines[-1]["cost_usd"]) == (True, 8, "0.00000345")


@pytest.mark.parametrize("key", ["", "Bearer sk-wrong"])
async def test_a_wrong_key_is_an_error_and_has_not_begun(setting: Setting, key: str) -> None:
    answer, lines = await setting.ask(good, headers={"authorization": key})
    assert answer.status == 401
    assert levels(lines) == [("request", "error")]
    assert lines[0].items() >= {"error_code": "invalid_api_key", "team": None, "operation": "chat.create"}.items()


async def test_too_many_wrong_keys_are_an_error(tmp_path: Path, ends: ExitStack) -> None:
    setting = Setting(tmp_path, ends)
    for _ in range(21):
        answer, lines = await setting.ask(good, headers={"authorization": "Bearer sk-wrong"})
    assert answer.status == 429
    assert levels(lines) == [("request", "error")]
    assert lines[0]["error_code"] == "too_many_auth_failures"


async def test_a_refusal_of_our_own_key_is_an_error(setting: Setting) -> None:
    answer, lines = await setting.ask(refusing(401, 401))
    assert answer.status == 502
    assert levels(lines) == [("request_started", "info"), ("alarm", "error"), ("request", "error")]
    assert lines[-1]["error_code"] == "upstream_auth_failed"


async def test_a_limit_is_a_warning(setting: Setting) -> None:
    found = [await setting.ask(good, "short", model="codestral-latest") for _ in range(2)]
    assert [answer.status for answer, _ in found] == [200, 429]
    assert levels(found[1][1]) == [("request_started", "info"), ("request", "warning")]


async def test_a_limit_of_the_provider_and_a_call_that_is_made_again_are_warnings(setting: Setting) -> None:
    answer, lines = await setting.ask(refusing(429, 429))
    assert answer.status == 429
    assert levels(lines) == [("request_started", "info"), ("retry", "warning"), ("request", "warning")]
    answer, lines = await setting.ask(refusing(503))
    assert answer.status == 200
    assert levels(lines) == [("request_started", "info"), ("retry", "warning"), ("request", "info")]


async def test_a_failure_and_a_circuit_that_opens_are_errors(setting: Setting) -> None:
    model = "ministral-8b-latest"
    for _ in range(2):
        answer, lines = await setting.ask(refusing(500, 500), model=model)
        assert answer.status >= 500
        assert levels(lines)[-1] == ("request", "error")
    [opened] = await asyncio.to_thread(until, lambda: setting.program.logged("circuit_opened"), "the circuit opens")
    assert opened["level"] == "error"
    answer, lines = await setting.ask(good, model=model)
    assert answer.status == 503
    assert levels(lines) == [("request_started", "info"), ("request", "error")]


async def test_a_model_that_has_ended_is_a_warning_once_for_each_team(setting: Setting) -> None:
    told = []
    for team in ("silent", "silent", "short", "short"):
        _, lines = await setting.ask(good, team, model="mistral-small-2506")
        told.append([line for line in lines if line["event"] == "model_deprecated"])
    assert [len(lines) for lines in told] == [1, 0, 1, 0]
    [line] = told[0]
    expected = {
        "level": "warning", "team": "silent", "model": "mistral-small-2506", "retirement": "2026-07-31",
        "replacement": "mistral-small-2603",
    }  # fmt: skip
    assert line.items() >= expected.items()


async def test_a_reload_changes_what_is_logged_and_repeats_nothing(tmp_path: Path, ends: ExitStack) -> None:
    setting = Setting(tmp_path, ends, "error")
    expected: dict[str, list[tuple[str, str]]] = {
        "debug": [
            ("request_started", "info"),
            ("model_deprecated", "warning"),
            ("request_details", "debug"),
            ("request", "info"),
        ],
        "info": [("request_started", "info"), ("request", "info")],
    }
    for level, seen in expected.items():
        setting.write(level)
        setting.program.signal(signal.SIGHUP)
        await asyncio.to_thread(until, lambda: setting.program.logged("reloaded"), "a new configuration")
        setting.program.out.clear()
        _, lines = await setting.ask(
            good, model="mistral-small-2506", user="me", headers={"cookie": "a=b", "user_agent": "them/1"}
        )
        assert levels(lines) == seen
        if level == "debug":
            shown = dict(lines[2]["headers"])
            assert (shown["cookie"], shown["user-agent"], shown["content-type"]) == (3, 6, "application/json")
            assert shown["authorization"] > len("Bearer ")
            assert lines[2]["rewrites"] == "drop:user"


# Content, and no secret in it.


async def content(setting: Setting, team: str) -> tuple[str | None, str | None]:
    _, lines = await setting.ask(good, team, prompt="Tell me all there is to know about the sea")
    return lines[-1].get("request_content"), lines[-1].get("answer_content")


async def test_each_team_has_logged_what_it_says(setting: Setting) -> None:
    asked, answered = zip(*[await content(setting, team) for team in TEAMS], strict=True)
    whole = chat("Tell me all there is to know about the sea").partition(b"\r\n\r\n")[2].decode()
    whole = json.dumps(json.loads(whole), separators=(",", ":"))
    assert asked == (None, whole[:40] + "…", whole, None)
    assert [text and len(text) > 41 for text in answered] == [None, False, True, None]


def streaming(pieces: list[str], kind: str = "content") -> Reply:
    """An upstream that says one piece in each event; its bytes come in pieces that begin and end anywhere."""

    def said(piece: str) -> bytes:
        if kind == "content":
            return event(piece)
        call = {"index": 0, "id": "call00001", "type": "function", "function": {"name": "f", "arguments": piece}}
        return event("", tool_calls=[call])

    async def reply(peer: Peer, received: Received) -> None:
        data = b"".join([*map(said, pieces), event("", "stop"), DONE])
        await peer.send(STREAM + b"".join(chunk(data[at : at + 7]) for at in range(0, len(data), 7)) + chunk(b""))

    return reply


def in_json(text: str) -> str:
    return json.dumps(text)[1:-1]


def in_escapes(text: str) -> str:
    return "".join(f"\\u{ord(one):04x}" for one in text)


def in_base64(text: str) -> str:
    return b64encode(b"user:" + text.encode() + b"!").decode()


def in_base64_of_urls(text: str) -> str:
    return urlsafe_b64encode(b"a:" + text.encode()).decode()


def in_a_url(text: str) -> str:
    return f"https://x.example/?q={quote(text, safe='')}"


SPELLINGS: list[Callable[[str], str]] = [str, quote, in_a_url, in_json, in_base64, in_base64_of_urls]


def hides(line: dict[str, Any], *secrets: str) -> None:
    text = json.dumps(line)
    for secret in secrets:
        for spell in (*SPELLINGS, in_escapes, lambda one: one[:8], lambda one: one[-8:]):
            assert spell(secret) not in text
            assert in_json(spell(secret)) not in text


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
@pytest.mark.parametrize("kind", ["content", "arguments"])
async def test_a_secret_that_is_spread_over_the_events_of_a_stream_is_not_logged(
    setting: Setting, kind: str, size: int
) -> None:
    for secret in (SECRET, HASHED):
        text = f"It is {secret} now"
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        answer, lines = await setting.ask(streaming(pieces, kind), "open", stream=True)
        assert answer.body.endswith(DONE)
        assert "It is *** now" in lines[-1]["answer_content"]
        hides(lines[-1], secret)


@pytest.mark.parametrize("spell", SPELLINGS)
async def test_a_secret_in_an_answer_is_not_logged_however_it_is_spelled(
    setting: Setting, spell: Callable[[str], str]
) -> None:
    async def reply(peer: Peer, received: Received) -> None:
        await peer.send(completion(f"It is {spell(SECRET)} now"))

    answer, lines = await setting.ask(reply, "open")
    assert spell(SECRET) in answer.json()["choices"][0]["message"]["content"]
    assert "It is " in lines[-1]["answer_content"]
    hides(lines[-1], SECRET)


@pytest.mark.parametrize("spell", SPELLINGS)
async def test_a_secret_anywhere_in_a_request_is_not_logged_however_it_is_spelled(
    setting: Setting, spell: Callable[[str], str]
) -> None:
    """In every place where a request has text, and sent so that every piece of it ends within a secret."""
    said = f"<{spell(SECRET)}>"
    call = {"id": "call00001", "type": "function", "function": {"name": "f", "arguments": json.dumps({"a": said})}}
    body = {
        "model": "mistral-small-latest",
        "messages": [
            {"role": "system", "content": said},
            {"role": "user", "content": [{"type": "text", "text": said}, {"type": "text", "text": "and so on"}]},
            {"role": "assistant", "content": said, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call00001", "content": said},
            {"role": "user", "content": f"so {said} and {HASHED}"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "description": said, "parameters": {"title": said}}}],
        "stop": [said],
        "user": said,
        "metadata": {"k": said},
    }
    mark = uuid4().hex
    data = request("POST", CHAT, json.dumps(body).encode(), authorization=f"Bearer {SECRET}", x_request_id=mark)
    async with upstream(setting.held, good), connect(setting.url) as client:
        for at in range(0, len(data), 29):
            await client.send(data[at : at + 29])
        assert (await client.answer()).status == 200
    line = (await setting.lines(mark))[-1]
    assert "and so on" in line["request_content"]
    hides(line, SECRET, HASHED)
