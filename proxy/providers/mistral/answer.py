"""Mistral's chat answer as OpenAI's. The streamed answer (stream.py) uses the same parts.

Sources: Mistral API, chat completion; OpenAI API reference, the chat completion object. `reasoning_content` is not
OpenAI's: it is the field that clients of reasoning models agree on.

An upstream may send anything. What is not understood is kept as it is; only an answer without choices is no answer.
"""

from __future__ import annotations

import re
from typing import Any, Final

from proxy.core import json
from proxy.core.errors import UpstreamFailed
from proxy.core.json import Json
from proxy.core.table import Context
from proxy.providers.choices import is_all
from proxy.providers.events import NONSENSE

FAILED: Final = "The upstream reported an error instead of an answer."

MOST_TOKENS: Final = 10**9
"""More than any exchange can have used."""

# Finish reasons that Mistral has and OpenAI has not. The SDKs' parse helpers know a cut answer by "length" alone.
_FINISH = {"model_length": "length", "error": "stop"}
_AS_ASKED = frozenset(("stop", "length", "model_length", "tool_calls", "function_call"))
"""How an answer ends that is as it should be. Whatever else it says, the next one may be another."""
_TIER = {"standard": "default"}
_NO_TEXT = ("reference", "image_url", "input_audio", "document_url", "file", "tool_file")
_DETAILS = ("prompt_tokens_details", "completion_tokens_details")
_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")
_NOT_OPENAI_USAGE = ("num_cached_tokens", "prompt_token_details", "service_tier")
_PLAIN_CODE = re.compile(r"[\w.-]{1,64}", re.ASCII)


def chat_answer(answer: Any, context: Context) -> Json:
    """The OpenAI chat completion. Raises UpstreamFailed if `answer` has no choices or is an error with status 200.

    Reads `context.notes`: "prefix" (str), which Mistral repeats at the start of each choice and the client has
    already; "functions" (true), the client speaks the older `functions` and not `tools`.
    """
    choices = choices_of(answer)
    if not choices:
        raise UpstreamFailed(NONSENSE)
    if not is_all(choices, context):
        context.spoiled = True
    out = {**answer, "choices": [_choice(choice, at, context) for at, choice in enumerate(choices)]}
    source = out.pop("usage", None)
    usage = clean_usage(source)
    if usage:
        out |= service_tier(source)
        out["usage"] = usage
    return out


def refuse_error(body: Json) -> None:
    """Raises UpstreamFailed if an answer of status 200, or a chunk of one, is an error."""
    if body.get("error") or body.get("object") in ("error", "Error"):
        raise UpstreamFailed(FAILED, billed=False, detail=_upstream(body))


def choices_of(body: Any) -> list[Json]:
    """The choices of an answer or of one streamed chunk. Raises UpstreamFailed if it is something else."""
    if not isinstance(body, dict):
        raise UpstreamFailed(NONSENSE)
    refuse_error(body)
    choices = body.get("choices")
    if not isinstance(choices, list):
        raise UpstreamFailed(NONSENSE)
    for choice in choices:
        if not isinstance(choice, dict):
            raise UpstreamFailed(NONSENSE)
    return choices


def _upstream(body: Json) -> Json:
    """What of an error body may be passed on. Not its text: that may quote the prompt or the provider's insides."""
    inner = body["error"] if isinstance(body.get("error"), dict) else body
    status, code = body.get("raw_status_code"), inner.get("code")
    known: Json = {}
    if type(status) is int and 100 <= status <= 599:
        known["status"] = status
    if type(code) in (str, int) and _PLAIN_CODE.fullmatch(str(code)):
        known["code"] = str(code)
    return {"upstream": {"provider": "mistral"} | known} if known else {}


def _choice(choice: Json, at: int, context: Context) -> Json:
    return {
        **choice,
        "index": index_of(choice, at),
        "message": _message(choice.get("message"), context),
        "finish_reason": finish_reason(choice.get("finish_reason"), context),
        "logprobs": logprobs(choice.get("logprobs")),
    }


def index_of(choice: Json, at: int) -> int:
    """The choice's index; `at`, its place in the list, if it has none."""
    index = choice.get("index")
    return index if type(index) is int else at


def _message(source: Any, context: Context) -> Json:
    message: Json = {"role": "assistant", "content": None, "refusal": None}
    if isinstance(source, dict):
        message |= _unwrapped(plain_content(source, context))
    if message["content"]:
        message["content"] = message["content"].removeprefix(context.notes.get("prefix", ""))
    calls = _tool_calls(message.pop("tool_calls", None))
    return message | _called(calls, context) | {"content": message["content"] or None} if calls else message


