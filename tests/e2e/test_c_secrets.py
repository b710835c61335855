"""No key is ever seen where it does not belong: not in the log, not on stderr, not in an answer.

One proxy that logs as much as it can, one of each kind of key, and every way in which a key can come along.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import psutil
import pytest

from tests.conftest import PROVIDER_KEY, Proxy, Simulator
from tests.e2e.conftest import Stage
from tests.e2e.upstream import DONE, JSON, Reply, completion, event
from tests.e2e.wire import CHAT, Answer, ask, chat, request
from tests.programs import Program, until
from tests.upstream.scripted import Peer, Received, chunk

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
async def test_c10_good_requests(loud: Loud, key: str) -> None:
    for body in GOOD:
        assert (await loud.ask("POST", CHAT, body, key)).status == 200
    assert (await loud.ask("POST", "/v1/embeddings", {"model": "mistral-embed", "input": "x"}, key)).status == 200
    assert (await loud.ask("GET", "/v1/models", key=key)).status == 200
    hidden(await loud.logged())
    hidden(loud.told())


@pytest.mark.parametrize("stream", [False, True])
async def test_c8_an_upstream_that_fails_and_tells(loud: Loud, stream: bool) -> None:
    for fault in FAULTS:
        await loud.ask("POST", CHAT, says("Hello", model=f"{MODEL}+{fault}", stream=stream))
    hidden(await loud.logged())
    hidden(loud.told())


async def test_c10_a_wrong_key_of_which_the_most_is_right(loud: Loud) -> None:
    for key in (TEAM + "x", "x" + TEAM, f"{TEAM} {HASHED}", PROVIDER, TEAM.upper()):
        assert (await loud.ask("POST", CHAT, says("Hello"), key)).status == 401
    hidden(loud.told())
    hidden(await loud.logged())


PLACES = [
    "/v1/models?api_key={}", "/nowhere?key={}", "/{}", "/nowhere/{}", "/v1/models/{}/x", "/a/%7B{}", "/x={}&y=1",
    "/" + "a" * 178 + "/{}", "/" + "a" * 190 + "/{}", "/" + "a/" * 92 + "{}/x",
]  # fmt: skip


@pytest.mark.parametrize("key", [*TEAM_KEYS, PROVIDER])
async def test_c24_a_key_in_the_url_lets_nobody_in(loud: Loud, key: str) -> None:
    for place in PLACES:
        refused = await loud.ask("GET", place.format(key), key="none")
        assert (refused.status, refused.error()["type"]) in (
            (401, "invalid_request_error"),
            (404, "invalid_request_error"),
        )
    hidden(await loud.logged())
    hidden(loud.told())


@pytest.mark.parametrize("key", [*TEAM_KEYS, PROVIDER])
async def test_c10_a_key_as_the_name_of_a_model(loud: Loud, key: str) -> None:
    for body in (
        says("x", model=key),
        says("x", model=f"a-{key}-b"),
        says("x", model="m", stream=True) | {"model": key},
    ):
        await loud.ask("POST", CHAT, body)
    await loud.ask("GET", f"/v1/models/{key}")
    hidden(await loud.logged())


@pytest.mark.parametrize("key", [*TEAM_KEYS, PROVIDER])
async def test_c10_a_key_as_the_request_id(loud: Loud, key: str) -> None:
    await loud.ask("GET", "/v1/models", x_request_id=key)
    hidden(await loud.logged())


@pytest.mark.parametrize("key", [*TEAM_KEYS, PROVIDER])
@pytest.mark.parametrize("mode", ["lenient", "strict"])
async def test_c10_a_key_as_the_name_of_a_field(loud: Loud, key: str, mode: str) -> None:
    for fields in ({key: 1}, {"metadata": {key: 1}}, {"tools": [{"type": "function", key: 1}]}):
        await loud.ask("POST", CHAT, says("x") | fields, x_proxy_translation=mode)
    hidden(await loud.logged())


@pytest.mark.parametrize("key", [*TEAM_KEYS, PROVIDER])
async def test_c10_a_key_in_a_prompt(loud: Loud, key: str) -> None:
    """It stands in the prompt and in the answer that repeats it, and the log has neither."""
    for text in (f"My key is {key}, keep it.", key, f"{'a' * 5000} {key}", json.dumps({"k": key}), quote(f"?k={key}")):
        await loud.ask("POST", CHAT, says(text))
        await loud.ask("POST", CHAT, says(text, stream=True))
    output = await loud.logged()
    hidden(output)
    assert "keep it" in output  # the rest is what was asked for


async def test_c10_a_key_in_other_headers(loud: Loud) -> None:
    for key in (*TEAM_KEYS, PROVIDER):
        await loud.ask("GET", "/v1/models", x_api_key=key, cookie=f"k={key}", referer=f"https://a.example/?k={key}")
    hidden(await loud.logged())
    hidden(loud.told())


async def test_c10_no_other_user_of_the_machine_sees_a_key(loud: Loud) -> None:
    """Command lines are everybody's to read; the environment is the owner's alone, and `file:` keeps out of both."""
    process = psutil.Process(loud.program.process.pid)
    for one in (process, *process.children(recursive=True)):
        hidden(" ".join(one.cmdline()))
    for path in ("/health", "/health/live", "/health/ready"):
        await loud.ask("GET", path)
    hidden(loud.told())


async def test_c10_bytes_that_are_no_request(loud: Loud) -> None:
    for key in (*TEAM_KEYS, PROVIDER):
        for data in (f"GET /{key} HTTP/9.9\r\n\r\n", f"{key}\r\n\r\n", f"GET / HTTP/1.1\r\n{key}\r\n\r\n"):
            loud.answers.append(await ask(loud.url, data.encode()))
    hidden(await loud.logged())
    hidden(loud.told())


async def test_c8_the_provider_key_never_comes_back_even_to_who_knows_it(loud: Loud) -> None:
    for stream in (False, True):
        answer = await loud.ask("POST", CHAT, says(f"Is it {PROVIDER}?", stream=stream))
        assert answer.status == 200
        assert PROVIDER.encode() not in answer.body


# The provider's key, from an upstream that tells it.


def escaped(text: str, letter: str = "\\u{:04x}") -> str:
    """As JSON may write it."""
    return "".join(letter.format(ord(one)) for one in text)


SPELLED = [
    PROVIDER_KEY,
    escaped(PROVIDER_KEY[0]) + PROVIDER_KEY[1:],
    PROVIDER_KEY[:-1] + escaped(PROVIDER_KEY[-1]),
    escaped(PROVIDER_KEY),
    escaped(PROVIDER_KEY, "\\u{:04X}"),
]


def telling(head: bytes, body: bytes, piece: int = 1 << 16) -> Reply:
    """An answer whose body comes in pieces of this size."""

    async def reply(peer: Peer, received: Received) -> None:
        await peer.send(head + b"transfer-encoding: chunked\r\n\r\n")
        for at in range(0, len(body), piece):
            await peer.send(chunk(body[at : at + piece]))
        await peer.send(chunk(b""))

    return reply


def says_nothing_of_the_key(found: Answer) -> None:
    for text in (str(found.headers), found.body.decode()):
        assert PROVIDER_KEY not in text
        assert PROVIDER_KEY not in re.sub(r"\\\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), text)


@pytest.mark.parametrize("spelled", SPELLED)
async def test_c8_the_key_in_an_answer(stage: Stage, spelled: str) -> None:
    body = completion("KEY and KEY").partition(b"\r\n\r\n")[2].replace(b"KEY", spelled.encode())
    async with stage.upstream(telling(JSON, body)):
        found = await ask(stage.url, chat())
    says_nothing_of_the_key(found)
    assert found.json()["choices"][0]["message"]["content"] == "*** and ***"


@pytest.mark.parametrize("spelled", SPELLED)
@pytest.mark.parametrize("piece", [1 << 16, 7, 1])
async def test_c8_the_key_in_a_stream(stage: Stage, spelled: str, piece: int) -> None:
    body = (event("KEY and KEY") + event("", "stop") + DONE).replace(b"KEY", spelled.encode())
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    async with stage.upstream(telling(head, body, piece)):
        found = await ask(stage.url, chat(stream=True))
    says_nothing_of_the_key(found)
    assert b"*** and ***" in found.body
    assert found.body.endswith(DONE)


@pytest.mark.parametrize("spelled", SPELLED)
@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 429, 500])
@pytest.mark.parametrize("stream", [False, True])
async def test_c8_the_key_in_an_error(stage: Stage, spelled: str, status: int, stream: bool) -> None:
    text = '{"object":"error","message":"no: KEY","type":"KEY","param":"KEY","code":"KEY"}'
    head = b"HTTP/1.1 %d No\r\ncontent-type: application/json\r\n" % status
    async with stage.upstream(telling(head, text.replace("KEY", spelled).encode())):
        found = await ask(stage.url, chat(stream=stream))
    says_nothing_of_the_key(found)
    assert found.error()["upstream"]["status"] == status


@pytest.mark.parametrize("spelled", SPELLED)
async def test_c8_the_key_in_an_error_inside_a_stream(stage: Stage, spelled: str) -> None:
    body = event("Hello") + b'data: {"object":"error","message":"no: KEY","type":"KEY","code":"KEY"}\n\n'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    async with stage.upstream(telling(head, body.replace(b"KEY", spelled.encode()))):
        found = await ask(stage.url, chat(stream=True))
    says_nothing_of_the_key(found)
    assert found.body.endswith(DONE)
    assert b'"error":' in found.body


PATHS = {
    "the name of a field": (422, '{"detail": [{"type": "extra_forbidden", "loc": ["body", "KEY"], "msg": "no"}]}'),
    "deep in a path": (422, '{"detail": [{"type": "x", "loc": ["body", "messages", 0, "KEY"], "msg": "no"}]}'),
    "a message that is cut": (400, json.dumps({"object": "error", "message": "x" * 465 + " KEY", "code": "1"})),
    "an issue that is cut": (422, json.dumps({"detail": [{"loc": [], "msg": "x" * 465 + " KEY"}] * 2})),
    "a guardrail": (403, '{"message": "blocked", "type": "guardrail_violation", "guardrails": [{"KEY": "KEY"}]}'),
    "the code of an error with status 200": (200, '{"object": "error", "message": "x", "code": "KEY"}'),
    "the type of a part": (
        200, '{"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": [{"type": "KEY"}]}}]}'
    ),
}  # fmt: skip


@pytest.mark.parametrize("spelled", SPELLED[:4:3])
@pytest.mark.parametrize("place", PATHS)
@pytest.mark.parametrize("stream", [False, True])
async def test_c8_the_key_where_it_is_cut_or_reported(stage: Stage, place: str, spelled: str, stream: bool) -> None:
    """Not even half of it leaves, in no header and not in the log."""
    (status, body), mark, kind = PATHS[place], uuid4().hex, b"application/json"
    if stream and status == 200:
        body = 'data: {"object": "chat.completion.chunk", ' + body.removeprefix("{").replace(
            '"message": {', '"delta": {'
        )
        body, kind = body + "\n\n" + DONE.decode(), b"text/event-stream"
    head = b"HTTP/1.1 %d So\r\ncontent-type: %b\r\n" % (status, kind)
    async with stage.upstream(telling(head, body.replace("KEY", spelled).encode())):
        found = await ask(stage.url, chat(stream=stream, headers={"x_request_id": mark}))
    line = await asyncio.to_thread(stage.proxy.program.line, request_id=mark)
    for text in (str(found.headers), found.body.decode(), json.dumps(line)):
        assert PROVIDER_KEY[:16] not in text
        assert escaped(PROVIDER_KEY[:16]) not in text


async def test_c8_the_key_behind_the_beginning_of_what_is_passed_on(stage: Stage) -> None:
    """An id that is longer than any is left out, not cut."""
    named = b"mistral-correlation-id: %b\r\n" % (b"a" * 110 + PROVIDER_KEY.encode())
    async with stage.upstream(telling(JSON + named, completion().partition(b"\r\n\r\n")[2])):
        found = await ask(stage.url, chat())
    assert found.status == 200
    assert found.header("x-upstream-request-id") is None


@pytest.mark.parametrize("status", [301, 302, 307, 308, 401])
async def test_c8_the_key_in_a_header(stage: Stage, status: int) -> None:
    named = b"location: https://KEY.example/?k=KEY\r\nwww-authenticate: Bearer KEY\r\nset-cookie: KEY\r\n"
    head = b"HTTP/1.1 %d No\r\ncontent-type: text/plain\r\nmistral-correlation-id: KEY\r\n" % status + named
    async with stage.upstream(telling(head.replace(b"KEY", PROVIDER_KEY.encode()), b"no")) as seen:
        found = await ask(stage.url, chat())
    says_nothing_of_the_key(found)
    assert found.status == 502
    assert len(seen.requests) == 1  # and no redirect is followed


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("stream", [False, True])
async def test_c8_a_refusal_of_our_key_is_ours_to_mend(stage: Stage, status: int, stream: bool) -> None:
    """As a 401 it would make the client throw its good key away."""
    head = b"HTTP/1.1 %d No\r\ncontent-type: application/json\r\nwww-authenticate: Bearer\r\n" % status
    async with stage.upstream(telling(head, b'{"message": "Unauthorized"}')):
        found = await ask(stage.url, chat(stream=stream))
    assert (found.status, found.error()["code"], found.error()["type"]) == (502, "upstream_auth_failed", "server_error")
    assert found.header("www-authenticate") is None
    program = stage.proxy.program
    ours = {"request_id": found.header("x-request-id"), "code": "upstream_auth_failed"}
    [line] = await asyncio.to_thread(until, lambda: program.logged("alarm", **ours), "the alarm")
    assert line["level"] == "error"


# The log.


NASTY = [
    "a\r\nb", "\x1b[31m", "%s%n", "${jndi:ldap://x}", '","level":"error","x":"', "\u2028", "\0", "\U0001f600" * 50,
    "x" * 250, "'; DROP TABLE x; --", "{{7*7}}", "<script>", "\u202egpj.exe", "\x85", "\\", "\x7f",
]  # fmt: skip


async def a_completion(peer: Peer, received: Received) -> None:
    await peer.send(completion())


@pytest.mark.parametrize("nasty", NASTY, ids=ascii)
async def test_c22_whatever_is_sent_a_line_is_a_line(stage: Stage, nasty: str) -> None:
    """The same characters in a model's name, a field's name, a path and headers: each request is one line of JSON."""
    program, url = stage.proxy.program, stage.url
    seen = len(program.out)
    plain = nasty.encode().decode("latin-1") if nasty.isprintable() else "x"
    field: dict[str, Any] = {nasty: 1}
    named: dict[str, Any] = dict.fromkeys(("user_agent", "x_request_id", "authorization", "referer", "origin"), plain)
    async with stage.upstream(a_completion):
        for data in (
            chat(model=nasty),
            chat(**field),
            chat(headers={"x_proxy_translation": "strict"}, **field),
            chat(stop=[field]),
            request(target=f"/nowhere/{quote(nasty)}"),
            request(target=f"/v1/models/{quote(nasty, safe='')}"),
            request(target="/nowhere", **named),
        ):
            await ask(url, data)
    last = (await ask(url, request(target="/nowhere"))).header("x-request-id")
    await asyncio.to_thread(program.line, request_id=last)
    lines = program.out[seen:]
    events = Counter(json.loads(line)["event"] for line in lines)
    assert events.keys() == {"request", "request_started"}
    assert events["request"] == 8
    for line in lines:
        assert len(line.encode()) <= 8192
        assert not re.search(r"[\x00-\x09\x0b-\x1f]", line)


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
    assert [json.loads(line)["event"] for line in log].count("request") == 4
    assert key not in "".join(log + program.err)
    assert key in "".join(program.out)
