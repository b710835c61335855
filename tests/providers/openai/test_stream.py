from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from openai._streaming import SSEDecoder

from proxy.core import json
from proxy.core.errors import UpstreamFailed, render
from proxy.core.model import Model
from proxy.core.table import Context
from proxy.providers.events import MOST_CHOICES
from proxy.providers.openai.stream import ChatStream
from tests.core.test_sse import cut

DONE = b"data: [DONE]\n\n"
GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(file.name.removesuffix(".sse") for file in GOLDEN.glob("*.sse"))
ASKED = {"two_choices": {"n": 2}}
USAGE = {"prompt_tokens": 19, "completion_tokens": 9, "total_tokens": 28}


def stream(asked: dict[str, Any] | None = None, **notes: Any) -> ChatStream:
    return ChatStream(Context(Model("gpt-4o-mini"), asked or {}, notes=notes))


def run(*chunks: bytes, asked: dict[str, Any] | None = None, **notes: Any) -> tuple[bytes, ChatStream]:
    """All that a client gets, and the stream after it."""
    events = stream(asked, **notes)
    out = b"".join([*map(events.feed, chunks), events.end()])
    return out, events


def outcome(chunks: list[bytes], notes: dict[str, Any]) -> tuple[bytes, bool, bytes | None, Any, int]:
    out, events = run(*chunks, **notes)
    return out, events.done, render(events.error) if events.error else None, events.usage, events.delivered


def choice(delta: Any, index: Any = 0, finish: Any = None, **more: Any) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish} | more


def chunk(*choices: Any, **more: Any) -> dict[str, Any]:
    head = {"id": "chatcmpl-B9", "object": "chat.completion.chunk", "created": 1741570283, "model": "gpt-4o-mini"}
    return head | {"choices": list(choices)} | more


def event(*choices: Any, **more: Any) -> bytes:
    return b"data: " + json.encode(chunk(*choices, **more)) + b"\n\n"


def word(content: Any, index: int = 0) -> bytes:
    return event(choice({"content": content}, index), obfuscation="abc", usage=None)


def stop(index: int = 0, finish: str = "stop", **more: Any) -> bytes:
    return event(choice({}, index, finish), **more)


def chunks_in(out: bytes) -> list[Any]:
    """What an OpenAI client reads: every chunk before the end."""
    data = [found.data for found in SSEDecoder().iter_bytes(iter([out]))]
    return [json.decode(one.encode()) for one in data[: data.index("[DONE]") if "[DONE]" in data else None]]


# Streams as servers send them. A client that asked for usage gets every byte; one that did not misses its chunk.


def golden(name: str) -> tuple[bytes, bytes]:
    """The stream, and the same without the chunk of usage."""
    source = (GOLDEN / f"{name}.sse").read_bytes()
    rest = [one + b"\n\n" for one in source.split(b"\n\n")[:-1] if b'"choices":[],"usage":{' not in one]
    return source, b"".join(rest)


@pytest.mark.parametrize("name", NAMES)
def test_golden(name):
    source, without = golden(name)
    asked = ASKED.get(name)
    for expected, notes in ((source, {"include_usage": True}), (without, {})):
        out, events = run(source, asked=asked, **notes)
        assert out == expected
        assert events.done
        assert events.error is None
        assert events.usage
        assert events.usage["prompt_tokens"] == 19


@pytest.mark.parametrize("name", NAMES)
def test_golden_cut_at_every_byte(name):
    source, without = golden(name)
    asked = ASKED.get(name)
    for at in range(len(source) + 1):
        assert run(source[:at], source[at:], asked=asked)[0] == without
    out, events = run(*(source[i : i + 1] for i in range(len(source))), asked=asked, include_usage=True)
    assert out == source
    assert events.delivered == run(source, asked=asked)[1].delivered > 0


@pytest.mark.parametrize("name", NAMES)
def test_golden_truncated_at_every_byte_is_an_error_or_the_same_answer(name):
    source, without = golden(name)
    for at in range(len(source)):
        out, events = run(source[:at], asked=ASKED.get(name))
        if events.error:
            assert without.startswith(out)
            assert not events.done
        else:  # only usage or [DONE] was missing
            assert chunks_in(out) == chunks_in(without)
            assert out.endswith(DONE)


