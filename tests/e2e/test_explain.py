"""What `POST /admin/explain` says of a request is what then happens to it, and nothing happens by asking."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.quotas import (
    LIMITS,
    Deploy,
    Deployment,
    Holding,
    asking,
    good,
    key_of,
    meets,
    rows_of,
)
from tests.e2e.test_f_retries import refusal
from tests.e2e.upstream import JSON, Seen, upstream, url_of
from tests.e2e.wire import Answer, ask, connect, request
from tests.redis_server import RedisServer
from tests.upstream.scripted import Peer, Received, answer

ADMIN = "sk-admin-0123456789abcdef0123"
DIGEST = hashlib.sha256(ADMIN.encode()).hexdigest()

RULES = {
    "free": "[]",
    "rate": "[requests: 12/day]",
    "tokens": "[tokens: 260/hour]",
    "money": "[spend: 0.0002 USD/day]",
    "slots": "[concurrency: 1]",
    "none": "[requests: 0/day]",
    "keys": "[{requests: 4/day, per: key}, {tokens: 100000/minute, model: mistral-large-latest}]",
    "shadow": "[{requests: 2/day, mode: shadow}, spend: 1 USD/month]",
    "limits": LIMITS,
    "joins": "[]",
}


@pytest.fixture(scope="module", params=["memory", "redis"])
def deployment(request: pytest.FixtureRequest, held: socket.socket, tmp_path_factory: Any) -> Iterator[Deployment]:
    server = RedisServer() if request.param == "redis" else None
    options: dict[str, Any] = {"admin": f'["sha256:{DIGEST}"]'}
    if server:
        options |= {"workers": 2, "store": server.url.reveal()}
    one = Deployment(tmp_path_factory.mktemp(request.param), url_of(held), RULES, **options).start()
    one.redis = server
    yield one
    one.stop()
    if server:
        server.stop()


def key_id(key: str) -> str:
    return hashlib.sha256(key_of(key).encode()).hexdigest()[:12]


async def explaining(one: Deployment, body: Any, key: str = ADMIN) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await ask(one.url, request("POST", "/admin/explain", data, authorization=f"Bearer {key}"))


async def explained(one: Deployment, key: str, body: Any, **more: Any) -> Any:
    """What would become of a request of a team's key (see `teams`)."""
    asked = {"team": key.removesuffix("-2"), "key": key_id(key), "request": body} | more
    answer = await explaining(one, asked)
    assert answer.status == 200, answer.body
    return answer.json()


def body_of(text: str = "Hello there", **fields: Any) -> dict[str, Any]:
    body = {"model": "mistral-small-latest", "messages": [{"role": "user", "content": text}], "max_tokens": 16}
    return body | fields


async def really(one: Deployment, key: str, body: Any, path: str, headers: dict[str, str]) -> Answer:
    fields = {name.replace("-", "_"): value for name, value in headers.items()}
    fields["authorization"] = f"Bearer {key_of(key)}"
    return await ask(one.url, request("POST", path, json.dumps(body).encode(), **fields))


# What is said is what happens.


MODELS = ["mistral-small-latest", "gpt-4o", "mistral-large-latest", "openai/gpt-4o", "no model", 5, None, "unheard-of"]
HEADERS: list[dict[str, str]] = [
    {},
    {},
    {},
    {"cache-control": "no-store"},
    {"cache-control": "no-cache"},
    {"cache-control": "only-if-cached"},
    {"cache-control": "max-age=600"},
    {"x-proxy-translation": "strict"},
    {"x-proxy-translation": "perhaps"},
    {"x-proxy-context": "sliding-window"},
]
FIELDS: list[dict[str, Any]] = [
    {},
    {},
    {"user": "somebody"},
    {"logit_bias": {"5": 1}},
    {"max_tokens": 1_000_000},
    {"max_tokens": "many"},
    {"messages": []},
    {"messages": "Hello"},
    {"made_up": True},
    {"n": 3},
]


def any_request(random: random.Random, text: str) -> tuple[dict[str, Any], str, dict[str, str]]:
    """A body, its path and what its headers say."""
    if random.random() < 0.2:
        inputs = random.choice([text, [text, "two"], [], 7])
        return {"model": "mistral-embed", "input": inputs}, "/v1/embeddings", random.choice(HEADERS[:7])
    body = body_of(text, temperature=random.choice([0, 0, 0, 0.7]))
    model = MODELS[0] if random.random() < 0.7 else random.choice(MODELS)
    body |= {"model": model, "stream": random.random() < 0.2}
    body |= random.choice(FIELDS) if random.random() < 0.4 else {}
    return body, "/v1/chat/completions", random.choice(HEADERS)


