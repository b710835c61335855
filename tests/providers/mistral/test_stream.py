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
from proxy.providers.mistral.stream import MOST_CALLS, ChatStream
from tests.core.test_sse import cut
from tests.providers.mistral.test_answer import USAGE, some, text, thinking

DONE = b"data: [DONE]\n\n"
GOLDEN = Path(__file__).parents[2] / "golden" / "stream"
NAMES = sorted(file.name.removesuffix(".in.sse") for file in GOLDEN.glob("*.in.sse"))
# What the request side had noted, where it had.
NOTES: dict[str, dict[str, Any]] = {
    "usage": {"include_usage": True},
    "functions": {"functions": True},
    "prefix": {"prefix": "Once upon"},
    "prefix_absent": {"prefix": "Once upon"},
}


def stream(*, strict: bool = False, **notes: Any) -> ChatStream:
    return ChatStream(Context(Model("mistral-small-latest"), {}, strict=strict, notes=notes))


def run(*chunks: bytes, strict: bool = False, **notes: Any) -> tuple[bytes, ChatStream]:
    """All that a client gets, and the stream after it."""
    events = stream(strict=strict, **notes)
    out = b"".join([*map(events.feed, chunks), events.end()])
    return out, events


def outcome(chunks: list[bytes], notes: dict[str, Any]) -> tuple[bytes, bool, bytes | None, Any, int]:
    out, events = run(*chunks, **notes)
    return out, events.done, render(events.error) if events.error else None, events.usage, events.delivered


def choice(delta: Any, index: Any = 0, finish: Any = None, **more: Any) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finish} | more


def chunk(*choices: Any, **more: Any) -> dict[str, Any]:
    head = {"id": "0f3a", "object": "chat.completion.chunk", "created": 1787000000, "model": "mistral-small-latest"}
    return head | {"choices": list(choices)} | more


def event(*choices: Any, **more: Any) -> bytes:
    return b"data: " + json.encode(chunk(*choices, **more)) + b"\n\n"


def word(content: Any, index: int = 0) -> bytes:
    return event(choice({"content": content}, index), p="abc")


def stop(index: int = 0, finish: str = "stop", **more: Any) -> bytes:
    return event(choice({"content": ""}, index, finish), **more)


def called(*calls: Any) -> bytes:
    return event(choice({"tool_calls": list(calls)}))


def chunks_in(out: bytes) -> list[Any]:
    """What an OpenAI client reads: every chunk before the end."""
    data = [found.data for found in SSEDecoder().iter_bytes(iter([out]))]
    return [json.decode(one.encode()) for one in data[: data.index("[DONE]") if "[DONE]" in data else None]]


def deltas(out: bytes) -> list[Any]:
    return [one["delta"] for found in chunks_in(out) for one in found["choices"]]


# Golden pairs: name.in.sse becomes name.out.sse, or stays as it is where there is none.


def golden(name: str) -> tuple[bytes, bytes]:
    source = (GOLDEN / f"{name}.in.sse").read_bytes()
    changed = GOLDEN / f"{name}.out.sse"
    return source, changed.read_bytes() if changed.exists() else source