def test_the_golden_files_are_there():
    assert NAMES == ["openrouter", "text", "tools", "two_choices", "vllm"]


@pytest.mark.parametrize("name", NAMES)
def test_the_sdk_reads_every_golden_stream(name):
    out = run(golden(name)[0], asked=ASKED.get(name))[0]

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=out)

    transport = httpx2.MockTransport(answer)
    with (
        openai.OpenAI(api_key="x", base_url="http://p/v1", http_client=httpx2.Client(transport=transport)) as sdk,
        sdk.chat.completions.stream(model="m", messages=[{"role": "user", "content": "Hi"}]) as events,
    ):
        for _ in events:
            pass
        final = events.current_completion_snapshot
    assert final.choices[0].finish_reason == ("tool_calls" if name == "tools" else "stop")
    if name == "tools":
        calls: Any = final.choices[0].message.tool_calls
        assert [json.decode(call.function.arguments.encode()) for call in calls] == [{"city": "Paris"}]


# What needs no change is not changed.


def test_a_chunk_of_text_is_not_copied():
    events = stream()
    for one in (word("Hello"), event(choice({"role": "assistant", "content": "", "refusal": None}))):
        assert events.feed(one) is one


UNTOUCHED = [
    word("Hello"),
    word("é"),
    event(choice({"content": "x", "annotations": [{"a": 1}]}, content_filter_results={})),
    event(choice({"content": "x"}, logprobs={"content": [{"token": "x", "logprob": -1, "top_logprobs": []}]})),
    event(choice({"reasoning_content": "hm"})),
    event(choice({"reasoning": "hm", "reasoning_details": [{}]})),
    event(choice({"refusal": "no"})),
    event(choice({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}]})),
    event(choice({"function_call": {"arguments": "{"}})),
    event(choice(None)),
    event(choice({"content": 5, "tool_calls": "x"})),
    event({"delta": {"content": "x"}}),
    event(choice({"content": "x"}, "0")),
    stop(finish="eos"),
    stop(usage=USAGE),
    event(choice({"content": "x"}), usage=USAGE | {"cost": 0.1}),
    event(prompt_filter_results=[{"prompt_index": 0}], object="", model=""),
    b'data: { "object" : "chat.completion.chunk" , "choices" : [ ] }\n\n',
    b'data:{"choices":[]}\n\n',
    b": OPENROUTER PROCESSING\n\n",
    b"\n\n",
    b'event: e\nretry: 5\ndata: {"object":"chat.completion.chunk",\ndata: "choices":[]}\n\n',
    word("x").replace(b"\n", b"\r\n"),
    word("x").replace(b"\n", b"\r"),
]


@pytest.mark.parametrize("one", UNTOUCHED)
def test_what_openai_clients_understand_passes_as_it_is(one):
    events = stream()
    assert events.feed(one) == one
    assert events.error is None


@pytest.mark.parametrize(
    ("source", "passed"),
    [
        (b"\xef\xbb\xbf" + word("x"), word("x")),
        (b"id: 1\n" + word("x"), word("x")),
        (b"id: 1\n\n", b"\n"),
        (b"event: ping\n\n", b"\n"),
        (b"data:\n\n", b":\n\n"),
        (b": c\ndata:\n\n", b": c\n:\n\n"),
    ],
)
def test_what_the_sdks_stumble_over_is_left_out(source, passed):
    assert stream().feed(source) == passed


TEXT = st.text(max_size=8)
PLAIN = st.builds(
    lambda content, index, end, more: word(content, index).replace(b"\n", end) + more,
    TEXT,
    st.integers(0, 1),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.sampled_from([b"", b": ping\n\n", b"\n", b"retry: 1\n"]),
)
PLACES = st.lists(st.integers(min_value=0), max_size=12)


