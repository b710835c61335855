"""The fault vocabulary, and faults that change what is answered. Those of the wire are in test_wire.py."""

import asyncio
import gzip
from contextlib import suppress
from hashlib import sha256

import httpx2
import pytest

from proxy.simulator.faults import NONE, Fault, UnknownFault, latency, parse

from .conftest import Ask, chunks


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], NONE),
        (["", ""], NONE),
        (["status=503"], Fault(status=503)),
        (["no_done"], Fault(no_done=True)),
        (["cut_events=3+delay=0.2"], Fault(cut_events=3, delay=0.2)),
        (["delay=1"], Fault(delay=1.0)),
        (["status=503+body=html", "status=502"], Fault(status=502, body="html")),
        (["retry_after=Wed, 21 Oct 2026 07:28:00 GMT"], Fault(retry_after="Wed, 21 Oct 2026 07:28:00 GMT")),
        (["code=3505"], Fault(code="3505")),
        (["message=a=b"], Fault(message="a=b")),
    ],
)
def test_the_language(texts: list[str], expected: Fault) -> None:
    assert parse(*texts) == expected


@pytest.mark.parametrize("text", ["sttaus=503", "status=many", "body=xml", "code=9999", "usage=strange", "delay"])
def test_a_fault_that_does_not_exist_is_an_error(text: str) -> None:
    with pytest.raises(UnknownFault):
        parse(text)


def test_jitter_is_another_wait_for_each_call_and_the_same_when_it_is_repeated() -> None:
    fault = parse("latency=0.02+jitter=0.18")
    digests = [sha256(b"%d" % n).digest() for n in range(1000)]
    waits = [latency(fault, digest) for digest in digests]
    assert waits == [latency(fault, digest) for digest in digests]
    assert len(set(waits)) == 1000
    assert 0.02 <= min(waits) < 0.03 < 0.19 < max(waits) < 0.2
    assert latency(parse("latency=0.5"), digests[0]) == 0.5


async def test_a_call_waits_its_jitter(ask: Ask, http: httpx2.AsyncClient) -> None:
    waiting = asyncio.ensure_future(ask({"x-sim-fault": "jitter=10000"}))  # less than a second once in 10,000 calls
    async with asyncio.timeout(5):
        while not (calls := (await http.get("/_sim/calls")).json()) or not calls[0]["body"]:
            pass
    assert calls[0]["status"] is None
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting


async def test_a_typo_is_answered_with_400(ask: Ask) -> None:
    answer = await ask(model="mistral-small-latest+sttaus=503")
    assert answer.status_code == 400
    assert "sttaus" in answer.json()["message"]