@pytest.mark.parametrize("seed", range(3))
async def test_what_is_said_is_what_happens(deployment: Deployment, held: socket.socket, seed: int) -> None:
    chance, would = random.Random(seed), dict[str, int]()
    async with upstream(held, answers) as seen:
        for _ in range(90):
            team = chance.choice([name for name in RULES if name not in ("limits", "joins")])
            key = f"{team}-2" if chance.random() < 0.3 else team
            body, path, headers = any_request(chance, f"text {seed} {chance.randrange(2)}")
            said = await at_rest(deployment, key, body, endpoint=path, headers=headers)
            calls = len(seen.requests)
            told = await really(deployment, key, body, path, headers)
            would[said["would"]] = would.get(said["would"], 0) + 1
            agree(said, told, seen, calls)
    assert set(would) >= {"call", "refuse", "answer from cache"}, would
    assert min(would.values()) >= 3, would


async def answers(peer: Peer, received: Received) -> None:
    """As `good`, with a vector for each text."""
    asked = json.loads(received.body)
    if "input" not in asked:
        await good(peer, received)
        return
    count = len(asked["input"]) if isinstance(asked["input"], list) else 1
    data = [{"object": "embedding", "index": at, "embedding": [0.5]} for at in range(count)]
    usage = {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3}
    body = {"id": "embd-1", "object": "list", "model": "mistral-embed", "data": data, "usage": usage}
    await peer.send(answer(json.dumps(body).encode(), JSON))


async def at_rest(one: Deployment, key: str, body: Any, **more: Any) -> Any:
    """What is said once all that was used before is settled, and what is kept is where all workers look for it."""
    said: Any = None

    async def is_settled() -> bool:
        nonlocal said
        said = await explained(one, key, body, **more)
        return said["would"] != "join a call" and not any(
            line["reserved"] not in (0, "0 USD") for line in said["quota"]
        )

    await meets(is_settled, True)
    return said


def agree(said: Any, answer: Answer, seen: Seen, calls: int) -> None:
    if said["would"] == "refuse":
        error = answer.error()
        assert (answer.status, error["code"]) == (said["status"], said["error"]["code"]), (said, answer.body)
        timeless = {"message", "reset"}
        assert set(error) == set(said["error"])
        assert [error[name] for name in set(error) - timeless] == [
            said["error"][name] for name in set(error) - timeless
        ]
        assert len(seen.requests) == calls
        if "rule" in error:
            assert error["rule"] in [line["rule"] for line in said["quota"] if not line["fits"]]
        return
    assert answer.status == 200, (said, answer.body)
    assert all(line["fits"] or line["mode"] == "shadow" for line in said["quota"])
    assert answer.header("x-proxy-cache") == said["cache"]["outcome"]
    assert answer.header("x-proxy-cache-key") == said["cache"]["key"]
    assert (answer.header("x-proxy-rewrites") or "") == ", ".join(said["rewrites"])
    if said["would"] == "call":
        assert [json.loads(one.body) for one in seen.requests[calls:]] == [said["sends"]]
        assert answer.header("x-proxy-upstream") == f"{said['model']['provider']}/{said['model']['sent_as']}"
        assert said["breaker"]["state"] == "closed"
    else:
        assert said["cache"]["outcome"] == "hit"
        assert (len(seen.requests), said["sends"], said["breaker"]) == (calls, None, None)
        assert abs(int(answer.header("age") or -1) - said["cache"]["age"]) <= 1


async def test_a_body_that_cannot_be_read_is_refused_as_it_would_be(deployment: Deployment) -> None:
    twice = b'{"model": "mistral-small-latest", "model": "mistral-large-latest", "messages": []}'
    envelope = b'{"team": "free", "request": %b}'
    for body in (
        twice,
        b"[]",
        b"7",
        b"null",
        b'{"model": "mistral-small-latest", "messages": %b}' % (b"[" * 62 + b"]" * 62),
    ):
        answer = await explaining(deployment, envelope % body)
        head = request("POST", "/v1/chat/completions", body, authorization=f"Bearer {key_of('free')}")
        error = (await ask(deployment.url, head)).error()
        assert answer.status == 200
        assert (answer.json()["would"], answer.json()["error"]) == ("refuse", error)


