"""A chat answer as Mistral streams it: `data:` lines only, the last chunk with finish_reason and usage, then [DONE].

Chunk shapes are those of recorded streams. Later chunks carry a `p` of random length, Mistral's padding against traffic
analysis. `glm` is the dialect of a hosted third-party model: long ids, arguments in fragments, `delta.index`, no `p`.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import zip_longest
from typing import Any

import msgspec

from proxy.simulator.answers import CALLED, Answer, Call, Choice, call_body, thought
from proxy.simulator.conversation import tokens
from proxy.simulator.faults import Fault
from proxy.simulator.reply import DONE, Frame

Delta = dict[str, Any]
Deltas = Iterator[tuple[Delta, int]]
"""With the tokens that are in each."""

_PADDING = "abcdefghijklmnopqrstuvwxyz0123456789"
_FRAGMENT = 12  # characters of arguments in one GLM delta


def events(answer: Answer, dialect: str, fault: Fault) -> list[Frame]:
    """The frames of the stream, [DONE] included; several choices take turns."""
    head = msgspec.json.encode(
        {"id": answer.id, "object": "chat.completion.chunk", "created": answer.created, "model": answer.model}
    )[:-1]
    chunks = list(_chunks(answer, _DIALECTS[dialect], fault))
    frames = []
    for at, (choice, said) in enumerate(chunks):
        rest: dict[str, Any] = {"choices": [choice]}
        if at == len(chunks) - 1 and answer.usage is not None:
            rest["usage"] = answer.usage
        if at and dialect != "glm":
            rest["p"] = _PADDING[: 1 + answer.digest[at % len(answer.digest)] % len(_PADDING)]
        frames.append(Frame(b"data: %b,%b\n\n" % (head, msgspec.json.encode(rest)[1:]), said))
    return [*frames, DONE]


def _chunks(answer: Answer, deltas: Callable[[Choice, Fault], Deltas], fault: Fault) -> Deltas:
    """The `choices[0]` of every chunk, in order. A choice's last delta carries its finish_reason."""
    told = [list(deltas(choice, fault)) for choice in answer.choices]
    for at, turn in enumerate(zip_longest(*told)):
        for index, said in enumerate(turn):
            if said is not None:
                is_last = at == len(told[index]) - 1
                finish = answer.choices[index].finish if is_last else None
                yield {"index": index, "delta": said[0], "finish_reason": finish}, said[1]


def _mistral(choice: Choice, fault: Fault) -> Deltas:
    yield {"role": "assistant", "content": ""}, 0
    if choice.thinking:
        yield {"content": ""}, 0
    for at, piece in enumerate(choice.thinking):  # recorded: some pieces say closed, some say nothing
        yield {"content": [thought(piece) if at % 2 else _open_thought(piece)]}, 1
    if choice.thinking and choice.text:
        yield {"content": [{"type": "thinking", "thinking": []}]}, 0
    for piece in choice.text:
        yield {"content": piece}, 1
    if choice.calls:
        yield _calls_delta(choice.calls, fault), sum(call.tokens() for call in choice.calls)
    else:
        yield {"content": ""}, 0


def _large_4(choice: Choice, fault: Fault) -> Deltas:
    """The same, but text that follows thinking comes in lists too, and thinking says that it is not closed."""
    for delta, said in _mistral(choice, fault):
        content = delta.get("content")
        if isinstance(content, list):
            yield {"content": [{**chunk, "closed": False} for chunk in content]}, said
        elif choice.thinking and content:
            yield {"content": [{"type": "text", "text": content}]}, said
        else:
            yield delta, said


def _glm(choice: Choice, fault: Fault) -> Deltas:
    yield {"role": "assistant", "content": "", "index": 0}, 0
    for piece in choice.thinking:
        yield {"content": [_open_thought(piece)], "index": 0}, 1
    for piece in choice.text:
        yield {"content": piece, "index": 0}, 1
    for at, call in enumerate(choice.calls):
        for part, said in _fragments(call, at, fault):
            yield {"tool_calls": [part], "content": "", "index": 0}, said
    yield {"content": "", "index": 0}, 0


def _fragments(call: Call, at: int, fault: Fault) -> Deltas:
    """Id and name come first and once; every later part has an empty name."""
    yield {**call_body(call, at, fault), "function": {"name": call.name, "arguments": ""}}, CALLED
    for start in range(0, len(call.arguments), _FRAGMENT):
        end = start + _FRAGMENT
        said = len(tokens(call.arguments[:end])) - len(tokens(call.arguments[:start]))
        part = {"name": "", "arguments": call.arguments[start:end]}
        yield {"type": "function", "index": at, "function": part}, said


def _calls_delta(calls: list[Call], fault: Fault) -> Delta:
    return {"tool_calls": [call_body(call, at, fault) for at, call in enumerate(calls)]}


def _open_thought(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": [{"type": "text", "text": text}]}


_DIALECTS: Mapping[str, Callable[[Choice, Fault], Deltas]] = {
    "mistral": _mistral,
    "large-4": _large_4,
    "glm": _glm,
}