@pytest.mark.parametrize("name", NAMES)
def test_golden(name):
    source, expected = golden(name)
    out, events = run(source, **NOTES.get(name, {}))
    assert out == expected
    assert events.done
    assert events.error is None
    assert events.usage == USAGE | {
        "prompt_tokens": 21,
        "completion_tokens": 9,
        "total_tokens": 30,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


@pytest.mark.parametrize("name", NAMES)
def test_golden_cut_at_every_byte(name):
    source, expected = golden(name)
    notes = NOTES.get(name, {})
    for at in range(len(source) + 1):
        assert run(source[:at], source[at:], **notes)[0] == expected
    assert run(*(source[i : i + 1] for i in range(len(source))), **notes)[0] == expected


@pytest.mark.parametrize("name", NAMES)
def test_golden_truncated_at_every_byte_is_an_error_or_the_same_answer(name):
    source, expected = golden(name)
    for at in range(len(source)):
        out, events = run(source[:at], **NOTES.get(name, {}))
        if events.error:
            assert expected.startswith(out)
            assert events.error.code == "upstream_error"
            assert not events.done
        else:  # only [DONE] was missing
            assert chunks_in(out) == chunks_in(expected)
            assert out.rstrip().endswith(b"data: [DONE]")


def test_the_golden_files_are_there():
    assert set(NOTES) < set(NAMES)
    assert len(NAMES) == 13


# What has been passed on is counted.


def said(delta: dict[str, Any]) -> list[str]:
    called = [call["function"] for call in delta.get("tool_calls", ())] + [delta.get("function_call") or {}]
    texts = [delta.get("content"), delta.get("reasoning_content")]
    texts += [function.get(key) for function in called for key in ("name", "arguments")]
    return [text for text in texts if text]


def counted(out: bytes) -> int:
    """Tokens in what a client was sent."""
    return sum(max(1, len(text.encode()) // 8) for delta in deltas(out) for text in said(delta))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_delivered_is_what_a_client_was_sent(name):
    source, expected = golden(name)
    notes = NOTES.get(name, {})
    assert run(source, **notes)[1].delivered == counted(expected) > 0
    for at in range(len(source)):
        out, events = run(source[:at], **notes)
        assert events.delivered == counted(out)


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
        ({"content": None}, 0),
        ({"role": "assistant", "content": ""}, 0),
        ({"content": "", "reasoning_content": "hm"}, 1),
        ({"content": "so", "reasoning_content": "é" * 80}, 21),
        ({"content": [thinking("hm"), text("so")]}, 2),
        ({"content": [thinking("h" * 24), text("")]}, 3),
        ({"content": "", "tool_calls": [{"id": "abc", "function": {"name": "f", "arguments": "{}"}}]}, 2),
        ({"tool_calls": [{"id": "abc", "function": {"name": "f" * 16, "arguments": {"a": "b" * 50}}}]}, 2 + 7),
        ({"function_call": {"name": "f", "arguments": "{}"}}, 2),
        ({"function_call": "f"}, 0),
        ({"content": 5, "reasoning_content": ["x"]}, 0),
    ],
)
def test_a_piece_is_one_token_or_one_for_each_eight_bytes(delta: dict[str, Any], tokens: int) -> None:
    events = stream()
    events.feed(event(choice(delta)))
    assert events.delivered == tokens


def test_every_choice_of_an_event_counts():
    events = stream()
    events.feed(event(choice({"content": "a"}), choice({"content": "b" * 16}, 1)))
    events.feed(event(choice({"content": [text("a")]}), choice({"content": "b"}, 1)))
    assert events.delivered == 5


def test_what_is_held_back_is_not_counted():
    events = stream(prefix="Once upon")
    events.feed(word("Once"))
    assert events.delivered == 0
    events.feed(word(" upon a time"))
    assert events.delivered == 1
    other = stream(prefix="Once upon")
    other.feed(word("Once"))
    other.feed(word(" more into the breach"))
    assert other.delivered == 3
    unfinished = stream()
    unfinished.feed(word("a") + word("b")[:-1])
    assert unfinished.delivered == 1


def test_a_choice_before_one_that_awaits_its_prefix_is_counted_once():
    events = stream(prefix="Once upon")
    events.feed(word("Once upon a time"))
    assert events.delivered == 1
    events.feed(event(choice({"content": "then"}), choice({"content": "Once"}, 1)))
    assert events.delivered == 2


@pytest.mark.parametrize(("told", "tier"), [("priority", "priority"), ("standard", "default"), (5, None), (None, None)])
def test_the_tier_of_the_answer_is_kept(told: Any, tier: str | None) -> None:
    events = stream()
    assert events.tier is None
    events.feed(stop(usage=USAGE | {"service_tier": told}))
    assert events.tier == tier


# What needs no change is not changed.


def test_a_chunk_that_needs_no_change_is_not_copied():
    events = stream()
    one = word("Hello")
    assert events.feed(one) is one


UNTOUCHED = [
    word("Hello"),
    word(""),
    event(choice({"role": "assistant", "content": ""})),
    event(choice({"content": "x", "index": 0, "metadata": {"a": 1}})),
    event(choice({"content": "x", "tool_calls": None}, logprobs=None), usage=None, error=None),
    event(choice({"content": "x"}, 3), system_fingerprint="fp"),
    event(),
    event(choice({"reasoning_content": "hm"})),
    stop(finish="length", usage=USAGE | {"service_tier": "standard", "num_cached_tokens": 1}),
    called({"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}),
    event(choice({"content": "x"}), object="chat.completion.chunk.new"),
    b'data: { "object" : "chat.completion.chunk" , "choices" : [ ] }\n\n',
    b'data:{"object":"chat.completion.chunk","choices":[]}\n\n',
    b": comment\n\n",
    b": comment\n: another\n\n",
    b"\n\n",
    b'event: e\nretry: 5\ndata: {"object":"chat.completion.chunk",\ndata: "choices":[]}\n\n',
    word("x").replace(b"\n", b"\r\n"),
    word("x").replace(b"\n", b"\r"),
    stop().replace(b"\n", b"\r"),
]


@pytest.mark.parametrize("one", UNTOUCHED)
def test_what_openai_clients_understand_passes_as_it_is(one):
    events = stream()
    assert events.feed(one) == one
    assert events.error is None


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
def test_a_stream_that_needs_no_change_is_byte_identical(events, places):
    source = b"".join([word("x", 0), word("y", 1), *events, word("z"), stop(0), stop(1, usage=USAGE), DONE])
    out, after = run(*cut(source, places))
    assert out == source
    assert after.done


CALL = some(
    id=st.sampled_from(["", "a", "b"]),
    index=st.integers(0, 2),
    type=st.just("function"),
    function=some(name=st.sampled_from(["", "f"]), arguments=TEXT),
)
PART = some(type=st.sampled_from(["text", "thinking"]), text=TEXT, thinking=st.lists(st.just(text("t")), max_size=2))
DELTA = some(content=TEXT | st.lists(PART, max_size=2), tool_calls=st.lists(CALL, max_size=3))
CHOICE = some(
    index=st.integers(0, 1),
    delta=DELTA,
    finish_reason=st.sampled_from([None, "stop", "model_length", "error", "tool_calls"]),
    logprobs=some(content=st.lists(some(token_id=st.integers()), max_size=1)),
)
ANYTHING = st.one_of(
    st.builds(lambda one, usage: event(one, **usage), CHOICE, st.sampled_from([{}, {}, {"usage": USAGE}])),
    PLAIN,
    st.sampled_from([DONE, stop(), stop(1), b"data:\n\n", b": c\r\n\r\n", b"\xef\xbb\xbf", b"data: {\n\n", b"<p>\n\n"]),
    st.sampled_from([event(object="error", code="3000"), event(error={"code": 1})]),
)
STREAM = st.lists(ANYTHING, max_size=8).map(b"".join)
SOME_NOTES = st.fixed_dictionaries(
    {},
    optional={"prefix": st.sampled_from(["a", "ab"]), "functions": st.just(True), "include_usage": st.just(True)},
)


@given(STREAM, PLACES, SOME_NOTES, st.booleans())
def test_any_fragmentation_gives_the_same(source, places, notes, strict):
    notes = notes | {"strict": strict}
    whole = outcome([source], notes)
    assert outcome(cut(source, places), notes) == whole
    assert outcome([source[i : i + 1] for i in range(len(source))], notes) == whole


@given(st.lists(st.binary(max_size=40) | ANYTHING), SOME_NOTES)
@example([b"data: \xff\n\n"], {})
@example([b'data: {"choices":[{"delta":{},"x":"\\ud800"}]}\n\n'], {})
@example([b'data: {"choices":1e999}\n\n', DONE], {})
@example([b'data: {"x":' + b"[" * 100_000 + b"\n\n"], {})
def test_whatever_comes_the_stream_ends_in_one_way(pieces, notes):
    out, events = run(*pieces, **notes)
    assert events.done is (events.error is None)
    assert (b"data: [DONE]" in out or b"data:[DONE]" in out) is events.done
    if events.error:
        assert (events.error.status, events.error.code) == (502, "upstream_error")
    assert events.feed(word("late")) == b""
    assert events.end() == b""


# How a stream ends.


def test_done_ends_it_and_nothing_after_it_is_passed():
    out, events = run(word("x"), stop(), DONE + word("late"), DONE)
    assert out == word("x") + stop() + DONE
    assert events.done


def test_a_missing_done_is_added_once_every_choice_has_finished():
    assert run(word("x"), stop())[0] == word("x") + stop() + DONE
    assert run(word("x"), stop() + b"data: [DONE]")[0] == word("x") + stop() + DONE


def test_done_may_lack_its_last_line_feed():
    crlf = b"data: [DONE]\r\n\r"
    out, events = run(stop(), crlf)
    assert out == stop() + crlf
    assert events.done


@pytest.mark.parametrize("end", [[DONE], [DONE, b"\n"], [b"data: [DONE]\r\r\n"], [DONE[:-1], b"\n"]])
def test_nothing_comes_behind_the_end(end):
    assert not run(stop(), *end)[1].surplus


@pytest.mark.parametrize("more", [DONE, b":", word("late"), b"\nx"])
def test_that_more_comes_behind_the_end_is_noticed(more):
    assert run(stop(), DONE + more)[1].surplus
    assert run(stop() + DONE + more)[1].surplus


@pytest.mark.parametrize("finish", [None, "stop"])
def test_a_choice_with_an_error_is_not_what_the_next_one_need_be(finish):
    out, events = run(event(choice({"content": "x"}, finish=finish, error={"message": "no"})) + stop() + DONE)
    assert (b'"no"' in out, events.done, events.error, events._context.spoiled) == (True, True, None, True)
    assert not run(word("x"), stop(), DONE)[1]._context.spoiled


@pytest.mark.parametrize(
    "source",
    [
        b"",
        DONE,
        b": ping\n\n" + DONE,
        word("x"),
        word("x") + DONE,
        word("x") + stop()[:-1],
        event() + DONE,
        word("x", 0) + word("y", 1) + stop(0) + DONE,
        word("x", 0) + word("y", 1) + stop(1),
        word("x", 1) + word("y", 0) + stop(1) + DONE,
        event(choice({"content": "x"}, finish="")) + DONE,
    ],
)
def test_an_end_before_every_choice_has_finished_is_an_error(source):
    out, events = run(source)
    assert isinstance(events.error, UpstreamFailed)
    assert events.error.message == "The upstream ended the stream before it was complete."
    assert DONE not in out
    assert source.startswith(out)


@pytest.mark.parametrize(
    ("frame", "upstream"),
    [
        (
            {"object": "error", "message": "SECRET", "type": "SECRET", "code": "3000", "raw_status_code": 500},
            {"status": 500, "code": "3000"},
        ),
        ({"object": "Error", "detail": ["SECRET"], "message": ["SECRET"], "code": 3001}, {"code": "3001"}),
        ({"error": {"message": "SECRET", "type": "server_error", "code": None}}, None),
        ({"object": "error", "message": {"detail": [{"input": "SECRET"}]}, "code": None}, None),
        ({"detail": [{"type": "missing", "loc": ["body"], "msg": "SECRET", "input": "SECRET"}]}, None),
        ({"detail": "SECRET"}, None),
        ({"message": "SECRET", "request_id": "SECRET"}, None),
        (chunk(choice({"content": "SECRET"}), object="error", code="1100"), {"code": "1100"}),
        (chunk(choice({"content": "SECRET"}), error="SECRET"), None),
    ],
)
def test_an_error_frame_ends_the_stream_without_the_upstreams_words(frame, upstream):
    source = word("x") + b"data: " + json.encode(frame) + b"\n\n"
    out, events = run(source + stop() + DONE)
    assert out == word("x")
    assert events.error is not None
    assert (events.error.status, events.error.code) == (502, "upstream_error")
    assert events.error.detail == ({"upstream": {"provider": "mistral"} | upstream} if upstream else {})
    assert b"SECRET" not in render(events.error)


@pytest.mark.parametrize(
    "garbage",
    [
        b"data: nonsense\n\n",
        b'data: {"id":"x","choices":[{"ind\n\n',
        b"data: [1]\n\n",
        b"data: {}\n\n",
        b"data: null\n\n",
        b'data: {"object":"chat.completion.chunk","choices":[3]}\n\n',
        b'data: {"object":"chat.completion.chunk","choices":[]} x\n\n',
        b'data: {"object":"chat.completion.chunk",\n"choices":[]}\n\n',
        b"<html>\n<title>502 Bad Gateway</title>\n\n</html>\n",
        b'{"object":"error"}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"\xff"}}]}\n\n',
        b'data: {"object":"chat.completion.chunk","choices":[],"p":"\xff"}\n\n',
        b'data: {"object":"chat.completion.chunk","choices":[],"\xa5":1}\n\n',
        b": \xc3\n\n",
    ],
)
def test_garbage_ends_the_stream_and_is_not_passed(garbage):
    out, events = run(word("x") + garbage + stop() + DONE)
    assert out == word("x")
    assert events.error is not None
    assert events.error.message == "The upstream sent something that is not a chat completion."


@pytest.mark.parametrize("size", [1000, 300_000, 2_000_000])
def test_an_endless_event_is_an_error(size):
    source = word("x") + b"data: " + b"x" * (1 << 20)
    out, events = run(*(source[i : i + size] for i in range(0, len(source), size)))
    assert out == word("x")
    assert events.error is not None
    assert events.error.message == "The upstream sent an event of more than 1 MiB."


def test_a_large_event_passes():
    large = word("x" * 1_000_000)
    assert run(large, stop(), DONE)[0] == large + stop() + DONE


# What is sent differently.


def test_a_byte_order_mark_is_left_out_because_the_sdk_would_lose_the_first_event():
    bom = b"\xef\xbb\xbf"
    source = word("x") + stop() + DONE
    assert run(bom + source)[0] == source
    assert run(bom, b": ping\n\n" + source)[0] == b": ping\n\n" + source


@pytest.mark.parametrize("before", [b"\xef\xbb\xbf" * 100_000, word("x"), b": ping\n\n"])
def test_a_byte_order_mark_means_nothing_anywhere_else(before):
    _, events = run(before + b"\xef\xbb\xbf" + word("y"))
    assert events.error is not None
    assert events.error.message == "The upstream sent something that is not a chat completion."


@pytest.mark.parametrize("empty", [b"data:\n\n", b"data: \n\n", b"data\n\n"])
def test_empty_data_become_a_comment_because_the_sdk_would_read_them(empty):
    out, events = run(word("x") + empty + stop() + DONE)
    assert out == word("x") + b":\n\n" + stop() + DONE
    assert events.done


@pytest.mark.parametrize(
    ("source", "left"),
    [
        (b"event: ping\n\n", b"\n"),
        (b": c\r\nid: 1\r\nretry: 5\r\n\r\n", b": c\r\n\r\n"),
        (b"event: ping\ndata:\n\n", b":\n\n"),
    ],
)
def test_an_event_without_data_becomes_a_comment_because_the_sdks_would_read_it(source, left):
    out, events = run(word("x") + source + stop() + DONE)
    assert out == word("x") + left + stop() + DONE
    assert events.done


def test_no_event_has_an_id_because_the_sdk_would_read_every_comment_after_it():
    out, _ = run(b"id: 1\n" + word("x") + word("y")[:-1] + b"id\n\n: keep-alive\n\n" + stop() + DONE)
    assert out == word("x") + word("y") + b": keep-alive\n\n" + stop() + DONE
    assert len(chunks_in(out)) == 3


@pytest.mark.parametrize(
    ("content", "delta"),
    [
        ([text("a"), text("b")], {"content": "ab"}),
        ([thinking("hm")], {"content": None, "reasoning_content": "hm"}),
        ([thinking("h", "m"), text("so")], {"content": "so", "reasoning_content": "hm"}),
        ([], {"content": ""}),
        ([{"type": "reference", "reference_ids": [1]}], {"content": ""}),
        ({"type": "text", "text": "a"}, {"content": "a"}),
        (5, {"content": ""}),
    ],
)
def test_content_is_text(content, delta):
    out, _ = run(word(content), stop(), DONE)
    assert deltas(out)[0] == delta


def test_escapes_and_white_space_hide_nothing():
    hidden = (
        rb'data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"\u0063ontent" : [ ]}}]}' + b"\n\n"
    )
    assert deltas(run(hidden, stop(), DONE)[0])[0] == {"content": ""}
    final = b'data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{},"finish_reason" :  "stop"}]}\n\n'
    assert run(final, DONE)[1].done


@pytest.mark.parametrize("delta", [None, 3, "x", []])
def test_a_choice_has_a_delta_and_an_index(delta):
    (found,) = chunks_in(run(b'data: {"choices":[{"delta":%b}]}\n\n' % json.encode(delta))[0])
    assert found["choices"] == [{"delta": {}, "index": 0}]


def test_an_index_that_only_equals_an_integer_becomes_one():
    out, _ = run(event(choice({"content": "x"}, 0.0)), stop(), DONE)
    assert b'"index":0,' in out


@pytest.mark.parametrize(("reason", "becomes"), [("model_length", "length"), ("error", "stop")])
def test_finish_reason(reason, becomes):
    out, events = run(event(choice({"content": "x"}, 0, reason)), DONE)
    assert chunks_in(out)[0]["choices"][0]["finish_reason"] == becomes
    assert events.done


def test_logprobs_have_openais_shape():
    token = {"token": "a", "logprob": -1.0, "bytes": None}
    out, _ = run(event(choice({"content": "a"}, logprobs={"content": [token | {"token_id": 3, "top_logprobs": None}]})))
    assert chunks_in(out)[0]["choices"][0]["logprobs"] == {"content": [token | {"top_logprobs": []}], "refusal": None}


def function(name: Any = None, arguments: Any = None) -> dict[str, Any]:
    parts = {"name": name, "arguments": arguments}
    return {key: value for key, value in parts.items() if value is not None}


CALLS: dict[str, tuple[list[list[Any]], list[list[Any]]]] = {
    "no index, no type": (
        [[{"id": "a", "function": function("f", "{}")}, {"id": "b", "function": function("g", "{}")}]],
        [
            [
                {"id": "a", "function": function("f", "{}"), "index": 0, "type": "function"},
                {"id": "b", "function": function("g", "{}"), "index": 1, "type": "function"},
            ]
        ],
    ),
    "no index, pieces go to the call of their id": (
        [
            [{"id": "a", "function": function("f", "")}],
            [{"id": "b", "function": function("g", "")}],
            [{"id": "a", "function": function("f", "{}")}],
            [{"id": "b", "function": function("", "{}")}],
        ],
        [
            [{"id": "a", "function": function("f", ""), "index": 0, "type": "function"}],
            [{"id": "b", "function": function("g", ""), "index": 1, "type": "function"}],
            [{"function": function(None, "{}"), "index": 0}],
            [{"function": {"arguments": "{}"}, "index": 1}],
        ],
    ),
    "no index, no id: a name begins a call": (
        [
            [{"function": function("f", "{")}],
            [{"function": function("", "}")}],
            [{"id": "null", "function": function("f", "{}")}],
        ],
        [
            [{"function": function("f", "{"), "index": 0, "type": "function"}],
            [{"function": {"arguments": "}"}, "index": 0}],
            [{"id": "null", "function": function("f", "{}"), "index": 1, "type": "function"}],
        ],
    ),
    "no index, no id: the next call is after the last": (
        [
            [{"index": 1, "id": "a", "type": "function", "function": function("f")}],
            [{"index": 0, "id": "b", "type": "function", "function": function("g")}],
            [{"id": "null", "function": function("h")}, {"id": "null", "function": function("i")}],
        ],
        [
            [{"index": 1, "id": "a", "type": "function", "function": function("f")}],
            [{"index": 0, "id": "b", "type": "function", "function": function("g")}],
            [
                {"id": "null", "function": function("h"), "index": 2, "type": "function"},
                {"id": "null", "function": function("i"), "index": 3, "type": "function"},
            ],
        ],
    ),
    "all with index 0": (
        [[{"index": 0, "id": "a", "function": function("f")}, {"index": 0, "id": "b", "function": function("g")}]],
        [
            [
                {"index": 0, "id": "a", "function": function("f"), "type": "function"},
                {"index": 1, "id": "b", "function": function("g"), "type": "function"},
            ]
        ],
    ),
    "id and name repeated": (
        [
            [{"index": 0, "id": "a", "type": "function", "function": function("f", "{")}],
            [{"index": 0, "id": "a", "type": "function", "function": function("f", "}")}],
        ],
        [
            [{"index": 0, "id": "a", "type": "function", "function": function("f", "{")}],
            [{"index": 0, "type": "function", "function": function(None, "}")}],
        ],
    ),
    "arguments as an object": (
        [[{"index": 0, "id": "a", "type": "function", "function": function("f", {"x": ["é"]})}]],
        [[{"index": 0, "id": "a", "type": "function", "function": function("f", '{"x":["é"]}')}]],
    ),
    "no function": (
        [[{"id": "a"}, None, 3]],
        [[{"id": "a", "index": 0, "type": "function", "function": {}}]],
    ),
}


def test_calls_and_the_finish_come_apart():
    call = {"index": 0, "id": "a", "type": "function", "function": function("f", "{}")}
    source = event(
        choice({"tool_calls": [call]}, 0, "tool_calls"),
        choice({"content": "x"}, 1, "stop"),
        usage=USAGE,
        service_tier="x",
    )
    first, second = chunks_in(run(source, DONE)[0])
    assert [one["finish_reason"] for one in first["choices"]] == [None, None]
    assert first["choices"][0]["delta"] == {"tool_calls": [call]}
    assert "usage" not in first
    assert [(one["index"], one["delta"], one["finish_reason"]) for one in second["choices"]] == [
        (0, {}, "tool_calls"),
        (1, {}, "stop"),
    ]
    assert second["usage"] == USAGE


def test_a_finish_that_brings_text_stays_as_it_is():
    source = event(choice({"content": "x"}, 0, "stop"), usage=USAGE)
    assert run(source, DONE)[0] == source + DONE


@pytest.mark.parametrize("name", CALLS)
def test_tool_calls(name):
    sent, expected = CALLS[name]
    out, _ = run(*(called(*calls) for calls in sent), stop(finish="tool_calls"), DONE)
    assert [delta["tool_calls"] for delta in deltas(out)[:-1]] == expected


@pytest.mark.parametrize("calls", [5, [], [None], "x", {"a": 1}])
def test_calls_that_are_none_are_left_out(calls):
    out, _ = run(event(choice({"content": "", "tool_calls": calls})))
    assert deltas(out) == [{"content": ""}]


def test_each_choice_counts_its_own_calls():
    first, second = {"id": "a", "function": function("f")}, {"id": "b", "function": function("g")}
    out, _ = run(event(choice({"tool_calls": [first]}, 0), choice({"tool_calls": [second]}, 1)))
    assert [delta["tool_calls"][0]["index"] for delta in deltas(out)] == [0, 0]


@pytest.mark.parametrize("n", [None, 200])
def test_d25_more_choices_than_there_can_be_are_nonsense(n):
    most = max(n or 1, MOST_CHOICES)
    events = ChatStream(Context(Model("m"), {"n": n}))
    for index in range(most):
        assert events.feed(word("x", index)) == word("x", index)
    assert events.feed(word("x", 0)) == word("x", 0)
    assert events.feed(word("x", most)) == b""
    assert events.error is not None
    assert events.error.message == "The upstream sent something that is not a chat completion."


def test_d25_more_calls_than_there_can_be_are_nonsense():
    events = stream()
    for index in range(MOST_CALLS):
        assert events.feed(called({"id": f"id{index}", "function": function("f")}))
    assert events.feed(called({"id": "id0", "function": function(arguments="x")}))
    assert events.feed(called({"id": "one more", "function": function("f")})) == b""
    assert events.error is not None
    assert events.error.message == "The upstream sent something that is not a chat completion."


@pytest.mark.parametrize(("length", "known"), [(256, True), (257, False)])
def test_d25_what_is_too_long_for_an_id_is_none(length, known):
    """They are kept for as long as the stream goes on. What comes without one belongs to the call that is going on."""
    first, second = "a" * length, "b" * length
    out, _ = run(
        called({"id": first, "function": function("f")}),
        called({"id": second, "function": function("g")}),
        called({"id": first, "function": function(arguments="x")}),
    )
    pieces = [delta["tool_calls"][0] for delta in deltas(out)]
    assert [piece["index"] for piece in pieces] == ([0, 1, 0] if known else [0, 1, 1])


@pytest.mark.parametrize(("length", "known"), [(256, True), (257, False)])
def test_d25_what_is_too_long_for_a_name_is_not_kept(length, known):
    first = {"index": 0, "id": "a", "function": function("f" * length)}
    out, _ = run(called(first), called({"index": 0, "function": function("f" * length, "x")}))
    assert ("name" in deltas(out)[1]["tool_calls"][0]["function"]) == (not known)


def test_the_older_functions_get_the_first_call_only():
    out, events = run(
        called({"index": 0, "id": "a", "function": function("f", "")}, {"index": 0, "function": function("", "{")}),
        called({"index": 1, "id": "b", "function": function("g", "{}")}),
        called({"index": 0, "function": function("", "}")}),
        stop(finish="tool_calls"),
        DONE,
        functions=True,
    )
    assert deltas(out) == [
        {"function_call": {"name": "f", "arguments": "{"}},
        {},
        {"function_call": {"arguments": "}"}},
        {"content": ""},
    ]
    assert chunks_in(out)[-1]["choices"][0]["finish_reason"] == "function_call"
    assert events.done


# Usage.


def test_usage_is_recorded_and_passed_unless_asked_for():
    final = stop(usage=USAGE | {"service_tier": "standard", "num_cached_tokens": 64})
    out, events = run(word("x"), final, DONE)
    assert out == word("x") + final + DONE
    assert events.usage == USAGE | {"prompt_tokens_details": {"cached_tokens": 64}}


def test_strict_mode_shows_no_usage_that_was_not_asked_for():
    out, events = run(word("x"), stop(usage=USAGE), DONE, strict=True)
    assert out == word("x") + stop() + DONE
    assert events.usage == USAGE


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("end", [DONE, b""])
def test_include_usage_gives_it_a_chunk_of_its_own_before_the_end(end, strict):
    usage = USAGE | {"service_tier": "priority"}
    out, events = run(word("x"), stop(usage=usage), end, include_usage=True, strict=strict)
    assert (
        out
        == word("x")
        + stop(usage=None, service_tier="priority")
        + b"data: "
        + json.encode(chunk(usage=USAGE))
        + b"\n\n"
        + DONE
    )
    assert events.usage == USAGE


def test_include_usage_keeps_the_line_ends():
    source = (word("x") + stop(usage=USAGE) + DONE).replace(b"\n", b"\r\n")
    out, _ = run(source, include_usage=True)
    assert out.replace(b"\r\n", b"").find(b"\n") == -1
    assert [found["usage"] for found in chunks_in(out)[1:]] == [None, USAGE]


def test_include_usage_with_two_choices_gives_it_once():
    out, _ = run(word("x", 0), word("y", 1), stop(1), stop(0, usage=USAGE), DONE, include_usage=True)
    assert [found.get("usage") for found in chunks_in(out)] == [None, None, None, None, USAGE]


def test_include_usage_of_an_upstream_that_does_it_itself():
    source = word("x") + stop() + event(usage=USAGE) + DONE
    out, events = run(source, include_usage=True)
    assert out == source
    assert events.usage == USAGE
    both = run(word("x") + stop(usage=USAGE) + event(usage=USAGE) + DONE, include_usage=True)[0]
    assert both == word("x") + stop(usage=None) + event(usage=USAGE) + DONE


def test_include_usage_without_any():
    source = word("x") + stop() + DONE
    assert run(source, include_usage=True)[0] == source


def test_no_usage_chunk_before_an_error():
    out, events = run(word("x", 1), stop(0, usage=USAGE), DONE, include_usage=True)
    assert events.error
    assert all(found["choices"] for found in chunks_in(out))
    assert events.usage == USAGE


# The prefix that Mistral repeats.


@pytest.mark.parametrize(
    ("contents", "visible"),
    [
        (["Once upon a time", "."], " a time."),
        (["Once upon", " a time"], " a time"),
        (["", "On", "ce", " up", "on a", " time"], " a time"),
        (["Once more", "."], "Once more."),
        (["Once ", "more"], "Once more"),
        (["Twice"], "Twice"),
        (["Once"], "Once"),
        ([[text("Once ")], [text("upon"), text("!")]], "!"),
        (["Once upon", "Once upon"], "Once upon"),
        ([], ""),
    ],
)
def test_the_prefix_is_taken_off_and_nothing_else_is_lost(contents, visible):
    out, events = run(*map(word, contents), stop(), DONE, prefix="Once upon")
    assert "".join(delta["content"] for delta in deltas(out)) == visible
    assert events.done


@given(TEXT.filter(bool), st.lists(TEXT), st.booleans())
def test_the_prefix_is_taken_off_as_from_a_whole_answer(prefix, contents, echoed):
    contents = [prefix, *contents] if echoed else contents
    out, _ = run(*map(word, contents), stop(), DONE, prefix=prefix)
    assert "".join(delta["content"] for delta in deltas(out)) == "".join(contents).removeprefix(prefix)


def test_each_choice_repeats_the_prefix():
    events = [word("On", 0), word("Once upon!", 1), word("ce upon?", 0), word("Once upon", 0), stop(0), stop(1)]
    found = chunks_in(run(*events, DONE, prefix="Once upon")[0])
    contents = [(one["index"], one["delta"]["content"]) for each in found for one in each["choices"]]
    assert contents == [(0, ""), (1, "!"), (0, "?"), (0, "Once upon"), (0, ""), (1, "")]


def test_once_the_prefix_is_off_chunks_pass_as_they_are():
    events = stream(prefix="Once")
    events.feed(word("Once"))
    one = word(" more")
    assert events.feed(one) is one


def test_what_was_withheld_comes_with_the_finish():
    out, _ = run(word("On"), event(choice({}, 0, "stop")), DONE, prefix="Once")
    assert deltas(out) == [{"content": ""}, {"content": "On"}]


# The real SDK reads it.


def client(out: bytes) -> openai.OpenAI:
    """OpenAI's client, answered with these bytes."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=out)

    transport = httpx2.MockTransport(answer)
    return openai.OpenAI(api_key="none", base_url="http://proxy/v1", http_client=httpx2.Client(transport=transport))


def completion(out: bytes) -> Any:
    """What the SDK's own accumulator makes of the stream."""
    with (
        client(out) as sdk,
        sdk.chat.completions.stream(model="m", messages=[{"role": "user", "content": "Hi"}]) as events,
    ):
        for _ in events:
            pass
        return events.current_completion_snapshot


@pytest.mark.parametrize("name", NAMES)
def test_the_sdk_reads_every_golden_stream(name):
    source, expected = golden(name)
    final = completion(run(source, **NOTES.get(name, {}))[0])
    assert final.choices[0].finish_reason in ("stop", "length", "tool_calls", "function_call")
    with client(expected) as sdk, sdk.chat.completions.create(model="m", messages=[], stream=True) as chunks:
        assert len(list(chunks)) == len(chunks_in(expected))


def sdk_answer(name: str) -> Any:
    return completion(golden(name)[1])


def test_the_sdk_has_text_and_reasoning():
    message = sdk_answer("thinking").choices[0].message
    assert (message.content, message.reasoning_content) == ("It is four.", "Two and two.")


@pytest.mark.parametrize("name", ["tools", "tools_bare", "tools_pieces", "tools_pieces_bare"])
def test_the_sdk_has_whole_calls(name):
    first, *others = sdk_answer(name).choices[0].message.tool_calls
    assert first.type == "function"
    assert first.id in ("a1B2c3D4e", "chatcmpl-tool-9f14c0de9f14c0de")
    assert first.function.name == "weather"
    assert json.decode(first.function.arguments.encode()) == {"city": "Paris"}
    assert len(others) == (0 if name == "tools_pieces" else 1)


def test_the_sdk_has_both_choices():
    final = sdk_answer("two_choices")
    assert [(one.message.content, one.finish_reason) for one in final.choices] == [("b!", "length"), ("a.", "stop")]


def test_the_sdk_knows_an_answer_cut_at_the_models_length():
    with (
        client(golden("model_length")[1]) as sdk,
        sdk.chat.completions.stream(model="m", messages=[], response_format={"type": "json_object"}) as events,
        pytest.raises(openai.LengthFinishReasonError),
    ):
        events.get_final_completion()


def test_the_sdk_has_the_usage():
    assert sdk_answer("usage").usage.total_tokens == 30


def test_the_sdk_has_the_older_function_call():
    final = sdk_answer("functions").choices[0]
    assert (final.message.function_call.name, final.finish_reason) == ("weather", "function_call")
    assert final.message.tool_calls is None


def test_the_sdk_has_what_goes_on_from_the_prefix():
    assert sdk_answer("prefix").choices[0].message.content == " a time."
    assert sdk_answer("prefix_absent").choices[0].message.content == "Once more."


def test_the_sdk_raises_on_the_error_frame():
    out, events = run(word("x") + b'data: {"object":"error","code":"3000","raw_status_code":500}\n\n')
    assert events.error
    with pytest.raises(openai.APIError) as caught:
        completion(out + b"data: %b\n\n" % render(events.error) + DONE)
    assert caught.value.code == "upstream_error"
    body: Any = caught.value.body
    assert body["upstream"] == {"provider": "mistral", "status": 500, "code": "3000"}


@pytest.mark.parametrize("end", [DONE, b""])
def test_a_choice_that_never_came_is_missing(end):
    events = ChatStream(Context(model=Model("m"), asked={"n": 2}))
    events.feed(event(choice({"content": "a"}, 0, "stop"), usage=USAGE) + end)
    events.end()
    assert events.error is not None
    assert not events.done