# Nothing happens.


async def test_two_hundred_explanations_change_nothing(deployment: Deployment, held: socket.socket) -> None:
    async with upstream(held, good) as seen:
        for text in ("kept", "another"):
            assert (await ask(deployment.url, asking("limits", text, temperature=0))).status == 200
        rows = await rows_of(deployment.book, "limits", 2)
        await deployment.settled("limits", rows)
        stats = await ask(deployment.url, request("GET", "/admin/cache", authorization=f"Bearer {ADMIN}"))
        before, calls = await deployment.standing("limits"), len(seen.requests)
        bodies = [body_of("kept", temperature=0), body_of("new", temperature=0), body_of("new"), body_of("x", n=64), {}]
        told = [await at_rest(deployment, "limits", body) for body in bodies]
        again = []
        for _ in range(40):  # a crowd's looks at a cache in Redis may take too long, and miss
            again += await asyncio.gather(*(explained(deployment, "limits", body) for body in bodies))
        assert [list(map(timeless, told))] * 40 == [list(map(timeless, again[at : at + 5])) for at in range(0, 200, 5)]
        assert await deployment.standing("limits") == before
        after = await ask(deployment.url, request("GET", "/admin/cache", authorization=f"Bearer {ADMIN}"))
        assert after.json() == stats.json()
        assert len(seen.requests) == calls
        assert [one["would"] for one in told] == ["answer from cache", "call", "call", "call", "refuse"]
        # All of the slots are free, and the entry is what it was.
        answers = await asyncio.gather(
            *(ask(deployment.url, asking("limits", "kept", temperature=0)) for _ in range(2))
        )
        assert [one.header("x-proxy-cache") for one in answers] == ["hit", "hit"]
        await rows_of(deployment.book, "limits", 2 + 2)


def timeless(said: Any) -> Any:
    """Without what runs down by itself."""
    lines = [line | {"wait_ms": bool(line["wait_ms"])} for line in said["quota"]]
    cache = said["cache"] and said["cache"] | {"age": None}
    return said | {"quota": lines, "cache": cache, "error": said["error"] and said["error"]["code"]}


async def test_who_explains_neither_leads_nor_follows(deployment: Deployment, held: socket.socket) -> None:
    holding, body = Holding(), body_of("hold this", temperature=0)
    async with upstream(held, holding) as seen:
        for _ in range(20):
            assert (await explained(deployment, "joins", body))["would"] == "call"
        async with connect(deployment.url) as leader:
            await leader.send(asking("joins", "hold this", temperature=0))
            await holding.holds(1)
            for _ in range(20):
                said = await explained(deployment, "joins", body)
                assert (said["would"], said["cache"]["outcome"], said["sends"]) == ("join a call", "joined", None)
            elsewhere = await explained(deployment, "free", body)
            assert elsewhere["would"] == "call"  # another team's
            leader.leave("fin")

            async def outcome() -> str:
                would: str = (await explained(deployment, "joins", body))["would"]
                return would

            await meets(outcome, "call")  # nobody else has waited for it
        assert len(seen.requests) == 1
        holding.released.set()


async def test_a_slot_that_is_taken_is_seen(deployment: Deployment, held: socket.socket) -> None:
    holding = Holding()
    async with upstream(held, holding):
        task = asyncio.create_task(ask(deployment.url, asking("slots", "hold it")))
        await holding.holds(1)
        said = await explained(deployment, "slots", body_of("another"))
        assert (said["would"], said["status"], said["error"]["code"]) == ("refuse", 429, "rate_limit_exceeded")
        [line] = said["quota"]
        assert (line["used"], line["reserved"], line["limit"], line["fits"]) == (0, 1, 1, False)
        holding.released.set()
        assert (await task).status == 200


# The circuit.


