"""One structured line per request, after its last byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import floor
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.core import json
from proxy.core.config import Strict
from proxy.core.errors import Fault, InvalidApiKey, TooManyAuthFailures
from proxy.core.excerpt import Excerpts
from proxy.core.exchange import Exchange, exchange_of
from proxy.core.json import Json
from proxy.core.log_content import Content, TeamContent
from proxy.core.money import decimal
from proxy.core.services import Middleware, Services

_MOST_CONTENT = 100_000
"""Characters of one prompt or answer that are ever logged: redaction takes about 20 ms for so many, and up to 150 ms
where somebody has made them to be slow."""

_MOST_CAPTURED = 1 << 20
"""Bytes of an answer that are kept for the log; an event has many more of them than characters that it says."""

_WRONG_KEYS: Final = (InvalidApiKey.code, TooManyAuthFailures.code)


class Config(Strict):
    """`logging` of proxy.yaml. `content` is how prompts and answers of teams with `log_content: true` are logged,
    `content_max_chars` how much of those that are `truncated`."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"
    content: Content = "none"
    content_max_chars: int = Field(200, ge=1, le=_MOST_CONTENT)

    def characters(self, said: TeamContent) -> int:
        """How many of a prompt or an answer are logged for a team that says this; 0: none."""
        mode = self.content if said is True else said or "none"
        return {"none": 0, "truncated": self.content_max_chars, "full": _MOST_CONTENT}[mode]


class Line(msgspec.Struct, kw_only=True, gc=False):
    """What the line of a request says, in this order. What is unset it does not mention."""

    request_id: str
    trace_id: str
    team: str | None
    key_id: str | None
    method: str
    endpoint: str
    operation: str | None
    model: str | None
    upstream: str | None
    status_code: int | None
    duration_ms: float
    first_byte_ms: float | None
    stream: bool
    bytes_out: int
    attempts: int
    client: str
    generation: int
    model_asked: str | UnsetType | None = UNSET
    prompt_tokens: int | UnsetType | None = UNSET
    completion_tokens: int | UnsetType | None = UNSET
    total_tokens: int | UnsetType | None = UNSET
    cost_usd: str | UnsetType = UNSET
    cache: str | UnsetType = UNSET
    shadow_refusals: str | UnsetType = UNSET
    rewrites: str | UnsetType = UNSET
    error_type: str | UnsetType = UNSET
    error_code: str | UnsetType | None = UNSET
    fault: str | UnsetType = UNSET
    error_param: str | UnsetType | None = UNSET
    client_gone: bool | UnsetType = UNSET
    request_content: str | UnsetType = UNSET
    answer_content: str | UnsetType = UNSET


class More(msgspec.Struct, gc=False, omit_defaults=True):
    """What is kept of a request besides its line."""

    ended: int
    decision: str | None
    took: tuple[float | None, ...] | None = None
    failed: list[Json] | None = None


def build(config: Config, services: Services, *, content: bool) -> Middleware:
    """`content`: there is a team that has prompts and answers logged."""

    def middleware(app: ASGIApp) -> ASGIApp:
        return AccessLog(app, services, content)

    return middleware


