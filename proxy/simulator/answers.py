"""What the simulated model says: a deterministic function of the request, and its form outside a stream.

Shapes: recorded answers of the API (August to October 2026).
"""

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from proxy.simulator.conversation import functions, last_user_text, prompt_tokens, text_of, tokens, tokens_of
from proxy.simulator.faults import Fault
from proxy.simulator.json_schema import instance
from proxy.simulator.models import Model

_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_THOUGHT = "The user wants an answer. I should say what I was told, and nothing more."
_LARGE_PIECE = 1024
_FULL = 16  # tokens, when there is no max_tokens to fill

CALLED = 2
"""Tokens of a call besides its arguments."""


@dataclass(slots=True)
class Call:
    """A tool call; `arguments` is JSON, or the first half of it when max_tokens ended the answer there."""

    id: str
    name: str
    arguments: str

    def tokens(self) -> int:
        return len(tokens(self.arguments)) + CALLED


@dataclass(slots=True)
class Choice:
    """One choice, its thinking and text in the pieces in which they are streamed."""

    thinking: list[str]
    text: list[str]
    calls: list[Call]
    finish: str

    def tokens(self) -> int:
        return len(self.thinking) + len(self.text) + sum(call.tokens() for call in self.calls)


@dataclass(slots=True)
class Answer:
    """All choices with what they cost; `usage` is None or wrong when a fault wants it so, the tokens are right."""

    id: str
    created: int
    model: str
    choices: list[Choice]
    usage: dict[str, Any] | None
    prompt: int
    completion: int
    digest: bytes


def answer(
    request: dict[str, Any], model: Model, fault: Fault, *, digest: bytes, created: int, authorization: str
) -> Answer:
    """The answer to a checked request. `digest` (32 bytes) decides ids and padding and nothing that is said."""
    echo = f" {authorization}" if fault.echo_auth else ""
    choices = [_choice(request, model, fault, digest, index, echo) for index in range(request.get("n") or 1)]
    prompt = prompt_tokens(request["messages"])
    if request.get("tools"):
        prompt += tokens_of(msgspec.json.encode(request["tools"]).decode())
    completion = sum(choice.tokens() for choice in choices)
    usage = _usage(prompt, completion, fault)
    return Answer(digest[:16].hex(), created, request["model"], choices, usage, prompt, completion, digest)


def _choice(request: dict[str, Any], model: Model, fault: Fault, digest: bytes, index: int, echo: str) -> Choice:
    thinking = tokens(_THOUGHT) if request.get("reasoning_effort") not in (None, "none") else []
    calls = [] if _is_scripted(fault) else _calls(request, model, digest, index)
    text = [] if calls else _text(request, model, fault, index, echo)
    choice = Choice(thinking, text, calls, "length" if fault.full else "stop")
    if calls:
        choice.finish = "tool_calls"
    if request.get("max_tokens") is not None:
        _shorten(choice, request["max_tokens"])
    if fault.finish:
        choice.finish = fault.finish
    return choice


def _is_scripted(fault: Fault) -> bool:
    return fault.full or any(count is not None for count in (fault.events, fault.words, fault.large))


def _text(request: dict[str, Any], model: Model, fault: Fault, index: int, echo: str) -> list[str]:
    if fault.large is not None:
        return [("x" * (_LARGE_PIECE - 1) + " ")[: fault.large - at] for at in range(0, fault.large, _LARGE_PIECE)]
    if _is_scripted(fault):
        full = min(request.get("max_tokens") or _FULL, model.context) if fault.full else 0
        return [f"{' ' * bool(word)}word{word}" for word in range(full or fault.events or fault.words or 0)]
    text = _said(request, index) + echo
    stops = request.get("stop") or []
    ends = [text.find(stop) for stop in ([stops] if isinstance(stops, str) else stops) if stop and stop in text]
    return tokens(text[: min(ends)] if ends else text)


def _said(request: dict[str, Any], index: int) -> str:
    messages = request["messages"]
    last = messages[-1]
    form = request.get("response_format") or {}
    copy = f" ({index + 1})" if index else ""
    if form.get("type") == "json_schema" and form.get("json_schema"):
        return _json(instance(form["json_schema"]["schema"]))
    if form.get("type") == "json_object":
        return _json({"answer": last_user_text(messages)})
    if last["role"] == "tool":
        return f"The tools answered{copy}: {', '.join(_results(messages))}"
    said = f"You said{copy}: {last_user_text(messages)}"
    return f"{text_of(last)} {said}" if last["role"] == "assistant" else said  # a prefix is given back first


