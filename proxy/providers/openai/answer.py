"""The chat answer: looked at, and passed on as it came. The streamed answer (stream.py) uses the same parts.

Source: OpenAI API reference, the chat completion object. An upstream may send anything: an answer without choices is
no answer, and counts that cannot be believed are taken out, so that nobody counts with them.
"""

from __future__ import annotations

import re
from typing import Any, Final

from proxy.core.errors import UpstreamFailed
from proxy.core.json import Json
from proxy.core.table import Context
from proxy.providers.choices import is_all
from proxy.providers.events import NONSENSE

FAILED: Final = "The upstream reported an error instead of an answer."

_AS_ASKED = frozenset(("stop", "length", "tool_calls", "function_call"))

MOST_TOKENS: Final = 10**9
"""More than any exchange can have used."""

CHAT_COUNTS: Final = ("prompt_tokens", "completion_tokens")
"""What a chat answer's usage must tell."""

_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")
_DETAILS = ("prompt_tokens_details", "completion_tokens_details")
_PLAIN_CODE = re.compile(r"[\w.-]{1,64}", re.ASCII)


def chat_answer(answer: Any, context: Context) -> Json:
    """The answer. Raises UpstreamFailed if it has no choices or is an error with status 200."""
    choices = choices_of(answer)
    if not choices:
        raise UpstreamFailed(NONSENSE)
    for choice in choices:
        context.ended(choice.get("finish_reason"))
    if not is_all(choices, context) or not all(is_as_asked(choice.get("finish_reason")) for choice in choices):
        context.spoiled = True
    return with_clean_usage(answer, CHAT_COUNTS)


def refuse_error(body: Json) -> None:
    """Raises UpstreamFailed if an answer of status 200, or a chunk of one, is an error."""
    if body.get("error") or body.get("object") == "error":
        raise UpstreamFailed(FAILED, billed=False, detail=_upstream(body))


def choices_of(body: Any) -> list[Json]:
    """The choices of an answer or of one streamed chunk. Raises UpstreamFailed if it is something else."""
    if not isinstance(body, dict):
        raise UpstreamFailed(NONSENSE)
    refuse_error(body)
    choices = body.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise UpstreamFailed(NONSENSE)
    return choices


def is_as_asked(reason: Any) -> bool:
    """Whether an answer that ends so is as it should be. What a filter has cut short, say, the next one need not be."""
    return isinstance(reason, str) and reason in _AS_ASKED


def _upstream(body: Json) -> Json:
    """What of an error body may be passed on. Not its text: that may quote the prompt or the provider's insides."""
    inner = body["error"] if isinstance(body.get("error"), dict) else body
    code = inner.get("code")
    known = type(code) in (str, int) and _PLAIN_CODE.fullmatch(str(code))
    return {"upstream": {"provider": "openai", "code": str(code)}} if known else {}


def with_clean_usage(answer: Json, must: tuple[str, ...]) -> Json:
    """The answer itself, or a copy without what cannot be believed of its usage. `must` are the counts that have to be
    there: without one of them there is no usage."""
    if "usage" not in answer:
        return answer
    usage = clean_usage(answer["usage"], must)
    if usage is None:
        return {key: value for key, value in answer.items() if key != "usage"}
    return answer if usage is answer["usage"] else answer | {"usage": usage}


def clean_usage(source: Any, must: tuple[str, ...]) -> Json | None:
    """The usage, without details that are no counts. None if its counts cannot be believed, or are not there: nothing
    is made up, and nothing that a client would choke on."""
    if not isinstance(source, dict) or not all(_is_count(source.get(name)) for name in must):
        return None
    if not all(_is_count(source[name]) for name in _COUNTS if name in source):
        return None
    wrong = {name for name in _DETAILS if not _are_counts(source.get(name))}
    return {key: value for key, value in source.items() if key not in wrong} if wrong else source


def _are_counts(details: Any) -> bool:
    """Some servers tell null where they tell nothing, for the whole or for one of them."""
    if not isinstance(details, dict):
        return details is None
    return all(value is None or _is_count(value) for value in details.values())


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MOST_TOKENS