async def test_asked_for_by_header(ask: Ask, http: httpx2.AsyncClient) -> None:
    answer = await ask({"x-sim-fault": "status=503+body=html+retry_after=7"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
    assert answer.headers["content-type"].startswith("text/html")
    listed = await http.get("/v1/models", headers={"x-sim-fault": "code=1100"})
    assert (listed.status_code, listed.json()["code"]) == (503, "1100")


async def test_asked_for_by_script_one_call_each(ask: Ask, http: httpx2.AsyncClient) -> None:
    assert (await http.post("/_sim/script", json=["status=500", "", "code=3505"])).status_code == 200
    await http.get("/v1/models")  # is no inference call
    assert [(await ask()).status_code for _ in range(4)] == [500, 200, 429, 200]


@pytest.mark.parametrize("script", [["nonsense"], "status=500", [5]])
async def test_a_bad_script_is_refused(http: httpx2.AsyncClient, ask: Ask, script: object) -> None:
    assert (await http.post("/_sim/script", json=script)).status_code == 400
    assert (await ask()).status_code == 200


async def test_a_fault_does_not_hide_a_wrong_request(ask: Ask) -> None:
    fault = {"x-sim-fault": "status=503"}
    assert (await ask(fault, store=True)).status_code == 422
    assert (await ask(fault, model="mistral-unknown")).json()["code"] == "1500"


@pytest.mark.parametrize(
    ("fault", "limit", "remaining"),
    [
        ("limit=0", "0", "0"),
        ("status=429", "1000000", "0"),
        ("code=3505", "1000000", "999999"),
        ("status=503", None, None),
    ],
)
async def test_the_limits_a_refusal_reports(ask: Ask, fault: str, limit: str | None, remaining: str | None) -> None:
    headers = (await ask({"x-sim-fault": fault})).headers
    assert headers.get("x-ratelimit-limit-req-minute") == limit
    assert headers.get("x-ratelimit-remaining-req-minute") == remaining
    assert "x-ratelimit-limit-tokens-minute" not in headers


async def test_conversation_rules_of_older_deployments(ask: Ask) -> None:
    call = {"id": "abcdefgh1", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "said", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abcdefgh1", "content": "r"},
        {"role": "user", "content": "u"},
    ]
    assert (await ask(messages=messages)).status_code == 200
    assert (await ask({"x-sim-fault": "legacy_order"}, messages=messages)).json()["code"] == "3230"
    assert (await ask({"x-sim-fault": "strict_pair"}, messages=messages)).json()["code"] == "3240"


async def test_answers_that_are_none(ask: Ask) -> None:
    page = await ask({"x-sim-fault": "html"})
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    moved = await ask({"x-sim-fault": "redirect"})
    assert (moved.status_code, moved.headers["location"]) == (307, "https://elsewhere.example/v1/")


async def test_the_key_comes_back(ask: Ask) -> None:
    answer = await ask({"x-sim-fault": "echo_auth"})
    assert answer.headers["x-echo-authorization"] == "Bearer sk-sim"
    refused = await ask({"x-sim-fault": "echo_auth+status=500"})
    assert "Bearer sk-sim" in refused.json()["message"]


async def test_gzip_unasked(http: httpx2.AsyncClient, ask: Ask) -> None:
    answer = await ask({"x-sim-fault": "gzip", "accept-encoding": "identity"})
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.json()["object"] == "chat.completion"  # the client has unpacked it
    async with http.stream(
        "POST",
        "/v1/chat/completions",
        json={"model": "mistral-small-latest+gzip", "stream": True, "messages": [{"role": "user", "content": "a"}]},
    ) as streamed:
        raw = b"".join([part async for part in streamed.aiter_raw()])
    assert gzip.decompress(raw).endswith(b"data: [DONE]\n\n")


async def streamed(ask: Ask, fault: str) -> str:
    answer = await ask({"x-sim-fault": fault}, stream=True)
    assert answer.status_code == 200
    return answer.text


async def test_streams_that_end_too_early(ask: Ask) -> None:
    whole = await streamed(ask, "")
    events = whole.split("\n\n")[:-1]
    assert len((await streamed(ask, "eof_events=3")).split("\n\n")) == 4
    assert (await streamed(ask, "eof_events=0")) == ""
    assert len((await streamed(ask, "no_done")).split("\n\n")) == len(events)
    assert "[DONE]" not in await streamed(ask, "no_done")


async def test_foreign_frames(ask: Ask) -> None:
    garbage = (await streamed(ask, "garbage_events=2")).split("\n\n")
    assert garbage[2] == 'data: {"id": "broken'
    assert garbage[-2] == "data: [DONE]"
    *sent, last, rest = (await streamed(ask, "error_events=2")).split("\n\n")
    assert (len(sent), rest) == (2, "")
    assert '"object":"error"' in last
    assert '"code":"3000"' in last


async def test_other_spellings_of_a_stream(ask: Ask) -> None:
    crlf = await streamed(ask, "crlf")
    assert crlf.count("\r\n") == crlf.count("\n")
    assert len(chunks(crlf.replace("\r\n", "\n"))) == 6
    commented = await streamed(ask, "comments")
    assert commented.count(": keep-alive\n\n") == 7
    assert len(chunks(commented.replace(": keep-alive\n\n", ""))) == 6
