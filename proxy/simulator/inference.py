"""From the body of an inference call to its reply: JSON, schema (422), model and rules (400), then the answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from proxy.simulator import answers, embeddings, stream
from proxy.simulator.errors import Refusal, invalid
from proxy.simulator.faults import Fault
from proxy.simulator.reply import JSON, SSE, Reply
from proxy.simulator.rules import check_chat, check_embeddings, model_for
from proxy.simulator.schema import Model, Problem, problem
from proxy.simulator.schemas import CHAT, EMBEDDINGS


@dataclass(frozen=True, slots=True)
class Context:
    """What an answer depends on besides the request. `digest`: 32 bytes of the body and the call's number."""

    fault: Fault
    digest: bytes
    created: int
    authorization: str


def read(path: str, body: bytes) -> tuple[Any, list[Problem]]:
    """The JSON value and everything the endpoint's schema has against it."""
    if not body:
        return None, [problem("missing", ("body",), "Field required", None)]
    try:
        value = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        return None, [problem("json_invalid", ("body", 0), "JSON decode error", {}, error=str(error))]
    return value, list(ENDPOINTS[path].schema.check(value, ("body",)))


def asked_model(value: Any) -> str:
    """The model's name as the request has it, a fault suffix included; "" if there is none."""
    name = value.get("model") if isinstance(value, dict) else None
    return name if isinstance(name, str) else ""


def infer(path: str, request: Any, problems: list[Problem], context: Context) -> Reply:
    """The reply to what `read` has read."""
    if problems:
        return invalid(problems)
    try:
        return ENDPOINTS[path].answer(request, context)
    except Refusal as refusal:
        return refusal.reply()


def _chat(request: dict[str, Any], context: Context) -> Reply:
    fault = context.fault
    model = model_for(_base(request), "chat")
    check_chat(request, model, legacy_order=fault.legacy_order, strict_pair=fault.strict_pair)
    answer = answers.answer(
        request,
        model,
        fault,
        digest=context.digest,
        created=context.created,
        authorization=context.authorization,
    )
    if request.get("stream"):
        events = stream.events(answer, model.dialect, fault)
        reply = Reply(200, SSE, events=events)
    else:
        reply = Reply(200, JSON, answers.completion(answer, fault))
    reply.model, reply.tokens = model.name, answer.prompt + answer.completion
    reply.prompt, reply.completion = answer.prompt, answer.completion
    return reply


def _embeddings(request: dict[str, Any], context: Context) -> Reply:
    model = model_for(_base(request), "embeddings")
    check_embeddings(request, model)
    body = embeddings.answer(request, model, digest=context.digest)
    return Reply(200, JSON, body, model=model.name, prompt=embeddings.tokens(request))


def _base(request: dict[str, Any]) -> str:
    name: str = request["model"]
    return name.partition("+")[0]


@dataclass(frozen=True, slots=True)
class Endpoint:
    schema: Model
    answer: Callable[[dict[str, Any], Context], Reply]


ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/chat/completions": Endpoint(CHAT, _chat),
    "/v1/embeddings": Endpoint(EMBEDDINGS, _embeddings),
}
