"""What Mistral refuses with 400 though the schema was met: the conversation's order and pairs, what a model cannot do.

Sources: mistral-common's validators (the library Mistral's servers use; tokenizer versions 11, 13 and 15), recorded
answers of the API where it says more or other than the library, and public measurements of 2026.
"""

import re
from itertools import pairwise
from typing import Any

from proxy.simulator.conversation import chunks, functions, inputs, prompt_tokens, tokens_of
from proxy.simulator.errors import Refusal
from proxy.simulator.json_schema import flaws
from proxy.simulator.models import BY_NAME, Model

ORDER, ASSISTANT, FUNCTION_CALL, ARGUMENTS, PROMPT, UNKNOWN_MODEL = "3230", "3240", "3280", "3051", "3210", "1500"

_FOLLOWERS = {
    "system": {"user", "assistant", "system"},
    "user": {"assistant", "system", "user"},
    "assistant": {"assistant", "user", "tool"},
    "tool": {"assistant", "tool", "user"},
}
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")
_LONG_ID = "Tool call id must be a non-empty string other than 'null' for tokenizer version 13 or newer."
_INPUTS = {"image_url": ("vision", "Image input"), "input_audio": ("audio", "Audio input")}
_MAX_INPUTS, _MAX_EMBEDDING_TOKENS = 256, 16_384


def model_for(name: str, kind: str) -> Model:
    """The model of that name (without its fault suffix) if it serves `kind`: "chat" or "embeddings"."""
    model = BY_NAME.get(name)
    if model is None or not (model.dimensions if kind == "embeddings" else model.can("completion_chat")):
        raise Refusal(UNKNOWN_MODEL, f"Invalid model: {name}")
    return model


def check_chat(request: dict[str, Any], model: Model, *, legacy_order: bool = False, strict_pair: bool = False) -> None:
    """Raise the Refusal the API would answer with. The request has met the schema."""
    messages = request["messages"]
    _check_settings(request, model)
    _check_order(messages, legacy_order)
    _check_pairs(messages)
    for index, message in enumerate(messages):
        _check_message(message, model.family, index == len(messages) - 1, strict_pair)
    _check_tools(request)
    _check_inputs(messages, model)
    _check_length(messages, model)


MOST_CHOICES = 128
"""The real limit is not known; without one, a single request could ask the simulator for all memory there is."""


def _check_settings(request: dict[str, Any], model: Model) -> None:
    if (request.get("n") or 1) > MOST_CHOICES:
        raise Refusal(ARGUMENTS, f"n must be at most {MOST_CHOICES}")
    effort = request.get("reasoning_effort")
    if effort is not None and not model.efforts:
        raise Refusal(ARGUMENTS, "reasoning_effort is not enabled for this model")
    if effort is not None and effort not in model.efforts:
        allowed = ", ".join(model.efforts)
        message = f"reasoning_effort='{effort}' is not supported for this model. Must be one of ({allowed})"
        raise Refusal(ARGUMENTS, message)
    if request.get("prompt_mode"):
        raise Refusal(ARGUMENTS, "Reasoning prompt mode is not enabled for this model")
    if request.get("logprobs"):
        raise Refusal(ARGUMENTS, "Logprobs are not enabled for this model")
    # measured: an absent top_p counts as 1 only while the model does not reason
    top_p = request.get("top_p") or (0.95 if effort == "high" else 1)
    if request.get("temperature") == 0 and top_p != 1:
        raise Refusal(ARGUMENTS, "top_p must be 1 when using greedy sampling.")


def _check_order(messages: list[dict[str, Any]], legacy: bool) -> None:
    if not messages:
        raise Refusal(ORDER, "Conversation must have at least one message")
    last = messages[-1]
    if len(messages) == 1 and last["role"] not in ("user", "system"):
        raise Refusal(ORDER, "Conversation must start with a user message or system message")
    if last["role"] == "assistant" and not last.get("prefix"):
        expected = "Expected last role User or Tool (or Assistant with prefix True) for serving"
        raise Refusal(ORDER, f"{expected} but got assistant")
    for before, after in pairwise(message["role"] for message in messages):
        if after not in _FOLLOWERS[before] or (legacy and (before, after) == ("tool", "user")):
            raise Refusal(ORDER, f"Unexpected role '{after}' after role '{before}'")


def _check_pairs(messages: list[dict[str, Any]]) -> None:
    """Every call is answered once, by its id, before the assistant speaks again."""
    called: set[str] = set()
    answered: set[str | None] = set()
    for message in messages:
        if message["role"] == "tool":
            _check_result(message.get("tool_call_id"), called, answered)
        elif message["role"] == "assistant":
            if len(called) != len(answered):
                raise Refusal(ORDER, "Not the same number of function calls and responses")
            called, answered = _call_ids(message), set()
    if len(called) != len(answered):
        raise Refusal(ORDER, "Not the same number of function calls and responses")


def _check_result(call_id: str | None, called: set[str], answered: set[str | None]) -> None:
    if call_id in answered:
        raise Refusal(ORDER, f"Duplicate tool call id {call_id} in tool results")
    if call_id not in called:
        raise Refusal(ORDER, f"Unexpected tool call id {call_id} in tool results")
    answered.add(call_id)


