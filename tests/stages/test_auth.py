from __future__ import annotations

import hashlib
import hmac
from contextlib import nullcontext
from typing import Any

import pytest
from pydantic import ValidationError

from proxy.core.errors import BadFraming, InvalidApiKey
from proxy.core.exchange import Team as Caller
from proxy.core.secret import Secret
from proxy.stages import auth
from tests.asgi import call, exchange, ok, services

CONFIG = auth.Config(
    teams={
        "research": auth.Team(keys=[Secret("key-one"), Secret("key-two")], models=["mistral-*", "codestral-latest"]),  # type: ignore[list-item]
        "support": auth.Team(keys=["sha256:" + hashlib.sha256(b"key-three").hexdigest()], log_content=True),  # type: ignore[list-item]
    }
)


async def ask(*values: bytes):
    found = exchange([(b"authorization", value) for value in values])
    stage = auth.build(CONFIG, None, services())(ok)  # type: ignore[arg-type]
    await call(stage, exchange=found)
    return found


@pytest.mark.parametrize(
    ("value", "team"),
    [
        (b"Bearer key-one", "research"),
        (b"bearer key-two", "research"),
        (b"BEARER  key-three \t", "support"),
    ],
)
async def test_c7_a_key_leads_to_its_team_however_the_scheme_is_written(value: bytes, team: str) -> None:
    found = await ask(value)
    assert found.team
    assert found.team.name == team
    assert found.team.log_content == (team == "support")
    assert found.key_id
    assert found.key_id not in value.decode()


WRONG = [
    (),
    (b"",),
    (b"Bearer",),
    (b"Bearer ",),
    (b"Bearer key-on",),
    (b"Bearer key-one2",),
    (b"Bearer KEY-ONE",),
    (b"key-one",),
    (b"Basic a2V5LW9uZQ==",),
    (b"Bearer\tkey-one",),
    (b"Bearer \tkey-one",),
    (b"Bearer key-one, Bearer key-one",),
    (b"Bearer key one",),
    (b"Token key-one",),
    (b"Bearer key-one\x00",),
    (b"Bearer \xe9\xff",),
    (b"Bearer " + b"x" * 20_000,),
    (b"Bearer sha256:" + hashlib.sha256(b"key-three").hexdigest().encode(),),
    (b"Bearer ' OR 1=1 --",),
]


@pytest.mark.parametrize("values", WRONG)
async def test_c7_everything_else_is_one_and_the_same_401(values: tuple[bytes, ...]) -> None:
    with pytest.raises(InvalidApiKey) as caught:
        await ask(*values)
    assert caught.value.message.startswith("Incorrect API key provided.")
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
    assert "key-" not in caught.value.message


@pytest.mark.parametrize("second", [b"Bearer key-one", b"Bearer wrong", b"", b"Basic x"])
async def test_c7_two_authorizations_are_a_quarrel_of_two_readers(second: bytes) -> None:
    for values in ([b"Bearer key-one", second], [second, b"Bearer key-one"]):
        with pytest.raises(BadFraming) as caught:
            await ask(*values)
        assert "key-" not in caught.value.message


class Spy(dict):
    """A table that keeps what it is asked for."""

    def __init__(self, *entries: Any) -> None:
        super().__init__(*entries)
        self.asked: list[bytes] = []

    def __contains__(self, key: Any) -> bool:
        self.asked.append(key)
        return super().__contains__(key)


@pytest.mark.parametrize("key", [b"key-one", b"key-onf", b"", b"x" * 20_000])
async def test_c11_keys_are_compared_by_digest_and_in_constant_time(
    key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the table nor any comparison sees a key, so how much of it is right shows in no time."""
    compared: list[Any] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    digest = hashlib.sha256(b"key-one").digest()
    keys = Spy({digest: (Caller("research", lambda model: True), "id")})
    monkeypatch.setattr(hmac, "compare_digest", compare)
    found = exchange([(b"authorization", b"Bearer " + key)])
    with nullcontext() if key == b"key-one" else pytest.raises(InvalidApiKey):
        await call(auth.Auth(ok, keys), exchange=found)
    sent = hashlib.sha256(key).digest()
    assert keys.asked == [sent]
    assert compared == [(digest if key == b"key-one" else bytes(32), sent)]


async def test_the_allow_list() -> None:
    found = await ask(b"Bearer key-one")
    assert found.team
    allowed = {
        name
        for name in ("mistral-small", "codestral-latest", "codestral-2508", "xmistral-a")
        if found.team.allows(name)
    }
    assert allowed == {"mistral-small", "codestral-latest"}


async def test_without_a_list_everything_is_allowed() -> None:
    found = await ask(b"Bearer key-three")
    assert found.team
    assert found.team.allows("anything")


@pytest.mark.parametrize("bad", ["plain-text-key", "sha256:", "sha256:" + "g" * 64, "sha256:" + "A" * 64])
def test_a_key_is_never_written_out(bad: str) -> None:
    with pytest.raises(ValidationError):
        auth.Team(keys=[bad])  # type: ignore[list-item]


def test_only_the_star_is_special() -> None:
    assert not auth.allow_list(["mistral-smal[l]-*", "mistral-smal?"])("mistral-small")