@given(st.lists(PLAIN), PLACES)
def test_a_stream_is_byte_identical_however_it_is_cut(events, places):
    source = b"".join([word("x", 0), word("y", 1), *events, word("z"), stop(0), stop(1, usage=USAGE), DONE])
    out, after = run(*cut(source, places))
    assert out == source
    assert after.done
    assert after.usage == USAGE


ANYTHING = st.one_of(
    PLAIN,
    st.sampled_from([DONE, stop(), stop(1), b"data:\n\n", b": c\r\n\r\n", b"\xef\xbb\xbf", b"data: {\n\n", b"<p>\n\n"]),
    st.sampled_from([event(usage=USAGE), event(usage={"a": 1}), stop(usage="x"), event(error={"code": 1})]),
    st.sampled_from([event(choice({"tool_calls": [None, {"function": {"arguments": "x"}}]})), b"id: 1\n"]),
)
NOTES = st.sampled_from([{}, {"include_usage": True}])


@given(st.lists(ANYTHING, max_size=8).map(b"".join), PLACES, NOTES)
def test_any_fragmentation_gives_the_same(source, places, notes):
    whole = outcome([source], notes)
    assert outcome(cut(source, places), notes) == whole
    assert outcome([source[i : i + 1] for i in range(len(source))], notes) == whole


@given(st.lists(st.binary(max_size=40) | ANYTHING), NOTES)
@example([b"data: \xff\n\n"], {})
@example([b'data: {"object":"chat.completion.chunk","choices":[],"x":"\xff"}\n\n'], {})
@example([b'data: {"choices":1e999}\n\n', DONE], {})
@example([b'data: {"x":' + b"[" * 100_000 + b"\n\n"], {})
def test_whatever_comes_the_stream_ends_in_one_way(pieces, notes):
    out, events = run(*pieces, **notes)
    assert events.done is (events.error is None)
    assert (b"data: [DONE]" in out) is events.done
    if events.error:
        assert (events.error.status, events.error.code) == (502, "upstream_error")
    assert events.feed(word("late")) == b""
    assert events.end() == b""


# How a stream ends.


def test_done_ends_it_and_nothing_after_it_is_passed():
    out, events = run(word("x"), stop(), DONE + event(usage=USAGE), DONE)
    assert out == word("x") + stop() + DONE
    assert events.done
    assert events.surplus
    assert events.usage is None


@pytest.mark.parametrize("end", [[], [b"data: [DONE]"]])
def test_a_missing_done_is_added_once_every_choice_has_finished(end):
    out, events = run(word("x"), stop(), event(usage=USAGE), *end)
    assert out == word("x") + stop() + DONE
    assert events.done
    assert events.usage == USAGE


@pytest.mark.parametrize("end", [[DONE], [DONE, b"\n"], [b"data: [DONE]\r\r\n"], [DONE[:-1], b"\n"]])
def test_nothing_comes_behind_the_end(end):
    assert not run(stop(), *end)[1].surplus


def test_a_server_that_gives_one_answer_whatever_is_asked_has_given_all():
    source = word("x", 0) + stop(0) + DONE
    out, events = run(source, asked={"n": 2})
    assert (out, events.done, events.error) == (source, True, None)
    assert events._context.spoiled  # the next one may give two
    assert not run(source, asked={"n": 1})[1]._context.spoiled


@pytest.mark.parametrize("finish", [None, "stop"])
def test_a_choice_with_an_error_goes_on_as_it_came_and_is_not_what_the_next_one_need_be(finish):
    source = event(choice({"content": "x"}, finish=finish, error={"message": "no"})) + stop() + DONE
    out, events = run(source)
    assert (out, events.done, events.error, events._context.spoiled) == (source, True, None, True)
    assert not run(word("x"), stop(), DONE)[1]._context.spoiled


