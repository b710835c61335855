"""The end of the pipe with a fake network: what is sent upstream, how often, and what the client gets for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from starlette.types import Message

from proxy import data
from proxy.core.catalogue import Catalogue
from proxy.core.charge import NOTHING, Estimate
from proxy.core.departure import Departure
from proxy.core.endpoint import Endpoint
from proxy.core.endpoint import Retry as Repeatable
from proxy.core.errors import BadRequest, Draining, Overloaded, ProxyError, UpstreamFailed, UpstreamTimeout
from proxy.core.exchange import Exchange, Team
from proxy.core.secret import Secret
from proxy.core.services import Drainables
from proxy.dispatch import Dispatch, Way
from proxy.providers import PROVIDERS
from proxy.providers.mistral.chat import CHAT
from proxy.providers.mistral.embeddings import EMBEDDINGS
from proxy.providers.mistral.models import MODEL, MODELS
from proxy.stages import translate
from proxy.upstream.client import Upstream
from proxy.upstream.config import Config, Retry, Timeouts
from proxy.upstream.transport import Connections, Headers, TransportError
from tests.asgi import Answer, Log, call, exchange, services

KEY = "provider-key-0123456789"
EVENT = b'data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n'
USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":%b}\n\n' % json.dumps(USAGE).encode()
DONE = b"data: [DONE]\n\n"


@dataclass
class Reply:
    """An answer of the network; an exception among the chunks is raised there, a callable is awaited."""

    status: int = 200
    chunks: list[Any] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)


def reply(body: Any, status: int = 200, **headers: str) -> Reply:
    return Reply(
        status, [json.dumps(body).encode()], {name.replace("_", "-"): value for name, value in headers.items()}
    )


def streamed(*chunks: Any) -> Reply:
    return Reply(200, list(chunks), {"content-type": "text/event-stream"})


@dataclass
class Sent:
    method: str
    path: str
    headers: dict[str, str]
    body: Any
    fresh: bool


class Network:
    """A Transport that answers from a list, or from a function of what was sent."""

    def __init__(self, replies: list[Any] | Callable[[Sent], Any]) -> None:
        self._replies = replies
        self.sent: list[Sent] = []
        self.open = 0

    def call(
        self, method: str, path: str, headers: Headers, body: bytes, *, more: Headers = (), fresh: bool = False
    ) -> Call:
        self.sent.append(Sent(method, path, dict([*headers, *more]), json.loads(body) if body else None, fresh))
        found = self._replies(self.sent[-1]) if callable(self._replies) else self._replies.pop(0)
        return Call(self, found)

    connections = Connections(0, 0)

    async def close(self) -> None:
        raise AssertionError("the pool belongs to the application")


class Call:
    """`sent`, unless there was no connection."""

    def __init__(self, network: Network, found: Any) -> None:
        self._network, self._found = network, found
        self.sent = getattr(found, "kind", None) not in ("connect", "connect_timeout", "tls", "pool")

    async def __aenter__(self) -> Received:
        if isinstance(self._found, Exception):
            raise self._found
        if not isinstance(self._found, Reply):
            await self._found()
        self._network.open += 1
        return Received(self._found)

    async def __aexit__(self, *_: object) -> None:
        self._network.open -= 1


class Received:
    def __init__(self, found: Reply) -> None:
        self.status, self._found = found.status, found

    def header(self, name: str) -> str | None:
        return self._found.headers.get(name)

    def whole(self) -> bytes | None:
        return None

    async def chunks(self) -> AsyncIterator[bytes]:
        for one in self._found.chunks:
            if isinstance(one, Exception):
                raise one
            if callable(one):
                await one()
            else:
                yield one


async def never() -> Any:
    await asyncio.Event().wait()


@dataclass
class Setting:
    """One endpoint in front of a network, and what is left when a request is over."""

    endpoint: Endpoint
    network: Network
    strict: bool = False
    defaults: dict[str, Any] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    timeouts: Timeouts = field(default_factory=Timeouts)
    retry: Retry = field(default_factory=lambda: Retry(max_attempts=1))
    keys: tuple[str, ...] = (KEY,)
    log: Log = field(default_factory=Log)
    guards: Drainables = field(default_factory=Drainables)
    exchange: Exchange = field(default_factory=exchange)

    async def ask(self, body: Any = None, **fields: Any) -> Answer:
        config = Config(api_keys=[Secret(key) for key in self.keys], timeouts=self.timeouts, retry=self.retry)
        catalogue = Catalogue(data.read("models.yaml"), self.aliases)
        ways = {"mistral": Way(self.endpoint, PROVIDERS["mistral"], Upstream(config, self.network))}
        with_services = services(self.log, catalogue, drainables=self.guards)
        translation = translate.Config(
            lambda row: {"mistral": row}, strict=self.strict, defaults=self.defaults, aliases=self.aliases
        )
        dispatch = translate.build(translation, self.endpoint, with_services)(Dispatch(ways, with_services))
        model = fields.pop("model", "mistral-small-latest" if body is not None else None)
        leaves, taking = fields.pop("leaves", False), fields.pop("taking", None)
        asked_for = fields.pop("model_asked", model)
        self.exchange = exchange(body=body, model=model, model_asked=asked_for, **fields)
        try:
            return await call(dispatch, exchange=self.exchange, body=[], stays=not leaves, taking=taking)
        finally:
            assert not self.guards
            assert not self.network.open


def chat(*replies: Any, **settings: Any) -> Setting:
    return Setting(CHAT, Network(list(replies)), **settings)


def asked(**fields: Any) -> dict[str, Any]:
    return {"model": "gpt-x", "messages": [{"role": "user", "content": "Hello"}]} | fields


def completion(text: str = "Hi", **fields: Any) -> Reply:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": USAGE}
    return reply(body | fields)


async def refused(setting: Setting, *args: Any, **fields: Any) -> ProxyError:
    with pytest.raises(ProxyError) as caught:
        await setting.ask(*args, **fields)
    return caught.value


# One call.


async def test_what_is_sent_and_what_comes_back() -> None:
    setting = chat(completion())
    answer = await setting.ask(asked(user="me"))
    [sent] = setting.network.sent
    assert (sent.method, sent.path) == ("POST", "/v1/chat/completions")
    assert sent.body == {"model": "mistral-small-latest", "messages": [{"role": "user", "content": "Hello"}]}
    assert sent.headers["Authorization"] == f"Bearer {KEY}"
    assert sent.headers["Accept"] == "application/json"
    assert answer.status == 200
    assert dict(answer.headers) == {
        b"content-type": b"application/json",
        b"content-length": str(len(answer.body)).encode(),
    }
    assert json.loads(answer.body)["choices"][0]["message"]["content"] == "Hi"
    assert answer.exchange.usage
    assert answer.exchange.usage["total_tokens"] == 3
    assert answer.exchange.attempts == 1
    assert answer.exchange.upstream == "mistral/mistral-small-latest"
    assert list(answer.exchange.rewrites) == ["drop:user"]
    assert not answer.exchange.streamed


@pytest.mark.parametrize("named", [{}, {"model": "gpt-x"}])
@pytest.mark.parametrize("endpoint", [CHAT, EMBEDDINGS])
async def test_the_model_that_was_decided_on_is_sent(endpoint: Endpoint, named: dict[str, Any]) -> None:
    setting = Setting(endpoint, Network([reply({"message": "no"}, 400)]))
    body = {"messages": [{"role": "user", "content": "Hello"}]} if endpoint is CHAT else {"input": "Hello"}
    await refused(setting, named | body, model="mistral-embed")
    assert setting.network.sent[0].body["model"] == "mistral-embed"


async def test_a_model_in_the_path_is_one_segment_of_it() -> None:
    setting = Setting(MODEL, Network([reply({"id": "x", "object": "model"})]))
    answer = await setting.ask(None, model="ft:a/b?c#d%e", model_asked="mine")
    assert setting.network.sent[0].path == "/v1/models/ft%3Aa%2Fb%3Fc%23d%25e"
    assert setting.network.sent[0].body is None
    assert "Content-Type" not in setting.network.sent[0].headers
    assert json.loads(answer.body)["id"] == "mine"


async def test_the_list_of_models_is_the_teams() -> None:
    cards = [{"id": "codestral-latest"}, {"id": "mistral-small-latest"}]
    setting = Setting(MODELS, Network([reply({"data": cards})]), aliases={"house": "codestral-latest"})
    team = Team("t", lambda name: name.startswith("codestral"))
    answer = await setting.ask(None, model=None, team=team)
    assert [row["id"] for row in json.loads(answer.body)["data"]] == ["codestral-latest", "house"]
    assert answer.exchange.upstream == "mistral"


async def test_a_body_in_pieces_is_put_together() -> None:
    [whole] = completion().chunks
    answer = await chat(Reply(200, [bytes([byte]) for byte in whole])).ask(asked())
    assert answer.status == 200


async def test_the_key_is_taken_out_of_answers_and_errors() -> None:
    answer = await chat(completion(f"It is {KEY}.")).ask(asked())
    assert b"It is ***." in answer.body
    error = await refused(chat(reply({"message": f"{KEY} is bad"}, 400)), asked())
    assert "*** is bad" in error.message


async def test_c8_the_key_in_two_parts_of_one_text() -> None:
    found = completion()
    body = json.loads(found.chunks[0])
    parts = [{"type": "text", "text": text} for text in (f"It is {KEY[:9]}", f"{KEY[9:]}.")]
    body["choices"][0]["message"]["content"] = parts
    answer = await chat(reply(body)).ask(asked())
    assert b"It is ***." in answer.body


async def test_c8_no_error_has_the_key_wherever_it_comes_from() -> None:
    async def fails() -> Any:
        raise UpstreamFailed(f"a {KEY}", param=f"{KEY}[0]", detail={"x": [f"{KEY}.", {KEY: 1}]})

    error = await refused(chat(fails), asked())
    assert (error.message, error.param, error.detail) == ("a ***", "***[0]", {"x": ["***.", {"***": 1}]})
    answer = await chat(streamed(EVENT, fails)).ask(asked(stream=True))
    assert KEY.encode() not in answer.body
    assert b'"message":"a ***"' in answer.body
    assert answer.exchange.error
    assert answer.exchange.error.message == "a ***"  # the log has it too


async def test_d25_what_a_large_answer_may_hold_is_the_endpoints() -> None:
    """Of a small one nothing is counted."""
    small, large = [0] * 1000, [0] * 600_000
    for values, most, status in ((small, 10, 200), (large, 10, 502), (large, 600_100, 200)):
        setting = Setting(replace(CHAT, most_values=most), Network([completion(x=values)]))
        if status == 200:
            assert (await setting.ask(asked())).status == 200
        else:
            assert (await refused(setting, asked())).message == "The upstream's answer is too large."


async def test_d25_of_a_long_refusal_only_the_status_counts() -> None:
    long = reply({"message": "Prompt is too large for model with 10 tokens", "x": "y" * (1 << 20)}, 400)
    error = await refused(chat(long), asked())
    assert (error.status, error.code, error.message) == (
        400,
        "invalid_value",
        "The provider refused the request (HTTP 400).",
    )


# Modes and defaults.


async def test_the_modes() -> None:
    assert (await chat(completion()).ask(asked(verbosity="low"))).status == 200
    error = await refused(chat(strict=True), asked(verbosity="low"))
    assert (error.code, error.param) == ("unsupported_parameter", "verbosity")
    error = await refused(chat(), asked(verbosity="low"), headers=((b"x-proxy-translation", b"strict"),))
    assert error.code == "unsupported_parameter"
    lenient = ((b"x-proxy-translation", b"lenient"),)
    assert (await chat(completion(), strict=True).ask(asked(verbosity="low"), headers=lenient)).status == 200


@pytest.mark.parametrize("mode", [b"", b"Strict", b"strict ", b"on", b"\xff"])
async def test_an_unknown_mode(mode: bytes) -> None:
    setting = chat()
    error = await refused(setting, asked(), headers=((b"x-proxy-translation", mode),))
    assert isinstance(error, BadRequest)
    assert error.param == "x-proxy-translation"
    assert not setting.network.sent


async def test_defaults_are_for_requests_that_say_nothing() -> None:
    defaults = {"max_tokens": 100, "temperature": 0.5}
    for fields, sent in (
        ({}, (100, 0.5)),
        ({"max_tokens": None, "temperature": None}, (100, 0.5)),
        ({"max_tokens": 5}, (5, 0.5)),
        ({"max_completion_tokens": 6}, (6, 0.5)),
        ({"temperature": 0}, (100, 0)),
    ):
        setting = chat(completion(), defaults=defaults)
        await setting.ask(asked(**fields))
        body = setting.network.sent[0].body
        assert (body["max_tokens"], body["temperature"]) == sent


async def test_a_default_of_temperature_0_brings_what_belongs_to_it() -> None:
    """Mistral refuses temperature 0 with another top_p than 1, wherever the 0 comes from."""
    setting = chat(completion(), defaults={"temperature": 0.0})
    await setting.ask(asked(top_p=0.5))
    assert setting.network.sent[0].body["top_p"] == 1


async def test_a_default_for_chat_is_none_for_embeddings() -> None:
    vectors = {"data": [{"index": 0, "embedding": [1.0]}], "model": "m", "usage": {}}
    setting = Setting(EMBEDDINGS, Network([reply(vectors)]), defaults={"max_tokens": 100, "temperature": 0.5})
    await setting.ask({"model": "m", "input": "x"}, model="mistral-embed")
    assert set(setting.network.sent[0].body) == {"model", "input", "encoding_format"}


# Refusals.

UNKNOWN = {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}
UNKNOWN_SEED = {"detail": [UNKNOWN["detail"][0] | {"loc": ["body", "random_seed"]}]}


async def test_what_can_be_mended_is_sent_once_more() -> None:
    setting = chat(reply(UNKNOWN_SEED, 422), completion())
    answer = await setting.ask(asked(seed=1))
    first, second = setting.network.sent
    assert first.body["random_seed"] == 1
    assert second.body == {name: value for name, value in first.body.items() if name != "random_seed"}
    assert answer.status == 200
    assert answer.exchange.attempts == 2
    assert list(answer.exchange.rewrites) == ["rename:seed>random_seed", "mend:seed"]


async def test_it_is_mended_once_and_no_more() -> None:
    setting = chat(reply(UNKNOWN_SEED, 422), reply(UNKNOWN_SEED, 422))
    error = await refused(setting, asked(seed=1))
    assert (error.status, error.code) == (400, "unknown_parameter")
    assert len(setting.network.sent) == 2


async def test_what_cannot_be_mended_is_not_sent_again() -> None:
    for answer in (reply(UNKNOWN, 422), reply({"message": "no"}, 400), reply({}, 500), reply({}, 429)):
        setting = chat(answer)
        await refused(setting, asked())
        assert len(setting.network.sent) == 1


async def test_in_strict_mode_nothing_is_mended() -> None:
    setting = chat(reply(UNKNOWN_SEED, 422), strict=True)
    assert (await refused(setting, asked(seed=1))).param == "seed"
    assert len(setting.network.sent) == 1


async def test_a_stream_is_mended_as_well() -> None:
    setting = chat(reply(UNKNOWN_SEED, 422), streamed(EVENT, LAST, DONE))
    answer = await setting.ask(asked(seed=1, stream=True))
    assert answer.body == EVENT + LAST + DONE
    assert answer.exchange.attempts == 2


@pytest.mark.parametrize(
    ("answer", "code"),
    [(reply({"detail": "Unauthorized"}, 401), "upstream_auth_failed"), (reply(UNKNOWN, 422), "unknown_parameter")],
)
async def test_what_no_client_can_mend_is_an_alarm(answer: Reply, code: str) -> None:
    setting = chat(answer)
    assert (await refused(setting, asked())).code == code
    [(level, event, fields)] = setting.log.lines
    assert (level, event) == ("error", "alarm")
    assert (fields["code"], fields["request_id"]) == (code, "id-1")
    assert fields["what"]


async def test_other_refusals_are_no_alarm() -> None:
    setting = chat(reply({"message": "no"}, 400))
    await refused(setting, asked())
    assert not setting.log.lines


@pytest.mark.parametrize("status", [200, 400])
async def test_the_id_of_the_upstream_is_passed_on_with_answers_and_errors(status: int) -> None:
    found = reply(json.loads(completion().chunks[0]), status, mistral_correlation_id="c-1", server="kong")
    setting = chat(found)
    if status == 200:
        await setting.ask(asked())
    else:
        await refused(setting, asked())
    assert setting.exchange.answer_headers == [(b"x-upstream-request-id", b"c-1")]


# Batches.


def vectors(sent: Sent, most: int) -> Reply:
    """Mistral's limit: at most so many texts at once. A text's vector is its number."""
    texts = sent.body["input"]
    if len(texts) > most:
        return reply({"message": "Too many tokens in batch", "code": "3210", "type": "invalid_request_prompt"}, 400)
    items = [{"index": i, "embedding": [float(text)]} for i, text in enumerate(texts)]
    return reply({"data": items, "model": "mistral-embed", "usage": {"prompt_tokens": 1, "total_tokens": 1}})


@pytest.mark.parametrize(("most", "calls"), [(256, 2), (200, 4), (64, 14), (1, 798)])
async def test_what_is_too_much_at_once_is_halved_until_it_fits(most: int, calls: int) -> None:
    setting = Setting(EMBEDDINGS, Network(lambda sent: vectors(sent, most)))
    texts = [str(i) for i in range(400)]
    answer = await setting.ask({"model": "m", "input": texts, "encoding_format": "float"}, model="mistral-embed")
    rows = json.loads(answer.body)["data"]
    assert [row["embedding"] for row in rows] == [[float(i)] for i in range(400)]
    assert [row["index"] for row in rows] == list(range(400))
    good = [sent for sent in setting.network.sent if len(sent.body["input"]) <= most]
    assert [text for sent in good for text in sent.body["input"]] == texts
    assert answer.exchange.attempts == len(setting.network.sent) == calls
    assert answer.exchange.usage == {"prompt_tokens": len(good), "total_tokens": len(good)}


async def test_one_text_that_is_too_much_is_an_error() -> None:
    setting = Setting(EMBEDDINGS, Network(lambda sent: vectors(sent, 0)))
    error = await refused(setting, {"model": "m", "input": ["1", "2"]}, model="mistral-embed")
    assert (error.status, error.param) == (400, "input")
    assert [len(sent.body["input"]) for sent in setting.network.sent] == [2, 1]


async def test_another_refusal_of_a_batch_is_not_halved() -> None:
    setting = Setting(EMBEDDINGS, Network(lambda sent: reply({"message": "Unauthorized"}, 401)))
    await refused(setting, {"model": "m", "input": ["1", "2"]}, model="mistral-embed")
    assert len(setting.network.sent) == 1


# Failures.


def stale() -> TransportError:
    """An idle connection that the upstream had just closed."""
    error = TransportError("closed", "text of the transport")
    error.reused = True
    return error


@pytest.mark.parametrize("stream", [False, True])
async def test_d6_a_stale_connection_is_tried_again_on_a_fresh_one(stream: bool) -> None:
    setting = chat(stale(), streamed(EVENT, LAST, DONE) if stream else completion())
    answer = await setting.ask(asked(stream=stream))
    first, second = setting.network.sent
    assert (first.fresh, second.fresh) == (False, True)
    assert (first.path, first.headers, first.body) == (second.path, second.headers, second.body)
    assert (answer.status, answer.exchange.attempts) == (200, 2)


async def test_d6_it_is_tried_once() -> None:
    setting = chat(stale(), stale(), completion())
    assert isinstance(await refused(setting, asked()), UpstreamFailed)
    assert (len(setting.network.sent), setting.exchange.attempts) == (2, 2)


async def test_d6_a_mended_body_has_a_fresh_connection_of_its_own() -> None:
    setting = chat(stale(), reply(UNKNOWN_SEED, 422), stale(), completion())
    assert (await setting.ask(asked(seed=1))).exchange.attempts == 4
    assert [sent.fresh for sent in setting.network.sent] == [False, True, False, True]


async def test_d6_what_may_not_be_repeated_is_not() -> None:
    setting = Setting(replace(MODEL, retry=Repeatable.UNSAFE), Network([stale(), reply({"id": "x"})]))
    await refused(setting, None, model="x")
    assert len(setting.network.sent) == 1


async def test_d6_a_client_that_leaves_is_not_asked_again() -> None:
    setting = chat(never, completion())
    answer = await setting.ask(asked(), leaves=True)
    assert (answer.exchange.client_gone, len(setting.network.sent)) == (True, 1)


async def test_d6_no_place_for_the_second_attempt() -> None:
    setting = chat(stale(), TransportError("pool", "full"))
    assert isinstance(await refused(setting, asked()), Overloaded)
    assert setting.exchange.attempts == 1


@pytest.mark.parametrize("trouble", [b"nonsense", TransportError("closed", "cut", answered=True)])
async def test_d25_an_error_keeps_no_body_alive(trouble: Any) -> None:
    """Not in the frames that it came through, nor in those of its cause."""
    error = await refused(chat(Reply(200, [b"{", trouble])), asked())
    trace, names = error.__traceback__, set()
    while trace:
        names.add(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert names
    assert not names & {"answer", "read", "_read", "_whole", "_call", "_attempt"}
    assert error.__context__ is None


@pytest.mark.parametrize("stream", [False, True])
async def test_d14_a_compressed_answer_is_not_read(stream: bool) -> None:
    async def read() -> None:
        raise AssertionError("it was read")

    packed = Reply(200, [read], {"content-encoding": "gzip", "content-type": "text/event-stream"})
    assert isinstance(await refused(chat(packed), asked(stream=stream)), UpstreamFailed)
    packed = Reply(503, [read], {"content-encoding": "br"})
    assert (await refused(chat(packed), asked(stream=stream))).status == 503


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", "application/problem+JSON", ""]
)
async def test_d13_what_calls_itself_json_or_nothing_is_read(kind: str) -> None:
    found = completion()
    found.headers |= {"content-type": kind} if kind else {}
    assert (await chat(found).ask(asked())).status == 200


@pytest.mark.parametrize("kind", ["text/html", "text/event-stream", "text/plain; charset=utf-8", "x"])
async def test_d13_what_calls_itself_something_else_is_not_read(kind: str) -> None:
    found = completion()
    found.headers["content-type"] = kind
    assert isinstance(await refused(chat(found), asked()), UpstreamFailed)


async def test_d15_models_have_no_usage_to_be_alarmed_about() -> None:
    setting = Setting(MODEL, Network([reply({"id": "x", "object": "model"})]))
    await setting.ask(None, model="x")
    assert not setting.log.lines


@pytest.mark.parametrize("usage", [None, "x", {"prompt_tokens": -1, "total_tokens": 1}, {"prompt_tokens": 10**18}])
async def test_d15_the_usage_of_embeddings_is_an_alarm_too(usage: Any) -> None:
    vectors = {"data": [{"index": 0, "embedding": [1.0]}], "model": "m", "usage": usage}
    setting = Setting(EMBEDDINGS, Network([reply(vectors)]))
    answer = await setting.ask({"model": "m", "input": "x"}, model="mistral-embed")
    assert answer.exchange.usage is None
    assert [fields["code"] for _, _, fields in setting.log.lines] == ["usage_anomaly"]


async def test_d15_a_stream_that_broke_is_no_usage_anomaly() -> None:
    setting = chat(streamed(EVENT, TransportError("closed", "cut")))
    await setting.ask(asked(stream=True))
    assert not setting.log.lines


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("connect", 502, "upstream_error"),
        ("connect_timeout", 504, "upstream_timeout"),
        ("tls", 502, "upstream_error"),
        ("pool", 503, "overloaded"),
        ("protocol", 502, "upstream_error"),
        ("closed", 502, "upstream_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_every_failure_of_the_transport(kind: str, status: int, code: str, stream: bool) -> None:
    setting = chat(TransportError(kind, "text of the transport"))
    error = await refused(setting, asked(stream=stream))
    assert (error.status, error.code) == (status, code)
    assert "text of the transport" not in error.message
    assert len(setting.network.sent) == 1
    assert isinstance(error, Overloaded) == bool(error.headers)


@pytest.mark.parametrize(
    "found",
    [
        Reply(200, [b"<html>"]), Reply(200, []), Reply(200, [b"[]"]), Reply(200, [b"null"]), Reply(200, [b"{}"]),
        Reply(200, [b'{"choices": "x"}']), Reply(200, [b'{"choices": [1]}']), Reply(200, [b"\xff"]),
        Reply(200, [b"[" * 100_000]), Reply(200, [b'{"a":', TransportError("closed", "cut")]),
        Reply(200, [b"x" * (16 << 20)] * 3),
    ],
)  # fmt: skip
async def test_an_answer_that_is_none(found: Reply) -> None:
    assert isinstance(await refused(chat(found), asked()), UpstreamFailed)


async def test_silence_is_bounded() -> None:
    soon = Timeouts.model_construct(connect=9.0, first_byte=0.01, idle=0.01, total=9.0)
    error = await refused(chat(never, timeouts=soon), asked())
    assert isinstance(error, UpstreamTimeout)
    assert error.detail == {"timeout": "first_byte"}
    error = await refused(chat(Reply(200, [b"{", never]), timeouts=soon), asked())
    assert error.detail == {"timeout": "idle"}


async def test_the_drain_ends_it() -> None:
    called = asyncio.Event()

    async def silence() -> None:
        called.set()
        await never()

    setting = chat(silence)
    task = asyncio.create_task(refused(setting, asked()))
    await asyncio.wait_for(called.wait(), 5)
    setting.guards.drain()
    assert isinstance(await task, Draining)


@pytest.mark.parametrize("stream", [False, True])
async def test_who_was_kept_until_after_the_drain_is_not_asked_for(stream: bool) -> None:
    setting = chat()
    setting.guards.drain()
    assert isinstance(await refused(setting, asked(stream=stream)), Draining)
    assert not setting.network.sent
    assert setting.exchange.charge is NOTHING


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_has_left(stream: bool) -> None:
    answer = await chat(never).ask(asked(stream=stream), leaves=True)
    assert answer.status == 0
    assert answer.exchange.client_gone
    assert answer.exchange.cancelled


@pytest.mark.parametrize("stream", [False, True])
async def test_for_a_client_that_left_before_the_call_none_is_made(stream: bool) -> None:
    departure = Departure(lambda: None, lambda: None)
    departure.happen()
    setting = chat()
    answer = await setting.ask(asked(stream=stream), departure=departure)
    assert not setting.network.sent
    assert answer.exchange.client_gone
    assert not answer.exchange.cancelled
    assert answer.exchange.charge is NOTHING


# Streams.


async def test_a_stream() -> None:
    setting = chat(streamed(EVENT, LAST + DONE))
    answer = await setting.ask(asked(stream=True))
    assert setting.network.sent[0].headers["Accept"] == "text/event-stream"
    assert setting.network.sent[0].body["stream"] is True
    assert answer.status == 200
    assert answer.body == EVENT + LAST + DONE
    assert answer.exchange.streamed
    assert answer.exchange.usage
    assert answer.exchange.usage["total_tokens"] == 3
    assert not answer.exchange.cancelled


async def test_a_stream_of_another_model_is_not_back_when_the_first_ones_answer_was() -> None:
    answer = await chat(streamed(EVENT, LAST + DONE)).ask(asked(stream=True), called=1.0, returned=2.0)
    assert (answer.exchange.called, answer.exchange.returned) == (1.0, None)


async def test_a_stream_that_was_not_asked_for() -> None:
    setting = chat(completion())
    answer = await setting.ask(asked(stream=False))
    assert dict(answer.headers)[b"content-type"] == b"application/json"
    assert not answer.exchange.streamed


TROUBLE: Any = [
    ((), "upstream_error"),
    ((TransportError("closed", "cut"),), "upstream_error"),
    ((TransportError("protocol", "nonsense"),), "upstream_error"),
    ((b'data: {"error": {"message": "no"}}\n\n',), "upstream_error"),
    ((never,), "upstream_timeout"),
]
"""What comes behind the first event, and the code of the error that the client is told."""


@pytest.mark.parametrize("trouble", [trouble for trouble, _ in TROUBLE])
async def test_what_a_broken_stream_costs_is_known_before_its_last_piece(trouble: tuple[Any, ...]) -> None:
    soon = Timeouts.model_construct(connect=9.0, first_byte=9.0, idle=0.01, total=9.0)
    setting, known = chat(streamed(EVENT, *trouble), timeouts=soon), list[bool]()

    async def taking(message: Message) -> None:
        known.append(setting.exchange.charge is not None)

    await setting.ask(asked(stream=True), taking=taking, estimate=Estimate(1, 9, 10, 100))
    assert known == [False, False, True]


@pytest.mark.parametrize(("trouble", "code"), TROUBLE)
async def test_trouble_after_the_first_event_is_a_frame(trouble: tuple[Any, ...], code: str) -> None:
    soon = Timeouts.model_construct(connect=9.0, first_byte=9.0, idle=0.01, total=9.0)
    answer = await chat(streamed(EVENT, *trouble), timeouts=soon).ask(asked(stream=True))
    assert answer.status == 200
    first, frame, done, rest = answer.body.split(b"\n\n")
    assert (first + b"\n\n", done, rest) == (EVENT, b"data: [DONE]", b"")
    assert json.loads(frame.removeprefix(b"data: "))["error"]["code"] == code
    assert answer.exchange.error
    assert answer.exchange.error.code == code


@pytest.mark.parametrize("trouble", [(), (TransportError("closed", "cut"),), (never,)])
async def test_trouble_before_the_first_event_is_raised(trouble: tuple[Any, ...]) -> None:
    soon = Timeouts.model_construct(connect=9.0, first_byte=0.01, idle=0.01, total=9.0)
    setting = chat(streamed(*trouble), timeouts=soon)
    assert (await refused(setting, asked(stream=True))).status in (502, 504)


@pytest.mark.parametrize("trouble", [(TransportError("closed", "cut"),), (never,), (b"data: more\n\n",)])
async def test_trouble_after_the_last_event_is_none(monkeypatch: pytest.MonkeyPatch, trouble: tuple[Any, ...]) -> None:
    monkeypatch.setattr("proxy.relay.LINGER", 0.01)
    answer = await chat(streamed(EVENT, LAST, DONE, *trouble)).ask(asked(stream=True))
    assert answer.body == EVENT + LAST + DONE
    assert answer.exchange.error is None
    assert not answer.exchange.client_gone


@pytest.mark.parametrize("held", ["start", "event", "last"])
async def test_e6_what_a_client_was_about_to_take_is_not_lost_to_the_drain(held: str) -> None:
    """A client that reads slowly may stand before the last byte, or before the first, when its stream is ended."""
    setting, waits = chat(streamed(EVENT, LAST + DONE)), asyncio.Event()

    async def slow(message: Message) -> None:
        body = message.get("body", b"")
        at = "start" if message["type"] == "http.response.start" else "last" if DONE in body else "event"
        if at == held and not waits.is_set():
            waits.set()
            await never()

    task = asyncio.create_task(setting.ask(asked(stream=True), taking=slow))
    await asyncio.wait_for(waits.wait(), 5)
    for guard in list(setting.guards):
        guard.drain()
    answer = await task
    if held == "last":
        assert answer.body == EVENT + LAST + DONE
        assert setting.exchange.error is None
    else:
        assert answer.body.startswith(EVENT + b'data: {"error":')
        assert answer.body.endswith(DONE)
        assert isinstance(setting.exchange.error, Draining)
    assert answer.status == 200


@pytest.mark.parametrize("reads", [True, False])
async def test_e6_a_client_that_does_not_read_pays_for_what_may_have_been_written(reads: bool) -> None:
    """Its provider goes on into the buffers between, and nobody sees how far. Of one that reads, that is known."""
    setting, ready = chat(streamed(EVENT, LAST + DONE) if not reads else streamed(EVENT, never)), asyncio.Event()
    estimate = Estimate(prompt=10, completion=90, tokens=100, cost=1)

    async def taking(message: Message) -> None:
        if EVENT in message.get("body", b"") and not ready.is_set():
            ready.set()
            if not reads:
                await never()

    task = asyncio.create_task(setting.ask(asked(stream=True), taking=taking, estimate=estimate))
    await asyncio.wait_for(ready.wait(), 5)
    await asyncio.sleep(0)
    for guard in list(setting.guards):
        guard.drain()
    await task
    assert setting.exchange.charge
    assert setting.exchange.charge.completion == (1 if reads else 90)
    assert setting.exchange.charge.estimated


async def test_what_was_used_is_known_even_of_a_stream_that_broke() -> None:
    answer = await chat(streamed(LAST, TransportError("closed", "cut"))).ask(asked(stream=True))
    assert answer.exchange.usage
    assert answer.exchange.usage["completion_tokens"] == 2
