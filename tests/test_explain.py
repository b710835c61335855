"""Explaining without a socket: where it is, and a ledger, a cache or keys that are not there. What it says is held to
what happens in tests/e2e/test_explain.py."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import pytest

from proxy.app import Application
from proxy.core.cache import Answers, Bounds
from proxy.core.entry import Entry, packed
from proxy.core.secret import Secret
from proxy.explain.asked import NOBODY
from proxy.explain.looking import Glimpse
from proxy.explain.notes import RECORD, Notes
from proxy.generation import Process, unix_milliseconds
from proxy.logs import Writer
from proxy.player import Cadence
from proxy.settings.model import Settings
from proxy.store.cache.memory import MemoryCache
from tests.asgi import Answer, call, exchange
from tests.test_app import Lines

ADMIN, TEAM = "sk-admin-0123456789abcdef", "sk-team-0123456789abcdef"
CHAT = {"model": "mistral-small-latest", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0}


def application(*, admins: tuple[str, ...] = (ADMIN,), answers: Answers | None = None, **more: Any) -> Application:
    settings = Settings.model_validate(
        {
            "server": {"admin_keys": [Secret(key) for key in admins], "max_body": "4KB"},
            "providers": {
                "mistral": {"base_url": "http://127.0.0.1:9", "api_keys": [Secret("mistral-key-0123456789")]}
            },
            "teams": {"red": {"keys": [Secret(TEAM)], "models": ["mistral-*"]}, "new": {}},
            **more,
        }
    )
    return Application(settings, None, Process(Writer(Lines(), level="debug"), answers=answers))


async def explain(app: Application, asked: dict[str, Any]) -> Answer:
    headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {ADMIN}".encode())]
    headers.append((b"content-type", b"application/json"))
    body = [json.dumps(asked).encode()]
    return await call(app, "POST", "/admin/explain", headers=headers, body=body, query_string=b"", root_path="")


def kept() -> Answers:
    return Answers(MemoryCache(Bounds(3_600_000, 1 << 28, 1 << 20), unix_milliseconds), bytes(32))


async def test_without_admin_keys_it_is_not_there() -> None:
    assert (await explain(application(admins=()), {"team": "red", "request": CHAT})).status == 404


@pytest.mark.parametrize("mode", ["off", "deterministic"])
@pytest.mark.parametrize("there", [False, True])
async def test_with_admin_keys_it_is_whatever_is_kept(mode: str, there: bool) -> None:
    answers = kept() if there else None
    said = json.loads((await explain(application(answers=answers, cache={"mode": mode}), _asked())).body)
    assert (said["would"], said["quota"]) == ("call", [])
    assert (said["cache"] is not None) == (there and mode != "off")


async def test_a_team_without_keys_has_one_that_nobody_has() -> None:
    said = json.loads((await explain(application(), _asked(team="new"))).body)
    assert (said["would"], said["key"]) == ("call", NOBODY)


async def test_what_is_too_long_is_refused_before_it_is_read() -> None:
    answer = await explain(application(), _asked(request={"x": "y" * 5000}))
    assert (answer.status, answer.error()["code"]) == (413, "body_too_large")


async def test_a_batch_is_as_many_calls_as_it_takes() -> None:
    embeddings = {"model": "mistral-embed", "input": ["x"] * 600}
    said = json.loads((await explain(application(), _asked(request=embeddings, endpoint="/v1/embeddings"))).body)
    assert said["calls"] > 1
    assert said["sends"]["input"] == ["x"] * 600


async def test_a_model_that_is_not_the_teams() -> None:
    said = json.loads((await explain(application(), _asked(request=CHAT | {"model": "codestral-latest"}))).body)
    assert (said["would"], said["status"], said["error"]["code"]) == ("refuse", 403, "model_not_allowed")
    assert (said["model"]["asked"], said["estimate"], said["sends"]) == ("codestral-latest", None, None)


def _asked(**more: Any) -> dict[str, Any]:
    return {"team": "red", "request": CHAT} | more


@pytest.mark.parametrize("cadence", ["immediate", "original"])
@pytest.mark.parametrize(
    "entry",
    [
        Entry(1_000, False, b"{}", 1, 2, 70),
        Entry(1_000, True, b"data: 1\n\ndata: 2\n\n", 1, 2, 70, cadence=packed((0, 9, 3_000, 9))),
    ],
    ids=["whole", "a stream"],
)
async def test_what_is_kept_is_played_to_nobody(entry: Entry, cadence: Cadence) -> None:
    """Nor is anything waited for, as a stream is that comes as it once came."""

    async def touched(*_: Any) -> NoReturn:
        raise AssertionError("it was only to be looked at")

    before = RECORD.set([Notes("m", "mistral", "m")])
    try:
        about = exchange()
        glimpse = Glimpse(cadence, set(), lambda: 6_000, lambda: 0.0)
        glimpse.found(entry, about, "a/b")
        assert about.replay
        await about.replay(about, touched, touched)
    finally:
        RECORD.reset(before)
    assert (about.cache, about.streamed, about.age, about.saved) == ("hit", entry.stream, 5, 70)