def _call_ids(message: dict[str, Any]) -> set[str]:
    seen: set[str] = set()
    for call in message.get("tool_calls") or ():
        call_id = call.get("id", "null")  # the schema's default, which no family accepts
        if call_id in seen:
            raise Refusal(ORDER, f"Duplicate tool call id {call_id} in assistant message")
        seen.add(call_id)
    return seen


def _check_message(message: dict[str, Any], family: int, is_last: bool, strict_pair: bool) -> None:
    if message["role"] == "assistant":
        _check_assistant(message, family, is_last, strict_pair)
    elif message["role"] == "tool":
        _check_tool(message, family)


def _check_assistant(message: dict[str, Any], family: int, is_last: bool, strict_pair: bool) -> None:
    calls = message.get("tool_calls") or []
    if not message.get("content") and not calls:
        raise Refusal(ASSISTANT, "Assistant message must have either content or tool_calls, but not none.")
    if strict_pair and message.get("content") and calls:
        raise Refusal(ASSISTANT, "Assistant message must have either content or tool_calls, but not both.")
    for call in calls:
        _check_call_id(call.get("id", "null"), family)
        _check_name(call["function"]["name"], FUNCTION_CALL)
    if message.get("prefix") and not is_last:
        raise Refusal(ASSISTANT, "Assistant message with prefix True must be last message")


def _check_call_id(call_id: str, family: int) -> None:
    if family >= 13:
        if call_id in ("", "null"):
            raise Refusal(FUNCTION_CALL, _LONG_ID)
    elif call_id == "null":
        raise Refusal(FUNCTION_CALL, "Tool call id has to be defined in serving mode.")
    elif not _SHORT_ID.fullmatch(call_id):
        raise Refusal(FUNCTION_CALL, f"Tool call id was {call_id} but must be a-z, A-Z, 0-9, with a length of 9.")


def _check_tool(message: dict[str, Any], family: int) -> None:
    kinds = {chunk["type"] for chunk in chunks(message) if chunk["type"] != "text"}
    if kinds and family < 15:
        raise Refusal(ARGUMENTS, f"Unexpected content chunk types in tool message: {sorted(kinds)}")
    if message.get("name") is not None:
        _check_name(message["name"], ARGUMENTS)


def _check_name(name: str, code: str) -> None:
    if not _NAME.fullmatch(name):
        allowed = "must be a-z, A-Z, 0-9, or contain underscores and dashes, with a maximum length of 64."
        raise Refusal(code, f"Function name was {name} but {allowed}")


def _check_tools(request: dict[str, Any]) -> None:
    tools = functions(request)
    for function in tools:
        for flaw in flaws(function["parameters"]):
            raise Refusal(ARGUMENTS, f"Invalid tool schema: {flaw}")
        _check_name(function["name"], ARGUMENTS)
    choice = request.get("tool_choice")
    if isinstance(choice, dict) and choice["function"]["name"] not in {function["name"] for function in tools}:
        raise Refusal(ARGUMENTS, f"Tool choice {choice['function']['name']} is not among the tools.")
    form = (request.get("response_format") or {}).get("json_schema")
    for flaw in flaws(form["schema"]) if form else ():
        raise Refusal(ARGUMENTS, f"Invalid schema in response_format: {flaw}")


def _check_inputs(messages: list[dict[str, Any]], model: Model) -> None:
    kinds = {chunk["type"] for message in messages for chunk in chunks(message)}
    if "thinking" in kinds and not model.can("reasoning"):
        raise Refusal(ARGUMENTS, "Reasoning input is not enabled for this model")
    for kind, (ability, noun) in _INPUTS.items():
        if kind in kinds and not model.can(ability):
            raise Refusal(ARGUMENTS, f"{noun} is not enabled for this model")


def _check_length(messages: list[dict[str, Any]], model: Model) -> None:
    tokens = prompt_tokens(messages)
    if tokens > model.context:
        limit = f"too large for model with {model.context} maximum context length"
        raise Refusal(ARGUMENTS, f"Prompt contains {tokens} tokens and 0 draft tokens, {limit}")


def check_embeddings(request: dict[str, Any], model: Model) -> None:
    texts = inputs(request)
    if len(texts) > _MAX_INPUTS:
        raise Refusal(PROMPT, "Too many inputs in request, split into more batches.")
    if sum(map(tokens_of, texts)) > _MAX_EMBEDDING_TOKENS:
        raise Refusal(PROMPT, "Too many tokens overall, split into more batches.")
    variable = "codestral-embed" in model.names
    if request.get("output_dimension") is not None and not variable:
        raise Refusal(ARGUMENTS, "This model does not support output_dimension.")
    if request.get("output_dtype", "float") != "float" and not variable:
        raise Refusal(ARGUMENTS, "This model does not support output_dtype.")
    if (request.get("output_dimension") or 0) > 3072:
        raise Refusal(ARGUMENTS, "output_dimension must be at most 3072 for this model.")