def plain_content(message: Json, context: Context) -> Json:
    """The message, or delta, with text for its content and with its thinking, if any, in `reasoning_content`.

    Other parts (references, images, files) have no place in an OpenAI chat message.
    """
    content = message.get("content")
    if content is None or isinstance(content, str):
        return message
    texts: list[str] = []
    thoughts: list[str] = []
    for part in content if isinstance(content, list) else [content]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" or isinstance(part, str):
            texts.append(_text(part))
        elif kind == "thinking":
            thoughts.append(_thinking(part))
        else:
            context.report("drop", f"content.{kind}" if kind in _NO_TEXT else "content")
    if not thoughts:
        return message | {"content": "".join(texts)}
    return message | {"content": "".join(texts) if texts else None, "reasoning_content": "".join(thoughts)}


def _unwrapped(message: Json) -> Json:
    thinking = message.get("reasoning_content")
    if message.get("content") or not isinstance(thinking, str):
        return message
    # The first magistral models wrote their answer at the end of their thinking.
    before, _, wrapped = thinking.partition("<response>")
    wrapped = wrapped.rstrip()
    if not wrapped.endswith("</response>"):
        return message | {"content": ""}
    return message | {"content": wrapped.removesuffix("</response>").strip(), "reasoning_content": before}


def _text(part: Any) -> str:
    text = part.get("text") if isinstance(part, dict) else part
    return text if isinstance(text, str) else ""


def _thinking(part: Json) -> str:
    inner = part.get("thinking")
    return "".join(map(_text, inner)) if isinstance(inner, list) else _text(inner)


def _tool_calls(source: Any) -> list[Json]:
    calls = source if isinstance(source, list) else []
    return [_tool_call(call) for call in calls if isinstance(call, dict)]


def _tool_call(source: Json) -> Json:
    call = {key: value for key, value in source.items() if key != "index"}
    call["type"] = call.get("type") or "function"
    if isinstance(call.get("function"), dict):
        arguments = call["function"].get("arguments")
        call["function"] = call["function"] | {"arguments": "{}" if arguments is None else arguments_text(arguments)}
    return call


def arguments_text(arguments: Any) -> str:
    """A call's arguments as OpenAI has them: JSON in a string. A string stays as it is, cut off or not."""
    try:
        return arguments if isinstance(arguments, str) else json.encode(arguments).decode()
    except RecursionError:
        raise UpstreamFailed(NONSENSE) from None


def _called(calls: list[Json], context: Context) -> Json:
    """The calls under the name that the client knows."""
    if not context.notes.get("functions"):
        return {"tool_calls": calls}
    if len(calls) > 1:
        context.report("drop", "tool_calls")
    function = calls[0].get("function")
    return {"function_call": function} if isinstance(function, dict) else {}


def finish_reason(reason: Any, context: Context) -> Any:
    """OpenAI's word for why the answer ended."""
    context.ended(reason)
    if reason == "tool_calls" and context.notes.get("functions"):
        return "function_call"
    if reason == "error":
        context.report("value", "finish_reason")
    if not isinstance(reason, str) or reason not in _AS_ASKED:
        context.spoiled = True
    return _FINISH.get(reason, reason) if isinstance(reason, str) else reason


def logprobs(source: Any) -> Json | None:
    """OpenAI's log probabilities: no token ids, and a list where Mistral may have null."""
    if not isinstance(source, dict):
        return None
    content = source.get("content")
    tokens = [_token(token) for token in content] if isinstance(content, list) else content
    return source | {"content": tokens, "refusal": source.get("refusal")}


def _token(token: Any) -> Any:
    if not isinstance(token, dict):
        return token
    top = token.get("top_logprobs")
    return _without_id(token) | {"top_logprobs": [_without_id(one) for one in top] if isinstance(top, list) else []}


def _without_id(token: Any) -> Any:
    return {key: value for key, value in token.items() if key != "token_id"} if isinstance(token, dict) else token


def is_count(value: Any) -> bool:
    """Whether it can be a number of tokens: an integer, not negative, and not beyond all that is possible."""
    return type(value) is int and 0 <= value <= MOST_TOKENS


def clean_usage(source: Any) -> Json | None:
    """OpenAI's usage: cached tokens under the one name they have there, whichever of Mistral's they came by. None if
    its counts cannot be believed, or are not there: nothing is made up, and nothing that a client would choke on."""
    if not isinstance(source, dict):
        return None
    for name in _COUNTS:
        if not is_count(source.get(name)):
            return None
    usage = source.copy()
    for name in _NOT_OPENAI_USAGE:
        usage.pop(name, None)
    details = source.get("prompt_tokens_details") or source.get("prompt_token_details")
    cached = source.get("num_cached_tokens")
    if isinstance(details, dict):
        usage["prompt_tokens_details"] = details
    elif is_count(cached):
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    for name in _DETAILS:
        if name in usage and not _are_counts(usage[name]):
            del usage[name]
    return usage


def _are_counts(details: Any) -> bool:
    return isinstance(details, dict) and all(map(is_count, [one for one in details.values() if one is not None]))


def service_tier(usage: Any) -> Json:
    """The tier that Mistral puts into the usage, as the top-level field that OpenAI has; nothing if it is not told."""
    tier = usage.get("service_tier") if isinstance(usage, dict) else None
    return {"service_tier": _TIER.get(tier, tier)} if isinstance(tier, str) else {}
