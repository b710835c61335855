"""Rows B1 to B18: whatever the body says, it is refused with its name, or what was checked is what is sent."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from proxy.providers.reserved import NAMES
from tests.conftest import Proxy
from tests.e2e.conftest import Stage
from tests.e2e.upstream import DONE, STREAM, completion, event
from tests.e2e.wire import CHAT, Answer, ask, chat, connect, request
from tests.upstream.scripted import Peer, Received, chunk

EMBEDDINGS = "/v1/embeddings"
USER = {"role": "user", "content": "Hello there"}
MODEL = "mistral-small-latest"


async def echo(peer: Peer, received: Received) -> None:
    await peer.send(completion())


async def sent(stage: Stage, data: bytes) -> tuple[Answer, Any]:
    """The answer, and the body that the upstream got; None when it got nothing."""
    async with stage.upstream(echo) as seen:
        answered = await ask(stage.url, data)
    return answered, json.loads(seen.requests[0].body) if seen.requests else None


async def assert_refused(stage: Stage, code: str, bodies: list[bytes], target: str = CHAT, **headers: str) -> None:
    """All of them are, with this code, and the upstream hears of none."""
    async with stage.upstream(echo) as seen, connect(stage.url) as client:
        for body in bodies:
            await client.send(request("POST", target, body, **headers))
            refused = await client.answer()
            assert (refused.status, refused.error()["code"]) == (400, code), body[:80]
    assert not seen.requests


def with_(text: str, **fields: Any) -> bytes:
    """A chat request with this text in the place of its last value."""
    body = {"model": MODEL, "messages": [USER], **fields, "x": "?"}
    return json.dumps(body).replace('"?"', text).encode("utf-8", "surrogatepass")


# Not one object.


async def test_b1_what_is_no_object(stage: Stage) -> None:
    texts = [b" ", b"\r\n\t", b"null", b"[]", b'"x"', b"1", b"true", b'[{"model": 1}]']
    await assert_refused(stage, "invalid_json", texts)
    await assert_refused(stage, "invalid_json", [b""], content_type="application/json", content_length="0")


async def test_b2_what_is_no_json(stage: Stage) -> None:
    whole = json.dumps({"model": MODEL, "messages": [USER]}).encode()
    cut = [whole[:at] for at in range(1, len(whole), 7)]
    odd = [whole + b"x", whole + whole, b"// x\n" + whole, whole.replace(b'"', b"'"), whole[:-1] + b",}", b"{a: 1}"]
    await assert_refused(stage, "invalid_json", cut + odd)


async def test_b2_the_place_is_told_and_not_what_stands_there(stage: Stage) -> None:
    refused = await ask(stage.url, request("POST", CHAT, b'{"model": secret}'))
    assert "byte 10" in refused.error()["message"]
    assert b"secret" not in refused.body


async def test_b3_numbers_that_are_none(stage: Stage) -> None:
    await assert_refused(
        stage, "number_out_of_range", [with_(one) for one in ("NaN", "-Infinity", "Infinity", "1e999")]
    )


@pytest.mark.parametrize("depth", [65, 1_100, 100_000])
@pytest.mark.parametrize(("start", "end"), [("[", "]"), ('{"a":', "}")])
async def test_b4_nesting(stage: Stage, depth: int, start: str, end: str) -> None:
    unclosed = '{"x":' + start * depth + "1"
    await assert_refused(stage, "json_too_deep", [unclosed.encode(), (unclosed + end * depth + "}").encode()])


async def test_b4_sixty_four_levels_are_read(stage: Stage) -> None:
    schema = json.loads('{"a":' * 59 + "1" + "}" * 59)
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    answered, body = await sent(stage, chat(tools=tools))
    assert answered.status == 200
    assert body["tools"] == tools


# Two meanings.


@pytest.mark.parametrize(("first", "second"), [("a", "b"), ("b", "a")])
async def test_b5_a_key_twice(stage: Stage, first: str, second: str) -> None:
    rest = f'"messages": {json.dumps([USER])}'
    twice = [
        f'{{"model":"{first}",{rest},"model":"{second}"}}',
        f'{{"model":"{first}", {rest}, "mod\\u0065l":"{second}"}}',
    ]
    await assert_refused(stage, "duplicate_key", [one.encode() for one in twice])
    refused = await ask(stage.url, request("POST", CHAT, twice[1].encode()))
    assert refused.error()["param"] == "model"
    stream = [f'{{"model":"m",{rest},"stream":{a},"stream":{b}}}' for a, b in (("true", "false"), ("false", "true"))]
    await assert_refused(stage, "duplicate_key", [one.encode() for one in stream])


@pytest.mark.parametrize(("first", "second"), [("a", "b"), ("b", "a")])
async def test_b5_what_was_checked_is_what_is_sent(stage: Stage, first: str, second: str) -> None:
    """Further inside the last one counts, here and so upstream, where no other is ever seen."""
    message = f'{{"role":"user","content":"was-{first}","content":"is-{second}"}}'
    data = f'{{"model":"{MODEL}" , "messages":[{message}],"metadata":{{"k":"was-{first}","k":"is-{second}"}}}}'
    async with stage.upstream(echo) as seen:
        assert (await ask(stage.url, request("POST", CHAT, data.encode()))).status == 200
    [received] = seen.requests
    assert b"was-" not in received.body
    assert json.loads(received.body) == {
        "model": MODEL, "messages": [{"role": "user", "content": f"is-{second}"}], "metadata": {"k": f"is-{second}"}
    }  # fmt: skip


async def test_b6_integers_that_readers_disagree_on(stage: Stage) -> None:
    huge = [str(2**64), str(-(2**64)), "1" * 5000]
    named = [f'"{name}":{one}' for name in ("max_tokens", "n", "seed") for one in huge]
    named += [f'"{name}":{2**53 + 1}' for name in ("max_tokens", "n")] + [f'"seed":{2**63}']
    rest = f'"model":"{MODEL}","messages":{json.dumps([USER])}'
    await assert_refused(stage, "number_out_of_range", [f"{{{one},{rest}}}".encode() for one in named])


async def test_b6_a_schema_may_have_every_64_bit_bound(stage: Stage) -> None:
    parameters = {"minimum": -(2**63), "maximum": 2**64 - 1}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    answered, body = await sent(stage, chat(tools=tools, seed=2**53 + 1))
    assert answered.status == 200
    assert (body["tools"][0]["function"]["parameters"], body["random_seed"]) == (parameters, 2**53 + 1)


@pytest.mark.parametrize("value", [-1, 0, 1.5, "10", True, 10**9, [], {}])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_b7_the_number_of_tokens(stage: Stage, name: str, value: Any) -> None:
    refused, body = await sent(stage, chat(**{name: value}))
    assert (refused.status, refused.error()["param"], body) == (400, name, None)
    assert refused.error()["code"] == ("invalid_value" if type(value) is int else "invalid_type")


async def test_b7_null_is_none_given(stage: Stage) -> None:
    answered, body = await sent(stage, chat(max_tokens=None))
    assert answered.status == 200
    assert "max_tokens" not in body


async def test_b8_what_is_not_utf_8(stage: Stage) -> None:
    text = json.dumps({"model": MODEL, "messages": [USER]})
    encoded = [text.encode(name) for name in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig")]
    broken = [with_('"?"').replace(b"?", one) for one in (b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80")]
    await assert_refused(stage, "invalid_encoding", encoded + broken)


async def test_b9_half_of_a_pair(stage: Stage) -> None:
    halves = ["\\ud800", "\\udc00", "\\ud800x", "x\\uDFFF", "\\ud800\\ud800"]
    values = [with_(f'"{half}"') for half in halves]
    keys = [with_(f'{{"{half}":1}}') for half in halves]
    users = [with_("1", user="?").replace(b'"user": 1', f'"user": "{half}"'.encode()) for half in halves]
    await assert_refused(stage, "invalid_encoding", values + keys + users)


# What is text stays text.

ODD = "\x00\x01\x1b[31m\r\n\t\x7f\x85\u2028\u202e\ufeff\U000e0041 end"


async def test_b10_control_characters_pass_in_content_and_never_into_a_log(stage: Stage) -> None:
    before = len(stage.proxy.program.out)
    odd = {
        "model": MODEL,
        "messages": [{"role": "user", "content": ODD}],
        "metadata": {"k": ODD},
        "user": ODD,
        ODD: ODD,
    }
    answered, body = await sent(stage, request("POST", CHAT, json.dumps(odd).encode()))
    assert answered.status == 200
    assert (body["messages"][0]["content"], body["metadata"]) == (ODD, {"k": ODD})
    assert set(body) == {"model", "messages", "metadata"}
    refused = await ask(stage.url, chat(model=ODD, headers={"x_request_id": "b10"}))
    assert refused.status == 400
    stage.proxy.program.line(request_id="b10")
    lines = stage.proxy.program.out[before:]
    assert all(line.startswith("{") and line.rstrip("\n").isprintable() and json.loads(line) for line in lines)


CONTENT_TYPES = (
    *("", "text/plain", "application/xml", "application/x-www-form-urlencoded", "application/json, text/html"),
    *(
        "application/json; charset=utf-16",
        "application/json;charset=latin-1",
        "application/octet-stream",
        "*/*",
        "json",
    ),
)


@pytest.mark.parametrize("target", [CHAT, EMBEDDINGS])
async def test_b11_content_types(stage: Stage, target: str) -> None:
    async with stage.upstream(echo) as seen:
        for kind in CONTENT_TYPES:
            refused = await ask(stage.url, request("POST", target, b"{}", **{"content-type": kind}))
            assert (refused.status, refused.error()["code"]) == (415, "unsupported_media_type")
            assert refused.header("connection") == "close"
        for kind in ("application/json", "text/plain"):
            two = request("POST", target, b"{}").replace(b"\r\n", f"\r\ncontent-type: {kind}\r\n".encode(), 1)
            assert (await ask(stage.url, two)).status == 415
    assert not seen.requests


async def test_b12_multipart(stage: Stage) -> None:
    part = b'--x\r\ncontent-disposition: form-data; name="file"; filename="../../x"\r\n\r\n{}\r\n--x--\r\n'
    async with stage.upstream(echo) as seen:
        for kind in ("multipart/form-data; boundary=x", "multipart/form-data", "multipart/mixed; boundary=x"):
            for target in (CHAT, EMBEDDINGS):
                refused = await ask(stage.url, request("POST", target, part, **{"content-type": kind}))
                assert (refused.status, refused.error()["code"]) == (415, "unsupported_media_type")
    assert not seen.requests


# The body steers nothing.


@pytest.fixture
def trap() -> Iterator[socket.socket]:
    """A port to which nobody must connect."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        listening.setblocking(False)
        yield listening
        with pytest.raises(BlockingIOError):
            listening.accept()


