"""The stage alone: how an admin's key is compared."""

from __future__ import annotations

import hashlib
import hmac
from contextlib import nullcontext
from typing import Any

import pytest

from proxy.core.errors import InvalidApiKey
from proxy.core.failures import Failures
from proxy.stages import admin
from tests.asgi import call, exchange, ok
from tests.stages.test_auth import Spy


@pytest.mark.parametrize("key", [b"key-one", b"key-onf", b"", b"x" * 20_000])
async def test_c11_an_admins_key_is_compared_as_a_teams_is(key: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[Any] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    digest = hashlib.sha256(b"key-one").digest()
    ids = Spy({digest: "id"})
    monkeypatch.setattr(hmac, "compare_digest", compare)
    found = exchange([(b"authorization", b"Bearer " + key)])
    with nullcontext() if key == b"key-one" else pytest.raises(InvalidApiKey):
        await call(admin.Admin(ok, ids, False, Failures(), lambda: 0.0), exchange=found)
    sent = hashlib.sha256(key).digest()
    assert ids.asked == [sent]
    assert compared == [(digest if key == b"key-one" else bytes(32), sent)]
    assert (found.team, found.key_id) == (None, "id" if key == b"key-one" else None)