async def test_a_circuit_is_seen_and_not_moved(deploy: Deploy, held: socket.socket) -> None:
    async def fails(peer: Peer, received: Received) -> None:
        await peer.send(refusal(b"503"))

    breaker = "{failure_threshold: 2, open_duration: 2s, success_threshold: 2}"
    one = deploy(
        url_of(held),
        {"free": "[]"},
        admin=f'["sha256:{DIGEST}"]',
        breaker=breaker,
    )
    body = body_of("x")
    assert (await explained(one, "free", body))["breaker"]["state"] == "closed"
    async with upstream(held, fails):
        for _ in range(2):
            assert (await ask(one.url, asking("free", "x", model="mistral-small-latest"))).status == 503
        assert (await explained(one, "free", body_of("x", model=LARGE)))["would"] == "call"  # it has one of its own
        said = await explained(one, "free", body)
        real = await ask(one.url, asking("free", "x"))
        assert (said["would"], said["breaker"]["state"]) == ("refuse", "open")
        assert (said["status"], said["error"]["code"]) == (real.status, real.error()["code"]) == (503, "circuit_open")
        assert 0 < said["breaker"]["circuits"][-1]["wait_ms"] <= 2000

        async def state() -> str:
            found: str = (await explained(one, "free", body))["breaker"]["state"]
            return found

        await meets(state, "half_open")
        for _ in range(200):
            assert (await explained(one, "free", body))["would"] == "call"
        assert not one.program.logged("circuit_half_open")
    async with upstream(held, good) as seen:
        assert (await ask(one.url, asking("free", "x"))).status == 200  # its place was not taken
        assert len(seen.requests) == 1
        assert (await explained(one, "free", body))["breaker"]["state"] == "half_open"


LARGE, MEDIUM, SMALL = "mistral-large-latest", "mistral-medium-latest", "mistral-small-latest"


async def test_which_model_would_be_turned_to(deploy: Deploy, held: socket.socket) -> None:
    async def fails_if_large(peer: Peer, received: Received) -> None:
        if json.loads(received.body)["model"] == LARGE:
            await peer.send(refusal(b"503"))
        else:
            await good(peer, received)

    one = deploy(
        url_of(held),
        {"free": "[]", "limited": f"[{{requests: 0/day, model: {MEDIUM}}}]", "none": "[requests: 0/day]"},
        admin=f'["sha256:{DIGEST}"]',
        breaker="{failure_threshold: 1, open_duration: 600s}",
        cache=f"{{}}\nmodels: {{fallbacks: {{{LARGE}: [{MEDIUM}, {SMALL}]}}}}",
    )
    large = body_of("x", model=LARGE)
    before = await explained(one, "free", large)
    assert (before["would"], before["model"]["is"], before["tried"]) == ("call", LARGE, [])
    assert before["fallbacks"] == [MEDIUM, SMALL]
    async with upstream(held, fails_if_large) as seen:
        assert (await ask(one.url, asking("free", "x", model=LARGE))).status == 200
        calls = len(seen.requests)
        refused = {LARGE: "circuit_open", MEDIUM: "rate_limit_exceeded"}
        for team, model, tried, left in (
            ("free", MEDIUM, [LARGE], [SMALL]),
            ("limited", SMALL, [LARGE, MEDIUM], []),
        ):
            said = await explained(one, team, large)
            told = await ask(one.url, asking(team, "x", model=LARGE))
            assert (said["would"], told.status) == ("call", 200)
            assert told.header("x-proxy-upstream") == f"mistral/{model}"
            assert (said["model"]["asked"], said["model"]["is"], said["fallbacks"]) == (LARGE, model, left)
            assert [(each["model"], each["code"]) for each in said["tried"]] == [
                (name, refused[name]) for name in tried
            ]
            assert json.loads(seen.requests[-1].body) == said["sends"]
        assert len(seen.requests) == calls + 2
        said = await explained(one, "none", large)
        told = await ask(one.url, asking("none", "x", model=LARGE))
        assert (said["status"], said["error"]["code"]) == (told.status, told.error()["code"])
        assert said["model"]["is"] == LARGE
        assert [each["model"] for each in said["tried"]] == [LARGE, MEDIUM, SMALL]

    async def turned() -> int:
        return len(one.program.logged("fallback"))

    await meets(turned, 1 + 1 + 2 + 2)  # of the requests that were made
    async with upstream(held, lambda peer, received: peer.send(refusal(b"503"))):
        for model in (MEDIUM, SMALL):
            assert (await ask(one.url, asking("free", "x", model=model))).status == 503
    said = await explained(one, "free", large)
    told = await ask(one.url, asking("free", "x", model=LARGE))
    assert (said["status"], said["error"]["code"]) == (told.status, told.error()["code"]) == (503, "circuit_open")
    assert (said["model"]["is"], [each["code"] for each in said["tried"]]) == (LARGE, ["circuit_open"] * 3)


