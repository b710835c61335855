"""docs/cache.md names what an ACL for Redis must allow, and no more."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.core.cache import Role, Verified
from proxy.core.quota import Claim
from tests.redis_server import RedisServer, eventually
from tests.store.cache_redis_parts import KEY, entry_of, followed, found, keep, led
from tests.store.cache_redis_parts import opened as opened_cache
from tests.store.redis_parts import MINUTE, MONTH, SLOTS, grant
from tests.store.redis_parts import opened as opened_quotas

ROOT = Path(__file__).parents[2]
PARAGRAPH = next(
    one for one in (ROOT / "docs" / "cache.md").read_text("utf-8").split("\n\n") if one.startswith("An ACL")
)
NAMED = re.findall(r"`([A-Z]+)`", PARAGRAPH)
USER, PASSWORD = "proxy", "a-password-for-this-user-alone"
OF_THE_WIRE = {"PING", "EVAL", "EVALSHA", "GET", "SCAN", "HSCAN", "PUBLISH", "SUBSCRIBE", "INFO", "SCRIPT"}
"""What is asked by no script."""


@pytest.fixture
def server() -> Iterator[RedisServer]:
    server = RedisServer()
    server.command(
        *("ACL", "SETUSER", USER, "reset", "on", f">{PASSWORD}", "~mistral-proxy:*"),
        *("resetchannels", "&mistral-proxy:{cache}:*"),
        *(f"+{name.lower()}" for name in NAMED),
    )
    yield server
    server.stop()


def test_it_is_what_the_scripts_call() -> None:
    scripts = "".join(path.read_text() for path in (ROOT / "proxy" / "store").rglob("*.lua"))
    assert sorted(NAMED) == sorted({*re.findall(r"redis\.p?call\('([A-Z]+)'", scripts), *OF_THE_WIRE})


async def test_it_is_enough(server: RedisServer) -> None:
    url, entry = server.url_for(PASSWORD, USER), entry_of(b"an answer")
    claims = [Claim(MINUTE, 100, 10), Claim(MONTH, 1000, 300), Claim(SLOTS, 2, 1)]
    async with opened_quotas(url) as quotas:
        await grant(quotas, "w1-1", claims)
        quotas.settle("w1-1", claims, [4, 250, 0])
        assert await quotas.drain(5)
    async with opened_cache(url, "w1") as one, opened_cache(url, "w2") as two:
        lead, flight = await led(one), await followed(two)
        with flight.follow():
            await eventually(lambda: lead.followers, "it is followed")
            lead.finish(entry, 0)
            await keep(one, KEY, entry, lead)
            await eventually(lambda: flight.done, "the other one has it, too")
        await keep(one, KEY, entry)
        assert await found(two, KEY) == entry
        assert (await two.would_find(KEY, 0)).role is Role.DONE
        assert ((await two.stats("red")).entries, (await two.stats(None)).entries) == (1, 1)
        assert await two.verify() == Verified(1, 0)
        assert await two.delete("red") == 1
        await keep(one, KEY, entry)
        assert await two.delete(None) == 1