@pytest.mark.parametrize(
    ("source", "n"),
    [
        (b"", 1),
        (DONE, 1),
        (b": ping\n\n" + DONE, 1),
        (word("x"), 1),
        (word("x") + DONE, 1),
        (word("x") + event(usage=USAGE) + DONE, 1),
        (word("x") + stop()[:-1], 1),
        (event() + DONE, 1),
        (word("x", 0) + word("y", 1) + stop(0) + DONE, 1),
        (word("x", 0) + stop(0), 2),
        (word("x", 0) + word("y", 1) + stop(1), 2),
        (word("x", 0) + word("y", 1) + stop(1) + DONE, 2),
    ],
)
def test_an_end_before_every_choice_has_finished_is_an_error(source, n):
    out, events = run(source, asked={"n": n})
    assert isinstance(events.error, UpstreamFailed)
    assert events.error.message == "The upstream ended the stream before it was complete."
    assert events.error.billed
    assert DONE not in out
    assert source.startswith(out)


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ({"error": {"message": "SECRET", "type": "server_error", "param": None, "code": None}}, None),
        ({"error": {"message": "SECRET", "code": "rate_limit_exceeded"}}, "rate_limit_exceeded"),
        ({"error": "SECRET"}, None),
        ({"object": "error", "message": "SECRET", "code": 400}, "400"),
        (chunk(choice({"content": ""}, 0, "error"), error={"code": 502, "message": "SECRET"}), "502"),
    ],
)
def test_a_told_error_ends_the_stream_without_the_upstreams_words(frame, code):
    out, events = run(word("x") + b"data: " + json.encode(frame) + b"\n\n" + stop() + DONE)
    assert out == word("x")
    assert isinstance(events.error, UpstreamFailed)
    assert not events.error.billed
    assert events.error.detail == ({"upstream": {"provider": "openai", "code": code}} if code else {})
    assert b"SECRET" not in render(events.error)


@pytest.mark.parametrize(
    "frame", [b"{}", b"[]", b"5", b"{", b'{"choices":null}', b'{"choices":[5]}', b'{"message":"x"}', b"\xff", b"NaN"]
)
def test_an_event_of_another_shape_ends_the_stream(frame):
    out, events = run(word("x") + b"data: " + frame + b"\n\n" + stop() + DONE)
    assert out == word("x")
    assert events.error is not None
    assert events.error.message == "The upstream sent something that is not a chat completion."


@pytest.mark.parametrize("first", [word("x"), stop(), b": ping\n\n"])
def test_a_byte_order_mark_stands_at_the_beginning(first):
    assert run(first, b"\xef\xbb\xbf" + word("y"))[1].error is not None
    assert run(first, b"\xef\xbb\xbf" + word("y"), stop(), DONE)[0] == first


def test_what_is_not_read_is_text_too():
    plain = event(choice({"content": "x"}), note="y")
    assert stream().feed(plain) == plain
    events = stream()
    assert events.feed(plain.replace(b"y", b"\xff")) == b""
    assert events.error is not None


def test_a_choice_that_has_finished_has_finished():
    source = word("x") + stop() + event(choice({"content": ""})) + event(choice({}, logprobs=5)) + DONE
    out, events = run(source)
    assert out == source
    assert events.done


def test_a_page_of_html_is_no_stream():
    assert run(b"<html>\n\n")[1].error is not None


def test_an_event_may_be_too_long():
    out, events = run(word("x"), b"data: " + b"x" * (1 << 20), DONE)
    assert out == word("x")
    assert events.error is not None
    assert events.error.message == "The upstream sent an event of more than 1 MiB."


@pytest.mark.parametrize("n", [None, 1])
@pytest.mark.parametrize("make", [word, stop])
def test_more_choices_than_there_can_be_are_nonsense(n, make):
    events = stream({"n": n})
    for at in range(MOST_CHOICES):
        assert events.feed(word("x", at) if make is word else stop(at))
    assert events.feed(word("x", 0)) == word("x", 0)
    assert events.feed(word("x", MOST_CHOICES)) == b""
    assert events.error is not None


@pytest.mark.parametrize("together", [True, False])
def test_more_choices_than_there_can_be_are_nonsense_in_one_piece_too(together):
    events = stream()
    last = [choice({"content": "x"}, at) for at in range(MOST_CHOICES - 1, MOST_CHOICES + 1)]
    source = event(*last) if together else event(last[0]) + event(last[1])
    for at in range(MOST_CHOICES - 1):
        events.feed(word("x", at))
    assert events.feed(source) == (b"" if together else event(last[0]))
    assert events.error is not None


