"""No secret comes out anywhere but where it may."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.canary import run
from tests.canary.table import Sink
from tests.canary.traffic import CI_COUNT, CI_SEED

ONLY_SHARED = {Sink.CACHE, Sink.REDIS}


@pytest.mark.parametrize(("shared", "format"), [(False, "console"), (True, "json")], ids=["alone", "shared"])
async def test_c8_c9_c10_c24_no_canary_is_where_it_must_not_be(tmp_path: Path, shared: bool, format: str) -> None:
    outcome = await run.run(tmp_path, CI_SEED, CI_COUNT, shared=shared, format=format)
    assert not outcome.sightings, "\n".join(map(str, outcome.sightings))
    assert sum(outcome.statuses.values()) == CI_COUNT
    assert outcome.statuses[200] > CI_COUNT // 10
    assert outcome.statuses[500] > CI_COUNT // 100
    silent = set(Sink) - {sink for sink, size in outcome.heard.items() if size}
    assert silent == (set() if shared else ONLY_SHARED)