async def test_a_stale_answer_in_place_of_a_call(deploy: Deploy, held: socket.socket) -> None:
    async def fails(peer: Peer, received: Received) -> None:
        await peer.send(refusal(b"503"))

    one = deploy(
        url_of(held),
        {"free": "[]"},
        admin=f'["sha256:{DIGEST}"]',
        breaker="{failure_threshold: 1, open_duration: 600s}",
        cache="{ttl: 1ms, stale_if_error: 1h}",
    )
    kept = body_of("kept", temperature=0)
    async with upstream(held, good):
        assert (await ask(one.url, asking("free", "kept", temperature=0))).status == 200

    async def would() -> tuple[str, str, int | None]:
        said = await explained(one, "free", kept)
        return said["would"], said["cache"]["outcome"], said["cache"].get("stale_age")

    await meets(would, ("call", "miss", 0))
    async with upstream(held, fails):
        assert (await ask(one.url, asking("free", "another"))).status == 503
    for _ in range(20):
        said = await explained(one, "free", kept)
        assert (said["would"], said["cache"]["outcome"], said["breaker"]["state"]) == (
            "answer from cache",
            "stale",
            "open",
        )
    told = await ask(one.url, asking("free", "kept", temperature=0))
    assert (told.status, told.header("x-proxy-cache")) == (200, "stale")
    assert told.header("x-proxy-cache-key") == said["cache"]["key"]
    assert len(one.program.logged("stale_answer")) <= 1


# Who may ask, and how.


async def test_what_is_wrong_with_the_question_is_an_error_of_its_own(deployment: Deployment) -> None:
    wrong: list[tuple[Any, str | None]] = [
        ({"request": {}}, "team"),
        ({"team": 5, "request": {}}, "team"),
        ({"team": "nobody", "request": {}}, "team"),
        ({"team": "free"}, "request"),
        ({"team": "free", "request": {}, "endpoint": "/v1/models"}, "endpoint"),
        ({"team": "free", "request": {}, "endpoint": ["/v1/embeddings"]}, "endpoint"),
        ({"team": "free", "request": {}, "key": key_id("rate")}, "key"),
        ({"team": "free", "request": {}, "made_up": 1}, "made_up"),
        ({"team": "free", "request": {}, "headers": []}, "headers"),
        ({"team": "free", "request": {}, "headers": {"authorization": "Bearer x"}}, "headers"),
        ({"team": "free", "request": {}, "headers": {"cache-control": 5}}, "headers.cache-control"),
        ({"team": "free", "request": {}, "headers": {"cache-control": "no\r\nx: y"}}, "headers.cache-control"),
        (b'{"team": "free", "team": "rate", "request": {}}', "team"),
        (b'{"team": "free", "request": {', None),
        (b"[]", None),
    ]
    for body, param in wrong:
        answer = await explaining(deployment, body)
        assert (answer.status, answer.error()["param"]) == (400, param), (body, answer.body)
    for key in (key_of("free"), "sk-wrong"):
        answer = await explaining(deployment, {"team": "free", "request": {}}, key)
        assert (answer.status, answer.error()["code"]) == (401, "invalid_api_key")
    asked = request("POST", "/admin/explain?team=free", b"{}", authorization=f"Bearer {ADMIN}")
    assert (await ask(deployment.url, asked)).error()["code"] == "unknown_parameter"
    got = await ask(deployment.url, request("GET", "/admin/explain", authorization=f"Bearer {ADMIN}"))
    assert got.status == 405
    assert (await explained(deployment, "free", body_of()))["team"] == "free"
    line = await asyncio.to_thread(deployment.program.line, endpoint="/admin/explain", status_code=200)
    assert (line["team"], line["key_id"]) == (None, DIGEST[:12])


async def test_without_a_key_the_first_of_the_team_is_meant(deployment: Deployment) -> None:
    answer = await explaining(deployment, {"team": "keys", "request": body_of()})
    assert answer.json()["key"] == key_id("keys")
    assert ADMIN not in deployment.program.everything()
