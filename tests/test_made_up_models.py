"""Clients make up as many names of models as they like: they are one series, and nothing is kept of them.

`MADE_UP_MODELS=100000 scripts/test tests/test_made_up_models.py` takes a minute.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import psutil

from proxy import data
from proxy.core.access import AccessKey
from proxy.core.catalogue import Catalogue
from proxy.core.charge import Charge
from proxy.core.exchange import Failed, exchange_of
from proxy.core.metrics.board import Board
from proxy.core.metrics.page import page
from proxy.core.records import Records
from proxy.pipeline import fold, inner, outer
from proxy.providers.mistral.chat import CHAT
from proxy.routes import Health, router
from proxy.stages import auth
from tests.asgi import call, ok, services
from tests.core.metrics.reading import read
from tests.test_pipeline import GOOD, KEY, configs

NAMES = int(os.environ.get("MADE_UP_MODELS", "10000"))
WARM = 2_000
MOST_GROWTH = 2 << 20
"""Bytes. Half a kilobyte of each name would be more."""


def made_up(dice: random.Random) -> str:
    """As a client might: short, long, of another provider, of a fine-tune, of letters from everywhere, of none."""
    text = "".join(dice.choices("abcdefghij-0123456789._:é漢", k=dice.randrange(1, 80)))
    return dice.choice(("{}", "mistral-{}", "openai-{}/x", "{}/y", "mistral/{}", "ft:mistral-small-latest:{}")).format(
        text
    )


class Unheard:
    """A log that keeps nothing."""

    def __call__(self, level: str, event: str, **fields: Any) -> None:
        """Nothing."""

    def ready(self, level: str, event: str, fields: bytes) -> None:
        """Nothing."""


async def answering(scope: Any, receive: Any, send: Any) -> None:
    """What a call comes to, with all that can be said of it."""
    found = exchange_of(scope)
    found.attempts, found.upstream = 2, f"{found.provider}/{found.sent_as}"
    found.in_vain = (Failed(found.provider, 1, "upstream_timeout"),)
    found.charge = Charge(prompt=1, completion=1, cost=1)
    await ok(scope, receive, send)


async def test_made_up_models_are_one_series_and_no_memory() -> None:
    board, dice = Board(), random.Random(7)
    made = replace(services(catalogue=Catalogue(data.read("models.yaml")), part=board.parts[0]), log=Unheard())
    made = replace(made, ring=Records(size=1 << 20).rings[0])  # full before anything is measured
    keys = [AccessKey(hashlib.sha256(KEY.encode()).digest())]
    config = replace(configs(max_body=10_000), auth=auth.Config(teams={"research": auth.Team(keys=keys)}))
    health = Health(configured=True, draining=lambda: False)
    app = fold(outer(config, made), router([(CHAT, inner(config, CHAT, made, answering))], health, ok))
    statuses: Counter[int] = Counter()

    async def ask(name: str) -> None:
        body = json.dumps({"model": name, "messages": [{"role": "user", "content": "x"}]}).encode()
        answer = await call(
            app, headers=[*GOOD, (b"host", b"localhost")], body=[body], stays=True, query_string=b"", root_path=""
        )
        statuses[answer.status] += 1

    def used() -> int:
        gc.collect()
        rss: int = psutil.Process().memory_info().rss
        return rss

    await ask("mistral-small-latest")
    before, series = Counter(one.name for one, *_ in board.parts[0].series()), 0
    memory = 0
    for number in range(1, WARM + NAMES + 1):
        await ask(made_up(dice))
        if number == WARM:
            memory, series = used(), len(board.parts[0].series())
    assert len(board.parts[0].series()) == series
    assert used() - memory < MOST_GROWTH
    assert statuses.keys() >= {200, 400, 404}
    # A series of a known model, and one of all others; by status and error besides.
    after = read(await page(board, 0))
    models = {sample.labels["model"] for one in after.values() for sample in one.samples if "model" in sample.labels}
    assert models == {"", "other", made.catalogue.model("mistral-small-latest").id}
    labels = {text for one in after.values() for sample in one.samples for text in sample.labels.values()}
    assert len(labels) < 60
    assert before["mistral_tokens_total"] == 2
    assert len(after["mistral_tokens_total"].samples) == 4