@pytest.mark.parametrize("mode", ["strict", "lenient"])
@pytest.mark.parametrize("target", [CHAT, EMBEDDINGS])
async def test_b13_reserved_names(stage: Stage, trap: socket.socket, target: str, mode: str) -> None:
    url = f"http://127.0.0.1:{trap.getsockname()[1]}/v1"
    needed = {"messages": [USER]} if target == CHAT else {"input": "x"}
    async with stage.upstream(echo) as seen, connect(stage.url) as client:
        for name in NAMES:
            for value in (url, {"x": url}, [url]):
                body = json.dumps({"model": "codestral-embed", **needed, name: value}).encode()
                await client.send(request("POST", target, body, **{"x-proxy-translation": mode}))
                refused = (await client.answer()).error()
                assert (refused["code"], refused["param"]) == ("unsupported_parameter", name)
                assert url not in refused["message"]
    assert not seen.requests


async def test_b13_the_same_names_are_plain_text_elsewhere(stage: Stage, trap: socket.socket) -> None:
    url = f"http://127.0.0.1:{trap.getsockname()[1]}/v1"
    answered, body = await sent(stage, chat(metadata={"base_url": url, "api_key": "x"}, api_key=None, made_up=url))
    assert answered.status == 200
    assert body == {
        "model": MODEL, "messages": [USER], "metadata": {"base_url": url, "api_key": "x"}
    }  # fmt: skip
    assert answered.header("x-proxy-rewrites") == "drop:made_up"