def _results(messages: list[dict[str, Any]]) -> list[str]:
    """What the tool messages at the end say, in their order."""
    spoken = max(i for i, message in enumerate(messages) if message["role"] != "tool")
    return [text_of(message) for message in messages[spoken + 1 :]]


def _calls(request: dict[str, Any], model: Model, digest: bytes, index: int) -> list[Call]:
    choice = request.get("tool_choice", "auto")
    if request["messages"][-1]["role"] in ("tool", "assistant") or choice == "none":
        return []
    chosen = functions(request)
    if isinstance(choice, dict):
        chosen = [function for function in chosen if function["name"] == choice["function"]["name"]]
    elif not (request.get("parallel_tool_calls", True) and _asks_for_several(last_user_text(request["messages"]))):
        chosen = chosen[:1]
    return [
        Call(_call_id(digest, index, at, model), function["name"], _json(_arguments(function["parameters"])))
        for at, function in enumerate(chosen)
    ]


def _asks_for_several(text: str) -> bool:
    return not {"both", "all"}.isdisjoint(text.lower().replace("?", " ").replace(".", " ").split())


def _arguments(parameters: dict[str, Any]) -> Any:
    return instance({"type": "object", **parameters})


def _call_id(digest: bytes, index: int, at: int, model: Model) -> str:
    """Nine letters and digits, except from the third-party models that Mistral hosts."""
    own = hashlib.sha256(digest + bytes((index % 256, at % 256))).digest()
    return f"chatcmpl-tool-{own[:8].hex()}" if model.dialect == "glm" else "".join(_BASE62[b % 62] for b in own[:9])


def _shorten(choice: Choice, budget: int) -> None:
    """Cut the answer after `budget` tokens: thinking counts first, then text, then arguments, wherever that hits."""
    if choice.tokens() <= budget:
        return
    choice.finish = "length"
    choice.thinking = choice.thinking[:budget]
    budget -= len(choice.thinking)
    choice.text = choice.text[:budget]
    for call in choice.calls:
        kept = tokens(call.arguments)[: max(budget - CALLED, 0)]
        call.arguments = "".join(kept)
        budget -= len(kept) + CALLED
    choice.calls = [call for call in choice.calls if call.arguments]


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _usage(prompt: int, completion: int, fault: Fault) -> dict[str, Any] | None:
    if fault.usage == "none":
        return None
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "total_tokens": prompt + completion,
        "completion_tokens": completion,
        "prompt_tokens_details": {"cached_tokens": 0},
        "service_tier": "standard",
    }
    if fault.usage == "odd":  # seen: audio counted in the total only, older spellings, reasoning counted apart
        usage |= {"total_tokens": prompt + completion + 375, "prompt_audio_seconds": 14, "num_cached_tokens": 64}
        usage |= {"prompt_token_details": {"cached_tokens": 64}, "service_tier": "priority"}
        usage["completion_tokens_details"] = {"reasoning_tokens": completion // 2}
    return usage


def call_body(call: Call, index: int, fault: Fault) -> dict[str, Any]:
    """A tool call as it is sent, whole."""
    arguments: Any = call.arguments
    if fault.object_args:
        with suppress(msgspec.DecodeError):  # max_tokens may have cut it off
            arguments = msgspec.json.decode(arguments)
    function = {"name": call.name, "arguments": arguments}
    if fault.bare_tools:
        return {"id": call.id, "function": function}
    return {"id": call.id, "type": "function", "index": index, "function": function}


def thought(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": [{"type": "text", "text": text}], "closed": True}


def completion(answer: Answer, fault: Fault) -> bytes:
    """The body of an answer that is not streamed."""
    body: dict[str, Any] = {
        "id": answer.id,
        "object": "chat.completion",
        "created": answer.created,
        "model": answer.model,
        "choices": [_choice_body(index, choice, fault) for index, choice in enumerate(answer.choices)],
    }
    if answer.usage is not None:
        body["usage"] = answer.usage
    return msgspec.json.encode(body)


def _choice_body(index: int, choice: Choice, fault: Fault) -> dict[str, Any]:
    text = "".join(choice.text)
    content: Any = text
    if choice.thinking:
        content = [thought("".join(choice.thinking)), *([{"type": "text", "text": text}] if text else [])]
    calls = [call_body(call, at, fault) for at, call in enumerate(choice.calls)] or None
    message = {"role": "assistant", "content": content, "tool_calls": calls}
    return {"index": index, "finish_reason": choice.finish, "message": message}