# Usage and the tier.


def test_a_chunk_of_usage_is_for_those_who_asked():
    source = word("x") + stop() + event(usage=USAGE) + DONE
    assert run(source)[0] == word("x") + stop() + DONE
    assert run(source, include_usage=True)[0] == source


def test_usage_beside_choices_is_taken_and_the_event_passes_as_it_is():
    source = word("x") + stop(usage=USAGE) + DONE
    for wished in (False, True):
        out, events = run(source, include_usage=wished)
        assert out == source
        assert events.usage == USAGE


def test_the_last_usage_counts():
    first = USAGE | {"completion_tokens": 1}
    assert run(event(choice({"content": "x"}), usage=first), stop(usage=USAGE), DONE)[1].usage == USAGE


@pytest.mark.parametrize("usage", [{}, "x", {"prompt_tokens": 1}, USAGE | {"completion_tokens": -1}])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_usage_that_cannot_be_believed_is_neither_taken_nor_passed(usage, end):
    source = (stop(usage=usage) + event(usage=usage) + DONE).replace(b"\n", end)
    out, events = run(source)
    assert out == (stop() + DONE).replace(b"\n", end)
    assert events.usage is None
    assert run(source, include_usage=True)[0] == (stop() + event() + DONE).replace(b"\n", end)


def test_details_that_are_no_counts_are_left_out():
    out, events = run(stop(usage=USAGE | {"prompt_tokens_details": "x"}), DONE)
    assert out == stop(usage=USAGE) + DONE
    assert events.usage == USAGE


@pytest.mark.parametrize("one", [event(choice({"content": "x"}), service_tier="flex"), stop(service_tier="flex")])
def test_the_tier_of_the_answer_is_kept(one):
    events = stream()
    assert events.tier is None
    for each in (one, word("x"), stop(service_tier=None)):
        events.feed(each)
        assert events.tier == "flex"
    assert events.feed(stop(service_tier=5)) == stop(service_tier=5)
    assert events.tier == "flex"


# What has been passed on is counted.


@pytest.mark.parametrize(
    ("delta", "tokens"),
    [
        ({"content": "a"}, 1),
        ({"content": "fifteen letters"}, 1),
        ({"content": "sixteen letters!"}, 2),
        ({"content": "a" * 80}, 10),
        ({"content": "é" * 7}, 1),
        ({"content": "é" * 8}, 2),
        ({"content": ""}, 0),
        ({"role": "assistant", "content": "", "refusal": None}, 0),
        ({"content": "so", "reasoning_content": "é" * 80}, 21),
        ({"reasoning": "h" * 80}, 10),
        ({"reasoning": "h" * 80, "reasoning_content": "h" * 80}, 10),
        ({"refusal": "I am sorry, but no"}, 2),
        ({"tool_calls": [{"id": "abc", "function": {"name": "f", "arguments": "{}"}}, None, {"function": 5}]}, 2),
        ({"tool_calls": [{"function": {"name": "f" * 16, "arguments": None}}]}, 2),
        ({"function_call": {"name": "f", "arguments": "{}"}}, 2),
        ({"content": 5, "reasoning_content": ["x"], "tool_calls": 5}, 0),
        (None, 0),
    ],
)
def test_a_piece_is_one_token_or_one_for_each_eight_bytes(delta, tokens):
    events = stream()
    events.feed(event(choice(delta)))
    assert events.delivered == tokens


def test_every_choice_of_an_event_counts_and_an_unfinished_event_does_not():
    events = stream()
    events.feed(event(choice({"content": "a"}), choice({"content": "b" * 16}, 1)))
    assert events.delivered == 3
    events.feed(event(choice({"content": "a"}, 0, "stop"), choice({"refusal": "b"}, 1)) + word("c")[:-1])
    assert events.delivered == 5