async def test_b14_urls_are_text(stage: Stage, trap: socket.socket) -> None:
    urls = (
        *(f"http://127.0.0.1:{trap.getsockname()[1]}/x.png", "http://169.254.169.254/latest", "file:///etc/passwd"),
        *("http://[::1]/", "gopher://x", "data:image/png;base64," + "QUJD" * 500_000),
    )
    content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    content += [{"type": "document_url", "document_url": url} for url in urls]
    answered, body = await sent(stage, chat(content))  # type: ignore[arg-type]
    assert answered.status == 200
    assert body["messages"] == [{"role": "user", "content": content}]


# How much.


async def test_b15_more_than_there_may_be(stage: Stage) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    for param, data in {"n": chat(n=1000), "tools": chat(tools=[tool] * 10_000)}.items():
        refused, body = await sent(stage, data)
        assert (refused.status, refused.error()["param"], body) == (400, param, None)
    small: tuple[Any, ...] = (1, [], {}, "", "[,")
    await assert_refused(stage, "json_too_large", [with_(json.dumps([one] * 100_000)) for one in small])
    many = json.dumps({"model": MODEL, "messages": [USER] * 100_000}).encode()
    await assert_refused(stage, "json_too_large", [many])


async def test_b15_ten_thousand_messages_and_a_pattern_that_nobody_runs(stage: Stage) -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(a+)+$" * 10_000}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    answered, body = await sent(stage, chat(messages=[USER] * 10_000, tools=tools, best_of=1000))
    assert answered.status == 200
    assert body == {"model": MODEL, "messages": [USER] * 10_000, "tools": tools}
    assert answered.header("x-proxy-rewrites") == "drop:best_of"