class AccessLog:
    """Without `content` it never looks at any at all."""

    def __init__(self, app: ASGIApp, services: Services, content: bool) -> None:
        self._app = app
        self._log = services.log
        self._excerpts = Excerpts(services.redact)
        self._is_known = services.catalogue.has
        self._clock = services.monotonic
        self._wall = services.wall
        self._ring = services.ring
        self._generation = services.generation
        self._content = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = exchange_of(scope)
        answer = bytearray()
        try:
            await self._app(scope, receive, self._listening(exchange, send, answer) if self._content else send)
        finally:
            line = self._line(exchange, scope)
            text = json.encode(line)
            self._ring.keep(text[:-1] + self._more(exchange))
            if self._content and exchange.team and (most := exchange.team.log_content):
                self._tell_content(line, exchange, bytes(answer), most)
                text = json.encode(line)
            self._log.ready(_level(exchange, line.endpoint), "request", text)

    def _tell_content(self, line: Line, exchange: Exchange, answer: bytes, most: int) -> None:
        if exchange.body is not None:
            line.request_content = self._said(json.encode(exchange.body), most)
        cut = len(answer) >= _MOST_CAPTURED or exchange.client_gone or exchange.error is not None
        line.answer_content = self._said(_joined(answer, cut) if exchange.streamed else answer, most)

    def _line(self, exchange: Exchange, scope: Scope) -> Line:
        route, usage, error, charge = scope.get("route"), exchange.usage, exchange.error, exchange.whole_charge()
        line = Line(
            request_id=exchange.request_id,
            trace_id=exchange.trace_id,
            team=exchange.team.name if exchange.team else None,
            key_id=exchange.key_id,
            method=exchange.method,
            # A path that is no endpoint's is the client's text; of the others only the template is told.
            endpoint=route.path if route else self._excerpts.name(exchange.path),
            operation=route.operation if route else None,
            model=self._name(exchange.model),
            upstream=exchange.upstream and exchange.upstream.partition("/")[0],
            status_code=exchange.status_told(),
            duration_ms=_ms(exchange.started, exchange.last_byte or self._clock()),
            first_byte_ms=None if exchange.first_byte is None else _ms(exchange.started, exchange.first_byte),
            stream=exchange.streamed,
            bytes_out=exchange.bytes_out,
            attempts=exchange.all_attempts(),
            client=exchange.client,
            generation=self._generation,
        )
        if exchange.model_asked and exchange.model_asked != exchange.model:
            line.model_asked = self._name(exchange.model_asked)
        if usage:
            line.prompt_tokens = _count(usage.get("prompt_tokens"))
            line.completion_tokens = _count(usage.get("completion_tokens"))
            line.total_tokens = _count(usage.get("total_tokens"))
        if charge and charge.cost is not None:
            line.cost_usd = decimal(charge.cost) if charge.cost else "0"
        if exchange.cache:
            line.cache = exchange.cache
        if exchange.shadow_refusals:
            line.shadow_refusals = ", ".join(exchange.shadow_refusals)
        if exchange.rewrites:
            line.rewrites = ", ".join(exchange.rewrites)
        if error:
            line.error_type, line.error_code, line.fault = error.type, error.code, error.fault.value
            line.error_param = error.param and self._excerpts.name(error.param)
        if exchange.client_gone:
            line.client_gone = True
            if line.fault is UNSET:
                line.fault = Fault.CALLER.value
        return line

    def _more(self, exchange: Exchange) -> bytes:
        """For whoever asks for it by its id (core/records.py)."""
        decision = exchange.decision
        if decision and exchange.model and not self._is_known(exchange.model):
            decision = self._excerpts.of(decision, len(decision))  # the client's text is in there
        more = More(self._wall(), decision, exchange.took or None)
        if exchange.in_vain:
            more.failed = [
                {"provider": one.provider, "attempt": one.number, "code": one.code, "then": one.then}
                for one in exchange.in_vain
            ]
        return b"," + json.encode(more)[1:] + b"\n"

    def _name(self, model: str | None) -> str | None:
        # Names of the catalogue are harmless; any other is the client's text, and could be a key in the wrong place.
        return model if model is None or self._is_known(model) else self._excerpts.name(model)

    def _listening(self, exchange: Exchange, send: Send, answer: bytearray) -> Callable[[Message], Any]:
        async def listening(message: Message) -> None:
            await send(message)
            if exchange.team and exchange.team.log_content and len(answer) < _MOST_CAPTURED:
                answer.extend(message.get("body", b""))

        return listening

    def _said(self, data: bytes, most: int) -> str:
        looked_at = min(most * 4, _MOST_CONTENT) + 4096  # more than is shown, for marks may be shorter than their finds
        text = self._excerpts.of(data.decode(errors="replace"), looked_at)
        return text if len(text) <= most else text[:most] + "…"


def _joined(events: bytes, cut: bool) -> bytes:
    """What the events of a stream say, put together: a secret that is spread over events is one word again. Of a stream
    that was not seen to its end the last word is left out: it could be the first half of one."""
    said: dict[str, str] = {}
    for line in events.splitlines():
        for name, text in _said(line):
            said[name] = said.get(name, "") + text
    return json.encode({name: text.rpartition(" ")[0] for name, text in said.items()} if cut else said)


def _said(line: bytes) -> Iterator[tuple[str, str]]:
    try:
        for choice in json.decode(line.removeprefix(b"data: "))["choices"]:
            delta = choice["delta"]
            texts = [("content", delta.get("content")), ("reasoning", delta.get("reasoning_content"))]
            texts += [("arguments", call["function"].get("arguments")) for call in delta.get("tool_calls") or ()]
            yield from ((f"{choice['index']}.{kind}", text) for kind, text in texts if isinstance(text, str))
    except (json.Malformed, KeyError, TypeError, AttributeError):
        return  # the end mark, a comment, an error frame


def _count(value: object) -> int | None:
    """A number of tokens, which comes from the upstream: only a plain one is logged."""
    return value if type(value) is int and 0 <= value < 1 << 53 else None


def _level(exchange: Exchange, endpoint: str) -> str:
    status = exchange.status or 0
    error = exchange.error
    if error and error.code in _WRONG_KEYS:
        return "error"
    if status >= 500 or (error and error.status >= 500):
        # What is not in the cache was asked for in just this way.
        return "warning" if error and error.fault is Fault.CALLER else "error"
    if status >= 400:
        return "warning"
    return "debug" if endpoint.startswith("/health") else "info"  # probes come every few seconds and say nothing


def _ms(start: float, end: float) -> float:
    """Milliseconds, two digits behind the point. `round` takes pains with what a float cannot hold exactly."""
    return floor((end - start) * 100_000 + 0.5) / 100
