from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
from pydantic import ValidationError

from proxy import data
from proxy.core import team_key
from proxy.core.catalogue import Catalogue
from proxy.core.errors import (
    BadFraming,
    InvalidApiKey,
    ProxyError,
    StoreUnavailable,
    TooManyAuthFailures,
    render,
)
from proxy.core.exchange import Exchange
from proxy.core.exchange import Team as Caller
from proxy.core.failures import Failures
from proxy.core.quota import StoreGone
from proxy.core.secret import Secret
from proxy.stages import auth
from tests.asgi import call, exchange, ok, services

CATALOGUE = Catalogue(data.read("models.yaml"), providers=("mistral", "openai"))
CONFIG = auth.Config(
    teams={
        "research": auth.Team(keys=[Secret("key-one"), Secret("key-two")], models=["mistral-*", "codestral-latest"]),  # type: ignore[list-item]
        "support": auth.Team(keys=["sha256:" + hashlib.sha256(b"key-three").hexdigest()], log_content=True),  # type: ignore[list-item]
    },
    characters=lambda said: 40 if said else 0,
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
    assert found.team.log_content == (40 if team == "support" else 0)
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
        await call(auth.Auth(ok, auth.Keys(keys, {}, None), Failures(), lambda: 0.0), exchange=found)
    sent = hashlib.sha256(key).digest()
    assert keys.asked == [sent]
    assert compared == [(digest if key == b"key-one" else bytes(32), sent)]


# Issued keys.

ISSUED = team_key.mint().reveal().encode()
OF_NO_TEAM = team_key.mint().reveal().encode()


class Issued:
    """The keys that were issued, without a database; `asked` is what was looked up."""

    def __init__(self, known: dict[bytes, tuple[str, str]] | None = None) -> None:
        self.known = known
        self.asked: list[bytes] = []

    def ids(self, team: str) -> list[str]:
        raise NotImplementedError

    def lookup(self, token: bytes) -> tuple[str, str] | None:
        self.asked.append(token)
        if self.known is None:
            raise StoreGone
        return self.known.get(token)


KNOWN = {ISSUED: ("support", "key_aaaaaaaa"), OF_NO_TEAM: ("closed", "key_bbbbbbbb")}


CATALOGUE = Catalogue(data.read("models.yaml"), providers=("mistral", "openai"))


def stage(
    issued: Issued | None = None, failures: Failures | None = None, now: Callable[[], float] = lambda: 0.0
) -> Any:
    config = auth.Config(CONFIG.teams, issued, failures or Failures(), CONFIG.characters)
    return auth.build(config, None, services(monotonic=now))(ok)  # type: ignore[arg-type]


async def sent(stage: Any, token: bytes | None, client: str = "192.0.2.7") -> Exchange:
    headers = [] if token is None else [(b"authorization", b"Bearer " + token)]
    found = exchange(headers, client=client)
    await call(stage, exchange=found)
    return found


async def refusal(stage: Any, token: bytes | None, client: str = "192.0.2.7") -> ProxyError:
    with pytest.raises(ProxyError) as caught:
        await sent(stage, token, client)
    return caught.value


async def test_an_issued_key_leads_to_its_team() -> None:
    found = await sent(stage(Issued(KNOWN)), ISSUED)
    assert found.team
    assert (found.team.name, found.team.log_content, found.key_id) == ("support", 40, "key_aaaaaaaa")


async def test_a_key_of_the_configuration_needs_nobody_else() -> None:
    issued = Issued(None)
    found = await sent(stage(issued), b"key-one")
    assert found.team
    assert found.team.name == "research"
    assert issued.asked == []


async def test_c12_whatever_is_wrong_with_a_key_the_answer_is_the_same_in_every_byte() -> None:
    issued = Issued(KNOWN)
    unknown = team_key.mint().reveal().encode()
    wrong = [unknown, OF_NO_TEAM, ISSUED[:-1], ISSUED + b"0", ISSUED.swapcase(), b"key-on", b"sk-mp-", b"", None]
    errors = [await refusal(stage(issued), token) for token in wrong]
    assert {(error.status, render(error), tuple(error.headers)) for error in errors} == {
        (401, render(errors[0]), ((b"www-authenticate", b"Bearer"),))
    }
    assert issued.asked == [token or b"" for token in wrong]  # each was worth the same look


async def test_c12_where_no_key_was_ever_issued_the_answer_is_no_other() -> None:
    one, other = await refusal(stage(None), ISSUED), await refusal(stage(Issued({})), ISSUED)
    assert (render(one), one.headers) == (render(other), other.headers)


async def test_when_nobody_knows_which_keys_there_are_no_key_is_called_wrong() -> None:
    failures = Failures()
    gone = stage(Issued(None), failures)
    error = await refusal(gone, ISSUED)
    assert isinstance(error, StoreUnavailable)
    assert (error.status, error.code) == (503, "store_unavailable")
    assert (b"retry-after", b"1") in error.headers
    assert failures.addresses == 0


async def test_no_error_has_the_key_in_it() -> None:
    failures = Failures()
    for issued in (Issued({}), Issued(None)):
        for _ in range(22):
            error = await refusal(stage(issued, failures), ISSUED)
            assert ISSUED[:12] not in render(error) + repr(error).encode()


# Brute force.


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_c13_after_twenty_wrong_keys_within_a_minute_an_address_is_told_to_wait_ever_longer() -> None:
    clock = Clock()
    barred = stage(Issued(KNOWN), now=clock)
    for n in range(20):
        assert (await refusal(barred, b"wrong-%d" % n)).status == 401
    for wait in (60, 120, 240, 480, 900, 900):
        error = await refusal(barred, b"wrong")
        assert isinstance(error, TooManyAuthFailures)
        assert (error.status, error.type, error.code) == (429, "rate_limit_error", "too_many_auth_failures")
        assert (b"retry-after", b"%d" % wait) in error.headers
        assert f"wait {wait} seconds" in error.message
    clock.now = 900.0
    assert (await refusal(barred, b"wrong")).status == 401


async def test_c13_a_neighbour_with_a_key_is_never_held_up_and_helps_nobody() -> None:
    """They share an address. A right key passes whatever was counted, and forgives nothing."""
    barred = stage(Issued(KNOWN))
    for n in range(1000):
        error = await refusal(barred, b"wrong")
        assert error.status == (401 if n < 20 else 429)
        for key in (ISSUED, b"key-one"):
            assert (await sent(barred, key)).team
    assert (await refusal(barred, b"wrong")).status == 429


async def test_c13_nobody_is_held_up_by_the_keys_of_others() -> None:
    """Guessing at a team locks out only who guesses: nothing is counted for the team."""
    barred = stage(Issued(KNOWN))
    for _ in range(30):
        await refusal(barred, OF_NO_TEAM)
    assert (await refusal(barred, OF_NO_TEAM)).status == 429
    assert (await refusal(barred, OF_NO_TEAM, "192.0.2.8")).status == 401
    assert (await sent(barred, ISSUED, "192.0.2.8")).team


async def test_c13_whoever_sends_no_key_guesses_none() -> None:
    failures = Failures()
    for token in (None, b"", b" "):
        for _ in range(30):
            assert (await refusal(stage(None, failures), token)).status == 401
    assert failures.addresses == 0


async def test_c13_all_endpoints_and_all_configurations_count_together() -> None:
    failures = Failures()
    for _ in range(20):
        assert (await refusal(stage(None, failures), b"wrong")).status == 401
    assert (await refusal(stage(Issued(KNOWN), failures), b"wrong")).status == 429


def test_an_issued_key_is_no_key_of_a_file() -> None:
    """It would be known twice, and revoking it would end it once."""
    with pytest.raises(ValidationError, match="could not be revoked") as caught:
        auth.Team(keys=[Secret(ISSUED.decode())])  # type: ignore[list-item]
    assert ISSUED.decode() not in str(caught.value)
    auth.Team(keys=[Secret(ISSUED.decode()[:-1])])  # type: ignore[list-item]


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
    assert not auth.allow_list(["mistral-smal[l]-*", "mistral-smal?"], None, CATALOGUE)("mistral-small")


def test_a_pinned_team_goes_nowhere_else() -> None:
    allows = auth.allow_list(["*-large*", "gpt-*", "openai/*"], ["mistral"], CATALOGUE)
    assert allows("mistral-large-latest")
    assert not allows("openai/gpt-4o")
    assert not allows("openai/my-large-one")
    assert not allows("other/my-large-one")
    assert not allows("mistral-small-latest")


def test_whether_any_team_has_its_content_logged() -> None:
    assert CONFIG.log_content
    assert not auth.Config({"research": CONFIG.teams["research"]}, characters=CONFIG.characters).log_content
    assert not auth.Config(CONFIG.teams).log_content