# The stream.


@pytest.mark.parametrize("value", ["true", 1, 0, "", [], {}])
async def test_b16_stream_is_true_or_false(stage: Stage, value: Any) -> None:
    data = json.dumps({"model": MODEL, "messages": [USER], "stream": value}).encode()
    refused, body = await sent(stage, request("POST", CHAT, data))
    assert (refused.status, refused.error()["code"], body) == (400, "invalid_type", None)
    assert refused.error()["param"] == "stream"


@pytest.mark.parametrize(
    ("options", "wanted"),
    [(None, False), ({}, False), ({"include_usage": False}, False), ({"include_usage": True}, True)],
)
async def test_b16_usage_comes_to_those_who_ask(stage: Stage, options: Any, wanted: bool) -> None:
    async def script(peer: Peer, received: Received) -> None:
        assert "stream_options" not in json.loads(received.body)
        await peer.send(STREAM + chunk(event("Hello") + event("", "stop") + DONE) + b"0\r\n\r\n")

    async with stage.upstream(script):
        answered = await ask(stage.url, chat(stream=True, stream_options=options))
    chunks = [json.loads(line[6:]) for line in answered.body.decode().splitlines() if line.startswith("data: {")]
    assert bool([one for one in chunks if one["choices"] == []]) is wanted  # the chunk that is for the usage alone


async def test_b17_a_large_text_in_one_script(stage: Stage) -> None:
    text = "ᚠ" * (9 * (1 << 20) // 3)
    answered, body = await sent(stage, chat(text))
    assert answered.status == 200
    assert body["messages"][0]["content"] == text


async def test_b18_the_body_decides_what_is_answered(stage: Stage) -> None:
    async def script(peer: Peer, received: Received) -> None:
        streamed = json.loads(received.body).get("stream")
        await peer.send(STREAM + chunk(event("", "stop") + DONE) + b"0\r\n\r\n" if streamed else completion())

    async with stage.upstream(script):
        for accept in ("text/event-stream", "application/json", "image/png", "*/*;q=0"):
            whole = await ask(stage.url, chat(headers={"accept": accept}))
            assert whole.header("content-type") == "application/json"
            streamed = await ask(stage.url, chat(stream=True, headers={"accept": accept}))
            assert (streamed.header("content-type") or "").startswith("text/event-stream")


async def test_a_body_is_served_in_every_usual_spelling(proxy: Proxy) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Café 😀"}]}
    for text in (
        json.dumps(body),
        json.dumps(body, ensure_ascii=False),
        json.dumps(body, indent=4),
        f" {json.dumps(body)}\n",
    ):
        for headers in ({}, {"content-type": "application/json; charset=utf-8"}, {"content-encoding": "identity"}):
            assert (await ask(proxy.url, request("POST", CHAT, text.encode(), **headers))).status == 200
